// SPDX-License-Identifier: GPL-2.0

//! Images to crash, of every shape.

use loop_parser::contract::Result;
use testkit::{device::Device, store::Store};

use crate::{
    image::{Bits, End, Spec},
    open, open_over,
    reader::Reader,
};

/// An image to crash.
pub struct Scenario {
    pub name: &'static str,
    pub store: Store,
    pub block_size: u32,
    /// QEMU, which does not look at bitmaps, sees the same disk.
    pub suits_qemu: bool,
    pub steps: u64,
    /// What a differencing image lies on: a fixed one.
    pub parent: Option<Store>,
}

impl Scenario {
    /// Attaches an image like this one, over the parent.
    pub fn open(&self, store: Store) -> Result<Device> {
        match &self.parent {
            Some(parent) => open_over(store, open(parent.clone())?),
            None => open(store),
        }
    }

    /// The guest's disk, by the second reader.
    pub fn disk(&self, store: &Store) -> Vec<u8> {
        let below = self
            .parent
            .as_ref()
            .map(|it| Reader::open(it).unwrap().disk());
        Reader::open(store)
            .unwrap()
            .disk_over(&below.unwrap_or_default())
    }
}

pub fn scenario(name: &'static str, spec: &Spec) -> Scenario {
    Scenario {
        name,
        store: spec.build().store,
        block_size: spec.block_size,
        // It takes the bitmap of a block of less than 4 KiB for empty.
        suits_qemu: spec.disk_type == 3
            && spec.blocks.iter().all(|it| it.1 == Bits::Ones)
            && spec.block_size >= 4096,
        steps: 40,
        // Half as large as the disk on it.
        parent: (spec.disk_type == 4).then(|| Spec::fixed(spec.size / 1024 * 512).build().store),
    }
}

pub fn small() -> Spec {
    Spec::dynamic(24 * 4096 + 1536, 4096)
}

/// A differencing image with this end, over a parent.
pub fn child() -> Spec {
    let blocks = [(3, Bits::Mixed(1)), (0, Bits::Ones), (7, Bits::Zeros)];
    Spec::differencing(24 * 4096 + 1536, 4096).with_blocks(&blocks)
}

pub fn child_scenarios() -> Vec<Scenario> {
    let with = |change: fn(&mut Spec)| {
        let mut spec = child();
        change(&mut spec);
        spec
    };
    vec![
        scenario("child", &child()),
        scenario("empty child", &with(|it| it.blocks.clear())),
        scenario("child, front damaged", &with(|it| it.front = false)),
        scenario("child, end missing", &with(|it| it.end = End::Missing)),
        scenario("child, short footer", &with(|it| it.end = End::Short)),
        scenario(
            "child of Windows 10",
            &with(|it| {
                it.aligned = true;
                it.gap = 7;
            }),
        ),
        scenario(
            "child of tapdisk",
            &with(|it| {
                it.aligned = true;
                it.batmap = Some((1, false));
                it.full = vec![0];
                it.creator = *b"tap\0";
                it.creator_version = 0x0001_0003;
            }),
        ),
        scenario(
            "child, blocks of a sector",
            &Spec::differencing(100 * 512, 512),
        ),
        scenario(
            "child, blocks of 64 KiB",
            &Spec::differencing(3 << 16, 1 << 16).with_blocks(&[(1, Bits::Mixed(2))]),
        ),
    ]
}

pub fn file_scenarios() -> Vec<Scenario> {
    let mixed = [(3, Bits::Mixed(1)), (0, Bits::Ones), (7, Bits::Zeros)];
    let whole = [(3, Bits::Ones), (0, Bits::Ones)];
    let with = |change: fn(&mut Spec)| {
        let mut spec = small().with_blocks(&[(3, Bits::Ones), (0, Bits::Ones)]);
        change(&mut spec);
        spec
    };
    vec![
        scenario("empty", &small()),
        scenario("some blocks", &small().with_blocks(&whole)),
        scenario("clear bits", &small().with_blocks(&mixed)),
        scenario("front damaged", &with(|it| it.front = false)),
        scenario("end damaged", &with(|it| it.end = End::Damaged)),
        scenario("end missing", &with(|it| it.end = End::Missing)),
        scenario("end filled", &with(|it| it.end = End::Filled(0xc7))),
        scenario("short footer", &with(|it| it.end = End::Short)),
        scenario(
            "short footer alone",
            &with(|it| {
                it.end = End::Short;
                it.front = false;
            }),
        ),
        scenario(
            "Windows 10",
            &with(|it| {
                it.aligned = true;
                it.gap = 7;
            }),
        ),
        scenario(
            "tapdisk",
            &with(|it| {
                it.aligned = true;
                it.batmap = Some((1, false));
                it.creator = *b"tap\0";
                it.creator_version = 0x0001_0003;
            }),
        ),
        scenario("blocks of a sector", &Spec::dynamic(100 * 512, 512)),
        scenario("blocks of 32 KiB", &Spec::dynamic(6 << 15, 1 << 15)),
        scenario("one block", &Spec::dynamic(2048, 4096)),
        Scenario {
            steps: 12,
            ..scenario(
                "blocks of 2 MiB",
                &Spec::dynamic(3 << 20, 1 << 21).with_blocks(&[(1, Bits::Mixed(2))]),
            )
        },
    ]
}

pub fn device_scenarios() -> Vec<Scenario> {
    let mixed = [(3, Bits::Mixed(1)), (0, Bits::Ones)];
    let mut list = Vec::new();
    for (name, base, front, at_end, room) in [
        ("device", small(), true, true, 60),
        ("device, footer in the middle", small(), true, false, 60),
        ("device, front damaged", small(), false, true, 60),
        ("device that runs full", small(), true, true, 9),
        ("device, child", child(), true, true, 60),
        ("device, child, in the middle", child(), true, false, 60),
        ("device, child, runs full", child(), true, true, 9),
    ] {
        let mut spec = base.with_blocks(&mixed);
        spec.front = front;
        let mut it = scenario(name, &spec);
        let size = (it.store.len() + room * 8192).next_multiple_of(4096);
        it.store = it.store.into_device(size, 0x5a);
        if at_end {
            it.store.put(size - 512, &spec.footer());
        }
        it.suits_qemu = false;
        list.push(it);
    }
    list
}
