// SPDX-License-Identifier: GPL-2.0

//! Builds streams, without the code under test.

use std::collections::BTreeMap;

use testkit::{rng::Rng, store::Store};

/// Bytes in a sector.
pub const SECTOR: u64 = 512;

/// Where the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Behind the grains, with tables among them and a footer (VirtualBox, Amazon).
    Footer,
    /// In front; the stream ends with a marker (VMware).
    Front,
    /// In front, with redundant tables and no markers at all (QEMU).
    Qemu,
}

/// What is in a grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Text, which gets much smaller.
    Text,
    /// Random bytes, which get larger.
    Random,
    /// A zero grain, if the stream has such.
    Zero,
}

/// What a stream is to be like.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Sectors of the disk.
    pub sectors: u64,
    /// Sectors in a grain.
    pub grain: u64,
    /// Entries in a table.
    pub per_table: u64,
    pub form: Form,
    pub version: u32,
    /// Bit 2 of the flags.
    pub has_zero_grains: bool,
    /// The embedded descriptor; none if empty.
    pub text: String,
    pub grains: BTreeMap<u64, Fill>,
    /// Writes a marker of this type in front of every grain.
    pub extra: Option<u32>,
    /// What is stored of grains instead of their compressed bytes.
    pub packed: BTreeMap<u64, Vec<u8>>,
}

/// A stream, and where things are in it.
#[derive(Clone, Debug)]
pub struct Image {
    pub store: Store,
    /// Host offset of each grain's header, and of what follows the grain.
    pub places: BTreeMap<u64, (u64, u64)>,
    /// Host offset of each grain's table entry.
    pub entries: BTreeMap<u64, u64>,
    /// Host offset of the directory.
    pub directory: u64,
    /// The disk, of zeros where there is no grain.
    pub disk: Vec<u8>,
}

/// The text of a descriptor.
pub fn text(sectors: u64, more: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"streamOptimized\"\n{more}\n# Extent description\n\
         RDONLY {sectors} SPARSE \"stream.vmdk\"\n\n#DDB\nddb.adapterType = \"ide\"\n"
    )
}

impl Spec {
    /// Grains of 4 KiB, tables of 16 entries.
    pub fn new(form: Form, sectors: u64) -> Self {
        Self {
            sectors,
            grain: 8,
            per_table: 16,
            form,
            version: 3,
            has_zero_grains: false,
            text: text(sectors, ""),
            grains: BTreeMap::new(),
            extra: None,
            packed: BTreeMap::new(),
        }
    }

    pub fn with_grains(mut self, grains: &[(u64, Fill)]) -> Self {
        self.grains = grains.iter().copied().collect();
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn grain_len(&self) -> u64 {
        self.grain * SECTOR
    }

    fn count(&self) -> u64 {
        self.sectors.div_ceil(self.grain)
    }

    fn tables(&self) -> u64 {
        self.count().div_ceil(self.per_table)
    }

    /// The bytes of a grain; the last one of the disk is shorter.
    pub fn content(&self, number: u64, fill: Fill) -> Vec<u8> {
        let start = number * self.grain_len();
        let len = self.grain_len().min(self.sectors * SECTOR - start) as usize;
        let mut rng = Rng::new(number + 1);
        match fill {
            Fill::Text => format!("grain number {number}; ")
                .bytes()
                .cycle()
                .take(len)
                .collect(),
            Fill::Random => (0..len).map(|_| rng.next_u64() as u8).collect(),
            Fill::Zero => vec![0; len],
        }
    }

    pub fn build(&self) -> Image {
        Builder::new(self).run()
    }
}

struct Builder<'a> {
    spec: &'a Spec,
    image: Image,
    /// What was written last ends there.
    end: u64,
    /// Host offset of every table that there is.
    tables: BTreeMap<u64, u64>,
}

impl<'a> Builder<'a> {
    fn new(spec: &'a Spec) -> Self {
        Self {
            spec,
            image: Image {
                store: Store::new(&[]),
                places: BTreeMap::new(),
                entries: BTreeMap::new(),
                directory: 0,
                disk: vec![0; (spec.sectors * SECTOR) as usize],
            },
            end: SECTOR,
            tables: BTreeMap::new(),
        }
    }

    fn run(mut self) -> Image {
        let spec = self.spec;
        let text_at = self.end;
        let text_len = (spec.text.len() as u64).next_multiple_of(SECTOR);
        self.image.store.put(text_at, spec.text.as_bytes());
        self.end += text_len;
        let is_footer = spec.form == Form::Footer;
        let mut redundant = 0;
        if spec.form == Form::Qemu {
            redundant = self.take(spec.tables() * 4);
            let tables: Vec<u64> = (0..spec.tables())
                .map(|_| self.take(spec.per_table * 4))
                .collect();
            self.put_directory(
                redundant,
                &tables.into_iter().enumerate().collect::<Vec<_>>(),
            );
        }
        if !is_footer {
            self.image.directory = self.take(spec.tables() * 4);
            for table in 0..spec.tables() {
                let at = self.take(spec.per_table * 4);
                self.tables.insert(table, at);
            }
        }
        let overhead = self.end;
        self.grains();
        if is_footer {
            self.image.directory = self.metadata(2, spec.tables() * 4);
        }
        let tables: Vec<_> = self
            .tables
            .iter()
            .map(|(&i, &at)| (i as usize, at))
            .collect();
        self.put_directory(self.image.directory, &tables);
        self.put_entries();
        let mut header = self.header(text_at, text_len, overhead);
        header[48..56].copy_from_slice(&(redundant / SECTOR).to_le_bytes());
        if is_footer {
            let at = self.metadata(3, SECTOR);
            self.image.store.put(at, &header);
            header[56..64].fill(0xff);
        }
        if spec.form != Form::Qemu {
            self.marker(0, 0);
        }
        self.image.store.put(0, &header);
        // Whole sectors.
        let len = self
            .image
            .store
            .len()
            .next_multiple_of(SECTOR)
            .max(self.end);
        self.image.store.put_size(len);
        self.image
    }

