// SPDX-License-Identifier: GPL-2.0

//! Attaches images.

use loop_parser::contract::{AttachRequest, Disk, Fault, Parent, Part, Result};
use testkit::{device::Device, store::Store};
use vmdk_format::format::{self, Image, ParentName};

use crate::image::Spec;

/// What an attach to a writable device asks for.
pub fn request() -> AttachRequest<'static> {
    AttachRequest {
        options: "",
        writable: true,
        part: None,
        random: 0x5eed_1234,
    }
}

/// The same, for an extent of `len` bytes.
pub fn part(len: u64, has_parent: bool) -> AttachRequest<'static> {
    AttachRequest {
        part: Some(Part { len, has_parent }),
        ..request()
    }
}

/// What an attach says, besides where things lie.
#[derive(Clone, Copy, Debug)]
pub struct About {
    pub disk: Disk,
    pub parent: Option<ParentName>,
    pub warning: Option<Fault>,
}

impl About {
    /// The name of the parent.
    pub fn parent_name(&self, store: &Store) -> Option<String> {
        let mut buf = [0; 1024];
        let len = self.parent?.name(store, 0, &mut buf).unwrap()?;
        Some(String::from_utf8(buf[..len].to_vec()).unwrap())
    }
}

/// A writable device.
pub fn open(store: Store) -> Result<Device> {
    open_as(store, &request())
}

pub fn open_as(store: Store, request: &AttachRequest<'_>) -> Result<Device> {
    match format::attach(&store, request)? {
        Image::Sparse(it) | Image::Cowd(it) => Ok(Device::new(
            store,
            it.disk,
            Box::new(it.map),
            Box::new(it.alloc),
        )),
        other => panic!("another kind of image: {other:?}"),
    }
}

pub fn about(store: &Store, request: &AttachRequest<'_>) -> Result<About> {
    match format::attach(store, request)? {
        Image::Sparse(it) | Image::Cowd(it) => Ok(About {
            disk: it.disk,
            parent: it.parent,
            warning: it.warning,
        }),
        other => panic!("another kind of image: {other:?}"),
    }
}

/// What the disk of [`base`] is full of.
pub const BELOW: u8 = 0xb5;

/// A device to lie below another one: `len` bytes, all the same.
pub fn base(len: u64) -> Device {
    let mut device = open(Spec::new(len / 512, 8).build().store).unwrap();
    device.write(0, &vec![BELOW; len as usize]).unwrap();
    device
}

/// What a disk of `size` bytes reads below which `len` bytes of it lie.
pub fn below(len: u64, size: u64) -> Vec<u8> {
    let mut bytes = vec![BELOW; len.min(size) as usize];
    bytes.resize(size as usize, 0);
    bytes
}

/// A device over an image, on top of [`base`] if `len` is not 0. The image's format says how it knows of
/// its parent.
pub fn open_on(spec: &Spec, store: Store, len: u64) -> Result<Device> {
    let request = match spec.kind {
        crate::image::Kind::Sparse => request(),
        crate::image::Kind::Cowd => part(spec.bytes(), len > 0),
    };
    let device = open_as(store, &request)?;
    Ok(match len {
        0 => device,
        len => device.on_top_of(base(len)),
    })
}
