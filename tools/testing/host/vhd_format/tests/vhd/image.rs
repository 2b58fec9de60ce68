// SPDX-License-Identifier: GPL-2.0

//! Builds VHDs of every shape, sound and otherwise. Knows nothing of the code under test.

use testkit::store::{Store, SECTOR};

/// What lies at the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A good footer.
    Footer,
    /// A good footer without its last byte.
    Short,
    /// Nothing: the file ends with the last block.
    Missing,
    /// 512 bytes of this.
    Filled(u8),
    /// A footer with a wrong checksum.
    Damaged,
}

/// The bits of a block's bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// All set.
    Ones,
    /// All clear.
    Zeros,
    /// Runs of set and clear bits; which ones depends on the number.
    Mixed(u64),
}

impl Bits {
    /// Whether the bit of a sector is set.
    pub fn get(self, sector: u64) -> bool {
        match self {
            Bits::Ones => true,
            Bits::Zeros => false,
            Bits::Mixed(seed) => {
                let x = (sector / (1 + seed % 13)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (x.wrapping_add(seed) >> 37) & 1 == 1
            }
        }
    }
}

/// A VHD to be built.
#[derive(Clone, Debug)]
pub struct Spec {
    pub disk_type: u32,
    pub size: u64,
    pub chs: (u16, u8, u8),
    pub creator: [u8; 4],
    pub creator_version: u32,
    pub unique_id: [u8; 16],
    pub parent_id: [u8; 16],
    /// Parent's name in the dynamic header, UTF-16.
    pub parent_name: Vec<u16>,
    /// Parent locators: code, and name.
    pub names: Vec<(&'static [u8; 4], Vec<u8>)>,
    pub header_at: u64,
    pub table_at: u64,
    /// As many as the size needs if `None`.
    pub entries: Option<u32>,
    pub block_size: u32,
    /// Allocated blocks in the order of the file.
    pub blocks: Vec<(u32, Bits)>,
    /// Data is aligned to 4 KiB, as tapdisk and Windows 10 do it.
    pub aligned: bool,
    /// tapdisk's batmap: of this many sectors, encrypted or not.
    pub batmap: Option<(u32, bool)>,
    /// Version of the batmap.
    pub batmap_version: u32,
    /// Blocks that it says are full.
    pub full: Vec<u32>,
    /// Sectors of zeros in front of the footer (7 in Windows 10 images).
    pub gap: u64,
    /// The copy at 0 is good.
    pub front: bool,
    pub end: End,
}

impl Spec {
    /// A dynamic image with small blocks.
    pub fn dynamic(size: u64, block_size: u32) -> Self {
        Self {
            disk_type: 3,
            size,
            chs: (100, 4, 17),
            creator: *b"win ",
            creator_version: 0x0006_0001,
            unique_id: *b"sixteen bytes id",
            parent_id: [0; 16],
            parent_name: Vec::new(),
            names: Vec::new(),
            header_at: 512,
            table_at: 1536,
            entries: None,
            block_size,
            blocks: Vec::new(),
            aligned: false,
            batmap: None,
            batmap_version: 0x0001_0002,
            full: Vec::new(),
            gap: 0,
            front: true,
            end: End::Footer,
        }
    }

    /// A fixed image.
    pub fn fixed(size: u64) -> Self {
        Self {
            disk_type: 2,
            ..Self::dynamic(size, 512)
        }
    }

    /// A differencing image with small blocks, whose parent has the id of all other images.
    pub fn differencing(size: u64, block_size: u32) -> Self {
        Self {
            disk_type: 4,
            unique_id: *b"id of the child!",
            parent_id: *b"sixteen bytes id",
            ..Self::dynamic(size, block_size)
        }
    }

    /// With these blocks.
    pub fn with_blocks(mut self, blocks: &[(u32, Bits)]) -> Self {
        self.blocks = blocks.to_vec();
        self
    }

    /// By this creator.
    pub fn by(mut self, creator: &[u8; 4], version: u32) -> Self {
        self.creator = *creator;
        self.creator_version = version;
        self
    }

    /// Number of BAT entries.
    pub fn entry_count(&self) -> u32 {
        self.entries
            .unwrap_or_else(|| self.size.div_ceil(u64::from(self.block_size)) as u32)
    }

    /// Bytes in a block's bitmap.
    pub fn bitmap_len(&self) -> u64 {
        (u64::from(self.block_size) / 512 / 8).div_ceil(512).max(1) * 512
    }

    /// Builds it.
    pub fn build(&self) -> Image {
        let mut image = Image {
            store: Store::new(&[]),
            spec: self.clone(),
            end_at: 0,
            starts: Vec::new(),
        };
        if self.disk_type == 2 {
            image.put_fixed_data();
        } else {
            image.put_headers();
            image.put_blocks();
        }
        image.put_end();
        image
    }

