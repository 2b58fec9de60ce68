// SPDX-License-Identifier: GPL-2.0

//! Streams without an end that are long: what a look-up costs, and where it ends.

use std::cell::Cell;

use loop_parser::contract::{AttachRequest, Error, Extent, Map, Result, State, Tables};

use crate::{
    attach, class,
    image::{Form, Spec},
    Class,
};

/// A stream of so many grains of a sector each, every second one of the disk, without its end.
/// Nothing of it is in memory.
struct Endless {
    grains: u64,
    /// Sectors of the directory behind them, of zeros; with one, something else follows.
    directory: Option<u64>,
    header: Vec<u8>,
    loads: Cell<u64>,
}

impl Endless {
    fn new(grains: u64) -> Self {
        let spec = Spec::new(Form::Footer, 64).with(|it| {
            it.grain = 1;
            it.text = String::new();
        });
        let mut header = spec.build().store.get(0, 512);
        header[12..20].copy_from_slice(&(2 * grains + 10).to_le_bytes());
        Self {
            grains,
            directory: None,
            header,
            loads: Cell::new(0),
        }
    }
}

impl Endless {
    fn with_directory(mut self) -> Self {
        let per_table = u64::from(u32::from_le_bytes(self.header[44..48].try_into().unwrap()));
        let tables = (2 * self.grains + 10).div_ceil(per_table);
        self.directory = Some((tables * 4).div_ceil(512));
        self
    }
}

impl Tables for Endless {
    fn size(&self) -> Result<u64> {
        let behind = self.directory.map_or(0, |sectors| 1 + sectors + 8);
        Ok((1 + self.grains + behind) * 512)
    }

    fn load(&self, offset: u64, buf: &mut [u8]) -> Result {
        self.loads.set(self.loads.get() + 1);
        if offset + buf.len() as u64 > self.size()? {
            return Err(Error::Store(-5));
        }
        for (at, byte) in (offset..).zip(buf) {
            let within = (at % 512) as usize;
            let sector = at / 512;
            let lba = (sector.saturating_sub(1) * 2).to_le_bytes();
            *byte = match (sector, within) {
                (0, _) => self.header[within],
                // The marker.
                (_, 0..8) if sector == self.grains + 1 => {
                    self.directory.unwrap().to_le_bytes()[within]
                }
                (_, 12) if sector == self.grains + 1 => 2,
                _ if sector > self.grains => 0,
                (_, 0..8) => lba[within],
                (_, 8) => 20,
                _ => 0,
            };
        }
        Ok(())
    }
}

#[test]
fn lookups_are_bounded() {
    for grains in [1, 31, 32, 33, 1000, 100_000] {
        let stream = Endless::new(grains);
        let attached = attach(&stream, &AttachRequest::default()).unwrap();
        assert_eq!(attached.disk.state, State::Recovered);
        assert!(stream.loads.get() <= grains + 50);
        let mut most = 0;
        let step = (grains / 997).max(1);
        // Backwards, so that what was read last is of no help.
        for number in (0..grains).rev().step_by(step as usize) {
            let before = stream.loads.get();
            let extent = attached.map.resolve_read(&stream, number * 1024, 512);
            let Ok(Extent::Compressed(unit)) = extent else {
                panic!("{extent:?}");
            };
            assert_eq!(unit.offset, 512 + number * 512 + 12);
            most = most.max(stream.loads.get() - before);
            if number + 1 < grains {
                let hole = attached
                    .map
                    .resolve_read(&stream, number * 1024 + 512, 1024);
                assert_eq!(hole, Ok(Extent::Zero { len: 512 }));
            }
        }
        // A sixteenth of them, a binary search, and the grain that was read last.
        assert!(most <= grains / 16 + 12, "{grains}: {most}");
        let behind = attached.map.resolve_read(&stream, grains * 1024, 512);
        assert_eq!(behind.map_err(class), Err(Class::Malformed));
    }
}

#[test]
fn sequential_reads_are_cheap() {
    let grains = 100_000;
    let stream = Endless::new(grains);
    let attached = attach(&stream, &AttachRequest::default()).unwrap();
    let before = stream.loads.get();
    for number in 0..grains {
        let pos = number * 1024;
        attached.map.resolve_read(&stream, pos, 512).unwrap();
    }
    let loads = stream.loads.get() - before;
    assert!(loads <= grains * 10, "{loads}");
}

#[test]
fn too_long_is_refused() {
    for (grains, is_refused) in [(1 << 19, false), ((1 << 19) + 1, true)] {
        let stream = Endless::new(grains);
        let result = attach(&stream, &AttachRequest::default()).map(|_| ());
        assert_eq!(result.is_err(), is_refused);
        if let Err(error) = result {
            assert_eq!(class(error), Class::Unsupported);
        }
        assert!(stream.loads.get() < grains + 100);
    }
}

/// Something was put behind the end of a stream: however many grains it has, nothing is missing.
#[test]
fn directory_behind_many_grains() {
    for grains in [1000, (1 << 19) + 1, 1 << 20] {
        let stream = Endless::new(grains).with_directory();
        let attached = attach(&stream, &AttachRequest::default()).unwrap();
        assert!(attached.warning.is_some());
        // No table is there: by the grains, there would be one.
        let extent = attached.map.resolve_read(&stream, 0, 512);
        assert_eq!(extent, Ok(Extent::Zero { len: 512 }));
        assert!(stream.loads.get() < grains + 200);
    }
}
