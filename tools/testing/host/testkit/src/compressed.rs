// SPDX-License-Identifier: GPL-2.0

//! Decompression, by libraries that are not the kernel's.

use std::io::Read;

use loop_parser::contract::{Compressed, Compression};
use miniz_oxide::inflate::{
    core::{decompress as inflate_core, inflate_flags, DecompressorOxide},
    TINFLStatus,
};

/// Decompresses a unit: a [`Decompress`](crate::device::Decompress).
pub fn decompress(bytes: &[u8], unit: &Compressed) -> Option<Vec<u8>> {
    let len = unit.unit as usize;
    match unit.compression {
        Compression::Deflate => unpack(bytes, false, len),
        Compression::Zstd => unpack(bytes, true, len),
        Compression::Zlib => unpack_zlib(bytes, len, unit.least as usize),
    }
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
    let (_, done) = inflate(bytes, 0, &mut out);
    (done == len).then_some(out)
}

/// The first `len` bytes of what was compressed into a zlib stream, filled up with zeros if it was
/// less, but at least
/// `least`. The checksum has to be right if the stream ends there.
pub fn unpack_zlib(bytes: &[u8], len: usize, least: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; len];
    let flags =
        inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER | inflate_flags::TINFL_FLAG_COMPUTE_ADLER32;
    let (status, done) = inflate(bytes, flags, &mut out);
    let is_sound = match status {
        TINFLStatus::Done => done >= least,
        TINFLStatus::HasMoreOutput
        | TINFLStatus::NeedsMoreInput
        | TINFLStatus::FailedCannotMakeProgress => done == len,
        _ => false,
    };
    is_sound.then_some(out)
}

fn inflate(bytes: &[u8], flags: u32, out: &mut [u8]) -> (TINFLStatus, usize) {
    let flags = flags | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = DecompressorOxide::new();
    let (status, _, done) = inflate_core(&mut state, bytes, out, 0, flags);
    (status, done)
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
