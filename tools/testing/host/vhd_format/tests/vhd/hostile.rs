// SPDX-License-Identifier: GPL-2.0

//! Images that were made to do harm, and files that change while they are looked at. Nothing may
//! panic (the kernel is built with overflow checks too), read or write outside the file, or loop
//! without bound.

use std::cell::{Cell, RefCell};

use loop_parser::contract::{
    Allocate, Discard, Discarded, Extent, Map, Parent, Placement, Probe, Range, Reservation,
    Reserved, Result, Tables, TablesMut, Unlinked,
};
use proptest::prelude::*;
use testkit::{
    rng::Rng,
    store::{Store, EIO},
};
use vhd_format::format::{self, Attached};

use crate::{
    image::{fix, Bits, End, Image, Spec},
    reader::{end_footer, front_footer},
};

/// Numbers at which something changes.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => any::<u64>(),
        4 => 0u64..70_000,
        4 => (0u32..64, -600i64..600).prop_map(|(shift, delta)| {
            (1u64 << shift).wrapping_add_signed(delta)
        }),
        2 => (0u64..130).prop_map(|sectors| sectors * 512),
        1 => Just(u64::MAX),
        1 => Just(u64::from(u32::MAX)),
    ]
}

/// Fields of the footer: offset and length.
const FOOTER_FIELDS: [(u64, usize); 11] = [
    (8, 4),
    (12, 4),
    (16, 8),
    (28, 4),
    (32, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (84, 1),
    (85, 1),
];

/// Fields of the dynamic header, of its first locator and of its last.
const HEADER_FIELDS: [(u64, usize); 13] = [
    (8, 8),
    (16, 8),
    (24, 4),
    (28, 4),
    (32, 4),
    (576, 4),
    (580, 4),
    (584, 4),
    (592, 8),
    (744, 4),
    (748, 4),
    (752, 4),
    (760, 8),
];

/// A change of one field.
#[derive(Clone, Debug)]
enum Change {
    Footers(usize, u64),
    Front(usize, u64),
    End(usize, u64),
    Header(usize, u64),
    Entry(u32, u32),
    Batmap(u64, u64),
    Byte(u64, u8),
    Size(u64),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..FOOTER_FIELDS.len(), number()).prop_map(|(i, n)| Change::Footers(i, n)),
        1 => (0..FOOTER_FIELDS.len(), number()).prop_map(|(i, n)| Change::Front(i, n)),
        1 => (0..FOOTER_FIELDS.len(), number()).prop_map(|(i, n)| Change::End(i, n)),
        6 => (0..HEADER_FIELDS.len(), number()).prop_map(|(i, n)| Change::Header(i, n)),
        3 => (0u32..64, number()).prop_map(|(i, n)| Change::Entry(i, n as u32)),
        3 => (0u32..64, 0u32..160).prop_map(|(i, n)| Change::Entry(i, n)),
        1 => (8u64..30, number()).prop_map(|(i, n)| Change::Batmap(i, n)),
        2 => (0u64..70_000, any::<u8>()).prop_map(|(i, n)| Change::Byte(i, n)),
        1 => (0u64..80_000).prop_map(Change::Size),
    ]
}

fn apply(image: &mut Image, change: &Change) {
    let low = |n: &u64, len: usize| n.to_be_bytes()[8 - len..].to_vec();
    match change {
        Change::Footers(i, n) => {
            let (at, len) = FOOTER_FIELDS[*i];
            image.edit_footers(at, &low(n, len));
        }
        Change::Front(i, n) => {
            let (at, len) = FOOTER_FIELDS[*i];
            image.edit_front(at, &low(n, len));
        }
        Change::End(i, n) => {
            let (at, len) = FOOTER_FIELDS[*i];
            image.edit_end(at, &low(n, len));
        }
        Change::Header(i, n) => {
            let (at, len) = HEADER_FIELDS[*i];
            image.edit_header(at, &low(n, len));
        }
        Change::Entry(i, n) => image.set_entry(*i, *n),
        Change::Batmap(at, n) => {
            let at = image.table_end() + at;
            image.store.put(at, &n.to_be_bytes());
        }
        Change::Byte(at, byte) => image.store.put(*at, &[*byte]),
        // The last change: others could reach past the end.
        Change::Size(_) => {}
    }
}

fn spec() -> impl Strategy<Value = Spec> {
    let blocks = vec![(1, Bits::Ones), (3, Bits::Mixed(7)), (40, Bits::Zeros)];
    let flags = (any::<bool>(), any::<bool>());
    (flags, 0u32..4, any::<bool>()).prop_map(move |((is_tapdisk, is_child), end, front)| {
        let base = if is_child {
            Spec::differencing
        } else {
            Spec::dynamic
        };
        let mut spec = base(64 * 1024, 1024).with_blocks(&blocks);
        if is_tapdisk {
            spec = spec.by(b"tap\0", 0x0001_0003);
            spec.batmap = Some((1, false));
            spec.full = vec![1, 3, 5, 63];
        }
        spec.end = [End::Footer, End::Short, End::Missing, End::Damaged][end as usize];
        // One good footer there has to be.
        spec.front = front || matches!(spec.end, End::Missing | End::Damaged);
        spec
    })
}