    /// The footer's bytes.
    pub fn footer(&self) -> [u8; 512] {
        let mut footer = [0; 512];
        let data_offset = if self.disk_type == 2 {
            u64::MAX
        } else {
            self.header_at
        };
        put(&mut footer, 0, b"conectix");
        put(&mut footer, 8, &2u32.to_be_bytes());
        put(&mut footer, 12, &0x0001_0000u32.to_be_bytes());
        put(&mut footer, 16, &data_offset.to_be_bytes());
        put(&mut footer, 24, &0x1234_5678u32.to_be_bytes());
        put(&mut footer, 28, &self.creator);
        put(&mut footer, 32, &self.creator_version.to_be_bytes());
        put(&mut footer, 36, b"Wi2k");
        put(&mut footer, 40, &self.size.to_be_bytes());
        put(&mut footer, 48, &self.size.to_be_bytes());
        put(&mut footer, 56, &self.chs.0.to_be_bytes());
        put(&mut footer, 58, &[self.chs.1, self.chs.2]);
        put(&mut footer, 60, &self.disk_type.to_be_bytes());
        put(&mut footer, 68, &self.unique_id);
        fix(&mut footer, 64);
        footer
    }
}

/// A VHD that was built.
#[derive(Clone, Debug)]
pub struct Image {
    pub store: Store,
    pub spec: Spec,
    /// Where the footer at the end is, or would be.
    pub end_at: u64,
    /// Where the blocks begin, in the order of `spec.blocks`.
    pub starts: Vec<u64>,
}

impl Image {
    fn put_fixed_data(&mut self) {
        let data: Vec<u8> = (0..self.spec.size / SECTOR)
            .flat_map(|sector| pattern(sector, 0))
            .collect();
        self.store.put(0, &data);
        self.store.put_size(self.spec.size);
    }

    fn put_headers(&mut self) {
        let spec = self.spec.clone();
        let mut footer = spec.footer();
        if !spec.front {
            footer[100] ^= 0x55;
        }
        self.store.put(0, &footer);

        let mut header = [0; 1024];
        put(&mut header, 0, b"cxsparse");
        put(&mut header, 8, &u64::MAX.to_be_bytes());
        put(&mut header, 16, &spec.table_at.to_be_bytes());
        put(&mut header, 24, &0x0001_0000u32.to_be_bytes());
        put(&mut header, 28, &spec.entry_count().to_be_bytes());
        put(&mut header, 32, &spec.block_size.to_be_bytes());
        put(&mut header, 40, &spec.parent_id);
        for (i, unit) in spec.parent_name.iter().enumerate() {
            put(&mut header, 64 + 2 * i, &unit.to_be_bytes());
        }
        fix(&mut header, 36);
        self.store.put(spec.header_at, &header);

        let len = u64::from(spec.entry_count()) * 4;
        let table = vec![0xff; len.next_multiple_of(512) as usize];
        self.store.put(spec.table_at, &table);
        if let Some((sectors, encrypted)) = spec.batmap {
            self.put_batmap(sectors, encrypted);
        }
        for (index, (code, name)) in (0..).zip(&spec.names) {
            let at = self.store.len().next_multiple_of(512);
            let space = (name.len() as u64).next_multiple_of(512).max(512);
            self.store.put(at, &vec![0; space as usize]);
            self.store.put(at, name);
            let code = u32::from_be_bytes(**code);
            self.set_locator(index, code, space as u32, name.len() as u32, at);
        }
    }

    fn put_batmap(&mut self, sectors: u32, encrypted: bool) {
        let at = self.table_end();
        let mut header = [0; 512];
        put(&mut header, 0, b"tdbatmap");
        put(&mut header, 8, &(at + 512).to_be_bytes());
        put(&mut header, 16, &sectors.to_be_bytes());
        put(&mut header, 20, &self.spec.batmap_version.to_be_bytes());
        let mut map = vec![0; sectors as usize * 512];
        for block in &self.spec.full {
            map[*block as usize / 8] |= 0x80 >> (block % 8);
        }
        let summed = (self.spec.size >> 24).div_ceil(512).max(1) as usize * 512;
        let is_signed = self.spec.batmap_version == 0x0001_0001;
        let sum = map.iter().take(summed).fold(0u32, |sum, &byte| {
            let value = if is_signed {
                i32::from(byte as i8) as u32
            } else {
                u32::from(byte)
            };
            sum.wrapping_add(value)
        });
        put(&mut header, 24, &(!sum).to_be_bytes());
        header[29] = u8::from(encrypted);
        self.store.put(at, &header);
        self.store.put(at + 512, &map);
    }

