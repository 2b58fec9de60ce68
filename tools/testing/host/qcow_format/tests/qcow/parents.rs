// SPDX-License-Identifier: GPL-2.0

//! Backing files, and external data files.

use loop_parser::contract::{Disk, Error, Extent, Map, Parent, Placement};

use crate::{
    attach, class,
    image::{Cluster, Image, Spec, BACKING_FORMAT, DATA_FILE},
    Class,
};

fn name_of(spec: &Spec) -> Vec<u8> {
    let store = spec.build().store;
    let parent = attach(&store).unwrap().parent.expect("no parent");
    let mut buf = [0; 4096];
    assert_eq!(parent.name(&store, 1, &mut buf), Ok(None));
    assert_eq!(parent.check(&Disk::default()), Ok(()));
    let len = parent.name(&store, 0, &mut buf).unwrap().unwrap();
    buf[..len].to_vec()
}

#[test]
fn names() {
    let longest = vec![b'x'; 1023];
    for name in [
        &b"base.qcow2"[..],
        b"b",
        b"/srv/images/base",
        b"../base",
        // A colon behind a slash is part of a name.
        b"./a:b",
        b"dir/json:",
        b"\xff\xfe not UTF-8",
        &longest,
    ] {
        assert_eq!(name_of(&Spec::v3(1 << 20, 16).on(name)), name);
        assert_eq!(name_of(&Spec::v2(1 << 20, 12).on(name)), name);
    }
}

/// A name is a C string: QEMU takes what is in front of the first zero byte.
#[test]
fn padded_names() {
    for name in [&b"base\0"[..], b"base\0\0\0\0", b"base\0x:/"] {
        assert_eq!(name_of(&Spec::v3(1 << 20, 16).on(name)), b"base");
        assert_eq!(name_of(&Spec::v2(1 << 20, 12).on(name)), b"base");
    }
    // Nothing is named by no bytes.
    for name in [&b"\0"[..], b"\0base"] {
        let store = Spec::v3(1 << 20, 16).on(name).build().store;
        let attached = attach(&store).unwrap();
        assert!(attached.parent.is_none());
        let extent = attached.map.resolve_read(&store, 0, 4096);
        assert_eq!(extent, Ok(Extent::Zero { len: 4096 }));
    }
}

#[test]
fn formats() {
    for (format, parser) in [
        (&b"raw"[..], Some("raw")),
        (b"qcow", Some("qcow")),
        (b"qcow2", Some("qcow2")),
        (b"vpc", Some("vhd")),
        (b"vmdk", Some("vmdk")),
        (b"file", Some("raw")),
        (b"host_device", Some("raw")),
        (b"qcow2\0\0", Some("qcow2")),
        (b"\0\0", None),
        (b"", None),
    ] {
        for spec in [Spec::v3(1 << 20, 16), Spec::v2(1 << 20, 16)] {
            let spec = spec
                .on(b"base")
                .with_extension(0x1234_5678, b"unknown")
                .with_extension(BACKING_FORMAT, format);
            let parent = attach(&spec.build().store).unwrap().parent.unwrap();
            assert_eq!(parent.parser(), parser);
        }
    }
    let parent = attach(&Spec::v3(1 << 20, 16).on(b"base").build().store);
    assert_eq!(parent.unwrap().parent.unwrap().parser(), None);
    // Without a backing file its format is of no interest.
    let spec = Spec::v3(1 << 20, 16).with_extension(BACKING_FORMAT, b"nonsense");
    assert!(attach(&spec.build().store).unwrap().parent.is_none());
}

#[test]
fn no_name_is_no_parent() {
    let spec = Spec::v3(1 << 20, 16).on(b"");
    assert!(attach(&spec.build().store).unwrap().parent.is_none());
}

