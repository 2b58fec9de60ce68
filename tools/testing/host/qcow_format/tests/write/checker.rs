// SPDX-License-Identifier: GPL-2.0

//! A second reader and checker of qcow2 images, written from the specification: slow and obvious.
//! The checker takes any image whose header is right, the reader only those it finds nothing wrong
//! with.

use std::collections::{BTreeMap, HashMap};

use testkit::store::Store;

/// The bits of an L1 or L2 entry that say where in the file something lies.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// It is counted once, so it can be written in place.
pub const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// What compressed clusters contain, by the L2 entries that name them: nobody makes new ones.
#[derive(Debug, Default)]
pub struct Compressed(HashMap<u64, Vec<u8>>);

impl Compressed {
    /// Learns it from an image whose guest disk is known.
    pub fn learn(store: &Store, disk: &[u8]) -> Self {
        let header = Header::load(store);
        let mut known = HashMap::new();
        for (number, entry) in header.entries(store, header.l1_offset, header.l1_size) {
            if entry.word & COMPRESSED != 0 {
                let start = (number * header.cluster) as usize;
                let end = disk.len().min(start + header.cluster as usize);
                let mut bytes = disk[start.min(end)..end].to_vec();
                bytes.resize(header.cluster as usize, 0);
                known.insert(entry.word, bytes);
            }
        }
        Self(known)
    }
}

/// What the checker needs of a header.
pub struct Header {
    pub version: u32,
    pub cluster: u64,
    pub size: u64,
    pub l1_size: u64,
    pub l1_offset: u64,
    pub reftable: u64,
    pub reftable_clusters: u64,
    pub incompatible: u64,
    pub autoclear: u64,
    order: u32,
    pub snapshots: u64,
    snapshots_offset: u64,
}

/// An L2 entry; the second word is 0 unless entries are extended.
#[derive(Clone, Copy)]
struct Entry {
    at: u64,
    word: u64,
    bitmap: u64,
}

impl Header {
    pub fn load(store: &Store) -> Self {
        let version = store.get_be32(4);
        let v3 = |at: u64| if version >= 3 { store.get_be64(at) } else { 0 };
        Self {
            version,
            cluster: 1 << store.get_be32(20),
            size: store.get_be64(24),
            l1_size: store.get_be32(36).into(),
            l1_offset: store.get_be64(40),
            reftable: store.get_be64(48),
            reftable_clusters: store.get_be32(56).into(),
            incompatible: v3(72),
            autoclear: v3(88),
            order: if version >= 3 { store.get_be32(96) } else { 4 },
            snapshots: store.get_be32(60).into(),
            snapshots_offset: store.get_be64(64),
        }
    }

    fn is_extended(&self) -> bool {
        self.incompatible & 16 != 0
    }

    fn entry_len(&self) -> u64 {
        if self.is_extended() {
            16
        } else {
            8
        }
    }

    /// The entries of all L2 tables of an L1, with the number of the guest cluster.
    fn entries(&self, store: &Store, l1: u64, l1_size: u64) -> Vec<(u64, Entry)> {
        let mut list = Vec::new();
        let count = self.cluster / self.entry_len();
        for index in 0..l1_size {
            let table = word(store, l1 + index * 8) & OFFSET;
            if table == 0 {
                continue;
            }
            for number in 0..count {
                let at = table + number * self.entry_len();
                let entry = Entry {
                    at,
                    word: word(store, at),
                    bitmap: if self.is_extended() {
                        word(store, at + 8)
                    } else {
                        0
                    },
                };
                if entry.word != 0 || entry.bitmap != 0 {
                    list.push((index * count + number, entry));
                }
            }
        }
        list
    }

    /// Offsets and sizes of the L1 tables of the snapshots, and the end of the snapshot table.
    pub fn snapshot_tables(&self, store: &Store) -> (Vec<(u64, u64)>, u64) {
        let mut at = self.snapshots_offset;
        let mut list = Vec::new();
        for _ in 0..self.snapshots {
            // Size of the L1, and lengths of id and name.
            let sizes = word(store, at.saturating_add(8));
            list.push((word(store, at), sizes >> 32));
            let extra = word(store, at.saturating_add(32)) & 0xffff_ffff;
            let text = (sizes >> 16 & 0xffff) + (sizes & 0xffff);
            let end = at.checked_add(40 + extra + text);
            at = end
                .and_then(|it| it.checked_next_multiple_of(8))
                .unwrap_or(u64::MAX);
        }
        (list, at)
    }

    /// Counts in a block.
    pub fn per_block(&self) -> u64 {
        (self.cluster * 8) >> self.order
    }

