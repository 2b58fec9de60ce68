// SPDX-License-Identifier: GPL-2.0

//! The header ("Header"): the checks that make a [`Layout`] of it.

use loop_parser::contract::{
    Compression,
    Error,
    Fault,
    HostRange,
    Result,
    Tables, //
};

use super::{
    super::name::is_name,
    super::num::{
        self,
        add,
        low_bits,
        pow2,
        Region, //
    },
    extensions,
    features,
    layout::Layout,
    ondisk::*, //
};

/// A header that was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Where things lie.
    pub(super) layout: Layout,
    /// What can only be read, and why.
    pub(super) damage: Option<Fault>,
    /// Where the name of the backing file lies, if there is one.
    pub(super) backing_name: Option<Region>,
    /// Where the header's extensions lie.
    pub(super) extensions: Region,
}

/// The fields of both versions, as if all headers had all of them.
struct Fields {
    v2: HeaderFields,
    v3: HeaderV3Fields,
    compression: u8,
}

/// Reads and checks the header of a file of `file_size` bytes. An image that can only be read is not
/// an error here.
///
/// # Errors
///
/// [`Error::Malformed`] and [`Error::Unsupported`]; the first of: magic, version, features,
/// encryption, shift counts, limits, bounds, overlaps.
pub(super) fn load<T: Tables + ?Sized>(tables: &T, file_size: u64) -> Result<Header> {
    let fields = load_fields(tables, file_size)?;
    check_features(&fields)?;
    check_encryption(&fields)?;
    check_shifts(&fields)?;
    let compression = check_compression(&fields)?;
    let backing_name = backing_name(tables, &fields, file_size)?;
    let layout = layout(&fields, compression, backing_name.is_some());
    check_tables(&layout, file_size)?;
    let extensions = extensions_of(&fields, file_size);
    extensions::check(tables, extensions)?;
    Ok(Header {
        layout,
        damage: damage(&layout),
        backing_name,
        extensions,
    })
}

/// Where the image has a name for what it was refused for.
pub(super) fn quote<T: Tables + ?Sized>(tables: &T, fault: &Fault) -> Option<HostRange> {
    let bit = features::refused_bit(fault)?;
    let file_size = tables.size().ok()?;
    let fields = load_fields(tables, file_size).ok()?;
    features::name(tables, extensions_of(&fields, file_size), bit)
}

fn malformed<V>(what: &'static str, at: u64) -> Result<V> {
    Err(Error::malformed(what, at))
}

fn unsupported<V>(what: &'static str, at: u64) -> Result<V> {
    Err(Error::unsupported(what, at))
}

/// Magic, version, length.
#[inline(never)]
fn load_fields<T: Tables + ?Sized>(tables: &T, file_size: u64) -> Result<Fields> {
    if file_size < HEADER_V2_LEN {
        return malformed("file is too short for a qcow2 header", file_size);
    }
    let v2: HeaderFields = num::load(tables, 0)?;
    if v2.magic != num::MAGIC {
        return malformed("no qcow2 header", 0);
    }
    match v2.version.get() {
        2 => Ok(Fields {
            v2,
            v3: HeaderV3Fields {
                incompatible: 0.into(),
                compatible: 0.into(),
                autoclear: 0.into(),
                refcount_order: REFCOUNT_ORDER_V2.into(),
                header_length: 72.into(),
            },
            compression: COMPRESSION_DEFLATE,
        }),
        3 => load_v3(tables, v2, file_size),
        1 => unsupported("version 1 is for the parser qcow", VERSION),
        _ => unsupported("qcow version is not 1, 2 or 3", VERSION),
    }
}

/// The rest of a version 3 header. A field behind `header_length` is as if it was 0.
fn load_v3<T: Tables + ?Sized>(tables: &T, v2: HeaderFields, file_size: u64) -> Result<Fields> {
    if file_size < HEADER_V3_LEN {
        return malformed("file is too short for a qcow2 header", file_size);
    }
    let v3: HeaderV3Fields = num::load(tables, HEADER_V2_LEN)?;
    let len = u64::from(v3.header_length.get());
    if len < HEADER_V3_LEN {
        return malformed("qcow2 header is too short", HEADER_LENGTH);
    }
    if len % 8 != 0 {
        return malformed("qcow2 header has no multiple of 8 bytes", HEADER_LENGTH);
    }
    if len > pow2(MAX_CLUSTER_BITS) || len > file_size {
        return malformed("qcow2 header is too long", HEADER_LENGTH);
    }
    let mut compression = [COMPRESSION_DEFLATE];
    if len > COMPRESSION_TYPE {
        tables.load(COMPRESSION_TYPE, &mut compression)?;
    }
    let [compression] = compression;
    Ok(Fields {
        v2,
        v3,
        compression,
    })
}

