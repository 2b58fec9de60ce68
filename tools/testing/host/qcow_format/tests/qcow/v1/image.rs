// SPDX-License-Identifier: GPL-2.0

//! Builds images of version 1, and reads them in the simplest way. Knows nothing of the code under
//! test.

use std::collections::BTreeMap;

use testkit::store::Store;

use crate::image::pattern;

/// An image to be built.
#[derive(Clone, Debug)]
pub struct Spec {
    pub size: u64,
    pub cluster_bits: u8,
    pub l2_bits: u8,
    pub backing: Option<Vec<u8>>,
    /// Clusters by number, in the order of the file; compressed or not.
    pub clusters: Vec<(u64, bool)>,
}

/// An image that was built.
#[derive(Clone, Debug)]
pub struct Image {
    pub store: Store,
    pub spec: Spec,
    pub l1_at: u64,
    /// Where the L2 entries of clusters lie, and where the clusters do.
    pub entries: BTreeMap<u64, (u64, u64)>,
}

impl Spec {
    pub fn new(size: u64, cluster_bits: u8, l2_bits: u8) -> Self {
        Self {
            size,
            cluster_bits,
            l2_bits,
            backing: None,
            clusters: Vec::new(),
        }
    }

    pub fn with_clusters(mut self, clusters: &[(u64, bool)]) -> Self {
        self.clusters = clusters.to_vec();
        self
    }

    pub fn on(mut self, name: &[u8]) -> Self {
        self.backing = Some(name.to_vec());
        self
    }

    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub fn build(&self) -> Image {
        let name = self.backing.clone().unwrap_or_default();
        let l1_at = (48 + name.len() as u64).next_multiple_of(8);
        let covered = self.size.div_ceil(1 << (self.cluster_bits + self.l2_bits));
        let mut store = Store::new(b"QFI\xfb\0\0\0\x01");
        store.put_size(l1_at + covered * 8);
        if !name.is_empty() {
            store.put(8, &48u64.to_be_bytes());
            store.put(16, &(name.len() as u32).to_be_bytes());
            store.put(48, &name);
        }
        store.put(24, &self.size.to_be_bytes());
        store.put(32, &[self.cluster_bits, self.l2_bits]);
        store.put(40, &l1_at.to_be_bytes());
        let mut image = Image {
            store,
            spec: self.clone(),
            l1_at,
            entries: BTreeMap::new(),
        };
        for &(index, is_compressed) in &self.clusters {
            image.put_cluster(index, is_compressed);
        }
        image
    }
}

impl Image {
    pub fn put64(&mut self, at: u64, value: u64) {
        self.store.put(at, &value.to_be_bytes());
    }

    fn take(&mut self, len: u64) -> u64 {
        let at = self.store.len().next_multiple_of(self.spec.cluster());
        self.store.put_size(at + len);
        at
    }

    fn put_cluster(&mut self, index: u64, is_compressed: bool) {
        let entries = 1u64 << self.spec.l2_bits;
        let l1 = self.l1_at + index / entries * 8;
        if self.store.get_be64(l1) == 0 {
            let table = self.take(entries * 8);
            self.put64(l1, table);
        }
        let at = self.store.get_be64(l1) + index % entries * 8;
        let data = self.content(index);
        let place = if is_compressed {
            let packed = miniz_oxide::deflate::compress_to_vec(&data, 6);
            assert!(packed.len() < data.len());
            let place = self.store.len();
            self.store.put(place, &packed);
            let len = (packed.len() as u64) << (63 - self.spec.cluster_bits);
            self.put64(at, 1 << 63 | len | place);
            place
        } else {
            let place = self.take(self.spec.cluster());
            self.store.put(place, &data);
            self.put64(at, place);
            place
        };
        self.entries.insert(index, (at, place));
    }

    pub fn content(&self, index: u64) -> Vec<u8> {
        let sectors = self.spec.cluster() / 512;
        (index * sectors..(index + 1) * sectors)
            .flat_map(pattern)
            .collect()
    }
}

/// The guest's disk; `below` is the backing file's. For sound images; panics on others.
pub fn disk(store: &Store, below: &[u8]) -> Vec<u8> {
    let [cluster_bits, l2_bits] = store.get_array(32);
    let cluster = 1u64 << cluster_bits;
    let size = store.get_be64(24) / 512 * 512;
    let mut disk = Vec::new();
    for pos in (0..size).step_by(512) {
        let number = pos / cluster;
        let within = pos % cluster;
        let l1 = store.get_be64(store.get_be64(40) + (number >> l2_bits) * 8);
        let entry = match l1 {
            0 => 0,
            _ => store.get_be64(l1 + number % (1 << l2_bits) * 8),
        };
        let mut bytes = vec![0; 512];
        if entry == 0 {
            let from = below.get(pos as usize..).unwrap_or_default();
            let len = from.len().min(512);
            bytes[..len].copy_from_slice(&from[..len]);
        } else if entry >> 63 == 0 {
            if entry + within < store.len() {
                bytes = store.get(entry + within, 512);
            }
        } else {
            let len = entry << 1 >> (64 - cluster_bits);
            let place = entry & ((1 << (63 - cluster_bits)) - 1);
            let packed = store.get(place, len as usize);
            let whole = crate::unpack(&packed, false, cluster as usize).unwrap();
            bytes.copy_from_slice(&whole[within as usize..][..512]);
        }
        disk.extend(bytes);
    }
    disk
}

/// Fails unless [`places`] are right.
#[track_caller]
pub fn check_places(store: &Store) {
    places(store).unwrap();
}

/// Where clusters and tables lie: nothing twice, nothing past the end of the file.
pub fn places(store: &Store) -> Result<(), String> {
    let [cluster_bits, l2_bits] = store.get_array(32);
    let cluster = 1u64 << cluster_bits;
    let l1_at = store.get_be64(40);
    let covered = store.get_be64(24).div_ceil(1 << (cluster_bits + l2_bits));
    let mut places = vec![(0, 48), (l1_at, covered * 8)];
    for l1 in 0..covered {
        let table = store.get_be64(l1_at + l1 * 8);
        if table == 0 {
            continue;
        }
        if table + (8 << l2_bits) > store.len() {
            return Err("a table past the end".into());
        }
        places.push((table, 8 << l2_bits));
        for l2 in 0..1 << l2_bits {
            let entry = store.get_be64(table + l2 * 8);
            if entry >> 63 == 1 {
                let len = entry << 1 >> (64 - cluster_bits);
                places.push((entry & ((1 << (63 - cluster_bits)) - 1), len));
            } else if entry != 0 {
                places.push((entry, cluster));
            }
        }
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        if pair[0].0 + pair[0].1 > pair[1].0 {
            return Err(format!("{pair:?} overlap"));
        }
    }
    let (start, len) = places[places.len() - 1];
    if start + len > store.len() {
        return Err("a cluster past the end".into());
    }
    Ok(())
}