    fn header(&self, text_at: u64, text_len: u64, overhead: u64) -> Vec<u8> {
        let spec = self.spec;
        let mut header = b"KDMV".to_vec();
        let mut flags = 0x3_0001u32;
        flags |= u32::from(spec.has_zero_grains) << 2;
        flags |= u32::from(spec.form == Form::Qemu) << 1;
        header.extend(spec.version.to_le_bytes());
        header.extend(flags.to_le_bytes());
        let text = match text_len {
            0 => [0, 0],
            _ => [text_at / SECTOR, text_len / SECTOR],
        };
        for field in [spec.sectors, spec.grain, text[0], text[1]] {
            header.extend(field.to_le_bytes());
        }
        header.extend((spec.per_table as u32).to_le_bytes());
        for field in [0, self.image.directory / SECTOR, overhead / SECTOR] {
            header.extend(field.to_le_bytes());
        }
        header.extend(b"\0\n \r\n\x01\0");
        header.resize(512, 0);
        header
    }

    /// Takes whole sectors.
    fn take(&mut self, len: u64) -> u64 {
        let at = self.end;
        self.end += len.next_multiple_of(SECTOR);
        at
    }

    fn marker(&mut self, kind: u32, sectors: u64) {
        let at = self.take(SECTOR);
        self.image.store.put(at, &sectors.to_le_bytes());
        self.image.store.put(at + 12, &kind.to_le_bytes());
        self.image
            .store
            .put_size(self.image.store.len().max(at + SECTOR));
    }

    /// A marker, and room behind it.
    fn metadata(&mut self, kind: u32, len: u64) -> u64 {
        let len = len.next_multiple_of(SECTOR);
        self.marker(kind, len / SECTOR);
        self.take(len)
    }

    /// Grains in ascending order, behind those of each table the table.
    fn grains(&mut self) {
        let spec = self.spec;
        let mut table = None;
        for (&number, &fill) in &spec.grains {
            let this = number / spec.per_table;
            if table.is_some_and(|table| table != this) {
                self.table(table);
            }
            table = Some(this);
            self.grain(number, fill);
        }
        self.table(table);
    }

    fn table(&mut self, number: Option<u64>) {
        if let (Some(number), Form::Footer) = (number, self.spec.form) {
            let at = self.metadata(1, self.spec.per_table * 4);
            self.tables.insert(number, at);
        }
    }

    fn grain(&mut self, number: u64, fill: Fill) {
        let content = self.spec.content(number, fill);
        let start = (number * self.spec.grain_len()) as usize;
        self.image.disk[start..start + content.len()].copy_from_slice(&content);
        if fill == Fill::Zero {
            return;
        }
        if let Some(kind) = self.spec.extra {
            self.marker(kind, 0);
        }
        // QEMU fills up the last one, VirtualBox does not.
        let mut padded = content;
        if self.spec.form == Form::Qemu {
            padded.resize(self.spec.grain_len() as usize, 0);
        }
        let packed = match self.spec.packed.get(&number) {
            Some(packed) => packed.clone(),
            None => miniz_oxide::deflate::compress_to_vec_zlib(&padded, 6),
        };
        let at = self.take(12 + packed.len() as u64);
        put_grain(&mut self.image.store, at, number * self.spec.grain, &packed);
        self.image.places.insert(number, (at, self.end));
    }

    fn put_directory(&mut self, at: u64, tables: &[(usize, u64)]) {
        for &(index, table) in tables {
            let sector = (table / SECTOR) as u32;
            self.image
                .store
                .put(at + index as u64 * 4, &sector.to_le_bytes());
        }
    }

    fn put_entries(&mut self) {
        for (&number, &fill) in &self.spec.grains {
            let Some(table) = self.tables.get(&(number / self.spec.per_table)) else {
                continue;
            };
            let at = table + number % self.spec.per_table * 4;
            let sector = match fill {
                Fill::Zero if self.spec.has_zero_grains => 1,
                Fill::Zero => 0,
                _ => (self.image.places[&number].0 / SECTOR) as u32,
            };
            self.image.store.put(at, &sector.to_le_bytes());
            self.image.entries.insert(number, at);
        }
    }
}

/// A grain: header and compressed bytes.
pub fn put_grain(store: &mut Store, at: u64, lba: u64, packed: &[u8]) {
    store.put(at, &lba.to_le_bytes());
    store.put(at + 8, &(packed.len() as u32).to_le_bytes());
    store.put(at + 12, packed);
}

impl Image {
    /// The host offset of the footer.
    pub fn footer(&self) -> u64 {
        self.store.len() - 1024
    }
}
