// SPDX-License-Identifier: GPL-2.0

//! The VHD parser for the loop driver: registration, and the way from the contract to the format.

use kernel::prelude::*;

use loop_parser::{
    contract::{
        Probe,
        Result as ContractResult,
        Tables,
        Verdict, //
    },
    parser::{
        boxed,
        boxed_name,
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
        let image = format::attach(tables, request.options, request.writable)?;
        Ok(Attached {
            parent: boxed_name(image.parent)?,
            warning: image.warning,
            ..Attached::new(image.disk, boxed(image.map)?, boxed(image.alloc)?)
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
