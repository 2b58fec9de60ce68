// SPDX-License-Identifier: GPL-2.0

//! The VMDK parser for the loop driver: registration, and the way from the contract to the format.

use kernel::prelude::*;

use loop_parser::{
    contract::{
        Allocate,
        Error,
        Extents,
        Map,
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
            Kind::Sparse => boxed(format::attach_sparse(tables, request)),
            Kind::Cowd => boxed(format::attach_cowd(tables, request)),
            Kind::Stream => boxed(format::attach_stream(tables, request)),
            Kind::SeSparse => boxed(format::attach_sesparse(tables, request)),
            Kind::Set => attach_set(tables, request),
        }
    }
}

#[inline(never)]
fn attach_set(tables: &dyn Tables, request: &AttachRequest<'_>) -> ContractResult<Attached> {
    let (image, extents) = format::attach_set(tables, request)?;
    let attached = boxed(Ok(image))?;
    let extents: KBox<dyn Extents> = KBox::new(extents, GFP_KERNEL).map_err(|_| no_memory())?;
    Ok(Attached {
        extents: Some(extents),
        ..attached
    })
}

fn no_memory() -> Error {
    Error::Store(ENOMEM.to_errno())
}

/// Boxes the parts of an image, if it was attached.
// Not inlined, for the stack.
#[inline(never)]
fn boxed<M, A>(image: ContractResult<format::Attached<M, A>>) -> ContractResult<Attached>
where
    M: Map + 'static,
    A: Allocate + 'static,
{
    let image = image?;
    let map = KBox::new(image.map, GFP_KERNEL).map_err(|_| no_memory())?;
    let alloc = KBox::new(image.alloc, GFP_KERNEL).map_err(|_| no_memory())?;
    let parent: Option<KBox<dyn Parent>> = match image.parent {
        Some(parent) => Some(KBox::new(parent, GFP_KERNEL).map_err(|_| no_memory())?),
        None => None,
    };
    Ok(Attached {
        disk: image.disk,
        map,
        alloc,
        parent,
        data: None,
        extents: None,
        warning: image.warning,
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
