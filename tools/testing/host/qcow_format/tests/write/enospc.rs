// SPDX-License-Identifier: GPL-2.0

//! A store that fails, at every place where it can: the image stays sound, and the same can be done
//! again when there is room.

use loop_parser::contract::{Discard, Error};
use testkit::store::Failure;

use crate::{
    checker,
    guest::Guest,
    image::{has_qemu, pattern, Base, Image, Spec},
};

/// What the guest does: a write, a discard, a write, a detach.
fn work(guest: &mut Guest) -> loop_parser::contract::Result {
    let cluster = u64::from(guest.disk.unit as u32);
    let size = guest.disk.size;
    let write = |guest: &mut Guest, pos: u64, len: u64| {
        let first = pos / 512;
        let bytes: Vec<u8> = (first..first + len / 512)
            .flat_map(|it| pattern(it, 4))
            .collect();
        guest.write(pos, &bytes)
    };
    write(guest, 512, 5 * cluster)?;
    guest.discard(2 * cluster, 8 * cluster, Discard::Forget)?;
    guest.give_back()?;
    write(guest, 7 * cluster + 512, 2 * cluster)?;
    write(guest, size - 512, 512)?;
    guest.close()
}

/// Lets every store of the work fail in turn.
fn fail_everywhere(image: &Image) {
    let name = image.spec.name();
    let mut clean = Guest::new(image, 1);
    work(&mut clean).unwrap();
    let expected = clean.read(0, clean.disk.size).unwrap();

    for failure in Failure::ALL.into_iter().chain([Failure::Torn]) {
        for number in 0.. {
            let mut guest = Guest::new(image, 1);
            guest.store.fail_after(number, failure);
            let result = work(&mut guest);
            if guest.store.is_failure_due() {
                assert_eq!(result, Ok(()));
                break;
            }
            guest.store.never_fail();
            let what = format!("{name}: {failure:?} of store {number}");
            let report = checker::check(&guest.store);
            assert_eq!(report.errors, [""; 0], "{what}");
            work(&mut guest).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let disk = checker::read(&guest.store, &image.base, &image.compressed);
            assert!(disk == expected, "{what}: content");
            let report = checker::check(&guest.store);
            assert_eq!(report.errors, [""; 0], "{what}");
            // What a failed `reclaim` has not dealt with is lost.
            let may_leak = guest.has_lost || matches!(failure, Failure::Torn | Failure::Half);
            assert!(
                report.leaks == 0 || may_leak,
                "{what}: {} leaks",
                report.leaks
            );
        }
    }
}

#[test]
fn every_store_can_fail() {
    if !has_qemu() {
        return;
    }
    let specs = [
        Spec::new(512),
        Spec::new(512).with(|it| it.order = 6),
        Spec::new(512).with(|it| it.order = 0),
        Spec::new(4096).with(|it| it.is_filled = false),
        Spec::new(4096).with(|it| it.version = 2),
        Spec::new(4096).with(|it| it.base = Base::Raw(100)),
        Spec::new(4096).with(|it| it.snapshots = 1),
        Spec::new(512).with(|it| {
            it.snapshots = 1;
            it.is_compressed = true;
        }),
        Spec::new(1 << 14).with(|it| {
            it.is_extended = true;
            it.base = Base::Raw(100);
        }),
    ];
    for spec in specs {
        fail_everywhere(&spec.build());
    }
}

/// A full file system: what the guest frees can be used again, be it a single cluster, and nobody looks
/// through the whole file for what is not there.
#[test]
fn freed_clusters_of_a_full_file() {
    if !has_qemu() {
        return;
    }
    let image = Spec::new(512)
        .with(|it| {
            it.order = 6;
            it.sectors = 12_000;
            it.is_filled = false;
        })
        .build();
    let mut guest = Guest::new(&image, 1);
    let mut pos = 8000 * 512;
    guest.write(0, &vec![1; pos as usize]).unwrap();
    // There is room for what is in the file, and the file cannot grow.
    let bytes = guest.store.to_vec();
    guest.store.put(0, &bytes);
    guest.store.set_capacity(Some(guest.store.sectors().len()));
    while guest.write(pos, &[1; 512]).is_ok() {
        pos += 512;
    }
    let no_room = Err(Error::Store(-28));
    for _ in 0..3 {
        assert_eq!(guest.write(pos, &[1; 512]), no_room);
    }
    for round in 0..200 {
        let at = round * 1024;
        guest.discard(at, 512, Discard::Forget).unwrap();
        guest.give_back().unwrap();
        let loads = guest.store.loads();
        assert_eq!(guest.write(at, &[2; 512]), Ok(()), "round {round}");
        assert_eq!(guest.write(pos, &[1; 512]), no_room, "round {round}");
        let loads = guest.store.loads() - loads;
        // All counts are 600 loads.
        assert!(loads < 200, "round {round}: {loads} loads");
    }
}
