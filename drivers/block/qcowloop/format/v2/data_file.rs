// SPDX-License-Identifier: GPL-2.0

//! The external data file ("External data file name", "Cluster mapping").
//!
//! Guest clusters lie in it, each at its guest position where this parser puts one; tables and their
//! refcounts stay in the image. Its clusters have no refcounts: each is one guest cluster's, for good.

use loop_parser::contract::{
    Error,
    Result,
    Tables, //
};

use super::{
    super::{
        name::{
            is_name,
            NamedFile,
            DATA_FILE, //
        },
        num::Region,
    },
    extensions,
    header::Header,
    ondisk::{
        AUTOCLEAR,
        AUTOCLEAR_RAW_DATA,
        BACKING_OFFSET,
        EXTENSION_DATA_FILE,
        INCOMPATIBLE,
        NB_SNAPSHOTS, //
    }, //
};

/// The data file that a header names, if the image has one.
///
/// # Errors
///
/// As for [`NamedFile::new`]; [`Error::Unsupported`] if it is not named, or there are snapshots, which
/// would share its clusters; [`Error::Malformed`] if it is said to be the disk by itself, and what is
/// below is a backing file's all the same.
#[inline(never)]
pub(super) fn load<T: Tables + ?Sized>(tables: &T, header: &Header) -> Result<Option<NamedFile>> {
    let layout = &header.layout;
    if !layout.has_data_file {
        return Ok(None);
    }
    if layout.nb_snapshots > 0 {
        return Err(Error::unsupported(
            "qcow2 has snapshots and an external data file",
            NB_SNAPSHOTS,
        ));
    }
    if layout.has_parent && tables.load_be64(AUTOCLEAR)? & AUTOCLEAR_RAW_DATA != 0 {
        return Err(Error::malformed(
            "qcow2 has a backing file and a raw external data file",
            BACKING_OFFSET,
        ));
    }
    let nameless = Error::unsupported("qcow2 does not name its external data file", INCOMPATIBLE);
    let found = extensions::find(tables, header.extensions, EXTENSION_DATA_FILE)?;
    let found = found.ok_or(nameless)?;
    let name = Region::new(found.start, found.len, INCOMPATIBLE)?;
    if !is_name(tables, name)? {
        return Err(nameless);
    }
    NamedFile::new(tables, name, Some("raw"), DATA_FILE).map(Some)
}
