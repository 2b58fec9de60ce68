// SPDX-License-Identifier: GPL-2.0

//! The VMDK parser for the loop driver: registration, and the way from the contract to the format.

use kernel::prelude::*;

use loop_parser::{
    contract::{
        Allocate,
        Map,
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

use format::Kind;

module! {
    type: VmdkModule,
    name: "vmdkloop",
    authors: ["loop-parser developers"],
    description: "VMDK disk images for the loop driver",
    license: "GPL v2",
    alias: ["loop-parser-vmdk"],
}

/// The parser; it has no state of its own.
struct Vmdk;

static PARSER: Vmdk = Vmdk;

impl Parser for Vmdk {
    fn probe(&self, probe: &Probe<'_>) -> Verdict {
        format::probe(probe)
    }

    fn attach(&self, tables: &dyn Tables, request: &AttachRequest<'_>) -> ContractResult<Attached> {
        match format::kind(tables, request)? {
            Kind::Sparse => attached(format::attach_sparse(tables, request)),
            Kind::Cowd => attached(format::attach_cowd(tables, request)),
            Kind::Stream => attached(format::attach_stream(tables, request)),
            Kind::SeSparse => attached(format::attach_sesparse(tables, request)),
            Kind::Set => attach_set(tables, request),
        }
    }
}

#[inline(never)]
fn attach_set(tables: &dyn Tables, request: &AttachRequest<'_>) -> ContractResult<Attached> {
    let (image, extents) = format::attach_set(tables, request)?;
    Ok(Attached {
        extents: Some(boxed(extents)?),
        ..attached(Ok(image))?
    })
}

/// An image, if it was attached.
// Not inlined, for the stack.
#[inline(never)]
fn attached<M, A>(image: ContractResult<format::Attached<M, A>>) -> ContractResult<Attached>
where
    M: Map + 'static,
    A: Allocate + 'static,
{
    let image = image?;
    Ok(Attached {
        parent: boxed_name(image.parent)?,
        warning: image.warning,
        ..Attached::new(image.disk, boxed(image.map)?, boxed(image.alloc)?)
    })
}

struct VmdkModule {
    _registration: Registration,
}

impl kernel::Module for VmdkModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _registration: Registration::new(INTERFACE_STAMP, c"vmdk", module, &PARSER)?,
        })
    }
}