/// Where the metadata that a guest must not reach was at attach.
fn metadata(store: &Store) -> Vec<(u64, u64)> {
    let Some(footer) = front_footer(store).or_else(|| end_footer(store)) else {
        return Vec::new();
    };
    let header = u64::from_be_bytes(footer[16..24].try_into().unwrap());
    match header.checked_add(1024) {
        Some(end) if end <= store.len() => {}
        _ => return Vec::new(),
    }
    let table = store.get_be64(header + 16);
    let len = u64::from(store.get_be32(header + 28)) * 4;
    vec![(0, 512), (header, 1024), (table, len)]
}

/// Looks at positions all over a disk.
fn explore(attached: &Attached, store: &mut Store) {
    let metadata = metadata(store);
    let size = attached.disk.size;
    assert!(size > 0 && size % 512 == 0);
    let mut positions = vec![0, 512, size / 2 / 512 * 512, size - 512];
    positions.extend((0..64).map(|block| block * 1024));
    for pos in positions {
        if pos >= size {
            continue;
        }
        for len in [512, 4096, (size - pos).min(1 << 40)] {
            let len = len.min(size - pos);
            look(attached, store, pos, len, &metadata);
        }
    }
    name_parent(attached, store);
    allocate(attached, store);
}

/// The names of a parent are bounded in number, length, and what it takes to read them.
fn name_parent(attached: &Attached, store: &Store) {
    let Some(parent) = &attached.parent else {
        return;
    };
    let loads = store.loads();
    let mut buf = [0; 300];
    let mut index = 0;
    loop {
        match parent.name(store, index, &mut buf) {
            Ok(None) => break,
            Ok(Some(len)) => {
                let name = &buf[..len];
                assert!(len > 0 && !name.contains(&0) && !name.ends_with(b"/"));
            }
            Err(_) => {}
        }
        index += 1;
        assert!(index <= 17);
    }
    assert!(store.loads() - loads < 1 << 20, "too many loads");
}

fn look(attached: &Attached, store: &Store, pos: u64, len: u64, metadata: &[(u64, u64)]) {
    let loads = store.loads();
    match attached.map.resolve_read(store, pos, len) {
        Ok(Extent::Data { offset, len: got }) => {
            assert!(got > 0 && got <= len);
            assert!(offset + got <= store.len());
        }
        Ok(Extent::Zero { len: got }) => assert!(got > 0 && got <= len),
        Ok(Extent::Compressed(_)) => unreachable!(),
        Ok(Extent::Parent { len: got }) => {
            assert!(attached.parent.is_some());
            assert!(got > 0 && got <= len);
        }
        Err(_) => {}
    }
    match attached.map.resolve_write(store, pos, len) {
        Ok(Placement::InPlace { offset, len: got }) => {
            assert!(got > 0 && got <= len);
            assert!(offset + got <= store.len());
            if attached.disk.variant != "fixed" {
                for (start, len) in metadata {
                    assert!(offset + got <= *start || *start + len <= offset);
                }
            }
        }
        Ok(Placement::Allocate { pos: unit, len }) => {
            assert!(unit <= pos && pos < unit + len);
        }
        Err(_) => {}
    }
    assert!(store.loads() - loads <= 2 * 132, "too many loads");
}

fn allocate(attached: &Attached, store: &mut Store) {
    let Ok(Attached { alloc, .. }) = format::attach(store, "", true) else {
        return;
    };
    let mut alloc = alloc;
    let len_before = store.len();
    for block in [0u64, 2, 5, 63] {
        let pos = block * 1024;
        if pos >= attached.disk.size {
            continue;
        }
        // As many as the BAT has pieces, and what else is looked at.
        let most = 2000 + u64::from(u32::MAX).min(store.len() / 4) / 64 * 2;
        let loads = store.loads();
        match alloc.reserve(store, pos, 512) {
            Ok(Reserved::Space(space)) => {
                assert!(space.offset + space.len <= store.len());
                if space.granule == 0 {
                    assert!(space.offset % 4096 == 0);
                    // Behind everything but the old footer.
                    assert!(space.offset + 512 >= len_before);
                }
                let _ = alloc.publish(store, &space, whole(&space));
            }
            Ok(Reserved::Ready) | Err(_) => {}
        }
        assert!(store.loads() - loads <= most, "too many loads");
    }
    for (block, how) in HOWS {
        let pos = block * 1024;
        if pos < attached.disk.size {
            discard(attached, &mut alloc, store, pos, how);
        }
    }
    let _ = alloc.close(store);
}

