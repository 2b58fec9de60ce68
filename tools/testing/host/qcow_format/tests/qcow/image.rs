// SPDX-License-Identifier: GPL-2.0

//! Builds qcow2 images of every shape, sound and otherwise. Knows nothing of the code under test.
//! Refcounts are all 0: nobody who only reads looks at them.

use std::collections::BTreeMap;

use testkit::store::Store;

/// What an image has of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// Bytes that nobody else uses.
    Data,
    /// Bytes that a snapshot uses, too.
    Shared,
    /// Zeros.
    Zero,
    /// Zeros, with a place whose bytes are not.
    ZeroAllocated,
    /// Compressed bytes.
    Compressed,
    /// With extended entries: allocated (low half) and zero (high half) subclusters, and a place.
    Sub(u64),
    /// The same without a place.
    SubNoPlace(u64),
}

/// An image to be built.
#[derive(Clone, Debug)]
pub struct Spec {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub is_extended: bool,
    pub is_zstd: bool,
    pub refcount_order: u32,
    pub header_length: u32,
    /// Name of the backing file.
    pub backing: Option<Vec<u8>>,
    /// Header extensions: kind and data.
    pub extensions: Vec<(u32, Vec<u8>)>,
    /// As many as the size needs if `None`.
    pub l1_size: Option<u32>,
    /// Internal snapshots, of which there is only a table.
    pub snapshots: u32,
    /// Clusters by number, in the order of the file.
    pub clusters: Vec<(u64, Cluster)>,
    /// The L2 tables have a refcount of 1.
    pub owns_tables: bool,
}

pub const BACKING_FORMAT: u32 = 0xe279_2aca;
pub const FEATURE_NAMES: u32 = 0x6803_f857;
pub const DATA_FILE: u32 = 0x4441_5441;

impl Spec {
    /// A version 3 image.
    pub fn v3(size: u64, cluster_bits: u32) -> Self {
        Self {
            version: 3,
            cluster_bits,
            size,
            is_extended: false,
            is_zstd: false,
            refcount_order: 4,
            header_length: 112,
            backing: None,
            extensions: Vec::new(),
            l1_size: None,
            snapshots: 0,
            clusters: Vec::new(),
            owns_tables: true,
        }
    }

    /// A version 2 image.
    pub fn v2(size: u64, cluster_bits: u32) -> Self {
        Self {
            version: 2,
            header_length: 72,
            ..Self::v3(size, cluster_bits)
        }
    }

    /// One with extended L2 entries.
    pub fn extended(size: u64, cluster_bits: u32) -> Self {
        Self {
            is_extended: true,
            ..Self::v3(size, cluster_bits)
        }
    }

    pub fn with_clusters(mut self, clusters: &[(u64, Cluster)]) -> Self {
        self.clusters = clusters.to_vec();
        self
    }

    pub fn on(mut self, backing: &[u8]) -> Self {
        self.backing = Some(backing.to_vec());
        self
    }

    pub fn with_extension(mut self, kind: u32, data: &[u8]) -> Self {
        self.extensions.push((kind, data.to_vec()));
        self
    }

    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn entry_len(&self) -> u64 {
        if self.is_extended {
            16
        } else {
            8
        }
    }

    pub fn l2_entries(&self) -> u64 {
        self.cluster() / self.entry_len()
    }

    pub fn build(&self) -> Image {
        let mut image = Image {
            store: Store::new(&[]),
            spec: self.clone(),
            reftable_at: self.cluster(),
            l1_at: 2 * self.cluster(),
            snapshots_at: 0,
            tables: BTreeMap::new(),
            entries: BTreeMap::new(),
            places: BTreeMap::new(),
        };
        image.put_tables();
        image.put_header();
        for (index, cluster) in self.clusters.clone() {
            image.put_cluster(index, cluster);
        }
        image
    }
}

/// An image that was built.
#[derive(Clone, Debug)]
pub struct Image {
    pub store: Store,
    pub spec: Spec,
    pub reftable_at: u64,
    pub l1_at: u64,
    pub snapshots_at: u64,
    /// L2 tables by L1 entry.
    pub tables: BTreeMap<u64, u64>,
    /// Where the L2 entries of clusters lie.
    pub entries: BTreeMap<u64, u64>,
    /// Where clusters lie.
    pub places: BTreeMap<u64, u64>,
}

impl Image {
    pub fn put32(&mut self, at: u64, value: u32) {
        self.store.put(at, &value.to_be_bytes());
    }

    pub fn put64(&mut self, at: u64, value: u64) {
        self.store.put(at, &value.to_be_bytes());
    }

    fn l1_size(&self) -> u32 {
        let covered = self.spec.cluster() * self.spec.l2_entries();
        let needed = self.spec.size.div_ceil(covered) as u32;
        self.spec.l1_size.unwrap_or(needed)
    }

