// SPDX-License-Identifier: GPL-2.0

//! The qcow and qcow2 parsers for the loop driver: registration, and the way from the contract to the
//! formats.

use kernel::prelude::*;

use loop_parser::{
    contract::{
        Allocate,
        Error,
        Fault,
        HostRange,
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

module! {
    type: QcowModule,
    name: "qcowloop",
    authors: ["loop-parser developers"],
    description: "qcow and qcow2 disk images for the loop driver",
    license: "GPL v2",
    alias: ["loop-parser-qcow", "loop-parser-qcow2"],
}

/// The parser of version 1; it has no state of its own.
struct Qcow;

static QCOW: Qcow = Qcow;

impl Parser for Qcow {
    fn probe(&self, probe: &Probe<'_>) -> Verdict {
        format::probe_qcow(probe)
    }

    fn attach(&self, tables: &dyn Tables, request: &AttachRequest<'_>) -> ContractResult<Attached> {
        boxed(format::v1::attach(tables, request.options)?, |alloc| alloc)
    }
}

/// The parser of versions 2 and 3; it has no state of its own.
struct Qcow2;

static QCOW2: Qcow2 = Qcow2;

impl Parser for Qcow2 {
    fn probe(&self, probe: &Probe<'_>) -> Verdict {
        format::probe_qcow2(probe)
    }

    fn attach(&self, tables: &dyn Tables, request: &AttachRequest<'_>) -> ContractResult<Attached> {
        let attached = format::v2::attach(tables, request.options, request.writable)?;
        boxed(attached, |blueprint| blueprint.build())
    }

    fn quote(&self, tables: &dyn Tables, fault: &Fault) -> Option<HostRange> {
        format::v2::quote(tables, fault)
    }
}

/// Boxes the parts of an image that was attached, and the allocator that is made from one of them.
fn boxed<M, A, B>(
    attached: format::Attached<M, A>,
    make: impl FnOnce(A) -> B,
) -> ContractResult<Attached>
where
    M: Map + 'static,
    B: Allocate + 'static,
{
    let no_memory = |_| Error::Store(ENOMEM.to_errno());
    let map = KBox::new(attached.map, GFP_KERNEL).map_err(no_memory)?;
    let alloc = boxed_allocator(attached.alloc, make)?;
    let parent = attached.parent.map(boxed_name).transpose()?;
    let data = attached.data.map(boxed_name).transpose()?;
    Ok(Attached {
        disk: attached.disk,
        map,
        alloc,
        parent,
        data,
        extents: None,
        warning: attached.warning,
    })
}

fn boxed_name(name: format::NamedFile) -> ContractResult<KBox<dyn Parent>> {
    match KBox::new(name, GFP_KERNEL) {
        Ok(name) => Ok(name),
        Err(_) => Err(Error::Store(ENOMEM.to_errno())),
    }
}

// Not inlined, for the stack.
#[inline(never)]
fn boxed_allocator<A, B: Allocate>(from: A, make: impl FnOnce(A) -> B) -> ContractResult<KBox<B>> {
    KBox::new(make(from), GFP_KERNEL).map_err(|_| Error::Store(ENOMEM.to_errno()))
}

struct QcowModule {
    _qcow: Registration,
    _qcow2: Registration,
}

impl kernel::Module for QcowModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _qcow: Registration::new(INTERFACE_STAMP, c"qcow", module, &QCOW)?,
            _qcow2: Registration::new(INTERFACE_STAMP, c"qcow2", module, &QCOW2)?,
        })
    }
}