fn check_features(fields: &Fields) -> Result {
    let unknown = fields.v3.incompatible.get() & !INCOMPATIBLE_KNOWN;
    if unknown != 0 {
        return Err(features::refuse(unknown));
    }
    Ok(())
}

fn check_encryption(fields: &Fields) -> Result {
    match fields.v2.crypt_method.get() {
        CRYPT_NONE => Ok(()),
        CRYPT_AES => unsupported("qcow2 is encrypted with AES", CRYPT_METHOD),
        CRYPT_LUKS => unsupported("qcow2 is encrypted with LUKS", CRYPT_METHOD),
        _ => unsupported("qcow2 is encrypted in an unknown way", CRYPT_METHOD),
    }
}

fn check_shifts(fields: &Fields) -> Result {
    let cluster_bits = fields.v2.cluster_bits.get();
    if cluster_bits < MIN_CLUSTER_BITS {
        return malformed("qcow2 cluster is smaller than a sector", CLUSTER_BITS);
    }
    if cluster_bits > MAX_CLUSTER_BITS {
        return unsupported("qcow2 cluster is larger than 2 MiB", CLUSTER_BITS);
    }
    let is_extended = fields.v3.incompatible.get() & INCOMPATIBLE_EXTENDED_L2 != 0;
    if is_extended && cluster_bits < MIN_CLUSTER_BITS_EXTENDED {
        return malformed("qcow2 subcluster is smaller than a sector", CLUSTER_BITS);
    }
    if u64::from(fields.v3.header_length.get()) > pow2(cluster_bits) {
        return malformed("qcow2 header is longer than a cluster", HEADER_LENGTH);
    }
    if fields.v3.refcount_order.get() > MAX_REFCOUNT_ORDER {
        return malformed("qcow2 refcount has more than 64 bits", REFCOUNT_ORDER);
    }
    Ok(())
}

/// The type and the feature bit have to agree.
fn check_compression(fields: &Fields) -> Result<Compression> {
    let has_bit = fields.v3.incompatible.get() & INCOMPATIBLE_COMPRESSION != 0;
    match (fields.compression, has_bit) {
        (COMPRESSION_DEFLATE, false) => Ok(Compression::Deflate),
        (COMPRESSION_ZSTD, true) => Ok(Compression::Zstd),
        (COMPRESSION_DEFLATE, true) => malformed(
            "qcow2 has the compression type of no feature bit",
            COMPRESSION_TYPE,
        ),
        (_, false) => malformed(
            "qcow2 has a compression type without its feature bit",
            COMPRESSION_TYPE,
        ),
        _ => unsupported("qcow2 compression type is unknown", COMPRESSION_TYPE),
    }
}

/// Where the name of the backing file lies: behind the header, in the first cluster, in the file.
/// One of no bytes names nothing.
fn backing_name<T: Tables + ?Sized>(
    tables: &T,
    fields: &Fields,
    file_size: u64,
) -> Result<Option<Region>> {
    let start = fields.v2.backing_offset.get();
    let len = fields.v2.backing_size.get();
    if start == 0 {
        return Ok(None);
    }
    if len > MAX_BACKING_NAME {
        return malformed("name of qcow2 backing file is too long", BACKING_SIZE);
    }
    let name = Region::new(start, u64::from(len), BACKING_OFFSET)?;
    if name.end > pow2(fields.v2.cluster_bits.get()) {
        return malformed(
            "name of qcow2 backing file is not in the first cluster",
            BACKING_OFFSET,
        );
    }
    if start < u64::from(fields.v3.header_length.get()) {
        return malformed(
            "name of qcow2 backing file overlaps the header",
            BACKING_OFFSET,
        );
    }
    if name.end > file_size {
        return malformed(
            "name of qcow2 backing file lies past the end of the file",
            BACKING_OFFSET,
        );
    }
    Ok(is_name(tables, name)?.then_some(name))
}

/// Where the extensions can lie. The backing file's name ends them.
fn extensions_of(fields: &Fields, file_size: u64) -> Region {
    let cluster = pow2(fields.v2.cluster_bits.get().min(MAX_CLUSTER_BITS));
    let start = u64::from(fields.v3.header_length.get());
    let name = match fields.v2.backing_offset.get() {
        0 => cluster,
        at => at,
    };
    Region {
        start,
        end: cluster.min(name).min(file_size).max(start),
    }
}

