// SPDX-License-Identifier: GPL-2.0

//! Decompression, by libraries that are not the kernel's.

use std::io::Read;

use loop_parser::contract::{Compressed, Compression};

/// Decompresses a unit: a [`Decompress`](crate::device::Decompress).
pub fn decompress(bytes: &[u8], unit: &Compressed) -> Option<Vec<u8>> {
    unpack(
        bytes,
        unit.compression == Compression::Zstd,
        unit.unit as usize,
    )
}

/// The first `len` bytes of what was compressed; what comes behind is of no interest.
pub fn unpack(bytes: &[u8], is_zstd: bool, len: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; len];
    if is_zstd {
        let mut done = 0;
        let mut bytes = bytes;
        // One frame after the other.
        while done < len {
            let mut frame = ruzstd::decoding::StreamingDecoder::new(&mut bytes).ok()?;
            let count = read_all(&mut frame, &mut out[done..])?;
            done += count;
        }
        return Some(out);
    }
    use miniz_oxide::inflate::core::{decompress, inflate_flags, DecompressorOxide};
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = DecompressorOxide::new();
    let (_, _, done) = decompress(&mut state, bytes, &mut out, 0, flags);
    (done == len).then_some(out)
}

/// Reads as much as there is; at least a byte.
fn read_all(from: &mut impl Read, to: &mut [u8]) -> Option<usize> {
    let mut done = 0;
    while done < to.len() {
        match from.read(&mut to[done..]).ok()? {
            0 => break,
            n => done += n,
        }
    }
    (done > 0).then_some(done)
}
