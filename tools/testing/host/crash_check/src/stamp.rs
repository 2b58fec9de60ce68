// SPDX-License-Identifier: GPL-2.0

//! Content that says which sector it is of, and which write put it there (the guest's side is
//! `tools/testing/crash/lib/stamps.py`).

const MAGIC: u64 = 0x506d_6174_7368_6372;
const UNIT: usize = 32;

/// What a sector contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros.
    Zero,
    /// A stamp of this sector.
    Generation(u64),
    /// A stamp of another sector.
    OfSector(u64),
    /// Anything else: never written by the guest.
    Other,
}

fn unit(sector: u64, generation: u64) -> [u8; UNIT] {
    let mixed = MAGIC
        ^ sector.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ generation.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let mut unit = [0; UNIT];
    for (bytes, word) in unit
        .chunks_exact_mut(8)
        .zip([MAGIC, sector, generation, mixed])
    {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    unit
}

/// The content of a sector that the write of this generation has written.
pub fn make(sector: u64, generation: u64) -> [u8; 512] {
    let unit = unit(sector, generation);
    let mut bytes = [0; 512];
    bytes
        .chunks_exact_mut(UNIT)
        .for_each(|place| place.copy_from_slice(&unit));
    bytes
}

/// Reads the content of sector `sector`.
pub fn read(sector: u64, bytes: &[u8]) -> Content {
    if bytes.iter().all(|&byte| byte == 0) {
        return Content::Zero;
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let (found, generation) = (word(8), word(16));
    if bytes != make(found, generation) {
        return Content::Other;
    }
    if found == sector {
        Content::Generation(generation)
    } else {
        Content::OfSector(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_told_apart() {
        let bytes = make(7, 3);
        assert_eq!(read(7, &bytes), Content::Generation(3));
        assert_eq!(read(8, &bytes), Content::OfSector(7));
        assert_eq!(read(7, &[0; 512]), Content::Zero);
        for at in [0, 31, 32, 511] {
            let mut damaged = bytes;
            damaged[at] ^= 1;
            assert_eq!(read(7, &damaged), Content::Other, "{at}");
        }
    }

    /// What `stamps.py` makes of sector 7, generation 3.
    #[test]
    fn stamps_are_those_of_the_guest() {
        let words = [0x506d_6174_7368_6372_u64, 7, 3, 0x4bf1_3fd1_7f1f_c60c];
        let expected: Vec<u8> = words.iter().flat_map(|it| it.to_le_bytes()).collect();
        assert_eq!(make(7, 3)[..32], expected);
    }
}
