// SPDX-License-Identifier: GPL-2.0

//! Tests of descriptors, from outside: as files of their own.

#![allow(missing_docs, unreachable_pub)]

mod content;
mod extents;
mod parents;
mod probe;
mod qemu;
mod random;
mod refused;
mod samples;
mod spelling;

use loop_parser::contract::{
    AttachRequest, Backing, Error, Extents, HostRange, ListedExtent, Parent, Result,
};
use testkit::store::Store;
use vmdk_format::format::{self, Attached, Image, ListMap, SetAllocator, SetExtents};

/// A descriptor that was attached.
#[derive(Debug)]
struct Set {
    image: Attached<ListMap, SetAllocator>,
    extents: SetExtents,
}

/// An extent, with its name in full.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    sectors: u64,
    writable: bool,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Zero,
    Flat { name: Vec<u8>, sector: u64 },
    Image { name: Vec<u8> },
}

fn zero(sectors: u64) -> Listed {
    Listed {
        sectors,
        writable: true,
        what: What::Zero,
    }
}

fn flat(sectors: u64, name: &[u8], sector: u64) -> Listed {
    Listed {
        sectors,
        writable: true,
        what: What::Flat {
            name: name.into(),
            sector,
        },
    }
}

fn image(sectors: u64, name: &[u8]) -> Listed {
    Listed {
        sectors,
        writable: true,
        what: What::Image { name: name.into() },
    }
}

impl Listed {
    fn read_only(self) -> Self {
        Self {
            writable: false,
            ..self
        }
    }
}

impl Set {
    /// What is listed, by the names in the file as it is now.
    fn list(&self, store: &Store) -> Vec<Listed> {
        let all = self.list_where(store);
        all.into_iter().map(|(_, listed)| listed).collect()
    }

    /// The same with the host offsets of the lines.
    fn list_where(&self, store: &Store) -> Vec<(u64, Listed)> {
        let mut list = Vec::new();
        let mut cursor = 0;
        while let Some((extent, next)) = self.extents.next(store, cursor).unwrap() {
            assert!(next > cursor);
            cursor = next;
            list.push((extent.at, listed(store, extent)));
        }
        list
    }

    /// All names of the parent.
    fn parent_names(&self, store: &Store) -> Vec<Vec<u8>> {
        let parent = self.image.parent.as_ref().expect("no parent");
        let mut buf = [0xee; 4096];
        let mut names = Vec::new();
        while let Some(len) = parent.name(store, names.len(), &mut buf).unwrap() {
            names.push(buf[..len].to_vec());
        }
        names
    }
}

fn listed(store: &Store, extent: ListedExtent) -> Listed {
    let name = |range: HostRange| store.get(range.offset, range.len as usize);
    assert_eq!(extent.len % 512, 0);
    Listed {
        sectors: extent.len / 512,
        writable: extent.writable,
        what: match extent.backing {
            Backing::Zero => What::Zero,
            Backing::Flat { name: at, offset } => {
                assert_eq!(offset % 512, 0);
                What::Flat {
                    name: name(at),
                    sector: offset / 512,
                }
            }
            Backing::Image { name: at } => What::Image { name: name(at) },
        },
    }
}

/// The first line of descriptors.
const MAGIC: &str = "# Disk DescriptorFile\n";

/// A descriptor with these lines.
fn file(lines: impl AsRef<[u8]>) -> Store {
    Store::new(&[MAGIC.as_bytes(), lines.as_ref()].concat())
}

fn attach_for(store: &Store, request: &AttachRequest<'_>) -> Result<Set> {
    match format::attach(store, request)? {
        Image::Set(image, extents) => Ok(Set { image, extents }),
        other => panic!("{other:?}"),
    }
}

/// Attaches read-only.
fn attach(store: &Store) -> Result<Set> {
    attach_for(store, &AttachRequest::default())
}

/// Attaches for a writable device.
fn attach_writable(store: &Store, random: u32) -> Result<Set> {
    let request = AttachRequest {
        writable: true,
        random,
        ..AttachRequest::default()
    };
    attach_for(store, &request)
}

/// What a disk with this CID is known by.
fn identity(cid: u32) -> [u8; 16] {
    let mut identity = [0; 16];
    identity[..4].copy_from_slice(&cid.to_le_bytes());
    identity[4..7].copy_from_slice(b"CID");
    identity
}

/// The class of an error, without its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Malformed,
    Unsupported,
    NeedsReadOnly,
    Other,
}

fn class(error: Error) -> Class {
    match error {
        Error::Malformed(_) => Class::Malformed,
        Error::Unsupported(_) => Class::Unsupported,
        Error::NeedsReadOnly(_) => Class::NeedsReadOnly,
        Error::Store(_) | Error::WouldBlock | Error::BadOption => Class::Other,
    }
}
