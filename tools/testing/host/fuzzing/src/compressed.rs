// SPDX-License-Identifier: GPL-2.0

//! One compressed cluster, wherever it lies and however it was compressed, in images that are sound
//! otherwise.
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | size of a cluster |
//! | 1 | bits: see the constants |
//! | 2 | where the compressed bytes begin |
//! | 1 | sectors that the entry counts and nothing is in |
//! | 1 | level of compression; number of zstd frames |
//! | 24 | steps of a guest: see [`Step`](crate::input::Step) |
//! | … | what is in the cluster, again and again; or, if it is garbage, what is there instead of compressed bytes |

use testkit::{device::Device, rng::Rng, store::Store};

use crate::{
    guest::Format,
    input::{Input, STEP_LEN},
    qcow::{compare_readers, VERSION_1, VERSION_2},
};

/// Bit: zstd, not deflate.
pub const ZSTD: u8 = 1;
/// Bit: not compressed at all.
pub const GARBAGE: u8 = 2;
/// Bit: extended L2 entries, if clusters are large enough.
pub const EXTENDED: u8 = 4;
/// Bit: the file ends with the compressed bytes, else with junk in whole clusters.
pub const CUT: u8 = 8;
/// Bit: version 1.
pub const VERSION_1_IMAGE: u8 = 16;

/// Bytes in front of the content.
pub const HEAD: usize = 6 + 4 * STEP_LEN;

/// What an image is to be like.
struct Plan {
    cluster_bits: u32,
    bits: u8,
    at: u64,
    spare: u64,
    level: u8,
}

/// Reads the cluster, and writes to it.
pub fn run(bytes: &[u8]) {
    let Some((head, data)) = bytes.split_at_checked(HEAD) else {
        return;
    };
    let plan = Plan::new(head);
    let cluster = 1usize << plan.cluster_bits;
    let content: Vec<u8> = data.iter().copied().cycle().take(cluster).collect();
    if content.is_empty() {
        return;
    }
    let is_garbage = plan.bits & GARBAGE != 0;
    let packed = match is_garbage {
        true => data.to_vec(),
        false => plan.pack(&content),
    };
    let (format, store) = match plan.bits & VERSION_1_IMAGE {
        0 => (&VERSION_2, plan.version_2(&packed)),
        _ => (&VERSION_1, plan.version_1(&packed)),
    };
    let Some(store) = store else {
        return;
    };
    let device = format.look(&store).expect("the image is sound");
    assert!((format.is_sound)(&store), "the checker is wrong");
    let read = device.read(0, cluster as u64);
    if is_garbage {
        check_garbage(&device, &read.ok());
    } else {
        assert!(read == Ok(content), "the cluster is another");
    }
    write(format, store, &head[6..]);
}

/// Damaged or not, it is the same at every look.
fn check_garbage(device: &Device, read: &Option<Vec<u8>>) {
    let step = (device.disk.unit as usize / 4).max(512);
    for pos in (0..device.disk.unit).step_by(step) {
        let part = device.read(pos, 512).ok();
        match (&part, read) {
            (Some(part), Some(read)) => assert!(part[..] == read[pos as usize..][..512]),
            (None, None) => {}
            _ => panic!("a part is damaged, and not the rest"),
        }
    }
    if device.store.get_be32(4) > 1 {
        compare_readers(device);
    }
}

fn write(format: &Format, store: Store, steps: &[u8]) {
    let mut input = Input::parse(&[&[0, 4], steps].concat(), 0);
    input.store = store;
    format.run(&input);
}

impl Plan {
    fn new(head: &[u8]) -> Self {
        let cluster_bits = 9 + u32::from(head[0]) % 13;
        let at = u64::from(u16::from_le_bytes([head[2], head[3]]));
        Self {
            cluster_bits,
            bits: head[1],
            at: at % (2 << cluster_bits),
            spare: head[4].into(),
            level: head[5],
        }
    }

    fn is_zstd(&self) -> bool {
        self.bits & (ZSTD | VERSION_1_IMAGE) == ZSTD
    }

