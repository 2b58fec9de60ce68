// SPDX-License-Identifier: GPL-2.0

//! VMDKs.

use loop_parser::contract::{
    Allocate, AttachRequest, Backing, Error, Extents, HostRange, Map, Parent, Part, Result, Verdict,
};
use testkit::{compressed, device::Device, store::Store};
use vmdk_format::format::{self, Attached, Kind, ParentName};

use crate::{
    explore::Forbidden,
    guest::{self, Format},
    input::Input,
    vmdk_image::{self, Header, Redundant},
};

/// Option of an input: the file is an extent of a disk.
pub const AS_PART: u8 = 4;
/// Option of an input: that disk has a parent.
pub const ON_PARENT: u8 = 8;

/// Largest file: sectors are numbers of 32 bits, but not in all kinds.
const MAX_SIZE: u64 = 1 << 50;
/// Largest file that is written to: the first allocation looks at all entries, and directories can be
/// holes.
const MAX_WRITTEN: u64 = 1 << 22;

/// A descriptor is read a few bytes at a time, and has at most a mebibyte.
const MAX_ATTACH: u64 = 1 << 19;
/// Look-ups stop after 128 grains, which take two loads each, and one for the table.
const MAX_LOOK_UP: u64 = 2 * 130;
/// Of a stream without its end, they can look at every header that fits into an input.
const MAX_SCAN: u64 = 1 << 13;
/// Where allocators give up.
const MAX_CALL: u64 = 20 << 20;

const ALONE: Format = Format {
    open: |store, writable| open(store, writable, None),
    is_sound,
    forbidden,
    compare,
    max_loads: [MAX_ATTACH, MAX_LOOK_UP, MAX_CALL],
};

const PART: Format = Format {
    open: |store, writable| open(store, writable, Some(false)),
    ..ALONE
};

const CHILD: Format = Format {
    open: |store, writable| open(store, writable, Some(true)),
    ..ALONE
};

/// The file by itself, and as an extent of a disk with and without a parent.
const FORMATS: [Format; 3] = [ALONE, PART, CHILD];

fn request(writable: bool, part: Option<bool>) -> AttachRequest<'static> {
    AttachRequest {
        options: "",
        writable,
        part: part.map(|has_parent| Part {
            len: 512,
            has_parent,
        }),
        random: 0x5eed_1234,
    }
}

/// How a file is looked at.
fn format_of(options: u8, store: &Store) -> Format {
    let format = match (options & AS_PART, options & ON_PARENT) {
        (0, _) => ALONE,
        (_, 0) => PART,
        _ => CHILD,
    };
    let is_stream = format::kind(store, &request(false, None)) == Ok(Kind::Stream);
    let [attach, look_up, call] = format.max_loads;
    Format {
        max_loads: [attach, if is_stream { MAX_SCAN } else { look_up }, call],
        ..format
    }
}

/// The device over a file of which somebody else says what it is a part of, or over one that is a disk.
fn open(store: &Store, writable: bool, part: Option<bool>) -> Result<Device> {
    let request = request(writable, part);
    let has_parent = part == Some(true);
    let kind = format::kind(store, &request)?;
    assert_eq!(store.probe(format::probe), Verdict::Mine);
    match kind {
        Kind::Sparse => {
            format::attach_sparse(store, &request).map(|it| device(store, it, has_parent))
        }
        Kind::Cowd => format::attach_cowd(store, &request).map(|it| device(store, it, has_parent)),
        Kind::Stream => {
            format::attach_stream(store, &request).map(|it| device(store, it, has_parent))
        }
        Kind::SeSparse => {
            format::attach_sesparse(store, &request).map(|it| device(store, it, has_parent))
        }
        // There is nothing to be looked up.
        Kind::Set => Err(Error::unsupported("disk made of other files", 0)),
    }
}

fn device<M, A>(store: &Store, attached: Attached<M, A>, has_parent: bool) -> Device
where
    M: Map + 'static,
    A: Allocate + 'static,
{
    let (map, alloc) = (Box::new(attached.map), Box::new(attached.alloc));
    let device = Device::new(store.clone(), attached.disk, map, alloc);
    let device = device.with_decompressor(compressed::decompress);
    if let Some(parent) = &attached.parent {
        name_parent(store, parent);
    }
    match has_parent || attached.parent.is_some() {
        true => device.on_top_of(guest::below()),
        false => device,
    }
}

