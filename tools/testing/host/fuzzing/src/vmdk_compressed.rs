// SPDX-License-Identifier: GPL-2.0

//! One grain of a stream, wherever it lies and however it was compressed, in streams that are sound
//! otherwise.
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | size of a grain |
//! | 1 | bits: see the constants |
//! | 1 | level of compression; how long the last grain is |
//! | 1 | which of the grains it is, of four |
//! | 12 | bytes to change in the file, if there are such: offset (16 bits), another byte |
//! | … | what is in the grain, again and again; or, if it is garbage, what is there instead of compressed bytes |

use loop_parser::contract::{AttachRequest, Error};
use testkit::{compressed::decompress, device::Device, store::Store};
use vmdk_format::format;

use crate::stream_image::{Fill, Form, Image, Spec};

/// Bit: not compressed at all.
pub const GARBAGE: u8 = 1;
/// Bit: the directory is in front.
pub const FRONT: u8 = 2;
/// Bit: what comes behind the grains is missing.
pub const CUT: u8 = 4;
/// Bit: bytes of the file are changed.
pub const CHANGED: u8 = 8;
/// Bit: as a part of a disk with a parent.
pub const CHILD: u8 = 16;

/// Bytes in front of the content.
pub const HEAD: usize = 16;

/// Most loads of a look-up.
const MAX_LOOK_UP: u64 = 300;

/// Reads the grain.
pub fn run(bytes: &[u8]) {
    let Some((head, data)) = bytes.split_at_checked(HEAD) else {
        return;
    };
    if data.is_empty() {
        return;
    }
    let (bits, number) = (head[1], [0, 1, 2, 4][usize::from(head[3] % 4)]);
    let spec = spec(head);
    let content = content(&spec, number, data);
    let packed = match bits & GARBAGE {
        0 => miniz_oxide::deflate::compress_to_vec_zlib(&content, head[2] % 11),
        _ => data.to_vec(),
    };
    let spec = spec.with(|it| {
        it.packed.insert(number, packed);
    });
    let mut image = spec.build();
    if bits & CUT != 0 && bits & FRONT == 0 {
        // The marker of the first table, and all that follows.
        let end = image.places.values().map(|place| place.1).max();
        image.store.put_size(end.expect("grains"));
    }
    if bits & CHANGED != 0 {
        change(&mut image.store, &head[4..16]);
    }
    look(&image, &spec, number, bits, &content);
}

/// Four grains, of which the last one is not whole, and one that is not there.
fn spec(head: &[u8]) -> Spec {
    let grain = 1u64 << (head[0] % 9);
    let form = match head[1] & FRONT {
        0 => Form::Footer,
        _ => Form::Front,
    };
    let sectors = 4 * grain + 1 + u64::from(head[2]) % grain;
    let grains = [0, 1, 2, 4].map(|number| (number, Fill::Text));
    Spec::new(form, sectors)
        .with(|it| it.grain = grain)
        .with_grains(&grains)
}

/// What is in a grain.
fn content(spec: &Spec, number: u64, data: &[u8]) -> Vec<u8> {
    let len = spec.content(number, Fill::Zero).len();
    data.iter().copied().cycle().take(len).collect()
}

fn change(store: &mut Store, changes: &[u8]) {
    for change in changes.chunks_exact(3) {
        let at = u64::from(u16::from_le_bytes([change[0], change[1]]));
        if at < store.len() {
            store.put(at, &change[2..]);
        }
    }
}

fn open(store: &Store, is_child: bool) -> Result<Device, Error> {
    let request = AttachRequest {
        part: is_child.then_some(loop_parser::contract::Part {
            len: 512,
            has_parent: true,
        }),
        ..AttachRequest::default()
    };
    if format::kind(store, &request)? != format::Kind::Stream {
        return Err(Error::unsupported("another kind of file", 0));
    }
    let it = format::attach_stream(store, &request)?;
    let device = Device::new(store.clone(), it.disk, Box::new(it.map), Box::new(it.alloc));
    let device = device.with_decompressor(decompress);
    Ok(match is_child || it.parent.is_some() {
        true => device.on_top_of(crate::guest::below()),
        false => device,
    })
}

fn look(image: &Image, spec: &Spec, number: u64, bits: u8, content: &[u8]) {
    let device = match open(&image.store, bits & CHILD != 0) {
        Ok(device) => device,
        Err(error) => {
            let is_said = matches!(error, Error::Malformed(_) | Error::Unsupported(_));
            assert!(is_said, "{error:?}");
            // More than there can be of a grain, where grains have to be gone through.
            assert!(bits & (CHANGED | GARBAGE) != 0, "{error:?}");
            return;
        }
    };
    crate::explore::read(&device, MAX_LOOK_UP);
    let pos = number * spec.grain_len();
    let end = (pos + content.len() as u64).min(device.disk.size);
    if pos >= end {
        return;
    }
    let read = device.read(pos, end - pos);
    match bits & (CHANGED | GARBAGE) {
        0 => assert!(read.as_deref() == Ok(content), "the grain is another"),
        _ => check_garbage(&device, pos, read.ok()),
    }
    if bits & (CHANGED | GARBAGE) == 0 && bits & CHILD == 0 && bits & CUT == 0 {
        let mut disk = image.disk.clone();
        disk[pos as usize..][..content.len()].copy_from_slice(content);
        let read = device.read(0, device.disk.size);
        assert!(read == Ok(disk), "the disk is another");
    }
}

/// Damaged or not, it is the same at every look.
fn check_garbage(device: &Device, pos: u64, read: Option<Vec<u8>>) {
    let Some(read) = read else {
        return;
    };
    let step = (read.len() / 512 / 5).max(1);
    for (index, sector) in read.chunks(512).enumerate().step_by(step) {
        let part = device.read(pos + index as u64 * 512, 512);
        assert!(part.as_deref() == Ok(sector), "a part is another");
    }
}