    /// The refcount block of a cluster; 0 if there is none.
    fn block(&self, store: &Store, index: u64) -> u64 {
        if index >= self.reftable_clusters * self.cluster / 8 {
            return 0;
        }
        word(store, self.reftable + index * 8) & !0x1ff
    }

    /// The count of a cluster.
    fn count(&self, store: &Store, cluster: u64) -> u64 {
        let block = self.block(store, cluster / self.per_block());
        if block == 0 {
            return 0;
        }
        let bits = 1u64 << self.order;
        let bit = cluster % self.per_block() * bits;
        let len = bits.div_ceil(8) as usize;
        self.decode(&lenient(store, block + bit / 8, len), bit % 8)
    }

    /// The count that begins at bit `bit` of some bytes.
    fn decode(&self, bytes: &[u8], bit: u64) -> u64 {
        let bits = 1u64 << self.order;
        let bytes = &bytes[(bit / 8) as usize..];
        if bits < 8 {
            return (u64::from(bytes[0]) >> (bit % 8)) & ((1 << bits) - 1);
        }
        bytes[..(bits / 8) as usize]
            .iter()
            .fold(0, |value, &byte| (value << 8) | u64::from(byte))
    }
}

/// A word, 0 past the end of the file.
pub fn word(store: &Store, at: u64) -> u64 {
    match at.checked_add(8) {
        Some(end) if end <= store.len() => store.get_be64(at),
        _ => 0,
    }
}

/// Host offsets of the refcount blocks.
pub fn blocks(store: &Store) -> Vec<u64> {
    let header = Header::load(store);
    (0..header.reftable_clusters * header.cluster / 8)
        .map(|index| header.block(store, index))
        .filter(|&block| block != 0)
        .collect()
}

/// What is wrong with an image, and how many clusters are leaked.
pub struct Report {
    pub errors: Vec<String>,
    pub leaks: u64,
}

/// Compares the refcounts with what refers to the clusters.
pub fn check(store: &Store) -> Report {
    let header = Header::load(store);
    let mut check = Check {
        store,
        header: &header,
        references: BTreeMap::new(),
        errors: Vec::new(),
    };
    check.tables();
    check.compare()
}

struct Check<'a> {
    store: &'a Store,
    header: &'a Header,
    references: BTreeMap<u64, u64>,
    errors: Vec<String>,
}

impl Check<'_> {
    fn refer(&mut self, what: &str, offset: u64, len: u64) {
        let cluster = self.header.cluster;
        // The last cluster of a table can be cut, a compressed one can end past the end.
        if offset >= self.store.len() {
            self.errors
                .push(format!("{what} {offset:#x} is past the end"));
        }
        if what != "compressed" && offset % cluster != 0 {
            self.errors.push(format!("{what} {offset:#x} is unaligned"));
        }
        for number in offset / cluster..offset.saturating_add(len).div_ceil(cluster) {
            *self.references.entry(number).or_default() += 1;
        }
    }

    fn tables(&mut self) {
        let header = self.header;
        self.refer("header", 0, header.cluster);
        let table_len = header.reftable_clusters * header.cluster;
        self.refer("refcount table", header.reftable, table_len);
        for index in 0..table_len / 8 {
            let block = header.block(self.store, index);
            if block != 0 {
                self.refer("refcount block", block, header.cluster);
            }
        }
        self.tree(header.l1_offset, header.l1_size, true);
        let (snapshots, end) = header.snapshot_tables(self.store);
        if header.snapshots > 0 {
            let len = end - header.snapshots_offset;
            self.refer("snapshot table", header.snapshots_offset, len);
        }
        for (l1, size) in snapshots {
            self.tree(l1, size, false);
        }
    }

    fn tree(&mut self, l1: u64, l1_size: u64, is_active: bool) {
        self.refer("L1", l1, l1_size * 8);
        for index in 0..l1_size {
            let entry = word(self.store, l1 + index * 8);
            if entry & OFFSET != 0 {
                self.refer("L2", entry & OFFSET, self.header.cluster);
                self.flag(is_active, l1 + index * 8, entry, entry & OFFSET);
            }
        }
        for (_, entry) in self.header.entries(self.store, l1, l1_size) {
            self.entry(entry, is_active);
        }
    }

    fn entry(&mut self, entry: Entry, is_active: bool) {
        let header = self.header;
        if entry.word & COMPRESSED != 0 {
            let shift = 70 - header.cluster.trailing_zeros();
            let offset = entry.word & ((1 << shift) - 1);
            let sectors = (entry.word & (COMPRESSED - 1)) >> shift;
            let end = (offset & !511) + (sectors + 1) * 512;
            self.refer("compressed", offset, end - offset);
            if entry.word & COPIED != 0 {
                self.errors
                    .push(format!("compressed and copied at {:#x}", entry.at));
            }
            return;
        }
        let offset = entry.word & OFFSET;
        let (allocated, zero) = (entry.bitmap & 0xffff_ffff, entry.bitmap >> 32);
        if allocated & zero != 0 || (offset == 0 && allocated != 0) {
            self.errors.push(format!(
                "subclusters at {:#x}: {:#x}",
                entry.at, entry.bitmap
            ));
        }
        if header.version < 3 && entry.word & 1 != 0 {
            self.errors
                .push(format!("zero flag in version 2 at {:#x}", entry.at));
        }
        if offset != 0 {
            self.refer("data", offset, header.cluster);
            self.flag(is_active, entry.at, entry.word, offset);
        } else if entry.word & COPIED != 0 {
            self.errors
                .push(format!("nothing is copied at {:#x}", entry.at));
        }
    }

    fn flag(&mut self, is_active: bool, at: u64, entry: u64, offset: u64) {
        let count = self.header.count(self.store, offset / self.header.cluster);
        if is_active && (entry & COPIED != 0) != (count == 1) {
            self.errors.push(format!(
                "copied flag of {entry:#x} at {at:#x}, whose count is {count}"
            ));
        }
    }

    fn compare(mut self) -> Report {
        let header = self.header;
        let mut leaks = 0;
        let per_block = header.per_block();
        let counted = header.reftable_clusters * header.cluster / 8;
        for index in 0..counted {
            let block = header.block(self.store, index);
            if block == 0 {
                continue;
            }
            let bytes = lenient(self.store, block, header.cluster as usize);
            for number in 0..per_block {
                let cluster = index * per_block + number;
                let count = header.decode(&bytes, number << header.order);
                let references = self.references.remove(&cluster).unwrap_or(0);
                if count < references {
                    self.errors.push(format!(
                        "cluster {cluster} has {references} references and a count of {count}"
                    ));
                }
                leaks += u64::from(count > references);
            }
        }
        for (cluster, references) in self.references {
            self.errors.push(format!(
                "cluster {cluster} has {references} references and is not counted"
            ));
        }
        // One broken table gives thousands.
        self.errors.truncate(4);
        Report {
            errors: self.errors,
            leaks,
        }
    }
}

