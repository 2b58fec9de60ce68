// SPDX-License-Identifier: GPL-2.0

//! The VHD parser for the loop driver: registration, and the way from the contract to the format.

use kernel::prelude::*;

use loop_parser::{
    contract::{
        Error,
        Parent,
        Probe,
        Result as ContractResult,
        Tables,
        Verdict, //
    },
    parser::{
        AttachRequest,
        Attached,
        Parser,
        Registration,
        INTERFACE_STAMP, //
    }, //
};

pub mod format;

module! {
    type: VhdModule,
    name: "vhdloop",
    authors: ["loop-parser developers"],
    description: "VHD disk images for the loop driver",
    license: "GPL v2",
    alias: ["loop-parser-vhd"],
}

/// The parser; it has no state of its own.
struct Vhd;

static PARSER: Vhd = Vhd;

impl Parser for Vhd {
    fn probe(&self, probe: &Probe<'_>) -> Verdict {
        format::probe(probe)
    }

    fn attach(&self, tables: &dyn Tables, request: &AttachRequest<'_>) -> ContractResult<Attached> {
        let attached = format::attach(tables, request.options, request.writable)?;
        let no_memory = |_| Error::Store(ENOMEM.to_errno());
        let map = KBox::new(attached.map, GFP_KERNEL).map_err(no_memory)?;
        let alloc = KBox::new(attached.alloc, GFP_KERNEL).map_err(no_memory)?;
        let parent: Option<KBox<dyn Parent>> = match attached.parent {
            Some(parent) => Some(KBox::new(parent, GFP_KERNEL).map_err(no_memory)?),
            None => None,
        };
        Ok(Attached {
            disk: attached.disk,
            map,
            alloc,
            parent,
            data: None,
            extents: None,
            warning: attached.warning,
        })
    }
}

struct VhdModule {
    _registration: Registration,
}

impl kernel::Module for VhdModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _registration: Registration::new(INTERFACE_STAMP, c"vhd", module, &PARSER)?,
        })
    }
}
