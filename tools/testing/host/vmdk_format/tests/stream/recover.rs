// SPDX-License-Identifier: GPL-2.0

//! Streams whose end is missing.

use loop_parser::contract::{Extent, Part, State};
use testkit::{device::Device, rng::Rng, store::Store};

use crate::{
    class,
    image::{Fill, Form, Image, Spec},
    open, open_with, Class,
};

/// 200 grains of a disk of 2003, in groups.
fn image() -> Image {
    let mut rng = Rng::new(3);
    let mut spec = Spec::new(Form::Footer, 8 * 2003 - 5);
    for _ in 0..40 {
        let first = rng.below(2003);
        for number in first..(first + 5).min(2003) {
            let fill = [Fill::Text, Fill::Random][rng.below(2) as usize];
            spec.grains.insert(number, fill);
        }
    }
    spec.build()
}

fn recovered(store: &Store) -> Device {
    let (device, warning) = open_with(store, None).unwrap();
    assert!(warning.is_some());
    assert_eq!(device.disk.state, State::Recovered);
    device
}

/// Reads a grain of the image that was whole.
fn compare(device: &Device, whole: &Image, number: u64, is_there: bool) {
    let start = number * 4096;
    let len = (device.disk.size - start).min(4096);
    match device.read(start, len) {
        Ok(bytes) => assert!(
            is_there && bytes[..] == whole.disk[start as usize..][..len as usize],
            "{number}"
        ),
        Err(error) => {
            assert!(!is_there, "{number}: {error:?}");
            assert_eq!(class(error), Class::Malformed);
        }
    }
}

/// The first grain that is not known when the stream is cut at `len`.
fn known(whole: &Image, len: u64) -> u64 {
    let is_there = |at: u64| {
        let size = u32::from_le_bytes(whole.store.get_array(at + 8));
        at + 12 + u64::from(size) <= len
    };
    let last = whole.places.iter().filter(|(_, place)| is_there(place.0));
    last.map(|(number, _)| number + 1).max().unwrap_or(0)
}

#[test]
fn a_stream_that_breaks_off() {
    let whole = image();
    let directory = whole.directory;
    let mut rng = Rng::new(1);
    let mut cuts: Vec<u64> = (0..300)
        .map(|_| 1024 + rng.below(directory - 1024))
        .collect();
    cuts.extend([1024, 1025, directory - 512, directory - 1, directory]);
    for len in cuts {
        let mut store = whole.store.clone();
        store.put_size(len);
        let device = recovered(&store);
        let known = known(&whole, len);
        let mut numbers: Vec<u64> = (0..2003).collect();
        // From front to end, and in any order.
        for number in numbers.iter().step_by(7) {
            compare(&device, &whole, *number, *number < known);
        }
        rng.shuffle(&mut numbers);
        for number in &numbers[..200] {
            compare(&device, &whole, *number, *number < known);
        }
    }
}

#[test]
fn holes_reach_to_the_next_grain() {
    let whole = image();
    let mut store = whole.store.clone();
    store.put_size(whole.directory - 512);
    for has_parent in [false, true] {
        let part = Part {
            len: 512,
            has_parent,
        };
        let (device, _) = open_with(&store, Some(part)).unwrap();
        for number in (0..2000).filter(|number| !whole.places.contains_key(number)) {
            let Some((next, _)) = whole.places.range(number..).next() else {
                continue;
            };
            let pos = number * 4096 + 512;
            let len = next * 4096 - pos;
            let expected = match has_parent {
                true => Extent::Parent { len },
                false => Extent::Zero { len },
            };
            assert_eq!(
                device.resolve_read(pos, device.disk.size - pos),
                Ok(expected)
            );
            let short = device.resolve_read(pos, 512).unwrap();
            assert!(matches!(
                short,
                Extent::Zero { len: 512 } | Extent::Parent { len: 512 }
            ));
        }
    }
}

/// Only what comes behind the directory is missing, or something else follows it.
#[test]
fn a_directory_without_a_footer() {
    let whole = image();
    let tail = whole.store.len();
    let directory_end = whole.directory + 2003u64.div_ceil(16) * 4;
    for len in [
        directory_end,
        tail - 1536,
        tail - 1024,
        tail - 1,
        tail + 1,
        tail + 4096,
    ] {
        let mut store = whole.store.clone();
        store.put_size(len);
        let device = recovered(&store);
        assert!(
            device.read(0, device.disk.size).unwrap() == whole.disk,
            "{len}"
        );
    }
    // Any of the three is damaged.
    for at in [
        tail - 1536 + 8,
        tail - 1536 + 12,
        tail - 1024,
        tail - 512 + 8,
        tail - 512 + 12,
    ] {
        let mut store = whole.store.clone();
        store.put(at, &[9]);
        let device = recovered(&store);
        assert!(
            device.read(0, device.disk.size).unwrap() == whole.disk,
            "{at}"
        );
    }
}

/// The file has its length, but not its bytes: none of what is missing reads as zero.
#[test]
fn a_tail_of_zeros() {
    let whole = image();
    let mut rng = Rng::new(2);
    for _ in 0..100 {
        let len = 1024 + rng.below(whole.directory - 1024);
        let mut store = whole.store.clone();
        store.put_size(len);
        store.put_size(whole.store.len());
        let device = recovered(&store);
        let known = known(&whole, len);
        for number in 0..2003 {
            // Of a grain that is there in part, zeros may be what it ends in.
            if number >= known && device.read(number * 4096, 512).is_ok() {
                compare(&device, &whole, number, true);
                assert!(whole
                    .places
                    .range(known..)
                    .next()
                    .is_some_and(|it| number <= *it.0));
                continue;
            }
            compare(&device, &whole, number, number < known);
        }
    }
}