    /// A new cluster at the end of the file.
    fn take(&mut self) -> u64 {
        let at = self.store.len().next_multiple_of(self.spec.cluster());
        self.store.put_size(at + self.spec.cluster());
        at
    }

    fn put_tables(&mut self) {
        let len = (u64::from(self.l1_size()) * 8).next_multiple_of(self.spec.cluster());
        self.store.put_size(self.l1_at + len);
        if self.spec.snapshots > 0 {
            self.snapshots_at = self.take();
            let len = u64::from(self.spec.snapshots) * 40;
            self.store.put_size(self.snapshots_at + len);
        }
    }

    fn put_header(&mut self) {
        let spec = self.spec.clone();
        self.store.put(0, b"QFI\xfb");
        self.put32(4, spec.version);
        self.put32(20, spec.cluster_bits);
        self.put64(24, spec.size);
        self.put32(36, self.l1_size());
        self.put64(40, self.l1_at);
        self.put64(48, self.reftable_at);
        self.put32(56, 1);
        self.put32(60, spec.snapshots);
        self.put64(64, self.snapshots_at);
        if spec.version == 3 {
            let incompatible = u64::from(spec.is_zstd) << 3 | u64::from(spec.is_extended) << 4;
            self.put64(72, incompatible);
            self.put32(96, spec.refcount_order);
            self.put32(100, spec.header_length);
            if spec.header_length > 104 {
                self.store.put(104, &[u8::from(spec.is_zstd)]);
            }
        }
        let mut at = u64::from(spec.header_length);
        for (kind, data) in &spec.extensions {
            self.put32(at, *kind);
            self.put32(at + 4, data.len() as u32);
            self.store.put(at + 8, data);
            at += 8 + (data.len() as u64).next_multiple_of(8);
        }
        if let Some(name) = &spec.backing {
            at += 8;
            self.put64(8, at);
            self.put32(16, name.len() as u32);
            self.store.put(at, name);
        }
    }

    /// Where the L2 entry of a cluster lies; its table is made if there is none.
    pub fn entry(&mut self, index: u64) -> u64 {
        let entries = self.spec.l2_entries();
        let l1 = index / entries;
        let known = self.tables.get(&l1).copied();
        let table = known.unwrap_or_else(|| {
            let table = self.take();
            let own = u64::from(self.spec.owns_tables) << 63;
            self.put64(self.l1_at + l1 * 8, table | own);
            table
        });
        self.tables.insert(l1, table);
        let at = table + index % entries * self.spec.entry_len();
        self.entries.insert(index, at);
        at
    }

    fn put_cluster(&mut self, index: u64, cluster: Cluster) {
        let at = self.entry(index);
        let own = 1u64 << 63;
        let (flags, bitmap) = match cluster {
            Cluster::Data => (own, 0xffff_ffff),
            Cluster::Shared => (0, 0xffff_ffff),
            Cluster::Zero if self.spec.is_extended => return self.put64(at + 8, !0 << 32),
            Cluster::Zero => return self.put64(at, 1),
            Cluster::ZeroAllocated if self.spec.is_extended => (own, !0 << 32),
            Cluster::ZeroAllocated => (own | 1, 0),
            Cluster::Compressed => return self.put_compressed(index, at),
            Cluster::Sub(bitmap) => (own, bitmap),
            Cluster::SubNoPlace(bitmap) => return self.put64(at + 8, bitmap),
        };
        let place = self.take();
        let data = self.content(index);
        self.store.put(place, &data);
        self.places.insert(index, place);
        self.put64(at, place | flags);
        if self.spec.is_extended {
            self.put64(at + 8, bitmap);
        }
    }

    /// What a cluster that has bytes holds.
    pub fn content(&self, index: u64) -> Vec<u8> {
        let sectors = self.spec.cluster() / 512;
        (index * sectors..(index + 1) * sectors)
            .flat_map(pattern)
            .collect()
    }

    /// Compressed clusters lie back to back.
    fn put_compressed(&mut self, index: u64, at: u64) {
        let packed = compress(&self.content(index), self.spec.is_zstd);
        let place = self.store.len();
        self.store.put(place, &packed);
        self.places.insert(index, place);
        let entry = compressed_entry(self.spec.cluster_bits, place, packed.len() as u64);
        self.put64(at, entry);
    }
}

/// The entry of a compressed cluster.
pub fn compressed_entry(cluster_bits: u32, offset: u64, len: u64) -> u64 {
    let last = (offset + len - 1) / 512;
    1 << 62 | (last - offset / 512) << (70 - cluster_bits) | offset
}

/// A sector that is like no other, and can be compressed.
pub fn pattern(sector: u64) -> [u8; 512] {
    let mut bytes = [0x5a; 512];
    let number = (sector + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes[504..].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn compress(bytes: &[u8], is_zstd: bool) -> Vec<u8> {
    if is_zstd {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        return ruzstd::encoding::compress_to_vec(bytes, level);
    }
    miniz_oxide::deflate::compress_to_vec(bytes, 6)
}
