// SPDX-License-Identifier: GPL-2.0

//! `layers`: a line about each file that a device is made of, its own first.

use core::fmt::Write;

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    contract::State,
    device::Device,
    image::{
        Image,
        Layer, //
    },
    layers::MAX_LAYERS,
    sys::{
        file::BackingFile,
        sysfs::{
            Attribute,
            Page, //
        }, //
    },
    user::ImageUser, //
};

/// Room that is kept for saying how many lines did not fit.
const LAST_LINE: usize = 32;

/// Longest path that is shown.
const PATH_MAX: usize = 4096;

/// See the top of this file.
pub(super) struct Layers;

impl Attribute<Device> for Layers {
    const NAME: &'static CStr = c"layers";

    fn show(device: &Device, page: &mut Page<'_>) -> Result {
        let Some((image, file)) = bound(device) else {
            return Ok(());
        };
        let mut path = KVec::new();
        path.resize(PATH_MAX, 0, GFP_KERNEL)?;
        let count = image.parents().len().saturating_add(1).min(MAX_LAYERS);
        for depth in 0..count {
            let Some(layer) = image.layer(&file, depth) else {
                break;
            };
            let start = page.len();
            let written = line(page, depth, layer, &mut path);
            if written.is_err() || page.room() < LAST_LINE {
                page.set_len(start);
                let more = count.saturating_sub(depth);
                return writeln!(page, "more={more}").map_err(|_| EFBIG);
            }
        }
        Ok(())
    }
}

/// What the device is on. Asking the file systems takes longer than the configuration may be locked.
fn bound(device: &Device) -> Option<(Arc<Image>, Arc<BackingFile>)> {
    let shown = device.shown();
    Some((shown.image.clone()?, shown.file.clone()?))
}

fn line(page: &mut Page<'_>, depth: usize, layer: Layer<'_>, path: &mut [u8]) -> core::fmt::Result {
    let (image, disk) = (layer.image, layer.image.disk());
    write!(page, "layer={depth} parser=")?;
    escape(page, image.parser_name())?;
    write!(page, " variant={} creator=", disk.variant)?;
    match disk.creator {
        [0, 0, 0, 0] => write!(page, "none")?,
        creator => escape(page, &creator)?,
    }
    write!(
        page,
        " block_size={} size={} allocated={} state={} error=",
        disk.unit,
        image.size(layer.file),
        allocated(layer),
        state(image)
    )?;
    let of_part = || {
        let mut parts = image.parts().users();
        parts.find_map(|part| part.image().last_fault())
    };
    match image.last_fault().or_else(of_part) {
        None => write!(page, "none")?,
        Some(fault) => {
            write!(page, "\"")?;
            escape(page, fault.what.as_bytes())?;
            write!(page, "\"@{}", fault.at)?;
        }
    }
    write!(page, " path=")?;
    escape(page, layer.file.show_path(path).unwrap_or(b"?"))?;
    if let Some(data) = image.data_file() {
        write!(page, " data=")?;
        escape(page, data.file().show_path(path).unwrap_or(b"?"))?;
    }
    if image.has_parts() {
        write!(page, " extents={}", image.parts().len())?;
    }
    writeln!(page)
}

/// Bytes that its files take.
fn allocated(layer: Layer<'_>) -> u64 {
    let others = layer.image.data_files();
    others.fold(layer.file.allocated(), |sum, other| {
        sum.saturating_add(other.file().allocated())
    })
}

/// The worst of what it is made of.
fn state(image: &Image) -> &'static str {
    let parts = || image.parts().users().map(ImageUser::image);
    let worst = parts().map(|part| part.disk().state).max();
    match worst.unwrap_or_default().max(image.disk().state) {
        _ if image.is_poisoned() || parts().any(|part| part.is_poisoned()) => "failed",
        State::Clean => "clean",
        State::Dirty => "dirty",
        State::Recovered => "recovered",
    }
}

/// Writes bytes so that they are one word without quotes and backslashes of their own.
fn escape(page: &mut Page<'_>, bytes: &[u8]) -> core::fmt::Result {
    for byte in bytes {
        match byte {
            b'"' | b'\\' | 0..=b' ' | 0x7f.. => write!(page, "\\x{byte:02x}")?,
            _ => page.write_char(char::from(*byte))?,
        }
    }
    Ok(())
}