#[test]
fn grains_have_to_be_in_order() {
    let whole = image();
    let numbers: Vec<u64> = whole.places.keys().copied().collect();
    for (index, lba) in [
        (20, numbers[19]),
        (20, numbers[18]),
        (1, numbers[0]),
        (30, 0),
    ] {
        let mut store = whole.store.clone();
        store.put_size(whole.directory - 512);
        let at = whole.places[&numbers[index]].0;
        store.put(at, &(lba * 8).to_le_bytes());
        let error = open(&store).map(|_| ()).unwrap_err();
        assert_eq!(class(error), Class::Malformed);
    }
    // As long as there is a directory, it does not matter.
    let mut store = whole.store.clone();
    store.put(whole.places[&numbers[20]].0, &[0; 8]);
    assert!(open(&store).is_ok());
}

#[test]
fn what_is_no_grain_and_no_marker() {
    let whole = image();
    let place = *whole.places.values().nth(50).unwrap();
    let try_with = |at: u64, bytes: &[u8]| {
        let mut store = whole.store.clone();
        store.put_size(whole.directory - 512);
        store.put(at, bytes);
        open_with(&store, None).map(|_| ()).map_err(class)
    };
    // Of no place on the disk.
    for lba in [1u64, 8 * 2003, u64::MAX] {
        assert_eq!(try_with(place.0, &lba.to_le_bytes()), Err(Class::Malformed));
    }
    // Larger than any grain.
    let large = try_with(place.0 + 8, &[0xff; 4]);
    assert_eq!(large, Err(Class::Malformed));
    // A marker of a type that is not known.
    let unknown = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0];
    assert_eq!(try_with(place.0, &unknown), Err(Class::Malformed));
    // One that goes past the end, or past all ends.
    for sectors in [1u64 << 20, u64::MAX >> 9, u64::MAX] {
        let mut marker = [0; 16];
        marker[..8].copy_from_slice(&sectors.to_le_bytes());
        marker[12] = 4;
        let result = try_with(place.0, &marker);
        assert!(matches!(result, Ok(()) | Err(Class::Malformed)));
    }
}

#[test]
fn markers_between_grains() {
    let spec = Spec::new(Form::Footer, 800)
        .with_grains(&[(3, Fill::Text), (20, Fill::Text), (90, Fill::Random)])
        .with(|it| it.extra = Some(4));
    let whole = spec.build();
    let mut store = whole.store.clone();
    store.put_size(whole.directory - 512);
    let device = recovered(&store);
    for number in 0..91 {
        compare(&device, &whole, number, true);
    }
    // That many are none between grains.
    let at = whole.places[&20].0;
    let mut store = whole.store.clone();
    let tail = store.get(at, (whole.store.len() - at) as usize);
    store.put_size(at);
    for marker in 0..9 {
        let mut bytes = [0; 512];
        bytes[12] = 4;
        store.put(at + marker * 512, &bytes);
    }
    store.put(at + 9 * 512, &tail);
    store.put_size(whole.directory + 9 * 512 - 512);
    let error = open_with(&store, None).map(|_| ()).unwrap_err();
    assert_eq!(class(error), Class::Unsupported);
}

/// Zero grains are in the tables only: with a parent, nothing says what is one.
#[test]
fn zero_grains_are_lost() {
    let whole = Spec::new(Form::Footer, 800)
        .with_grains(&[(3, Fill::Text), (20, Fill::Zero), (90, Fill::Random)])
        .with(|it| it.has_zero_grains = true)
        .build();
    let mut store = whole.store.clone();
    store.put_size(whole.directory - 512);
    for (has_parent, is_refused) in [(false, false), (true, true)] {
        let part = Part {
            len: 512,
            has_parent,
        };
        let result = open_with(&store, Some(part)).map(|_| ());
        assert_eq!(result.is_err(), is_refused);
        if let Err(error) = result {
            assert_eq!(class(error), Class::Malformed);
        }
    }
}

#[test]
fn grains_begin_behind_the_headers() {
    let whole = image();
    for overhead in [0u64, 1] {
        let mut store = whole.store.clone();
        store.put_size(whole.directory - 512);
        store.put(64, &overhead.to_le_bytes());
        let error = open_with(&store, None).map(|_| ()).unwrap_err();
        assert_eq!(class(error), Class::Malformed);
    }
}

/// The stream is another one behind the back of the driver.
#[test]
fn a_stream_that_changes() {
    let whole = image();
    let mut store = whole.store.clone();
    store.put_size(whole.directory - 512);
    let mut rng = Rng::new(9);
    for _ in 0..300 {
        let mut device = recovered(&store);
        let _ = device.read(0, 512);
        for _ in 0..20 {
            let number = rng.below(whole.places.len() as u64);
            let (at, _) = *whole.places.values().nth(number as usize).unwrap();
            let value = [0, 8, 4096, u64::MAX][rng.below(4) as usize];
            device
                .store
                .put(at + rng.below(2) * 8, &value.to_le_bytes()[..4]);
            if rng.one_in(20) {
                device.store.put_size(at + rng.below(100));
                break;
            }
        }
        for _ in 0..50 {
            let pos = rng.below(2000) * 4096;
            if let Err(error) = device.resolve_read(pos, 1 << 20) {
                assert_eq!(class(error), Class::Malformed);
            }
        }
    }
}