    /// End of the BAT in whole sectors.
    pub fn table_end(&self) -> u64 {
        (self.spec.table_at + u64::from(self.spec.entry_count()) * 4).next_multiple_of(512)
    }

    fn put_blocks(&mut self) {
        let bitmap_len = self.spec.bitmap_len();
        for (index, bits) in self.spec.blocks.clone() {
            let mut data = (self.store.len() + bitmap_len).next_multiple_of(512);
            if self.spec.aligned {
                data = data.next_multiple_of(4096);
            }
            let start = data - bitmap_len;
            self.starts.push(start);
            self.set_entry(index, (start / 512) as u32);

            let mut bitmap = vec![0; bitmap_len as usize];
            for sector in 0..u64::from(self.spec.block_size) / SECTOR {
                if bits.get(sector) {
                    bitmap[(sector / 8) as usize] |= 0x80 >> (sector % 8);
                }
                // Under a clear bit lies junk.
                let content = pattern(u64::from(index) << 32 | sector, 7);
                self.store.put(data + sector * SECTOR, &content);
            }
            self.store.put(start, &bitmap);
        }
    }

    fn put_end(&mut self) {
        let size = (self.store.len() + self.spec.gap * 512).next_multiple_of(512);
        self.store.put_size(size);
        self.end_at = size;
        let mut footer = self.spec.footer();
        match self.spec.end {
            End::Footer => {}
            End::Short => return self.store.put(size, &footer[..511]),
            End::Missing => return,
            End::Filled(byte) => footer.fill(byte),
            End::Damaged => footer[77] ^= 1,
        }
        self.store.put(size, &footer);
    }

    /// Stores a BAT entry.
    pub fn set_entry(&mut self, index: u32, entry: u32) {
        let at = self.spec.table_at + u64::from(index) * 4;
        self.store.put(at, &entry.to_be_bytes());
    }

    /// Changes both footers, and makes their checksums right again.
    pub fn edit_footers(&mut self, offset: u64, bytes: &[u8]) {
        self.edit_front(offset, bytes);
        self.edit_end(offset, bytes);
    }

    /// Changes the copy at 0, and makes its checksum right again.
    pub fn edit_front(&mut self, offset: u64, bytes: &[u8]) {
        if self.spec.disk_type != 2 {
            self.edit(0, 512, 64, offset, bytes);
        }
    }

    /// Changes the footer at the end, and makes its checksum right again.
    pub fn edit_end(&mut self, offset: u64, bytes: &[u8]) {
        if matches!(self.spec.end, End::Footer | End::Short) {
            let len = self.store.len() - self.end_at;
            self.edit(self.end_at, len, 64, offset, bytes);
        }
    }

    /// Changes the dynamic header, and makes its checksum right again.
    pub fn edit_header(&mut self, offset: u64, bytes: &[u8]) {
        self.edit(self.spec.header_at, 1024, 36, offset, bytes);
    }

    fn edit(&mut self, at: u64, len: u64, checksum: usize, offset: u64, bytes: &[u8]) {
        let mut whole = self.store.get(at, len as usize);
        put(&mut whole, offset as usize, bytes);
        fix(&mut whole, checksum);
        self.store.put(at, &whole);
    }

    /// Puts a parent locator into the dynamic header.
    pub fn set_locator(&mut self, index: u64, code: u32, space: u32, length: u32, offset: u64) {
        let mut locator = Vec::new();
        locator.extend(code.to_be_bytes());
        locator.extend(space.to_be_bytes());
        locator.extend(length.to_be_bytes());
        locator.extend(0u32.to_be_bytes());
        locator.extend(offset.to_be_bytes());
        self.edit_header(576 + 24 * index, &locator);
    }
}

/// Puts bytes into a buffer.
pub fn put(buffer: &mut [u8], offset: usize, bytes: &[u8]) {
    buffer[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// One's complement of the sum of all bytes but the four at `at`.
pub fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    !(sum(&bytes[..at]) + sum(&bytes[at + 4..]))
}

/// Makes a checksum right.
pub fn fix(bytes: &mut [u8], at: usize) {
    let checksum = checksum(bytes, at);
    put(bytes, at, &checksum.to_be_bytes());
}

/// A sector that cannot be taken for another one, or for zeros.
pub fn pattern(sector: u64, version: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    let mut x = sector.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version.rotate_left(32) ^ 0x5bd1;
    for word in bytes.chunks_exact_mut(8) {
        x = x
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        word.copy_from_slice(&x.to_be_bytes());
    }
    bytes[..8].copy_from_slice(&(sector ^ version << 40 | 1).to_be_bytes());
    bytes
}
