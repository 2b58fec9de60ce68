// SPDX-License-Identifier: GPL-2.0

//! Reading through the layers of a device: what an image does not have itself is its parent's.

use core::cmp::min;

use crate::{
    contract::{
        Error,
        Extent,
        Placement,
        Result, //
    },
    image::{
        Image,
        Layer,
        Whose, //
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
    /// Which image it is in. See [`Image::whose`].
    pub(crate) whose: Whose,
    /// Never [`Extent::Parent`].
    pub(crate) extent: Extent,
}

impl Found {
    fn zeros(depth: usize, len: u64) -> Self {
        Self {
            whose: Whose { depth, part: None },
            extent: Extent::Zero { len },
        }
    }
}

/// Finds the start of guest range `pos..pos + len` without sleeping.
// Not inlined, for the stack.
#[inline(never)]
pub(crate) fn find_cached(image: &Image, file: &BackingFile, pos: u64, len: u64) -> Result<Found> {
    find(image, file, pos, len, |layer, pos, len| {
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
    find(image, file, pos, len, |layer, pos, len| {
        let resolved = layer.image.resolve_read(layer.file, pos, len);
        resolved.map_err(|error| layer.image.reported(error))
    })
}

/// Where the start of guest range `pos..pos + len` is written to, and in which image. The parser of that
/// one was told that there will be writes. May sleep. A fault of a part is reported here.
pub(crate) fn find_for_write(
    image: &Image,
    file: &BackingFile,
    pos: u64,
    len: u64,
) -> Result<(Whose, Placement)> {
    let place = locate(image, file, pos, len)?;
    // There is no place for what is written to zeros.
    let spot = place.spot.ok_or(NOWHERE)?;
    let placement = spot.resolve_write(place.len);
    let placement = placement.map_err(|error| spot.layer.image.reported_write(error))?;
    Ok((spot.whose, placement))
}

/// Where the start of a guest range is that is to be changed.
pub(crate) struct Located<'a> {
    /// Length in bytes: as far as all of it is there.
    pub(crate) len: u64,
    /// `None`: it reads as zero, and cannot be written.
    pub(crate) spot: Option<LocatedSpot<'a>>,
}

/// A position in the image that a guest range lies in.
#[derive(Clone, Copy)]
pub(crate) struct LocatedSpot<'a> {
    /// Which image it is.
    pub(crate) whose: Whose,
    /// The same.
    pub(crate) layer: Layer<'a>,
    /// Position in that image.
    pub(crate) pos: u64,
}

/// Finds out in which image the start of guest range `pos..pos + len` lies, which is to be changed.
///
/// # Errors
///
/// `EIO`: it is not on the disk, or nothing may be written any more.
#[inline(always)]
pub(crate) fn locate<'a>(
    image: &'a Image,
    file: &'a BackingFile,
    pos: u64,
    len: u64,
) -> Result<Located<'a>> {
    if image.is_poisoned() {
        return Err(NOWHERE);
    }
    let place = image.place(pos, len)?;
    let Some(spot) = place.spot else {
        return Ok(Located {
            len: place.len,
            spot: None,
        });
    };
    let whose = Whose {
        depth: 0,
        part: spot.part,
    };
    Ok(Located {
        len: place.len,
        spot: Some(LocatedSpot {
            whose,
            layer: image.whose(file, whose).ok_or(NOWHERE)?,
            pos: spot.pos,
        }),
    })
}

const NOWHERE: Error = Error::Store(-(kernel::bindings::EIO as i32));

impl LocatedSpot<'_> {
    /// Resolves `len` bytes of it. The caller has begun to write the whole.
    fn resolve_write(&self, len: u64) -> Result<Placement> {
        let Layer { image, file, .. } = self.layer;
        if self.whose.part.is_some() {
            image.begin_writing(file)?;
        }
        image.resolve_write(file, self.pos, len)
    }
}

impl<'a> Layer<'a> {
    /// Finds what the start of a range of it is read from, be it below: in which image, and that.
    /// Returns also whether it is in this one itself.
    pub(crate) fn find_old(self, pos: u64, len: u64) -> Result<(Layer<'a>, Extent, bool)> {
        let (image, file, start) = match self.whole {
            Some(whole) => (whole.image, whole.file, whole.start),
            None => (self.image, self.file, 0),
        };
        let pos = start.checked_add(pos).ok_or(NOWHERE)?;
        let found = find_blocking(image, file, pos, len)?;
        let layer = image.whose(file, found.whose).ok_or(NOWHERE);
        match found.extent {
            Extent::Zero { .. } => Ok((self, found.extent, true)),
            extent => Ok((layer?, extent, found.whose.depth == 0)),
        }
    }

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
        let written = retry::data(|| io::write_all(self.data(), offset, bytes));
        self.image.count_write();
        written.map_err(store_error)
    }
}

fn find(
    image: &Image,
    file: &BackingFile,
    pos: u64,
    len: u64,
    mut resolve: impl FnMut(Layer<'_>, u64, u64) -> Result<Extent>,
) -> Result<Found> {
    let mut len = len;
    for depth in 0..MAX_LAYERS {
        let Some(layer) = image.layer(file, depth) else {
            break;
        };
        if depth > 0 {
            // Images of a chain need not have the same size.
            let left = layer.image.known_size(layer.file).saturating_sub(pos);
            if left == 0 {
                return Ok(Found::zeros(depth, len));
            }
            len = min(len, left);
        }
        let place = layer.image.place(pos, len)?;
        len = place.len;
        let Some(spot) = place.spot else {
            return Ok(Found::zeros(depth, len));
        };
        let whose = Whose {
            depth,
            part: spot.part,
        };
        let Some(layer) = image.whose(file, whose) else {
            break;
        };
        match resolve(layer, spot.pos, len)? {
            Extent::Parent { len: rest } => len = rest,
            extent => return Ok(Found { whose, extent }),
        }
    }
    Err(Error::malformed(
        "parser resolved to a parent that was not named",
        0,
    ))
}
