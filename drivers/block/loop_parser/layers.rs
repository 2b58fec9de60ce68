// SPDX-License-Identifier: GPL-2.0

//! Reading through the layers of a device: what an image does not have itself is its parent's.

use core::cmp::min;

use crate::{
    contract::{
        Error,
        Extent,
        Result, //
    },
    image::{
        Image,
        Layer, //
    },
    retry,
    sys::{
        file::BackingFile,
        io, //
    },
    tables::store_error, //
};

/// Most files that a device can be made of.
pub(crate) const MAX_LAYERS: usize = 32;

/// Where the start of a guest range is read from.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    /// Which layer it is in: 0 is the device's own file. See [`Image::layer`].
    pub(crate) depth: usize,
    /// Never [`Extent::Parent`].
    pub(crate) extent: Extent,
}

/// Finds the start of guest range `pos..pos + len` without sleeping.
pub(crate) fn find_cached(image: &Image, file: &BackingFile, pos: u64, len: u64) -> Result<Found> {
    find(image, file, pos, len, |layer, len| {
        if layer.image.is_peekable() {
            layer.image.resolve_cached(layer.file, pos, len)
        } else {
            Err(Error::WouldBlock)
        }
    })
}

/// Finds the start of guest range `pos..pos + len`. May sleep. A fault is reported here: only here
/// it is known whose it is.
pub(crate) fn find_blocking(
    image: &Image,
    file: &BackingFile,
    pos: u64,
    len: u64,
) -> Result<Found> {
    find(image, file, pos, len, |layer, len| {
        let resolved = layer.image.resolve_read(layer.file, pos, len);
        resolved.map_err(|error| layer.image.reported(error))
    })
}

impl<'a> Layer<'a> {
    /// The file that its guest data lie in.
    pub(crate) fn data(self) -> &'a BackingFile {
        self.image.data(self.file)
    }

    /// Reads guest data at a host offset. What lies behind the end of a file that has nothing else is
    /// zeros.
    pub(crate) fn read_data(self, offset: u64, bytes: &mut [u8]) -> Result {
        retry::data(|| {
            if self.image.data_file().is_none() {
                return io::read_exact(self.file, offset, bytes);
            }
            let count = io::read(self.data(), offset, bytes)?;
            bytes.get_mut(count..).unwrap_or(&mut []).fill(0);
            Ok(())
        })
        .map_err(store_error)
    }

    /// Writes guest data at a host offset, apart from direct writes in flight.
    pub(crate) fn write_data(self, offset: u64, bytes: &[u8]) -> Result {
        let _gate = self.image.exclude_direct_writes();
        retry::data(|| io::write_all(self.data(), offset, bytes)).map_err(store_error)
    }
}

fn find(
    image: &Image,
    file: &BackingFile,
    pos: u64,
    len: u64,
    mut resolve: impl FnMut(Layer<'_>, u64) -> Result<Extent>,
) -> Result<Found> {
    let mut len = len;
    for depth in 0..MAX_LAYERS {
        let Some(layer) = image.layer(file, depth) else {
            break;
        };
        if depth > 0 {
            // Images of a chain need not have the same size.
            let left = layer.image.size(layer.file).saturating_sub(pos);
            if left == 0 {
                let extent = Extent::Zero { len };
                return Ok(Found { depth, extent });
            }
            len = min(len, left);
        }
        match resolve(layer, len)? {
            Extent::Parent { len: rest } => len = rest,
            extent => return Ok(Found { depth, extent }),
        }
    }
    Err(Error::malformed(
        "parser resolved to a parent that was not named",
        0,
    ))
}
