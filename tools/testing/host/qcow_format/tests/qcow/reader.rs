// SPDX-License-Identifier: GPL-2.0

//! A second reader, as simple as can be: sector by sector, straight from the tables of the
//! specification. For sound images; it panics on others.

use testkit::store::Store;

/// An image that is read.
pub struct Reader<'a> {
    store: &'a Store,
    cluster_bits: u64,
    is_extended: bool,
    is_zstd: bool,
    l1_at: u64,
    pub size: u64,
}

/// What a sector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sector {
    /// It lies there, and can be written there or not.
    Data(u64, bool),
    Zero,
    Below,
    /// It lies at the second offset in the cluster that is compressed at the first, within that many
    /// bytes.
    Compressed(u64, u64, u64),
}

impl<'a> Reader<'a> {
    pub fn new(store: &'a Store) -> Self {
        let word = |at: u64| be64(store, at);
        let is_v3 = word(4) >> 32 == 3;
        let incompatible = if is_v3 { word(72) } else { 0 };
        Self {
            store,
            cluster_bits: word(20) >> 32,
            is_extended: incompatible & 16 != 0,
            is_zstd: incompatible & 8 != 0,
            l1_at: word(40),
            size: word(24) / 512 * 512,
        }
    }

    /// Looks a sector up by its guest position.
    pub fn sector(&self, pos: u64) -> Sector {
        let cluster = 1 << self.cluster_bits;
        let entry_len = if self.is_extended { 16 } else { 8 };
        let entries = cluster / entry_len;
        let within = pos % cluster;
        let number = pos / cluster;

        let l1 = be64(self.store, self.l1_at + number / entries * 8);
        let table = bits(l1, 9, 55) << 9;
        if table == 0 {
            return Sector::Below;
        }
        let at = table + number % entries * entry_len;
        let l2 = be64(self.store, at);
        let place = bits(l2, 9, 55) << 9;
        let is_own = bits(l1, 63, 63) == 1 && bits(l2, 63, 63) == 1;
        if bits(l2, 62, 62) == 1 {
            let x = 70 - self.cluster_bits;
            let offset = bits(l2, 0, x - 1);
            let end = (offset / 512 + bits(l2, x, 61) + 1) * 512;
            return Sector::Compressed(offset, within, end - offset);
        }
        if self.is_extended {
            let subcluster = within / (cluster / 32);
            let bitmap = be64(self.store, at + 8);
            if bits(bitmap, 32 + subcluster, 32 + subcluster) == 1 {
                return Sector::Zero;
            }
            if bits(bitmap, subcluster, subcluster) == 0 {
                return Sector::Below;
            }
        } else if bits(l2, 0, 0) == 1 {
            return Sector::Zero;
        } else if place == 0 {
            return Sector::Below;
        }
        if place + within >= self.store.len() {
            return Sector::Zero;
        }
        Sector::Data(place + within, is_own)
    }

    /// The guest's disk; `below` is the backing file's.
    pub fn disk(&self, below: &[u8]) -> Vec<u8> {
        let mut disk = Vec::new();
        // The last cluster that was decompressed.
        let mut unit = (0, Vec::new());
        for pos in (0..self.size).step_by(512) {
            let mut bytes = vec![0; 512];
            match self.sector(pos) {
                Sector::Zero => {}
                Sector::Data(offset, _) => bytes = self.store.get(offset, 512),
                Sector::Below => {
                    let from = below.get(pos as usize..).unwrap_or_default();
                    let len = from.len().min(512);
                    bytes[..len].copy_from_slice(&from[..len]);
                }
                Sector::Compressed(offset, within, len) => {
                    if unit.0 != offset {
                        unit = (offset, self.decompress(offset, len));
                    }
                    bytes.copy_from_slice(&unit.1[within as usize..][..512]);
                }
            }
            disk.extend(bytes);
        }
        disk
    }

    fn decompress(&self, offset: u64, len: u64) -> Vec<u8> {
        let len = len.min(self.store.len() - offset);
        let packed = self.store.get(offset, len as usize);
        crate::unpack(&packed, self.is_zstd, 1 << self.cluster_bits).unwrap()
    }
}

/// Bits `first` to `last` of a number.
fn bits(value: u64, first: u64, last: u64) -> u64 {
    (value >> first) & (u64::MAX >> (63 - (last - first)))
}

/// A number of eight bytes; what lies past the end of the file is zero.
fn be64(store: &Store, at: u64) -> u64 {
    let there = store.len().saturating_sub(at).min(8);
    let mut bytes = store.get(at, there as usize);
    bytes.resize(8, 0);
    u64::from_be_bytes(bytes.try_into().unwrap())
}
