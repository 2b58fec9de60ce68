// SPDX-License-Identifier: GPL-2.0

//! The kernel's decompressors, which work in memory that they are given.

use kernel::{
    alloc::Flags,
    ffi::c_void,
    prelude::*, //
};

use super::bindings;
use crate::contract::Compression;

/// A decompressor, and the memory that it works in.
pub(crate) struct Decompressor {
    compression: Compression,
    /// Words: both decompressors put structures there.
    workspace: KVVec<u64>,
}

impl Decompressor {
    /// Allocates one. May sleep.
    pub(crate) fn new(compression: Compression, flags: Flags) -> Result<Self> {
        let size = match compression {
            Compression::Deflate | Compression::Zlib => {
                // SAFETY: A pure function.
                let size = unsafe { bindings::zlib_inflate_workspacesize() };
                usize::try_from(size).map_err(|_| EINVAL)?
            }
            // SAFETY: A pure function.
            Compression::Zstd => unsafe { bindings::zstd_dctx_workspace_bound() },
        };
        let words = size.div_ceil(size_of::<u64>());
        Ok(Self {
            compression,
            workspace: KVVec::from_elem(0, words, flags)?,
        })
    }

    /// What it decompresses.
    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// Decompresses `input` until `output` is full or the data ends. Returns how much that was. `None`:
    /// the data is damaged, or breaks off; nothing can be said of what is in `output` then. May sleep.
    pub(crate) fn run(&mut self, input: &[u8], output: &mut [u8]) -> Option<usize> {
        let filled = match self.compression {
            Compression::Deflate => self.inflate(bindings::LP_RAW_DEFLATE, input, output),
            Compression::Zlib => self.inflate(bindings::LP_ZLIB, input, output),
            Compression::Zstd => self.zstd(input, output),
        };
        // SAFETY: May sleep, as the comment above says: that took a while.
        unsafe { bindings::lp_cond_resched() };
        filled
    }

    /// Deflate, with or without what a zlib stream has around it: what follows when the output is full
    /// is not looked at.
    fn inflate(&mut self, format: i32, input: &[u8], output: &mut [u8]) -> Option<usize> {
        let room = output.len();
        let mut stream = bindings::z_stream_s {
            next_in: input.as_ptr(),
            avail_in: input.len(),
            next_out: output.as_mut_ptr(),
            avail_out: output.len(),
            workspace: self.workspace.as_mut_ptr().cast::<c_void>(),
            ..pin_init::zeroed()
        };
        // SAFETY: The workspace has the size that was asked for. The stream's buffers are borrowed,
        // the output exclusively, with the lengths that they have.
        let status = unsafe {
            match bindings::zlib_inflateInit2(&mut stream, format) {
                bindings::LP_Z_OK => bindings::zlib_inflate(&mut stream, bindings::LP_Z_FINISH),
                _ => return None,
            }
        };
        let is_sound = match status {
            bindings::LP_Z_STREAM_END => true,
            bindings::LP_Z_OK | bindings::LP_Z_BUF_ERROR => stream.avail_out == 0,
            _ => false,
        };
        is_sound.then(|| room.saturating_sub(stream.avail_out))
    }

    /// zstd, frame by frame: what follows the one that fills the output is not looked at.
    fn zstd(&mut self, input: &[u8], output: &mut [u8]) -> Option<usize> {
        let room = output.len();
        let size = self.workspace.len().checked_mul(size_of::<u64>())?;
        let (mut input, mut output) = (input, output);
        // SAFETY: The workspace is exclusively borrowed and has that size. It is the context's memory,
        // which keeps nothing else.
        let context =
            unsafe { bindings::zstd_init_dctx(self.workspace.as_mut_ptr().cast::<c_void>(), size) };
        if context.is_null() {
            return None;
        }
        while !output.is_empty() {
            // SAFETY: Looks at the borrowed input only.
            let len = unsafe {
                bindings::zstd_find_frame_compressed_size(input.as_ptr().cast(), input.len())
            };
            let (frame, rest) = input.split_at_checked(checked(len)?)?;
            // SAFETY: The context is in the workspace, as initialised above; both buffers are
            // borrowed, with the lengths that they have.
            let len = unsafe {
                bindings::zstd_decompress_dctx(
                    context,
                    output.as_mut_ptr().cast(),
                    output.len(),
                    frame.as_ptr().cast(),
                    frame.len(),
                )
            };
            output = output.get_mut(checked(len)?..)?;
            input = rest;
        }
        Some(room)
    }
}

/// What a function of zstd returned, unless that is an error.
fn checked(value: usize) -> Option<usize> {
    // SAFETY: A pure function.
    (unsafe { bindings::zstd_is_error(value) } == 0).then_some(value)
}
