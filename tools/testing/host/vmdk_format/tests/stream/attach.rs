// SPDX-License-Identifier: GPL-2.0

//! What a stream is attached as, at which cost, and what is refused.

use loop_parser::contract::{AttachRequest, Disk, Identity, Parent, Part, State, Verdict};
use testkit::store::Store;
use vmdk_format::format::{self, Kind};

use crate::{
    attach, class,
    image::{text, Fill, Form, Spec},
    open, open_with, Class,
};

const FORMS: [Form; 3] = [Form::Footer, Form::Front, Form::Qemu];

fn some(form: Form) -> Spec {
    Spec::new(form, 403).with_grains(&[(0, Fill::Text), (17, Fill::Random), (50, Fill::Text)])
}

fn request(writable: bool) -> AttachRequest<'static> {
    AttachRequest {
        writable,
        ..AttachRequest::default()
    }
}

/// Attaches a stream in which a field of the header that counts, and of the one in front, has
/// another value.
fn with_field(form: Form, at: u64, bytes: &[u8]) -> Class {
    let mut store = some(form).build().store;
    if form == Form::Footer {
        let footer = store.len() - 1024;
        store.put(footer + at, bytes);
    }
    store.put(at, bytes);
    class(open_with(&store, None).map(|_| ()).unwrap_err())
}

#[test]
fn a_stream_is_a_disk() {
    for form in FORMS {
        let store = some(form).build().store;
        assert_eq!(store.probe(format::probe), Verdict::Mine);
        let attached = attach(&store, &request(false)).unwrap();
        let mut identity = [0; 16];
        identity[..4].copy_from_slice(&0x1234_5678u32.to_le_bytes());
        assert_eq!(attached.disk.identity.0[..4], identity[..4]);
        let expected = Disk {
            size: 403 * 512,
            variant: "streamOptimized",
            unit: 4096,
            identity: attached.disk.identity,
            ..Disk::default()
        };
        assert_eq!(attached.disk, expected);
        assert_eq!(attached.disk.state, State::Clean);
        assert!(attached.parent.is_none() && attached.warning.is_none());
    }
}

/// Older VirtualBox says of both directories that they are at the end. Where the redundant one of a stream
/// is does not matter.
#[test]
fn redundant_directory_of_a_stream() {
    for form in FORMS {
        for sector in [0, 1, 1 << 30, 1 << 60, u64::MAX] {
            let image = some(form).build();
            let mut store = image.store;
            let mut headers = vec![0];
            if form == Form::Footer {
                headers.push(store.len() - 1024);
            }
            for header in headers {
                store.put(header + 8, &0x3_0003u32.to_le_bytes());
                store.put(header + 48, &u64::to_le_bytes(sector));
            }
            let device = open(&store).unwrap();
            assert!(device.read(0, 403 * 512).unwrap() == image.disk);
        }
    }
}

#[test]
fn it_is_never_written() {
    for form in FORMS {
        let store = some(form).build().store;
        let error = attach(&store, &request(true)).map(|_| ()).unwrap_err();
        assert_eq!(class(error), Class::NeedsReadOnly);
    }
}

/// The directory of a larger disk is put in afterwards, at the end: the builder keeps the disk in
/// memory.
fn cost(form: Form, sectors: u64) -> u64 {
    let mut image = some(form).with(|it| it.text = text(1 << 40, "")).build();
    let len = sectors.div_ceil(8 * 16) * 4;
    let tail = match form {
        Form::Footer => image.store.get(image.footer() - 512, 1536),
        _ => Vec::new(),
    };
    let at = image.store.len();
    let end = (at + len).next_multiple_of(512);
    image.store.put_size(end);
    image.store.put(end, &tail);
    let header = if form == Form::Footer { end + 512 } else { 0 };
    image.store.put(header + 12, &sectors.to_le_bytes());
    image.store.put(header + 56, &(at / 512).to_le_bytes());
    let device = open(&image.store).unwrap();
    assert_eq!(device.disk.size, sectors * 512);
    device.store.loads()
}

#[test]
fn attaching_costs_the_same_whatever_the_size() {
    for form in FORMS {
        let small = cost(form, 403);
        assert_eq!(small, cost(form, 1 << 38), "{form:?}");
        assert!(small < 150, "{small} loads");
    }
}

#[test]
fn extent_of_a_disk() {
    for form in FORMS {
        let parent = "parentFileNameHint=\"base.vmdk\"\n";
        let store = some(form)
            .with(|it| it.text = text(403, parent).replace("CID=ffffffff", "CID=00000001"))
            .build()
            .store;
        for has_parent in [false, true] {
            for (len, is_refused) in [(403, false), (100, false), (404, true)] {
                let part = Part {
                    len: len * 512,
                    has_parent,
                };
                let result = open_with(&store, Some(part));
                if is_refused {
                    assert_eq!(class(result.map(|_| ()).unwrap_err()), Class::Malformed);
                    continue;
                }
                let (device, warning) = result.unwrap();
                assert_eq!(warning, None);
                assert_eq!(device.disk.size, 403 * 512);
                assert_eq!(device.disk.identity, Identity::default());
            }
        }
        // What it says of a parent does not count.
        let request = AttachRequest {
            part: Some(Part {
                len: 512,
                has_parent: true,
            }),
            ..AttachRequest::default()
        };
        assert!(attach(&store, &request).unwrap().parent.is_none());
    }
}

