// SPDX-License-Identifier: GPL-2.0

//! Table entries.

use super::{case, extended, snapshots, v2, v3, Case};
use crate::Class::Malformed;

/// Those whose bad entries are met by an I/O. The first cluster is what is read; what else there is
/// can be read nevertheless.
pub const ENTRIES: &[Case] = &[
    case(
        "L2 table unaligned",
        v3,
        Malformed,
        "L1 entry points to no cluster",
        |it| it.put64(it.l1_at, it.tables[&0] | 512),
    ),
    case(
        "L2 table past the end",
        v3,
        Malformed,
        "L1 entry points past the end",
        |it| it.put64(it.l1_at, 1 << 63 | 1 << 40),
    ),
    case(
        "L2 table at the end",
        v3,
        Malformed,
        "L1 entry points past the end",
        |it| it.put64(it.l1_at, it.store.len().next_multiple_of(4096)),
    ),
    case(
        "L2 table at the last offset",
        v3,
        Malformed,
        "L1 entry points past the end",
        |it| it.put64(it.l1_at, u64::MAX << 12),
    ),
    case(
        "L2 table is the L1",
        v3,
        Malformed,
        "L1 entry points into the headers",
        |it| it.put64(it.l1_at, it.l1_at),
    ),
    case(
        "L2 table is the refcount table",
        v3,
        Malformed,
        "L1 entry points into the headers",
        |it| it.put64(it.l1_at, it.reftable_at),
    ),
    case(
        "L2 table is the snapshot table",
        snapshots,
        Malformed,
        "L1 entry points into the",
        |it| it.put64(it.l1_at, it.snapshots_at),
    ),
    case(
        "cluster unaligned",
        v3,
        Malformed,
        "L2 entry points to no cluster",
        |it| it.put64(it.entries[&0], it.places[&0] | 512),
    ),
    case(
        "cluster past the end",
        v3,
        Malformed,
        "L2 entry points past the end",
        |it| it.put64(it.entries[&0], 1 << 40),
    ),
    case(
        "cluster at the last offset",
        v3,
        Malformed,
        "L2 entry points past the end",
        |it| it.put64(it.entries[&0], 0x00ff_ffff_ffff_f000),
    ),
    case(
        "cluster is the L1",
        v3,
        Malformed,
        "L2 entry points into the headers",
        |it| it.put64(it.entries[&0], it.l1_at),
    ),
    case(
        "cluster is the refcount table",
        v2,
        Malformed,
        "L2 entry points into the headers",
        |it| it.put64(it.entries[&0], it.reftable_at),
    ),
    case(
        "zero cluster unaligned",
        v3,
        Malformed,
        "L2 entry points to no cluster",
        |it| it.put64(it.entries[&0], it.places[&0] | 513),
    ),
    case(
        "zero cluster in version 2",
        v2,
        Malformed,
        "version 2 has a zero cluster",
        |it| it.put64(it.entries[&0], 1),
    ),
    case(
        "compressed cluster past the end",
        v3,
        Malformed,
        "compressed cluster lies past",
        |it| it.put64(it.entries[&0], 1 << 62 | 1 << 40),
    ),
    case(
        "compressed cluster at the last offset",
        v3,
        Malformed,
        "compressed cluster lies past",
        |it| it.put64(it.entries[&0], u64::MAX >> 1),
    ),
    case(
        "compressed cluster in the header",
        v3,
        Malformed,
        "lies in the headers",
        |it| it.put64(it.entries[&0], 1 << 62 | 100),
    ),
    case(
        "compressed cluster in the L1",
        v3,
        Malformed,
        "lies in the headers",
        |it| it.put64(it.entries[&0], 1 << 62 | it.l1_at),
    ),
    case(
        "garbage for deflate",
        v3,
        Malformed,
        "compressed unit is damaged",
        |it| {
            it.put64(it.entries[&0], 1 << 62 | it.places[&5]);
            it.store.put(it.places[&5], &[0xff; 4096]);
        },
    ),
    case(
        "deflate that ends too early",
        v3,
        Malformed,
        "compressed unit is damaged",
        |it| {
            it.put64(it.entries[&0], 1 << 62 | it.places[&5]);
            it.store.put(it.places[&5], &[1, 1, 0, 0xfe, 0xff, 7]);
        },
    ),
    case(
        "subcluster both allocated and zero",
        extended,
        Malformed,
        "both allocated and zero",
        |it| it.put64(it.entries[&0] + 8, 1 << 32 | 1),
    ),
    case(
        "the last subcluster is both",
        extended,
        Malformed,
        "both allocated and zero",
        |it| it.put64(it.entries[&0] + 8, 1 << 63 | 1 << 31),
    ),
    case(
        "allocated subcluster of nothing",
        extended,
        Malformed,
        "of no cluster is allocated",
        |it| it.put64(it.entries[&0], 0),
    ),
];
