// SPDX-License-Identifier: GPL-2.0

//! Builds sparse extents and COWD files, reads them in the simplest way, and looks for mistakes in them.
//! Knows nothing of the code under test.

use std::collections::BTreeMap;

use testkit::store::Store;

/// Which of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sparse,
    Cowd,
}

/// An image to be built.
#[derive(Clone, Debug)]
pub struct Spec {
    pub kind: Kind,
    /// In sectors.
    pub size: u64,
    /// In sectors.
    pub grain: u64,
    pub entries: u64,
    pub has_redundant: bool,
    pub has_zero_grains: bool,
    /// All tables are there from the start.
    pub has_tables: bool,
    pub descriptor: Option<String>,
    /// Grains by number, in the order of the file.
    pub grains: Vec<u64>,
    /// Grains that read as zero by their entry.
    pub zeros: Vec<u64>,
}

/// An image that was built.
#[derive(Clone, Debug)]
pub struct Image {
    pub store: Store,
    pub spec: Spec,
    /// Where the entries of grains lie, and where the grains do.
    pub entries: BTreeMap<u64, (u64, u64)>,
}

/// What a guest sector of a built image contains.
pub fn pattern(sector: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = (sector as u8).wrapping_mul(31) ^ (index as u8) | 1;
    }
    bytes
}

pub const CID: &str = "12ab90ef";

/// The descriptor of a disk in one file.
pub fn descriptor(sectors: u64, parent: Option<(&str, &str)>) -> String {
    let (cid, hint) = match parent {
        Some((cid, name)) => (cid, format!("parentFileNameHint=\"{name}\"\n")),
        None => ("ffffffff", String::new()),
    };
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={CID}\nparentCID={cid}\n\
         createType=\"monolithicSparse\"\n{hint}\n# Extent description\n\
         RW {sectors} SPARSE \"image.vmdk\"\n\n#DDB\n\nddb.adapterType = \"ide\"\n"
    )
}

impl Spec {
    /// As VMware makes them. Sizes in sectors.
    pub fn new(size: u64, grain: u64) -> Self {
        Self {
            kind: Kind::Sparse,
            size,
            grain,
            entries: 512,
            has_redundant: true,
            has_zero_grains: false,
            has_tables: true,
            descriptor: Some(descriptor(size, None)),
            grains: Vec::new(),
            zeros: Vec::new(),
        }
    }

    pub fn cowd(size: u64, grain: u64) -> Self {
        Self {
            kind: Kind::Cowd,
            entries: 4096,
            has_redundant: false,
            has_tables: false,
            descriptor: None,
            ..Self::new(size, grain)
        }
    }

    pub fn with_grains(mut self, grains: &[u64]) -> Self {
        self.grains = grains.to_vec();
        self
    }

    pub fn with_entries(mut self, entries: u64) -> Self {
        self.entries = entries;
        self
    }

    pub fn without_tables(mut self) -> Self {
        self.has_tables = false;
        self
    }

    pub fn without_redundant(mut self) -> Self {
        self.has_redundant = false;
        self
    }

    /// Zero grains, some of which are there.
    pub fn with_zeros(mut self, zeros: &[u64]) -> Self {
        self.has_zero_grains = true;
        self.zeros = zeros.to_vec();
        self
    }

    pub fn on(mut self, cid: &str, name: &str) -> Self {
        self.descriptor = Some(descriptor(self.size, Some((cid, name))));
        self
    }

    pub fn bytes(&self) -> u64 {
        self.size * 512
    }

    pub fn grain_len(&self) -> u64 {
        self.grain * 512
    }

    pub fn tables(&self) -> u64 {
        self.size.div_ceil(self.grain * self.entries)
    }

    pub fn build(&self) -> Image {
        match self.kind {
            Kind::Sparse => self.build_sparse(),
            Kind::Cowd => self.build_cowd(),
        }
    }