/// The names of a parent are few, and bounded.
fn name_parent(store: &Store, parent: &ParentName) {
    let mut buf = [0; 1100];
    for index in 0.. {
        assert!(index <= 4, "names without end");
        match parent.name(store, index, &mut buf) {
            Ok(None) => break,
            Ok(Some(len)) => assert!(len > 0 && len <= buf.len()),
            Err(error) => assert!(matches!(error, Error::Malformed(_)), "{error:?}"),
        }
    }
}

/// A file of any kind: attached in every way, and looked at. The file is all there is of the input: fields
/// are where they are in a file.
pub fn header(bytes: &[u8]) {
    let mut store = Store::new(bytes);
    // Tables that the header names are there, as long as that is no more than a hole.
    for size in [bytes.len() as u64, 1 << 30] {
        store.put_size(size.max(bytes.len() as u64));
        let options = AttachRequest {
            options: "x",
            ..AttachRequest::default()
        };
        assert_eq!(format::kind(&store, &options), Err(Error::BadOption));
        for options in [0, AS_PART, AS_PART | ON_PARENT] {
            format_of(options, &store).look(&store);
        }
    }
}

/// A file with tables: attached, looked at, read, written to.
pub fn map(bytes: &[u8]) {
    let input = Input::parse(bytes, MAX_SIZE);
    let format = format_of(input.options, &input.store);
    if input.store.len() <= MAX_WRITTEN {
        format.run(&input);
    }
    let Some(device) = format.look(&input.store) else {
        return;
    };
    let size = device.disk.size;
    for step in &input.steps {
        if let Some(sectors) = (size / 512).checked_sub(1) {
            let pos = u64::from(step.place).min(sectors) * 512;
            let len = (u64::from(step.count) * 512 + 512).min(size - pos);
            // Damaged or not, as long as it is no panic.
            let _ = device.read(pos, len);
        }
    }
    compare_readers(&device, input.options);
}

/// A second reader sees the same disk.
fn compare_readers(device: &Device, options: u8) {
    let store = &device.store;
    if !is_sound(store) || Header::load(store).size != device.disk.size {
        return;
    }
    let below = guest::below();
    let below = match options & AS_PART != 0 {
        true if options & ON_PARENT != 0 => below.read(0, below.disk.size).unwrap(),
        true => Vec::new(),
        // Whether there is a parent is for the descriptor to say.
        false => return,
    };
    let disk = device
        .read(0, device.disk.size)
        .expect("the image is sound");
    assert!(
        disk == vmdk_image::disk(store, &below),
        "two readers see two disks"
    );
}

/// What begins as files do that are written to.
fn is_written(store: &Store) -> bool {
    let request = request(false, None);
    matches!(format::kind(store, &request), Ok(Kind::Sparse | Kind::Cowd))
}

/// Headers, directories, and descriptor; all of a file that is never written to.
fn forbidden(store: &Store) -> Forbidden {
    if !is_written(store) {
        return vec![(0, u64::MAX)];
    }
    let header = Header::load(store);
    let mut places = vec![(0, 512)];
    places.extend(header.descriptor.map(|(at, len)| (at, at + len)));
    for directory in header.directories() {
        places.push((directory, directory + header.tables() * 4));
    }
    places.retain(|(start, end)| start < end);
    places
}

/// Nothing is there twice, nothing lies past the end of the file, and no grain where tables are said to be. Of
/// images that are soon looked at.
fn is_sound(store: &Store) -> bool {
    if !is_written(store) {
        return false;
    }
    let header = Header::load(store);
    let is_small = header.size <= 16 << 20
        && header.grain <= 1 << 20
        && header.tables() * header.entries <= 1 << 16;
    if !is_small || vmdk_image::problem(store, Redundant::MayDiffer).is_some() {
        return false;
    }
    // A copy of a table that is not there.
    let is_left_over = |index: u64| {
        let mut entries = header
            .directories()
            .map(|it| vmdk_image::get32(store, it + index * 4));
        entries.next() == Some(0) && entries.any(|it| it != 0)
    };
    if (0..header.tables()).any(is_left_over) {
        return false;
    }
    let overhead = match header.kind {
        vmdk_image::Kind::Sparse => vmdk_image::get64(store, 64) * 512,
        vmdk_image::Kind::Cowd => 2048,
    };
    (0..header.size.div_ceil(header.grain)).all(|grain| {
        match header.entry(store, header.directory, grain) {
            0 => true,
            1 if header.has_zero_grains => true,
            sector => sector * 512 >= overhead,
        }
    })
}

