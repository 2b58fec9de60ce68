// SPDX-License-Identifier: GPL-2.0

//! Headers.

use super::{case, child, extended, named, snapshots, v2, v3, Case};
use crate::Class::{Malformed, Unsupported};

/// Those that cannot be attached, not even to a read-only device.
pub const REFUSED: &[Case] = &[
    // Magic, version, length.
    case("no magic", v3, Malformed, "no qcow2 header", |it| {
        it.store.put(0, b"QFI\xfa")
    }),
    case("empty file", v3, Malformed, "too short", |it| {
        it.store.put_size(0)
    }),
    case("71 bytes", v2, Malformed, "too short", |it| {
        it.store.put_size(71)
    }),
    case("version 3 of 103 bytes", v3, Malformed, "too short", |it| {
        it.store.put_size(103)
    }),
    case("version 0", v3, Unsupported, "not 1, 2 or 3", |it| {
        it.put32(4, 0)
    }),
    case("version 1", v3, Unsupported, "parser qcow", |it| {
        it.put32(4, 1)
    }),
    case("version 4", v3, Unsupported, "not 1, 2 or 3", |it| {
        it.put32(4, 4)
    }),
    case(
        "version in little endian",
        v3,
        Unsupported,
        "not 1, 2 or 3",
        |it| it.put32(4, 3 << 24),
    ),
    case(
        "header of 96 bytes",
        v3,
        Malformed,
        "header is too short",
        |it| it.put32(100, 96),
    ),
    case(
        "header of 0 bytes",
        v3,
        Malformed,
        "header is too short",
        |it| it.put32(100, 0),
    ),
    case(
        "header of 108 bytes",
        v3,
        Malformed,
        "multiple of 8",
        |it| it.put32(100, 108),
    ),
    case(
        "header longer than a cluster",
        v3,
        Malformed,
        "longer than a cluster",
        |it| it.put32(100, 4096 + 8),
    ),
    case(
        "header of 4 GiB",
        v3,
        Malformed,
        "header is too long",
        |it| it.put32(100, 0xffff_fff8),
    ),
    // Features.
    case(
        "bit 5",
        v3,
        Unsupported,
        "unknown incompatible feature bit 5",
        |it| it.put64(72, 1 << 5),
    ),
    case(
        "bit 63",
        v3,
        Unsupported,
        "unknown incompatible feature bit 63",
        |it| it.put64(72, 1 << 63),
    ),
    case(
        "bits 7 and 40",
        named,
        Unsupported,
        "unknown incompatible feature bit 7",
        |it| it.put64(72, 1 << 7 | 1 << 40),
    ),
    case(
        "all bits",
        v3,
        Unsupported,
        "unknown incompatible feature bit 5",
        |it| it.put64(72, u64::MAX),
    ),
    case(
        "nameless data file",
        v3,
        Unsupported,
        "does not name",
        |it| it.put64(72, 1 << 2),
    ),
    case(
        "data file and snapshots",
        snapshots,
        Unsupported,
        "snapshots and",
        |it| it.put64(72, 1 << 2),
    ),
    case("AES", v3, Unsupported, "encrypted with AES", |it| {
        it.put32(32, 1)
    }),
    case(
        "AES in version 2",
        v2,
        Unsupported,
        "encrypted with AES",
        |it| it.put32(32, 1),
    ),
    case("LUKS", v3, Unsupported, "encrypted with LUKS", |it| {
        it.put32(32, 2)
    }),
    case("encryption 3", v3, Unsupported, "in an unknown way", |it| {
        it.put32(32, 3)
    }),
    case(
        "zstd without its bit",
        v3,
        Malformed,
        "without its feature bit",
        |it| it.store.put(104, &[1]),
    ),
    case(
        "type 2 without its bit",
        v3,
        Malformed,
        "without its feature bit",
        |it| it.store.put(104, &[2]),
    ),
    case(
        "bit 3 and deflate",
        v3,
        Malformed,
        "of no feature bit",
        |it| it.put64(72, 1 << 3),
    ),
    case(
        "bit 3 and no type",
        v3,
        Malformed,
        "of no feature bit",
        |it| {
            it.put32(100, 104);
            it.put64(72, 1 << 3);
        },
    ),
    case(
        "compression type 2",
        v3,
        Unsupported,
        "compression type is unknown",
        |it| {
            it.put64(72, 1 << 3);
            it.store.put(104, &[2]);
        },
    ),
    // Shift counts.
    case(
        "clusters of 2^0",
        v3,
        Malformed,
        "smaller than a sector",
        |it| it.put32(20, 0),
    ),
    case(
        "clusters of 2^8",
        v3,
        Malformed,
        "smaller than a sector",
        |it| it.put32(20, 8),
    ),
    case(
        "clusters of 2^22",
        v3,
        Unsupported,
        "larger than 2 MiB",
        |it| it.put32(20, 22),
    ),
    case(
        "clusters of 2^64",
        v3,
        Unsupported,
        "larger than 2 MiB",
        |it| it.put32(20, 64),
    ),
    case(
        "clusters of 2^(2^32-1)",
        v2,
        Unsupported,
        "larger than 2 MiB",
        |it| it.put32(20, u32::MAX),
    ),
    case(
        "subclusters of 256 bytes",
        extended,
        Malformed,
        "subcluster is smaller",
        |it| it.put32(20, 13),
    ),
    case(
        "refcount order 7",
        v3,
        Malformed,
        "more than 64 bits",
        |it| it.put32(96, 7),
    ),
    case(
        "refcount order 2^32-1",
        v3,
        Malformed,
        "more than 64 bits",
        |it| it.put32(96, u32::MAX),
    ),
    // Limits.
    case(
        "L1 of 32 MiB and 8 bytes",
        v3,
        Unsupported,
        "L1 table is larger",
        |it| it.put32(36, (4 << 20) + 1),
    ),
    case(
        "L1 of 2^32-1 entries",
        v3,
        Unsupported,
        "L1 table is larger",
        |it| it.put32(36, u32::MAX),
    ),
    case(
        "L1 of 0 entries",
        v3,
        Malformed,
        "L1 table is too small",
        |it| it.put32(36, 0),
    ),
    case(
        "disk of 2^64-1 bytes",
        v3,
        Malformed,
        "L1 table is too small",
        |it| it.put64(24, u64::MAX),
    ),
    case(
        "disk a byte too large",
        v3,
        Malformed,
        "L1 table is too small",
        |it| it.put64(24, (2 << 20) + 1),
    ),
    case(
        "no refcount table",
        v3,
        Malformed,
        "no refcount table",
        |it| it.put32(56, 0),
    ),
    case(
        "refcount table of 8 MiB and a cluster",
        v3,
        Unsupported,
        "refcount table is larger",
        |it| it.put32(56, 2049),
    ),
    case(
        "refcount table of 2^32-1 clusters",
        v2,
        Unsupported,
        "refcount table is larger",
        |it| it.put32(56, u32::MAX),
    ),
    case(
        "65537 snapshots",
        v3,
        Unsupported,
        "65536 snapshots",
        |it| it.put32(60, 65537),
    ),
    // Bounds.
    case(
        "L1 unaligned",
        v3,
        Malformed,
        "L1 table begins at no",
        |it| it.put64(40, it.l1_at + 8),
    ),
    case(
        "L1 past the end",
        v3,
        Malformed,
        "L1 table lies past",
        |it| it.put64(40, 1 << 40),
    ),
    case(
        "L1 at the end of the address space",
        v3,
        Malformed,
        "offset overflows",
        |it| {
            it.put32(36, 513);
            it.put64(40, u64::MAX << 12);
        },
    ),
    case(
        "L1 longer than the file",
        v3,
        Malformed,
        "L1 table lies past",
        |it| it.put32(36, 1 << 20),
    ),
    case(
        "refcount table unaligned",
        v3,
        Malformed,
        "refcount table begins at no",
        |it| it.put64(48, it.reftable_at + 512),
    ),
    case(
        "refcount table past the end",
        v3,
        Malformed,
        "refcount table lies past",
        |it| it.put64(48, 1 << 50),
    ),
    case(
        "refcount table longer than the file",
        v3,
        Malformed,
        "refcount table lies past",
        |it| it.put32(56, 2000),
    ),
    case(
        "snapshot table unaligned",
        snapshots,
        Malformed,
        "snapshot table begins at no",
        |it| it.put64(64, it.snapshots_at + 1),
    ),
    case(
        "snapshot table past the end",
        snapshots,
        Malformed,
        "snapshot table lies past",
        |it| it.put64(64, 1 << 33),
    ),
    // Overlaps.
    case(
        "L1 over the header",
        v3,
        Malformed,
        "L1 table overlaps the header",
        |it| it.put64(40, 0),
    ),
    case(
        "refcount table over the header",
        v3,
        Malformed,
        "refcount table overlaps",
        |it| it.put64(48, 0),
    ),
    case(
        "refcount table over the L1",
        v3,
        Malformed,
        "refcount table overlaps",
        |it| it.put64(48, it.l1_at),
    ),
    case(
        "refcount table runs into the L1",
        v3,
        Malformed,
        "refcount table overlaps",
        |it| it.put32(56, 2),
    ),
    case(
        "snapshots over the header",
        snapshots,
        Malformed,
        "snapshot table overlaps",
        |it| it.put64(64, 0),
    ),
    case(
        "snapshots over the L1",
        snapshots,
        Malformed,
        "snapshot table overlaps",
        |it| it.put64(64, it.l1_at),
    ),
    case(
        "snapshots over the refcounts",
        snapshots,
        Malformed,
        "snapshot table overlaps",
        |it| it.put64(64, it.reftable_at),
    ),
    // The backing file.
    case(
        "name of 1024 bytes",
        child,
        Malformed,
        "is too long",
        |it| it.put32(16, 1024),
    ),
    case(
        "name behind the cluster",
        child,
        Malformed,
        "not in the first cluster",
        |it| it.put64(8, 4096 - 4),
    ),
    case(
        "name at 2^64-1",
        child,
        Malformed,
        "offset overflows",
        |it| it.put64(8, u64::MAX),
    ),
    case(
        "name in the header",
        child,
        Malformed,
        "overlaps the header",
        |it| it.put64(8, 104),
    ),
    case("json:", child, Unsupported, "URL or json:", |it| {
        let at = it.store.get_be64(8);
        it.store.put(at, b"json:{}x");
    }),
    case("nbd://", child, Unsupported, "URL or json:", |it| {
        let at = it.store.get_be64(8);
        it.store.put(at, b"nbd://h/");
    }),
    case("file:", child, Unsupported, "URL or json:", |it| {
        let at = it.store.get_be64(8);
        it.store.put(at, b"file:x/y");
    }),
    case("format qed", child, Unsupported, "has no parser", |it| {
        it.store.put(120, b"qed")
    }),
    case("format RAW", child, Unsupported, "has no parser", |it| {
        it.store.put(120, b"RAW")
    }),
    case(
        "format of 16 bytes",
        child,
        Unsupported,
        "has no parser",
        |it| it.put32(116, 16),
    ),
    case(
        "extension of 2^32-1 bytes",
        child,
        Malformed,
        "extension is too long",
        |it| it.put32(116, u32::MAX),
    ),
    case(
        "extension runs into the name",
        child,
        Malformed,
        "extension is too long",
        |it| {
            it.put32(112, 0x1234_5678);
            it.put32(116, 17);
        },
    ),
    case(
        "65 empty extensions",
        child,
        Unsupported,
        "more than 64 extensions",
        |it| {
            for i in 0..65 {
                it.put32(112 + i * 8, 0x0bad_f00d);
                it.put32(116 + i * 8, 0);
            }
            it.put64(8, 2048);
            it.store.put(2048, b"base.img");
        },
    ),
];
