// SPDX-License-Identifier: GPL-2.0

//! Images that are lists of files: each extent of the disk lies in one of them.
//!
//! Such an image has no guest data and no tables itself. An extent's file is an image like others,
//! which is written by way of this one only; what it does not have is looked for below this one, at
//! the position that the extent has in the whole disk.

use core::cmp::min;

use kernel::prelude::*;

use crate::{
    contract::{
        Error,
        Features,
        Result, //
    },
    image::{
        Layer,
        Whole, //
    },
    user::ImageUser, //
};

/// An extent of the disk.
pub(crate) struct Part {
    /// Guest position of its first byte.
    start: u64,
    /// Its length in bytes, not 0.
    len: u64,
    /// `None`: it reads as zero.
    source: Option<Source>,
}

struct Source {
    user: ImageUser,
    /// Where in the image it begins; 0 if that is not raw.
    base: u64,
}

/// Where the start of a guest range is.
pub(crate) struct Place {
    /// Length in bytes: as far as all of it is there.
    pub(crate) len: u64,
    /// In which image; `None`: in no file, it reads as zero.
    pub(crate) spot: Option<Spot>,
}

/// A position in an image.
pub(crate) struct Spot {
    /// Which of the parts; `None`: the image that was asked.
    pub(crate) part: Option<usize>,
    /// Position in that image.
    pub(crate) pos: u64,
}

/// The extents of a disk in their order, without gaps. None, if the disk is in the image itself.
#[derive(Default)]
pub(crate) struct Parts(KVVec<Part>);

impl Parts {
    /// Appends an extent of `len` bytes that reads as zero.
    pub(crate) fn push_zeros(&mut self, len: u64) -> kernel::error::Result {
        self.push(len, None)
    }

    /// Appends an extent of `len` bytes that begins at position `base` of an image.
    pub(crate) fn push_image(
        &mut self,
        len: u64,
        user: ImageUser,
        base: u64,
    ) -> kernel::error::Result {
        self.push(len, Some(Source { user, base }))
    }

    fn push(&mut self, len: u64, source: Option<Source>) -> kernel::error::Result {
        let start = self
            .0
            .last()
            .map_or(Some(0), |last| last.start.checked_add(last.len));
        let start = start.ok_or(EOVERFLOW)?;
        self.0.push(Part { start, len, source }, GFP_KERNEL)?;
        Ok(())
    }

    /// Whether the disk is in the image itself.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The images that extents lie in. One can be there several times.
    pub(crate) fn users(&self) -> impl Iterator<Item = &ImageUser> {
        self.0
            .iter()
            .filter_map(|part| Some(&part.source.as_ref()?.user))
    }

    /// Where the start of guest range `pos..pos + len` is.
    ///
    /// # Errors
    ///
    /// `EIO`: past the last one.
    #[inline]
    pub(crate) fn place(&self, pos: u64, len: u64) -> Result<Place> {
        if self.is_empty() {
            let spot = Some(Spot { part: None, pos });
            return Ok(Place { len, spot });
        }
        self.find(pos, len)
    }

    // Not inlined, for the stack: most images have no parts. And so below.
    #[inline(never)]
    fn find(&self, pos: u64, len: u64) -> Result<Place> {
        let outside = Error::Store(EIO.to_errno());
        let index = self.0.partition_point(|part| part.start <= pos);
        let index = index.checked_sub(1).ok_or(outside)?;
        let part = self.0.get(index).ok_or(outside)?;
        let skip = pos.checked_sub(part.start).ok_or(outside)?;
        let left = part.len.checked_sub(skip).filter(|left| *left > 0);
        let len = min(len, left.ok_or(outside)?);
        let spot = match &part.source {
            None => None,
            Some(source) => Some(Spot {
                part: Some(index),
                pos: source.base.checked_add(skip).ok_or(outside)?,
            }),
        };
        Ok(Place { len, spot })
    }

    /// The image of the part `index`, with the image that has the list, which is in `whole`.
    #[inline(never)]
    pub(crate) fn layer<'a>(&'a self, index: usize, whole: Layer<'a>) -> Option<Layer<'a>> {
        let part = self.0.get(index)?;
        let user = &part.source.as_ref()?.user;
        Some(Layer {
            image: user.image(),
            file: user.file(),
            whole: Some(Whole {
                image: whole.image,
                file: whole.file,
                start: part.start,
            }),
        })
    }

    /// What all of them can do.
    pub(crate) fn features(&self) -> Features {
        let all = |can: fn(&ImageUser) -> bool| !self.is_empty() && self.users().all(can);
        Features {
            discard: all(|user| match user.image().is_raw() {
                true => user.file().has_fallocate(),
                false => user.image().disk().features.discard,
            }),
            write_zeroes: all(|user| match user.image().is_raw() {
                true => user.file().has_fallocate(),
                false => user.image().disk().features.write_zeroes,
            }),
            // A part that does is refused: requests in flight are known to the whole only.
            reuses_space: false,
        }
    }

    /// Largest allocation unit of them in bytes.
    pub(crate) fn unit(&self) -> u64 {
        let units = self.users().map(|user| user.image().disk().unit);
        units.max().unwrap_or(0)
    }
}