/// Of the header, what changes is whether the file is open, and where it ends; of the descriptor, digits.
fn compare(before: &Store, after: &Store) {
    let (len, allowed) = match before.get(0, 4) == b"COWD" {
        true => (2048, vec![28..32, 1648..1652]),
        false => (512, vec![72..73]),
    };
    let (old, new) = (before.get(0, len), after.get(0, len));
    for (at, (old, new)) in old.iter().zip(&new).enumerate() {
        let is_allowed = allowed.iter().any(|it| it.contains(&at));
        assert!(old == new || is_allowed, "{at}");
    }
    if let Some((at, len)) = Header::load(before).descriptor {
        compare_text(before, after, at, len as usize);
    }
}

/// Digits are all that changes in a text.
fn compare_text(before: &Store, after: &Store, at: u64, len: usize) {
    let (old, new) = (before.get(at, len), after.get(at, len));
    for (old, new) in old.iter().zip(&new) {
        assert!(old == new || old.is_ascii_hexdigit() && new.is_ascii_hexdigit());
    }
}

/// A descriptor, in a file of its own and in a sparse extent.
pub fn descriptor(bytes: &[u8]) {
    const ROOM: usize = 20 * 512;
    let store = Store::new(bytes);
    if format::kind(&store, &request(false, None)) == Ok(Kind::Set) {
        set(&store);
    }
    let mut image = vmdk_image::Spec::new(4096, 128).with_grains(&[3]).build();
    let text = &bytes[..bytes.len().min(ROOM)];
    let header = Header::load(&image.store);
    let (at, len) = header.descriptor.expect("room for a descriptor");
    assert_eq!(len as usize, ROOM);
    image.store.put(at, &[0; ROOM]);
    image.store.put(at, text);
    for format in FORMATS {
        format.look(&image.store);
    }
    change_content(&image.store);
}

/// A write changes the CID in a sparse extent, and the image is accepted again.
fn change_content(store: &Store) {
    let Ok(mut device) = open(store, true, None) else {
        return;
    };
    let sector = [7; 512];
    if device.disk.size < 512 || device.write(0, &sector).is_err() {
        return;
    }
    let written = device.close().expect("no store fails");
    compare(store, &written);
    let again = open(&written, true, None).expect("not accepted again");
    assert_eq!(again.read(0, 512).as_deref(), Ok(&sector[..]));
    let before = open(store, true, None).expect("it was accepted");
    let had = before.disk.identity != Default::default();
    assert_eq!(had, again.disk.identity != before.disk.identity);
}

/// A disk that is put together from other files.
fn set(store: &Store) {
    let loads = store.loads();
    let attached = format::attach_set(store, &request(false, None));
    let used = store.loads() - loads;
    assert!(used <= 200 + 8 * store.len(), "{used} loads");
    let part = format::attach_set(store, &request(false, Some(false)));
    assert!(part.is_err());
    let Ok((attached, extents)) = attached else {
        let writable = format::attach_set(store, &request(true, None));
        assert!(writable.is_err());
        return;
    };
    if let Some(parent) = &attached.parent {
        name_parent(store, parent);
    }
    let list = list(store, &extents);
    assert_eq!(list.iter().map(|it| it.0).sum::<u64>(), attached.disk.size);
    let Ok((mut writable, _)) = format::attach_set(store, &request(true, None)) else {
        return;
    };
    let mut written = store.clone();
    writable.alloc.begin(&mut written).expect("no store fails");
    assert_eq!(written.len(), store.len());
    compare_text(store, &written, 0, store.len() as usize);
    writable.alloc.close(&mut written).expect("no store fails");
    let again = format::attach_set(&written, &request(true, None));
    let (again, extents) = again.expect("not accepted again");
    assert_eq!(again.disk.size, attached.disk.size);
    assert!(self::list(&written, &extents) == list);
    let had = attached.disk.identity != Default::default();
    assert_eq!(had, again.disk.identity != attached.disk.identity);
}

/// The lengths and names of extents.
fn list(store: &Store, extents: &format::SetExtents) -> Vec<(u64, Option<Vec<u8>>)> {
    let mut list = Vec::new();
    let mut cursor = 0;
    while let Some((extent, next)) = extents.next(store, cursor).expect("it was looked at") {
        assert!(next > cursor, "the same extent again");
        cursor = next;
        assert!(extent.len > 0 && extent.len % 512 == 0 && extent.at < store.len());
        let name = match extent.backing {
            Backing::Zero => None,
            Backing::Flat { name, .. } | Backing::Image { name } => Some(text_of(store, name)),
        };
        list.push((extent.len, name));
    }
    list
}

fn text_of(store: &Store, name: HostRange) -> Vec<u8> {
    assert!(name.len > 0 && name.offset + name.len <= store.len());
    store.get(name.offset, name.len as usize)
}