#[test]
fn name_changes_under_us() {
    let mut image = Spec::v3(1 << 20, 16).on(b"base").build();
    let parent = attach(&image.store).unwrap().parent.unwrap();
    let at = image.store.get_be64(8);
    let mut small = [0; 3];
    let result = parent.name(&image.store, 0, &mut small);
    assert!(matches!(result, Err(Error::Malformed(_))));
    image.store.put(at, b"js:n");
    let result = parent.name(&image.store, 0, &mut [0; 64]);
    assert!(matches!(result, Err(Error::Unsupported(_))));
}

/// An image of version 3 that names a data file.
fn with_data_file(spec: Spec, name: &[u8]) -> Image {
    let mut image = spec.with_extension(DATA_FILE, name).build();
    image.put64(72, 1 << 2);
    image
}

#[test]
fn data_files() {
    let image = with_data_file(Spec::v3(1 << 20, 16), b"dir/data.raw");
    let attached = attach(&image.store).unwrap();
    assert!(attached.parent.is_none());
    let data = attached.data.expect("no data file");
    let mut buf = [0; 4096];
    assert_eq!(data.name(&image.store, 0, &mut buf), Ok(Some(12)));
    assert_eq!(&buf[..12], b"dir/data.raw");
    assert_eq!(data.name(&image.store, 1, &mut buf), Ok(None));
    assert_eq!(data.parser(), Some("raw"));
    // Without the feature the extension is of no interest.
    let spec = Spec::v3(1 << 20, 16).with_extension(DATA_FILE, b"data.raw");
    assert!(attach(&spec.build().store).unwrap().data.is_none());
}

#[test]
fn data_files_that_cannot_be() {
    let url = with_data_file(Spec::v3(1 << 20, 16), b"nbd:host");
    assert_eq!(
        attach(&url.store).map_err(class).err(),
        Some(Class::Unsupported)
    );
    for name in [&b""[..], b"\0name"] {
        let nameless = with_data_file(Spec::v3(1 << 20, 16), name);
        assert_eq!(
            attach(&nameless.store).map_err(class).err(),
            Some(Class::Unsupported)
        );
    }
    let mut raw = with_data_file(Spec::v3(1 << 20, 16).on(b"base"), b"data.raw");
    assert!(attach(&raw.store).is_ok());
    raw.put64(88, 1 << 1);
    assert_eq!(
        attach(&raw.store).map_err(class).err(),
        Some(Class::Malformed)
    );
}

/// Entries point to where data lie in the data file, which the image's own size says nothing of; a
/// cluster at 0 has bit 63, or it is none.
#[test]
fn entries_of_data_files() {
    let spec = Spec::v3(1 << 20, 12).with_clusters(&[(0, Cluster::Data), (5, Cluster::Data)]);
    let mut image = with_data_file(spec, b"data.raw");
    let entry = image.entries[&5];
    image.put64(entry, (1 << 63) | (5 << 12));
    let first = image.entries[&0];
    for (word, expected) in [
        (
            1 << 63,
            Extent::Data {
                offset: 0,
                len: 4096,
            },
        ),
        (0, Extent::Zero { len: 5 << 12 }),
        (1, Extent::Zero { len: 5 << 12 }),
    ] {
        image.put64(first, word);
        let map = attach(&image.store).unwrap().map;
        assert_eq!(map.resolve_read(&image.store, 0, 5 << 12), Ok(expected));
        let there = Extent::Data {
            offset: 5 << 12,
            len: 4096,
        };
        assert_eq!(map.resolve_read(&image.store, 5 << 12, 4096), Ok(there));
        let place = Placement::InPlace {
            offset: 5 << 12,
            len: 4096,
        };
        assert_eq!(map.resolve_write(&image.store, 5 << 12, 4096), Ok(place));
    }
    image.put64(first, (1 << 62) | (1 << 12));
    let map = attach(&image.store).unwrap().map;
    assert!(matches!(
        map.resolve_read(&image.store, 0, 4096),
        Err(Error::Malformed(_))
    ));
}