    /// Compresses a cluster.
    fn pack(&self, content: &[u8]) -> Vec<u8> {
        if !self.is_zstd() {
            return miniz_oxide::deflate::compress_to_vec(content, self.level % 11);
        }
        let frames = 1 + usize::from(self.level % 4);
        let parts = content.chunks(content.len().div_ceil(frames));
        let level = match self.level & 4 {
            0 => ruzstd::encoding::CompressionLevel::Fastest,
            _ => ruzstd::encoding::CompressionLevel::Uncompressed,
        };
        let pack = |part| ruzstd::encoding::compress_to_vec(part, level);
        parts.flat_map(pack).collect()
    }

    /// Puts compressed bytes into a file, at the offset given or behind it, and what follows them.
    fn put(&self, store: &mut Store, at: u64, packed: &[u8]) {
        store.put(at, packed);
        if self.bits & CUT != 0 {
            return;
        }
        let end = store.len();
        let whole = end.next_multiple_of(1 << self.cluster_bits);
        let mut rng = Rng::new(end);
        let junk: Vec<u8> = (end..whole).map(|_| rng.next_u64() as u8).collect();
        store.put(end, &junk);
    }

    /// Header, refcount table, refcount block, L1, L2 and the compressed bytes. `None` if there is no
    /// entry for as many.
    fn version_2(&self, packed: &[u8]) -> Option<Store> {
        let cluster = 1u64 << self.cluster_bits;
        let is_extended = self.bits & EXTENDED != 0 && self.cluster_bits >= 14;
        let at = 5 * cluster + self.at;
        let last = (at + (packed.len() as u64).max(1) - 1) / 512;
        let most = (1 << (self.cluster_bits - 8)) - 1;
        let needed = last - at / 512;
        if needed > most {
            return None;
        }
        let sectors = (needed + self.spare).min(most);
        // Blocks of large clusters have few counts all the same.
        let order = if self.cluster_bits > 15 { 6 } else { 4 };
        let count_len = 1 << (order - 3);

        let mut store = Store::new(b"QFI\xfb\0\0\0\x03");
        let mut put = |at: u64, value: u64, len: usize| {
            store.put(at, &value.to_be_bytes()[8 - len..]);
        };
        put(20, self.cluster_bits.into(), 4);
        put(24, 2 * cluster, 8);
        put(36, 1, 4);
        put(40, 3 * cluster, 8);
        put(48, cluster, 8);
        put(56, 1, 4);
        let incompatible = u64::from(self.is_zstd()) << 3 | u64::from(is_extended) << 4;
        put(72, incompatible, 8);
        put(96, order, 4);
        put(100, 112, 4);
        put(104, self.is_zstd().into(), 1);
        put(cluster, 2 * cluster, 8);
        put(3 * cluster, 1 << 63 | (4 * cluster), 8);
        put(
            4 * cluster,
            1 << 62 | sectors << (70 - self.cluster_bits) | at,
            8,
        );
        let first = at / cluster;
        let end = (at / 512 * 512 + (sectors + 1) * 512).div_ceil(cluster);
        for used in (0..5).chain(first..end) {
            put(2 * cluster + used * count_len, 1, count_len as usize);
        }
        store.put_size(5 * cluster);
        self.put(&mut store, at, packed);
        Some(store)
    }

    /// Header, L1, L2 and the compressed bytes. `None` if the cluster got no smaller: there is no
    /// entry for that.
    fn version_1(&self, packed: &[u8]) -> Option<Store> {
        let cluster_bits = self.cluster_bits.min(16);
        let (cluster, len) = (1u64 << cluster_bits, packed.len() as u64);
        if len >= cluster || len == 0 || self.cluster_bits > 16 {
            return None;
        }
        let at = 2 * cluster + 512 + self.at;
        let mut store = Store::new(b"QFI\xfb\0\0\0\x01");
        store.put(24, &(2 * cluster).to_be_bytes());
        store.put(32, &[cluster_bits as u8, 6]);
        store.put(40, &48u64.to_be_bytes());
        store.put(48, &cluster.next_multiple_of(512).to_be_bytes());
        let entry = 1 << 63 | len << (63 - cluster_bits) | at;
        store.put(cluster, &entry.to_be_bytes());
        store.put_size(2 * cluster + 512);
        self.put(&mut store, at, packed);
        Some(store)
    }
}
