// SPDX-License-Identifier: GPL-2.0

//! A second reader, written from the specification: slow, obvious, and without any of the code
//! under test. And a checker of what has to hold in every image.

use testkit::store::Store;

use crate::image::checksum;

/// A VHD that was opened.
pub struct Reader<'a> {
    store: &'a Store,
    /// Bytes.
    pub size: u64,
    header: Option<Header>,
}

struct Header {
    at: u64,
    table: u64,
    entries: u64,
    block_size: u64,
}

/// Whether these are the bytes of a good footer.
pub fn is_footer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"conectix") && be32(bytes, 64) == checksum(bytes, 64)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The footer at the end of a file.
pub fn end_footer(store: &Store) -> Option<Vec<u8>> {
    let len = if store.len() % 512 == 511 { 511 } else { 512 };
    let mut bytes = store.get(store.len().checked_sub(len)?, len as usize);
    bytes.resize(512, 0);
    is_footer(&bytes).then_some(bytes)
}

/// The footer copy at the start of a dynamic image.
pub fn front_footer(store: &Store) -> Option<Vec<u8>> {
    let bytes = (store.len() >= 512).then(|| store.get(0, 512))?;
    (is_footer(&bytes) && be32(&bytes, 60) != 2).then_some(bytes)
}

impl<'a> Reader<'a> {
    /// Opens an image.
    pub fn open(store: &'a Store) -> Result<Self, String> {
        let footer = front_footer(store)
            .or_else(|| end_footer(store))
            .ok_or("no footer")?;
        let header = match be32(&footer, 60) {
            2 => None,
            3 | 4 => Some(Header::open(store, be64(&footer, 16))?),
            other => return Err(format!("type {other}")),
        };
        let chs = u64::from(u16::from_be_bytes([footer[56], footer[57]]))
            * u64::from(footer[58])
            * u64::from(footer[59])
            * 512;
        let by_chs = matches!(&footer[28..32], b"vpc " | b"qemu");
        let size = if by_chs { chs } else { be64(&footer, 48) };
        Ok(Self {
            store,
            size: size / 512 * 512,
            header,
        })
    }

    /// A sector of the disk, if it has no parent.
    pub fn sector(&self, sector: u64) -> [u8; 512] {
        self.own_sector(sector).unwrap_or([0; 512])
    }

    /// A sector, if the image has it itself.
    pub fn own_sector(&self, sector: u64) -> Option<[u8; 512]> {
        let Some(header) = &self.header else {
            return Some(self.at(sector * 512));
        };
        let sectors_per_block = header.block_size / 512;
        let entry = header.entry(self.store, sector / sectors_per_block);
        let within = sector % sectors_per_block;
        if entry == u32::MAX {
            return None;
        }
        let start = u64::from(entry) * 512;
        let byte = self.store.get_array::<1>(start + within / 8)[0];
        if byte & (0x80 >> (within % 8)) == 0 {
            return None;
        }
        Some(self.at(start + header.bitmap_len() + within * 512))
    }

    fn at(&self, offset: u64) -> [u8; 512] {
        self.store.get_array(offset)
    }

    /// The whole disk, if it has no parent.
    pub fn disk(&self) -> Vec<u8> {
        self.disk_over(&[])
    }

    /// The whole disk over that of its parent, which may be larger or smaller.
    pub fn disk_over(&self, parent: &[u8]) -> Vec<u8> {
        let mut disk = parent.to_vec();
        disk.resize(self.size as usize, 0);
        for (sector, bytes) in (0..).zip(disk.chunks_exact_mut(512)) {
            if let Some(own) = self.own_sector(sector) {
                bytes.copy_from_slice(&own);
            }
        }
        disk
    }
}

impl Header {
    fn open(store: &Store, at: u64) -> Result<Self, String> {
        let bytes = store.get(at, 1024);
        if !bytes.starts_with(b"cxsparse") {
            return Err("no dynamic header".into());
        }
        Ok(Self {
            at,
            table: be64(&bytes, 16),
            entries: u64::from(be32(&bytes, 28)),
            block_size: u64::from(be32(&bytes, 32)),
        })
    }

    fn entry(&self, store: &Store, index: u64) -> u32 {
        assert!(index < self.entries, "no BAT entry {index}");
        store.get_be32(self.table + index * 4)
    }

    fn bitmap_len(&self) -> u64 {
        (self.block_size / 512).div_ceil(8).div_ceil(512) * 512
    }
}

/// What is wrong with a dynamic image; empty if nothing is.
pub fn faults(store: &Store) -> Vec<String> {
    let mut faults = Vec::new();
    let front = front_footer(store);
    let end = end_footer(store);
    let Some(footer) = front.or(end) else {
        return vec!["no good footer".into()];
    };
    let header = match Header::open(store, be64(&footer, 16)) {
        Ok(header) => header,
        Err(error) => return vec![error],
    };
    let head = store.get(header.at, 1024);
    if be32(&head, 36) != checksum(&head, 36) {
        faults.push("header checksum".into());
    }

    let headers = [
        (0, 512),
        (header.at, header.at + 1024),
        (header.table, header.table + header.entries * 4),
    ];
    let mut blocks = Vec::new();
    for index in 0..header.entries {
        let entry = header.entry(store, index);
        if entry != u32::MAX {
            let start = u64::from(entry) * 512;
            blocks.push((
                start,
                start + header.bitmap_len() + header.block_size,
                index,
            ));
        }
    }
    blocks.sort_unstable();
    for &(start, end, index) in &blocks {
        if headers.iter().any(|it| it.0 < end && start < it.1) {
            faults.push(format!("block {index} at {start} lies in the headers"));
        }
        if end > store.len() {
            faults.push(format!("block {index} ends at {end} > {}", store.len()));
        }
    }
    for pair in blocks.windows(2) {
        if pair[0].1 > pair[1].0 {
            faults.push(format!("blocks {} and {} overlap", pair[0].2, pair[1].2));
        }
    }
    let others = locators(&head).chain(batmap(store, &footer, &header));
    for (what, offset, len) in others {
        if offset.checked_add(len).is_none_or(|end| end > store.len()) {
            faults.push(format!(
                "{what} at {offset}, {len} bytes, is not in the file"
            ));
        }
    }
    faults
}

/// What the parent locators of a header set aside: a name, an offset and a length.
fn locators(head: &[u8]) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
    let used = head[576..768].chunks(24).filter(|it| be32(it, 0) != 0);
    let places = used.map(|locator| {
        let space = u64::from(be32(locator, 4));
        // Of some writers, sectors.
        let space = if space < 512 { space * 512 } else { space };
        let len = space.max(be32(locator, 8).into());
        ("parent locator", be64(locator, 16), len)
    });
    places.filter(|&(_, _, len)| len != 0)
}

/// The batmap that tapdisk 1.1 and later put behind the BAT.
fn batmap(store: &Store, footer: &[u8], header: &Header) -> Option<(&'static str, u64, u64)> {
    if !footer[28..].starts_with(b"tap\0") || be32(footer, 32) < 0x0001_0001 {
        return None;
    }
    let at = (header.table + header.entries * 4).next_multiple_of(512);
    if at.checked_add(512).is_none_or(|end| end > store.len()) {
        return None;
    }
    let bytes = store.get(at, 512);
    let len = u64::from(be32(&bytes, 16)) * 512;
    bytes
        .starts_with(b"tdbatmap")
        .then(|| ("batmap", be64(&bytes, 8), len))
}