/// The guest's disk.
pub fn read(store: &Store, base: &[u8], compressed: &Compressed) -> Vec<u8> {
    let header = Header::load(store);
    let mut disk = base.to_vec();
    disk.resize(header.size as usize, 0);
    let cluster = header.cluster as usize;
    for (number, entry) in header.entries(store, header.l1_offset, header.l1_size) {
        let start = number as usize * cluster;
        if start >= disk.len() {
            continue;
        }
        let end = disk.len().min(start + cluster);
        let bytes = content(store, &header, entry, compressed);
        let parts = if header.is_extended() { 32 } else { 1 };
        for (part, bytes) in bytes.into_iter().enumerate() {
            let Some(bytes) = bytes else { continue };
            let from = (start + part * cluster / parts).min(end);
            let to = (from + cluster / parts).min(end);
            disk[from..to].copy_from_slice(&bytes[..to - from]);
        }
    }
    disk
}

/// What a cluster contains, by subclusters; `None` is what lies below.
fn content(
    store: &Store,
    header: &Header,
    entry: Entry,
    compressed: &Compressed,
) -> Vec<Option<Vec<u8>>> {
    let cluster = header.cluster as usize;
    let parts = if header.is_extended() { 32 } else { 1 };
    let part = cluster / parts;
    if entry.word & COMPRESSED != 0 {
        let bytes = compressed.0.get(&entry.word);
        let bytes = bytes.expect("a compressed cluster that was not there");
        return bytes.chunks(part).map(|it| Some(it.to_vec())).collect();
    }
    let offset = entry.word & OFFSET;
    (0..parts)
        .map(|number| {
            let (is_zero, is_data) = if header.is_extended() {
                (
                    (entry.bitmap >> (32 + number)) & 1 != 0,
                    (entry.bitmap >> number) & 1 != 0,
                )
            } else {
                (entry.word & 1 != 0, offset != 0)
            };
            match (is_zero, is_data) {
                (true, _) => Some(vec![0; part]),
                (false, true) => Some(lenient(store, offset + (number * part) as u64, part)),
                (false, false) => None,
            }
        })
        .collect()
}

/// Bytes of the file, zeros past its end.
fn lenient(store: &Store, offset: u64, len: usize) -> Vec<u8> {
    let there = store.len().saturating_sub(offset).min(len as u64) as usize;
    let mut bytes = store.get(offset.min(store.len()), there);
    bytes.resize(len, 0);
    bytes
}