/// Some blocks, and ways to be rid of them.
const HOWS: [(u64, Discard); 6] = [
    (0, Discard::Forget),
    (1, Discard::Forget),
    (2, Discard::Zero),
    (3, Discard::ZeroInPlace),
    (4, Discard::Zero),
    (40, Discard::Forget),
];

fn discard(
    attached: &Attached,
    alloc: &mut format::VhdAllocator,
    store: &mut Store,
    pos: u64,
    how: Discard,
) {
    let metadata = metadata(store);
    let size = attached.disk.size;
    let len = (size - pos).min(1 << 20);
    let loads = store.loads();
    let got = match alloc.discard(store, Range { pos, len }, size, how) {
        Ok(Discarded::Done { len } | Discarded::Write { len }) => len,
        Ok(
            Discarded::Zero { offset, len }
            | Discarded::Freed {
                space: Unlinked { offset, len },
                ..
            },
        ) => {
            assert!(offset + len <= store.len());
            for (start, table_len) in metadata {
                let is_apart = offset + len <= start || start + table_len <= offset;
                assert!(attached.disk.variant == "fixed" || is_apart);
            }
            len
        }
        Err(_) => return,
    };
    assert!(got > 0, "nothing was done");
    assert!(store.loads() - loads <= 132, "too many loads");
}

/// The range of all of a reservation.
fn whole(space: &Reservation) -> Range {
    Range {
        pos: space.pos,
        len: space.len,
    }
}

