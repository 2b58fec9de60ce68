// SPDX-License-Identifier: GPL-2.0

//! The qcow and qcow2 parsers for the loop driver: registration, and the way from the contract to the
//! formats.

use kernel::prelude::*;

use loop_parser::{
    contract::{
        Allocate,
        Fault,
        HostRange,
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
        attached(format::v1::attach(tables, request.options)?, |alloc| alloc)
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
        let image = format::v2::attach(tables, request.options, request.writable)?;
        attached(image, |blueprint| blueprint.build())
    }

    fn quote(&self, tables: &dyn Tables, fault: &Fault) -> Option<HostRange> {
        format::v2::quote(tables, fault)
    }
}

/// An image that was attached, with an allocator that is made from what it has for that.
fn attached<M, A, B>(
    image: format::Attached<M, A>,
    make: impl FnOnce(A) -> B,
) -> ContractResult<Attached>
where
    M: Map + 'static,
    B: Allocate + 'static,
{
    let alloc = boxed_allocator(image.alloc, make)?;
    Ok(Attached {
        parent: boxed_name(image.parent)?,
        data: boxed_name(image.data)?,
        warning: image.warning,
        ..Attached::new(image.disk, boxed(image.map)?, alloc)
    })
}

// Not inlined, for the stack.
#[inline(never)]
fn boxed_allocator<A, B: Allocate>(from: A, make: impl FnOnce(A) -> B) -> ContractResult<KBox<B>> {
    boxed(make(from))
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
