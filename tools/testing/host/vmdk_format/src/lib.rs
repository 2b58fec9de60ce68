// SPDX-License-Identifier: GPL-2.0

//! The format code of `vmdkloop.ko`, compiled on the host.

#![no_std]

// See loop_parser/src/lib.rs for why this is a folder.
#[path = "../../../../../drivers/block/vmdkloop"]
mod kernel_side {
    pub(crate) mod format;
}

/// The format, and what `vmdkloop.rs` does with it.
pub mod format {
    pub use crate::kernel_side::format::*;

    use loop_parser::contract::{AttachRequest, Result, Tables};

    /// A file that was attached, of whichever kind it is.
    #[derive(Debug)]
    pub enum Image {
        /// A hosted sparse extent.
        Sparse(Attached<GrainMap, GrainAllocator>),
        /// A COWD file.
        Cowd(Attached<GrainMap, GrainAllocator>),
        /// A stream.
        Stream(Attached<StreamMap, ReadOnly>),
        /// A space-efficient sparse extent of ESX.
        SeSparse(Attached<SeSparseMap, ReadOnly>),
        /// A descriptor in a file of its own.
        Set(Attached<ListMap, SetAllocator>, SetExtents),
    }

    /// Attaches a file of any kind.
    ///
    /// # Errors
    ///
    /// See [`kind`].
    pub fn attach(tables: &dyn Tables, request: &AttachRequest<'_>) -> Result<Image> {
        Ok(match kind(tables, request)? {
            Kind::Sparse => Image::Sparse(attach_sparse(tables, request)?),
            Kind::Cowd => Image::Cowd(attach_cowd(tables, request)?),
            Kind::Stream => Image::Stream(attach_stream(tables, request)?),
            Kind::SeSparse => Image::SeSparse(attach_sesparse(tables, request)?),
            Kind::Set => {
                let (image, extents) = attach_set(tables, request)?;
                Image::Set(image, extents)
            }
        })
    }
}