/// The driver's probe, and then an attach in every way there is.
fn open_in_all_ways(store: &mut Store) {
    let size = store.len();
    let head = store.get(0, size.min(512) as usize);
    let tail_len = size.min(1024);
    let tail = store.get(size - tail_len, tail_len as usize);
    format::probe(&Probe {
        head: &head,
        tail: &tail,
        size,
    });
    for options in ["", "size=chs", "size=current"] {
        for writable in [false, true] {
            let loads = store.loads();
            let attached = format::attach(store, options, writable);
            assert!(store.loads() - loads < 40, "attach is not O(1)");
            if let Ok(attached) = attached {
                explore(&attached, store);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 6000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Fields that contradict each other, under right checksums.
    #[test]
    fn fields(spec in spec(), changes in proptest::collection::vec(change(), 1..6)) {
        let mut image = spec.build();
        for change in &changes {
            apply(&mut image, change);
        }
        for change in &changes {
            if let Change::Size(size) = change {
                image.store.put_size(*size);
            }
        }
        open_in_all_ways(&mut image.store);
    }

    /// Bits that flipped, wherever it hurts.
    #[test]
    fn bit_flips(spec in spec(), flips in proptest::collection::vec((0u64..4096, 0u32..8), 1..20)) {
        let mut image = spec.build();
        for (at, bit) in flips {
            let byte = image.store.get(at, 1)[0];
            image.store.put(at, &[byte ^ 1 << bit]);
        }
        open_in_all_ways(&mut image.store);
    }

    /// Nothing but the magic numbers and the checksums is right.
    #[test]
    fn random_bytes(seed in any::<u64>(), size in 512u64..20_000, disk_type in 2u8..5) {
        let mut rng = Rng::new(seed);
        let mut bytes: Vec<u8> = (0..size).map(|_| rng.next_u64() as u8).collect();
        bytes[..8].copy_from_slice(b"conectix");
        bytes[12..16].copy_from_slice(&[0, 1, 0, 0]);
        bytes[16..24].copy_from_slice(&512u64.to_be_bytes());
        bytes[60..64].copy_from_slice(&[0, 0, 0, disk_type]);
        fix(&mut bytes[..512], 64);
        if size >= 1536 {
            bytes[512..520].copy_from_slice(b"cxsparse");
            bytes[536..540].copy_from_slice(&[0, 1, 0, 0]);
            bytes[544..548].copy_from_slice(&(1u32 << (seed % 32)).to_be_bytes());
            fix(&mut bytes[512..1536], 36);
        }
        open_in_all_ways(&mut Store::new(&bytes));
    }

    /// All stores and loads give anything at all, and so does the size.
    #[test]
    fn file_that_changes_at_every_look(seed in any::<u64>(), honest_loads in 0u64..200) {
        let mut spec = if seed % 2 == 0 {
            Spec::dynamic(64 * 1024, 1024)
        } else {
            Spec::differencing(64 * 1024, 1024)
        };
        spec.blocks = vec![(1, Bits::Ones), (3, Bits::Mixed(7))];
        let mut chaos = Chaos {
            store: spec.build().store,
            honest: Cell::new(honest_loads),
            rng: RefCell::new(Rng::new(seed)),
            loads: Cell::new(0),
        };
        let Ok(attached) = format::attach(&chaos, "", true) else {
            return Ok(());
        };
        let mut alloc = attached.alloc;
        for block in 0..64u64 {
            let pos = block * 1024;
            let _ = attached.map.resolve_read(&chaos, pos, 64 * 1024 - pos);
            let _ = attached.map.resolve_write(&chaos, pos, 512);
            if let Ok(Reserved::Space(space)) = alloc.reserve(&mut chaos, pos, 512) {
                if block % 3 == 0 {
                    alloc.release(&space);
                } else {
                    let _ = alloc.publish(&mut chaos, &space, whole(&space));
                }
            }
            let how = [Discard::Forget, Discard::Zero, Discard::ZeroInPlace][block as usize % 3];
            let range = Range { pos, len: 4096 };
            let _ = alloc.discard(&mut chaos, range, 64 * 1024, how);
        }
        let _ = alloc.close(&mut chaos);
        prop_assert!(chaos.loads.get() < 100_000);
    }

    /// Calls that break the contract get an error.
    #[test]
    fn absurd_calls(
        spec in spec(),
        pos in number(),
        len in number(),
        offset in number(),
        written in number(),
        granule in number(),
    ) {
        let mut store = spec.build().store;
        let attached = format::attach(&store, "", true).unwrap();
        let _ = attached.map.resolve_read(&store, pos, len);
        let _ = attached.map.resolve_write(&store, pos, len);
        let mut alloc = attached.alloc;
        let space = Reservation { pos, len, offset, granule, sync_before_publish: false };
        alloc.release(&space);
        let _ = alloc.publish(&mut store, &space, whole(&space));
        let _ = alloc.reserve(&mut store, pos, len);
        alloc.release(&space);
        let _ = alloc.publish(&mut store, &space, Range { pos: written, len });
        for how in [Discard::Forget, Discard::Zero, Discard::ZeroInPlace] {
            let _ = alloc.discard(&mut store, Range { pos, len }, written, how);
        }
        let _ = alloc.close(&mut store);
    }
}

/// A file whose owner is at work on it: after some honest loads, everything is random.
struct Chaos {
    store: Store,
    honest: Cell<u64>,
    rng: RefCell<Rng>,
    loads: Cell<u64>,
}

impl Chaos {
    fn is_honest(&self) -> bool {
        match self.honest.get().checked_sub(1) {
            Some(left) => {
                self.honest.set(left);
                true
            }
            None => !self.rng.borrow_mut().one_in(3),
        }
    }

    fn one_in(&self, n: u64) -> bool {
        self.rng.borrow_mut().one_in(n)
    }
}

impl Tables for Chaos {
    fn size(&self) -> Result<u64> {
        let size = self.store.size()?;
        if self.is_honest() {
            return Ok(size);
        }
        let mut rng = self.rng.borrow_mut();
        let shift = rng.below(64);
        Ok(match rng.below(4) {
            0 => rng.next_u64() >> shift,
            1 => rng.below(2 * size),
            _ => size,
        })
    }

    fn load(&self, offset: u64, buf: &mut [u8]) -> Result {
        self.loads.set(self.loads.get() + 1);
        if self.is_honest() {
            return self.store.load(offset, buf);
        }
        if self.one_in(8) {
            return Err(EIO);
        }
        let mut rng = self.rng.borrow_mut();
        match rng.below(3) {
            0 => buf.fill(0xff),
            1 => buf.fill(0),
            _ => buf.fill_with(|| rng.next_u64() as u8),
        }
        Ok(())
    }
}

impl TablesMut for Chaos {
    fn store(&mut self, offset: u64, bytes: &[u8]) -> Result {
        let is_sane = offset < 1 << 42;
        if self.is_honest() && is_sane {
            return self.store.store(offset, bytes);
        }
        if self.one_in(2) {
            return Err(EIO);
        }
        Ok(())
    }

    fn fill(&mut self, offset: u64, len: u64, byte: u8) -> Result {
        let is_sane = offset < 1 << 42 && len < 1 << 20;
        if self.is_honest() && is_sane {
            return self.store.fill(offset, len, byte);
        }
        if self.one_in(2) {
            return Err(EIO);
        }
        Ok(())
    }

    fn copy_sector(&mut self, from: u64, len: u64, to: u64) -> Result {
        let mut sector = [0; 512];
        let len = usize::try_from(len).expect("more than a sector");
        self.load(from, &mut sector[..len])?;
        self.store(to, &sector)
    }

    fn sync(&mut self) -> Result {
        if self.is_honest() {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    fn truncate(&mut self, _size: u64) -> Result {
        Ok(())
    }

    fn can_grow(&self) -> bool {
        self.is_honest()
    }

    fn can_punch(&self) -> bool {
        self.is_honest()
    }
}