// INVARIANT: the checks before and behind the call.
fn layout(fields: &Fields, compression: Compression, has_parent: bool) -> Layout {
    let Fields { v2, v3, .. } = fields;
    let incompatible = v3.incompatible.get();
    let nb_snapshots = v2.nb_snapshots.get();
    Layout {
        version: v2.version.get(),
        cluster_bits: v2.cluster_bits.get(),
        is_extended: incompatible & INCOMPATIBLE_EXTENDED_L2 != 0,
        has_data_file: incompatible & INCOMPATIBLE_DATA_FILE != 0,
        has_parent,
        compression,
        refcount_order: v3.refcount_order.get(),
        l1_size: v2.l1_size.get(),
        l1_offset: v2.l1_offset.get(),
        size: v2.size.get(),
        reftable_offset: v2.reftable_offset.get(),
        reftable_clusters: v2.reftable_clusters.get(),
        nb_snapshots,
        snapshots_offset: match nb_snapshots {
            0 => 0,
            _ => v2.snapshots_offset.get(),
        },
        incompatible,
    }
}

/// Limits first, then bounds, then overlaps.
fn check_tables(layout: &Layout, file_size: u64) -> Result {
    if layout.l1_len() > MAX_L1_LEN {
        return unsupported("qcow2 L1 table is larger than 32 MiB", L1_SIZE);
    }
    if layout.size > layout.limit() {
        return malformed("qcow2 L1 table is too small for the disk", L1_SIZE);
    }
    if layout.reftable_clusters == 0 {
        return malformed("qcow2 has no refcount table", REFTABLE_CLUSTERS);
    }
    if layout.reftable_len() > MAX_REFTABLE_LEN {
        return unsupported(
            "qcow2 refcount table is larger than 8 MiB",
            REFTABLE_CLUSTERS,
        );
    }
    if layout.nb_snapshots > MAX_SNAPSHOTS {
        return unsupported("qcow2 has more than 65536 snapshots", NB_SNAPSHOTS);
    }
    check_bounds(layout, file_size)?;
    check_overlaps(layout)
}

/// What is said of a table whose place is wrong.
struct Table {
    start: u64,
    len: u64,
    unaligned: &'static str,
    outside: &'static str,
    overlaps: &'static str,
    /// Host offset of the field that has its place.
    field: u64,
}

/// The tables that the header names.
fn tables_of(layout: &Layout) -> [Table; 3] {
    [
        Table {
            start: layout.l1_offset,
            len: layout.l1_len(),
            unaligned: "qcow2 L1 table begins at no cluster boundary",
            outside: "qcow2 L1 table lies past the end of the file",
            overlaps: "qcow2 L1 table overlaps the header",
            field: L1_OFFSET,
        },
        Table {
            start: layout.reftable_offset,
            len: layout.reftable_len(),
            unaligned: "qcow2 refcount table begins at no cluster boundary",
            outside: "qcow2 refcount table lies past the end of the file",
            overlaps: "qcow2 refcount table overlaps the header or the L1 table",
            field: REFTABLE_OFFSET,
        },
        Table {
            start: layout.snapshots_offset,
            len: layout.min_snapshots_len(),
            unaligned: "qcow2 snapshot table begins at no cluster boundary",
            outside: "qcow2 snapshot table lies past the end of the file",
            overlaps: "qcow2 snapshot table overlaps the header or another table",
            field: SNAPSHOTS_OFFSET,
        },
    ]
}

/// A table begins at a cluster, and its last cluster begins within the file.
fn check_bounds(layout: &Layout, file_size: u64) -> Result {
    for table in tables_of(layout) {
        if table.start & low_bits(layout.cluster_bits) != 0 {
            return malformed(table.unaligned, table.field);
        }
        let Some(last) = table.len.checked_sub(1) else {
            continue;
        };
        let last = add(table.start, last, table.field)?;
        if last & !low_bits(layout.cluster_bits) >= file_size {
            return malformed(table.outside, table.field);
        }
    }
    Ok(())
}

/// Header, L1, refcount table, snapshots: none reaches into one of those before it.
fn check_overlaps(layout: &Layout) -> Result {
    let regions = layout.regions();
    let tables = tables_of(layout);
    for (count, (table, region)) in (1..).zip(tables.iter().zip(regions.iter().skip(1))) {
        let mut before = regions.iter().take(count);
        if before.any(|it| it.overlaps(*region)) {
            return malformed(table.overlaps, table.field);
        }
    }
    Ok(())
}

/// Why an image must not be written to.
fn damage(layout: &Layout) -> Option<Fault> {
    if layout.incompatible & INCOMPATIBLE_CORRUPT != 0 {
        return Some(Fault::new(
            "qcow2 is marked corrupt: attach it read-only, or run qemu-img check -r all on it",
            INCOMPATIBLE,
        ));
    }
    if layout.incompatible & INCOMPATIBLE_DIRTY != 0 {
        return Some(Fault::new(
            "qcow2 was not closed: attach it read-only, or run qemu-img check -r all on it",
            INCOMPATIBLE,
        ));
    }
    None
}
