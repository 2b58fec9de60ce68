// SPDX-License-Identifier: GPL-2.0

//! What a fuzzer's bytes stand for: an image, and what a guest does with it.
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | options: see [`Input`] |
//! | 1 | number of steps |
//! | [`STEP_LEN`] each | steps: see [`Step`] |
//! | 8 | size of the file, little-endian |
//! | 4 | words of zeros (24 bits, little-endian), then words of data, less one (8 bits) |
//! | 8 each | that data |
//! | … | the last two again, up to the end of the input |
//!
//! So an image of megabytes with little in it is an input of a few hundred bytes. Any bytes are an
//! input: what is missing is zero, numbers that are too large are cut down.

use testkit::store::{Store, SECTOR};

/// Bytes in a step.
pub const STEP_LEN: usize = 6;
/// Most steps.
const MAX_STEPS: usize = 32;
/// Bytes in a word of the image.
const WORD: u64 = 8;

/// Option: the image is on a block device, with junk in its free space.
pub const ON_DEVICE: u8 = 1;
/// Option: checksums are made right before the image is attached.
pub const FIX_CHECKSUMS: u8 = 2;

/// An input that was taken apart.
#[derive(Clone, Debug)]
pub struct Input {
    /// Bits of [`ON_DEVICE`] and [`FIX_CHECKSUMS`], and two for a format to give a meaning to; the high
    /// four say how much free space a block device has.
    pub options: u8,
    /// What the guest does.
    pub steps: Vec<Step>,
    /// The file.
    pub store: Store,
}

/// Something that a guest does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// What.
    pub op: u8,
    /// How.
    pub arg: u8,
    /// Where; 24 bits.
    pub place: u32,
    /// How many sectors, less one.
    pub count: u8,
}

impl Step {
    fn from_bytes(bytes: &[u8]) -> Self {
        let [op, arg, a, b, c, count] = take(bytes);
        let place = u32::from_le_bytes([a, b, c, 0]);
        Self {
            op,
            arg,
            place,
            count,
        }
    }

    fn to_bytes(self) -> [u8; STEP_LEN] {
        let [a, b, c, _] = self.place.to_le_bytes();
        [self.op, self.arg, a, b, c, self.count]
    }
}

/// The first bytes of some, zeros for those that are not there.
fn take<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut taken = [0; N];
    for (to, from) in taken.iter_mut().zip(bytes) {
        *to = *from;
    }
    taken
}

impl Input {
    /// Takes an input apart. The file gets no larger than `max_size`.
    pub fn parse(bytes: &[u8], max_size: u64) -> Self {
        let [options, count] = take(bytes);
        let rest = bytes.get(2..).unwrap_or_default();
        let steps_len = rest.len().min(usize::from(count) * STEP_LEN);
        let (steps, rest) = rest.split_at(steps_len);
        let steps = steps.chunks(STEP_LEN).take(MAX_STEPS);
        Self {
            options,
            steps: steps.map(Step::from_bytes).collect(),
            store: parse_store(rest, max_size),
        }
    }

    /// The bytes of an input.
    pub fn bytes(options: u8, steps: &[Step], store: &Store) -> Vec<u8> {
        let mut bytes = vec![options, u8::try_from(steps.len()).expect("too many steps")];
        bytes.extend(steps.iter().flat_map(|step| step.to_bytes()));
        bytes.extend(store.len().to_le_bytes());
        let mut last = 0;
        let words = words(store);
        let mut words = words.iter().peekable();
        while let Some(&(first, word)) = words.next() {
            let mut run = vec![word];
            while let Some((_, word)) =
                words.next_if(|it| it.0 == first + run.len() as u64 && run.len() < 256)
            {
                run.push(*word);
            }
            let gap = u32::try_from(first - last).expect("the image is too large");
            assert!(gap < 1 << 24, "the image is too large");
            let count = u8::try_from(run.len() - 1).expect("at most 256 words");
            bytes.extend(&gap.to_le_bytes()[..3]);
            bytes.push(count);
            bytes.extend(run.iter().flatten());
            last = first + run.len() as u64;
        }
        bytes
    }
}

/// The words of an image that are not zero, by number.
fn words(store: &Store) -> Vec<(u64, [u8; WORD as usize])> {
    let mut words = Vec::new();
    for (sector, bytes) in store.sectors() {
        for (index, word) in (0..).zip(bytes.chunks_exact(WORD as usize)) {
            let at = sector * (SECTOR / WORD) + index;
            if word != [0; WORD as usize] && at * WORD < store.len() {
                words.push((at, take(word)));
            }
        }
    }
    words
}

fn parse_store(bytes: &[u8], max_size: u64) -> Store {
    let size = u64::from_le_bytes(take(bytes)).min(max_size);
    let mut rest = bytes.get(8..).unwrap_or_default();
    let mut store = Store::new(&[]);
    store.put_size(size);
    let mut at = 0;
    while rest.len() > 4 {
        let [a, b, c, count] = take(rest);
        at += u64::from(u32::from_le_bytes([a, b, c, 0])) * WORD;
        let len = (usize::from(count) + 1) * WORD as usize;
        let data = &rest[4..];
        let data = &data[..data.len().min(len)];
        rest = &rest[4 + data.len()..];
        let there = size.saturating_sub(at).min(data.len() as u64) as usize;
        if there > 0 {
            store.put(at, &data[..there]);
        }
        at += len as u64;
    }
    store
}
