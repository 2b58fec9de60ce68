// SPDX-License-Identifier: GPL-2.0

//! Builds seSparse files, without the code under test.

use std::collections::BTreeMap;

use testkit::store::Store;

/// Bytes in a sector.
pub const SECTOR: u64 = 512;
/// Sectors in a grain.
pub const GRAIN: u64 = 8;
/// Entries in a table.
pub const PER_TABLE: u64 = 4096;

/// What the entry of a grain says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// It is the one with this number.
    Data(u64),
    /// Zeros.
    Zero,
    /// Given back: zeros. The number is of no meaning.
    Unmapped(u64),
    /// There is none, but there is a table.
    Missing,
}

/// What a file is to be like.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Sectors of the disk.
    pub sectors: u64,
    pub grains: BTreeMap<u64, Fill>,
    /// Tables lie in the file in reverse order.
    pub is_reversed: bool,
}

/// A file, and where things are in it, as host offsets.
#[derive(Clone, Debug)]
pub struct Image {
    pub store: Store,
    pub volatile: u64,
    pub directory: u64,
    pub tables: u64,
    pub grains: u64,
    /// Host offset of each grain's table entry.
    pub entries: BTreeMap<u64, u64>,
    /// The disk, zeros where there is no grain.
    pub disk: Vec<u8>,
}

/// The bytes of a grain by its number in the file.
pub fn content(number: u64) -> Vec<u8> {
    format!("se {number}; ")
        .bytes()
        .cycle()
        .take((GRAIN * SECTOR) as usize)
        .collect()
}

/// The entry for a grain.
pub fn entry(fill: Fill) -> u64 {
    let place = |number: u64| (number & 0xfff) << 48 | number >> 12;
    match fill {
        Fill::Data(number) => 3 << 60 | place(number),
        Fill::Zero => 2 << 60,
        Fill::Unmapped(number) => 1 << 60 | place(number),
        Fill::Missing => 0,
    }
}

impl Spec {
    pub fn new(sectors: u64) -> Self {
        Self {
            sectors,
            grains: BTreeMap::new(),
            is_reversed: false,
        }
    }

    pub fn with_grains(mut self, grains: &[(u64, Fill)]) -> Self {
        self.grains = grains.iter().copied().collect();
        self
    }

    pub fn build(&self) -> Image {
        let count = self.sectors.div_ceil(GRAIN);
        let entries = count.div_ceil(PER_TABLE);
        let mut used: Vec<u64> = self.grains.keys().map(|it| it / PER_TABLE).collect();
        used.dedup();
        if self.is_reversed {
            used.reverse();
        }
        // In sectors: the areas that are used, then those that are not.
        let (volatile, directory) = (1, 4);
        let directory_len = (entries * 8).div_ceil(SECTOR);
        let tables = directory + directory_len;
        let tables_len = used.len() as u64 * 64;
        let other = tables + tables_len;
        let grains = other + 4;
        let last = self.grains.values().filter_map(|fill| match fill {
            Fill::Data(number) => Some(number + 1),
            _ => None,
        });
        let grains_len = last.max().unwrap_or(0) * GRAIN;

        let mut image = Image {
            store: Store::new(&[]),
            volatile: volatile * SECTOR,
            directory: directory * SECTOR,
            tables: tables * SECTOR,
            grains: grains * SECTOR,
            entries: BTreeMap::new(),
            disk: vec![0; (self.sectors * SECTOR) as usize],
        };
        let header = [
            0xcafe_babe,
            0x2_0000_0001,
            self.sectors,
            GRAIN,
            64,
            0,
            0,
            0,
            0,
            0,
        ];
        let areas = [
            (volatile, 1),
            (2, 1),
            (3, 1),
            (directory, directory_len),
            (tables, tables_len),
            (other, 2),
            (other + 2, 2),
            (grains, grains_len),
        ];
        let fields = areas.into_iter().flat_map(|(offset, size)| [offset, size]);
        for (index, field) in header.into_iter().chain(fields).enumerate() {
            image.store.put(index as u64 * 8, &u64::to_le_bytes(field));
        }
        image
            .store
            .put(image.volatile, &0xcafe_cafe_u64.to_le_bytes());
        for (index, table) in used.iter().enumerate() {
            let value = 0x1000_0000 << 32 | index as u64;
            image
                .store
                .put(image.directory + table * 8, &value.to_le_bytes());
        }
        for (&number, &fill) in &self.grains {
            let table = used
                .iter()
                .position(|it| *it == number / PER_TABLE)
                .unwrap() as u64;
            let at = image.tables + table * 64 * SECTOR + number % PER_TABLE * 8;
            image.entries.insert(number, at);
            image.store.put(at, &entry(fill).to_le_bytes());
            if let Fill::Data(place) = fill {
                let bytes = content(place);
                image
                    .store
                    .put(image.grains + place * GRAIN * SECTOR, &bytes);
                let start = (number * GRAIN * SECTOR) as usize;
                let end = (start + bytes.len()).min(image.disk.len());
                image.disk[start..end].copy_from_slice(&bytes[..end - start]);
            }
        }
        image.store.put_size((grains + grains_len) * SECTOR);
        image
    }
}