    fn build_sparse(&self) -> Image {
        let mut store = Store::new(b"KDMV");
        let mut next = 1;
        let mut take = |sectors: u64| {
            next += sectors;
            next - sectors
        };
        let directory_len = (self.tables() * 4).div_ceil(512);
        let table_len = (self.entries * 4).div_ceil(512);
        let desc = self.descriptor.as_ref().map(|_| take(20));
        let tables = |take: &mut dyn FnMut(u64) -> u64| -> (u64, Vec<u64>) {
            let directory = take(directory_len);
            let count = if self.has_tables { self.tables() } else { 0 };
            (directory, (0..count).map(|_| take(table_len)).collect())
        };
        let redundant = self.has_redundant.then(|| tables(&mut take));
        let (directory, primary) = tables(&mut take);
        let overhead = next.next_multiple_of(self.grain.min(128));
        store.put_size(overhead * 512);
        let flags = 1 | u32::from(self.has_redundant) << 1 | u32::from(self.has_zero_grains) << 2;
        store.put(4, &(1 + u32::from(self.has_zero_grains)).to_le_bytes());
        store.put(8, &flags.to_le_bytes());
        put64(&mut store, 12, self.size);
        put64(&mut store, 20, self.grain);
        if let (Some(at), Some(text)) = (desc, &self.descriptor) {
            put64(&mut store, 28, at);
            put64(&mut store, 36, 20);
            store.put(at * 512, text.as_bytes());
        }
        store.put(44, &(self.entries as u32).to_le_bytes());
        put64(&mut store, 56, directory);
        put64(&mut store, 64, overhead);
        store.put(73, b"\n \r\n");
        put_directory(&mut store, directory, &primary);
        if let Some((at, tables)) = &redundant {
            put64(&mut store, 48, *at);
            put_directory(&mut store, *at, tables);
        }
        self.fill(store)
    }

    fn build_cowd(&self) -> Image {
        let mut store = Store::new(b"COWD\x01\0\0\0\x03\0\0\0");
        let directory_len = (self.tables() * 4).div_ceil(512);
        store.put_size((4 + directory_len) * 512);
        let fields = [self.size, self.grain, 4, self.tables()];
        for (index, field) in fields.iter().enumerate() {
            put32(&mut store, 12 + 4 * index as u64, *field);
        }
        let mut image = self.fill(store);
        let end = image.store.len() / 512;
        put32(&mut image.store, 28, end);
        image
    }

    fn fill(&self, store: Store) -> Image {
        let mut image = Image {
            store,
            spec: self.clone(),
            entries: BTreeMap::new(),
        };
        for &grain in &self.grains {
            // First the table.
            image.point(grain, 0);
            let at = image.take(self.grain_len(), self.grain_len());
            image.point(grain, at / 512);
            let data = image.content(grain);
            image.store.put(at, &data);
        }
        for &grain in &self.zeros {
            image.point(grain, 1);
        }
        image
    }
}

fn put_directory(store: &mut Store, at: u64, tables: &[u64]) {
    for (index, table) in tables.iter().enumerate() {
        put32(store, at * 512 + index as u64 * 4, *table);
    }
}

pub fn put32(store: &mut Store, at: u64, value: u64) {
    store.put(at, &(value as u32).to_le_bytes());
}

pub fn put64(store: &mut Store, at: u64, value: u64) {
    store.put(at, &value.to_le_bytes());
}

pub fn get32(store: &Store, at: u64) -> u64 {
    u64::from(u32::from_le_bytes(store.get_array(at)))
}

pub fn get64(store: &Store, at: u64) -> u64 {
    u64::from_le_bytes(store.get_array(at))
}

impl Image {
    fn take(&mut self, len: u64, align: u64) -> u64 {
        let at = self.store.len().next_multiple_of(align);
        self.store.put_size(at + len);
        at
    }

    /// Enters a grain in both sets of tables, which are made if need be.
    fn point(&mut self, grain: u64, sector: u64) {
        let header = Header::load(&self.store);
        let table_len = (header.entries * 4).next_multiple_of(512);
        let mut places = Vec::new();
        for directory in header.directories() {
            let at = directory + grain / header.entries * 4;
            if get32(&self.store, at) == 0 {
                let table = self.take(table_len, 512);
                put32(&mut self.store, at, table / 512);
            }
            let table = get32(&self.store, at) * 512;
            places.push(table + grain % header.entries * 4);
            put32(&mut self.store, places[places.len() - 1], sector);
        }
        self.entries.insert(grain, (places[0], sector * 512));
    }

    /// What a grain contains.
    pub fn content(&self, grain: u64) -> Vec<u8> {
        let sectors = grain * self.spec.grain..(grain + 1) * self.spec.grain;
        sectors.flat_map(pattern).collect()
    }
}

/// What a header says, in bytes.
#[derive(Clone, Debug)]
pub struct Header {
    pub kind: Kind,
    pub size: u64,
    pub grain: u64,
    pub entries: u64,
    pub directory: u64,
    pub redundant: Option<u64>,
    pub descriptor: Option<(u64, u64)>,
    pub has_zero_grains: bool,
    pub is_unclean: bool,
}

