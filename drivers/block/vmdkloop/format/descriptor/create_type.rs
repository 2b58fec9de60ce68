// SPDX-License-Identifier: GPL-2.0

//! What kind of disk a descriptor describes.

use loop_parser::contract::{
    Result,
    Tables, //
};

use super::{
    line::Value,
    reader::Reader, //
};

/// What kind of disk it is ("createType").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum CreateType {
    MonolithicSparse,
    MonolithicFlat,
    TwoGbMaxExtentSparse,
    TwoGbMaxExtentFlat,
    StreamOptimized,
    FullDevice,
    PartitionedDevice,
    Vmfs,
    VmfsThin,
    VmfsPreallocated,
    VmfsEagerZeroedThick,
    VmfsSparse,
    SeSparse,
    Custom,
    /// Something else, or nothing is said. The extents say what they are.
    Other,
}

use CreateType::*;

/// The words for them in descriptors.
const NAMES: [(CreateType, &str); 14] = [
    (MonolithicSparse, "monolithicSparse"),
    (MonolithicFlat, "monolithicFlat"),
    (TwoGbMaxExtentSparse, "twoGbMaxExtentSparse"),
    (TwoGbMaxExtentFlat, "twoGbMaxExtentFlat"),
    (StreamOptimized, "streamOptimized"),
    (FullDevice, "fullDevice"),
    (PartitionedDevice, "partitionedDevice"),
    (Vmfs, "vmfs"),
    (VmfsThin, "vmfsThin"),
    (VmfsPreallocated, "vmfsPreallocated"),
    (VmfsEagerZeroedThick, "vmfsEagerZeroedThick"),
    (VmfsSparse, "vmfsSparse"),
    (SeSparse, "seSparse"),
    (Custom, "custom"),
];

impl CreateType {
    /// The kind that is named by a value.
    pub(super) fn load(tables: &dyn Tables, value: Option<&Value>) -> Result<Self> {
        let Some(value) = value else {
            return Ok(Other);
        };
        let word = Reader::new(tables, value.range()).word(b'"')?;
        let found = NAMES.iter().find(|(_, name)| word.is(name.as_bytes()));
        Ok(found.map_or(Other, |(kind, _)| *kind))
    }

    /// The word for it in descriptors; "other" for one that is not known.
    pub(in super::super) fn name(self) -> &'static str {
        let found = NAMES.iter().find(|(kind, _)| *kind == self);
        found.map_or("other", |(_, name)| *name)
    }
}