#[test]
fn parent_of_a_disk() {
    for form in FORMS {
        let hint = "parentFileNameHint=\"base.vmdk\"\n";
        let child = |more| text(403, more).replace("parentCID=ffffffff", "parentCID=0000abcd");
        let mut store = some(form).with(|it| it.text = child(hint)).build().store;
        let attached = attach(&store, &request(false)).unwrap();
        let parent = attached.parent.unwrap();
        let mut buf = [0; 100];
        let len = parent.name(&store, 0, &mut buf).unwrap().unwrap();
        assert_eq!(&buf[..len], b"base.vmdk");

        store = some(form).with(|it| it.text = child("")).build().store;
        let error = attach(&store, &request(false)).map(|_| ()).unwrap_err();
        assert_eq!(class(error), Class::Malformed);
    }
}

#[test]
fn size_is_what_the_descriptor_lists() {
    for (listed, size) in [(403, 403), (396, 396), (1000, 403)] {
        let store = some(Form::Footer)
            .with(|it| it.text = text(listed, ""))
            .build()
            .store;
        assert_eq!(open(&store).unwrap().disk.size, size * 512);
    }
    let none = some(Form::Footer)
        .with(|it| it.text = String::new())
        .build();
    assert_eq!(open(&none.store).unwrap().disk.size, 403 * 512);
}

#[test]
fn flags_and_compression_have_to_agree() {
    for form in FORMS {
        for flags in [0x1_0001u32, 0x2_0001] {
            assert_eq!(
                with_field(form, 8, &flags.to_le_bytes()),
                Class::Unsupported
            );
        }
        for flags in [0x7_0001u32, 0x8003_0001] {
            assert_eq!(
                with_field(form, 8, &flags.to_le_bytes()),
                Class::Unsupported
            );
        }
        assert_eq!(with_field(form, 77, &[0, 0]), Class::Malformed);
        assert_eq!(with_field(form, 77, &[2, 0]), Class::Unsupported);
    }
    // A directory at the end, of grains that are not compressed.
    let mut store = some(Form::Footer).build().store;
    store.put(8, &1u32.to_le_bytes());
    store.put(77, &[0, 0]);
    assert!(matches!(open(&store).map_err(class), Err(Class::Malformed)));
}

#[test]
fn fields_have_limits() {
    for form in FORMS {
        let field = |at, value: u64| with_field(form, at, &value.to_le_bytes());
        assert_eq!(with_field(form, 0, b"VMDK"), Class::Malformed);
        assert_eq!(with_field(form, 4, &[4]), Class::Unsupported);
        assert_eq!(with_field(form, 4, &[0]), Class::Unsupported);
        for capacity in [u64::MAX, 1 << 55, 1 << 63] {
            assert_eq!(field(12, capacity), Class::Malformed);
        }
        for grain in [0, 3, 12, 1 << 17, u64::MAX] {
            assert_eq!(field(20, grain), Class::Malformed);
        }
        for entries in [0, 65537, u32::MAX] {
            let class = with_field(form, 44, &entries.to_le_bytes());
            assert_eq!(class, Class::Malformed);
        }
        assert_eq!(field(64, u64::MAX), Class::Malformed);
        assert_eq!(field(64, 1 << 40), Class::Malformed);
        // What a transfer as text makes of it.
        assert_eq!(with_field(form, 73, b"\n \n\n"), Class::Malformed);
    }
}

#[test]
fn grains_are_at_most_two_mebibytes() {
    for (grain, is_refused) in [(4096u64, false), (8192, true)] {
        for form in [Form::Footer, Form::Front] {
            let spec = Spec::new(form, 9000)
                .with(|it| it.grain = grain)
                .with_grains(&[(1, Fill::Text)]);
            let image = spec.build();
            match open_with(&image.store, None) {
                Ok((device, _)) => {
                    assert!(!is_refused);
                    assert!(device.read(0, 9000 * 512).unwrap() == image.disk);
                }
                Err(error) => {
                    assert!(is_refused);
                    assert_eq!(class(error), Class::Unsupported);
                }
            }
        }
    }
}

#[test]
fn directory_has_to_be_in_the_file_and_apart() {
    for form in [Form::Front, Form::Qemu] {
        for sector in [0u64, 1, 1 << 30, 1 << 60, u64::MAX - 1] {
            let class = with_field(form, 56, &sector.to_le_bytes());
            assert_eq!(class, Class::Malformed, "{sector}");
        }
    }
    // In the footer only: the header in front has to go on to say that there is one.
    for sector in [0u64, 1, 1 << 30, 1 << 60, u64::MAX - 1, u64::MAX] {
        let mut image = some(Form::Footer).build();
        let footer = image.footer();
        image.store.put(footer + 56, &sector.to_le_bytes());
        let error = open(&image.store).map(|_| ()).unwrap_err();
        assert_eq!(class(error), Class::Malformed, "{sector}");
    }
}

#[test]
fn files_of_every_length() {
    for form in FORMS {
        let whole = some(form).build().store;
        for len in 0..2048.min(whole.len()) {
            let mut store: Store = whole.clone();
            store.put_size(len);
            let kind = format::kind(&store, &request(false));
            if kind == Ok(Kind::Stream) {
                let _ = attach(&store, &request(false));
            }
        }
    }
}