impl Header {
    pub fn load(store: &Store) -> Self {
        if store.get(0, 4) == b"COWD" {
            return Self {
                kind: Kind::Cowd,
                size: get32(store, 12) * 512,
                grain: get32(store, 16) * 512,
                entries: 4096,
                directory: get32(store, 20) * 512,
                redundant: None,
                descriptor: None,
                has_zero_grains: false,
                is_unclean: get32(store, 1648) != 0,
            };
        }
        assert_eq!(store.get(0, 4), b"KDMV");
        let flags = get32(store, 8);
        let descriptor = (get64(store, 28), get64(store, 36));
        Self {
            kind: Kind::Sparse,
            size: get64(store, 12) * 512,
            grain: get64(store, 20) * 512,
            entries: get32(store, 44),
            directory: get64(store, 56) * 512,
            redundant: (flags & 2 != 0).then(|| get64(store, 48) * 512),
            descriptor: (descriptor.0 != 0 && descriptor.1 != 0)
                .then(|| (descriptor.0 * 512, descriptor.1 * 512)),
            has_zero_grains: flags & 4 != 0,
            is_unclean: store.get(72, 1) != [0],
        }
    }

    /// The primary one first.
    pub fn directories(&self) -> impl Iterator<Item = u64> {
        [Some(self.directory), self.redundant].into_iter().flatten()
    }

    pub fn tables(&self) -> u64 {
        self.size.div_ceil(self.grain * self.entries)
    }

    /// The entry of a grain in a set of tables.
    pub fn entry(&self, store: &Store, directory: u64, grain: u64) -> u64 {
        match get32(store, directory + grain / self.entries * 4) {
            0 => 0,
            table => get32(store, table * 512 + grain % self.entries * 4),
        }
    }
}

/// The guest's disk; `below` is the parent's. For sound images; panics on others.
pub fn disk(store: &Store, below: &[u8]) -> Vec<u8> {
    let header = Header::load(store);
    let mut disk = vec![0; header.size as usize];
    let there = below.len().min(disk.len());
    disk[..there].copy_from_slice(&below[..there]);
    for (grain, chunk) in disk.chunks_mut(header.grain as usize).enumerate() {
        match header.entry(store, header.directory, grain as u64) {
            0 => {}
            1 if header.has_zero_grains => chunk.fill(0),
            sector => chunk.copy_from_slice(&store.get(sector * 512, chunk.len())),
        }
    }
    disk
}

/// How far the redundant tables may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redundant {
    Equal,
    MayDiffer,
}

/// Fails unless [`problem`] finds none in an image that was closed.
#[track_caller]
pub fn check(store: &Store) {
    assert_eq!(problem(store, Redundant::Equal), None);
    assert!(!Header::load(store).is_unclean);
}

/// What is wrong: something that lies over something else or past the end of the file, entries that have
/// no meaning, or redundant tables that differ.
pub fn problem(store: &Store, redundant: Redundant) -> Option<String> {
    let header = Header::load(store);
    let table_len = header.entries * 4;
    let mut places = vec![(
        0,
        if header.kind == Kind::Sparse {
            512
        } else {
            2048
        },
    )];
    places.extend(header.descriptor);
    for directory in header.directories() {
        places.push((directory, header.tables() * 4));
    }
    for index in 0..header.tables() {
        let entries = header.directories().map(|it| get32(store, it + index * 4));
        let entries: Vec<u64> = entries.collect();
        if entries.iter().any(|it| (*it == 0) != (entries[0] == 0)) {
            if redundant == Redundant::Equal {
                return Some(format!("only one directory has table {index}"));
            }
        }
        if entries[0] == 0 {
            continue;
        }
        for table in entries.iter().filter(|it| **it != 0) {
            if table * 512 + table_len > store.len() {
                return Some(format!("table {index} lies past the end"));
            }
            places.push((table * 512, table_len));
        }
        let tables = entries.iter().filter(|it| **it != 0);
        let tables: Vec<Vec<u8>> = tables
            .map(|it| store.get(it * 512, table_len as usize))
            .collect();
        if redundant == Redundant::Equal && tables.iter().any(|it| *it != tables[0]) {
            return Some(format!("redundant table {index} differs"));
        }
        for raw in tables[0].chunks_exact(4) {
            match u64::from(u32::from_le_bytes(raw.try_into().unwrap())) {
                0 => {}
                1 if header.has_zero_grains => {}
                sector => places.push((sector * 512, header.grain)),
            }
        }
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        if pair[0].0 + pair[0].1 > pair[1].0 {
            return Some(format!("{pair:?} overlap"));
        }
    }
    let (start, len) = places[places.len() - 1];
    if start + len > store.len() {
        return Some(format!("what lies at {start} lies past the end"));
    }
    None
}
