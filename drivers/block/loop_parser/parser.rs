// SPDX-License-Identifier: GPL-2.0

//! The kernel half of the contract: parsers, their registration, the registry.
//!
//! A parser module registers a [`Parser`] under a name and keeps the [`Registration`] in its module
//! structure. The driver takes a module reference, under the registry's lock, for every image that
//! the parser serves, so a parser in use cannot be unloaded.

use kernel::{
    prelude::*,
    str::BStr, //
};

use crate::{
    contract::{
        self,
        Allocate,
        Disk,
        Error,
        Extents,
        Fault,
        HostRange,
        Map,
        Parent,
        Probe,
        Tables,
        Verdict, //
    },
    sys::{
        globals::PARSERS,
        module::ModuleRef, //
    }, //
};

pub use crate::contract::AttachRequest;

/// Build-time stamp of this interface.
mod stamp {
    include!(concat!(env!("LOOP_PARSER_OBJ"), "/interface_stamp.rs"));
}

/// Identifies the interface (its sources, the compiler, the kernel) a module was compiled against.
/// There are no symbol versions for Rust, so whatever modules register with compares this first.
pub use stamp::INTERFACE_STAMP;

/// `ENOEXEC`, and a line in the log, if a module was compiled with another [`INTERFACE_STAMP`].
/// Callers are not inlined: the comparison must be made by the code of `loop_parser.ko`.
pub(crate) fn check_stamp(stamp: u64) -> Result {
    if stamp != INTERFACE_STAMP {
        pr_err!("a module built for another loop_parser was refused; rebuild both together\n");
        return Err(ENOEXEC);
    }
    Ok(())
}

/// An attached image.
pub struct Attached {
    /// The virtual disk.
    pub disk: Disk,
    /// Resolves guest ranges; shared by all tasks.
    pub map: KBox<dyn Map>,
    /// Makes room for writes; used under the image's mutex.
    pub alloc: KBox<dyn Allocate>,
    /// Something is wrong with the image that does not keep it from being served; logged.
    pub warning: Option<Fault>,
    /// The file below, if it names one.
    pub parent: Option<KBox<dyn Parent>>,
    /// The file that guest data lie in, if that is not the image's own. Then all host offsets of
    /// guest data are of that file: extents, placements, reservations, and what is to be zeroed. Its
    /// end is not the parser's business: what lies behind it reads as zero. The image itself has
    /// tables, and what is compressed, unlinked or reclaimed.
    pub data: Option<KBox<dyn Parent>>,
    /// What the disk is put together from, if that is other files. Then the image has neither guest data
    /// nor tables itself: its map is asked for the [size](Map::reread_size) only, and of its allocator only
    /// what is called [before](Allocate::begin) the first write and [after](Allocate::close) the last. What
    /// the disk can do is what all of them can.
    pub extents: Option<KBox<dyn Extents>>,
}

impl Attached {
    /// An image that nothing is wrong with, and that names no other file.
    pub fn new(disk: Disk, map: KBox<dyn Map>, alloc: KBox<dyn Allocate>) -> Self {
        Self {
            disk,
            map,
            alloc,
            warning: None,
            parent: None,
            data: None,
            extents: None,
        }
    }
}

/// A name in an [`Attached`], if there is one.
///
/// # Errors
///
/// `Store(-ENOMEM)`.
pub fn boxed_name<P: Parent + 'static>(
    name: Option<P>,
) -> contract::Result<Option<KBox<dyn Parent>>> {
    Ok(match name {
        Some(name) => Some(boxed(name)?),
        None => None,
    })
}

/// A part of an [`Attached`].
///
/// # Errors
///
/// `Store(-ENOMEM)`.
pub fn boxed<T>(part: T) -> contract::Result<KBox<T>> {
    KBox::new(part, GFP_KERNEL).map_err(|_| Error::Store(ENOMEM.to_errno()))
}

/// A parser of one image format.
pub trait Parser: Send + Sync {
    /// Whether a file is of this format.
    fn probe(&self, probe: &Probe<'_>) -> Verdict;

    /// Validates an image and prepares to serve it.
    ///
    /// Reads O(1) pages through `tables`, whatever the size of the image (of a text, or of a stream that
    /// was cut off, up to a named limit), and never writes. Checks, in this order: magic, version, shift
    /// counts, products, bounds against named limits, overlaps of header-level regions.
    ///
    /// # Errors
    ///
    /// A [`contract::Error`] that says what is wrong and where; `Store(-ENOMEM)` if boxing failed.
    fn attach(
        &self,
        tables: &dyn Tables,
        request: &AttachRequest<'_>,
    ) -> contract::Result<Attached>;

    /// Where an image that was refused for `fault` has words of its own for it, such as the name of
    /// an unknown feature: text up to the end of the range, or the first zero byte in it. It is
    /// quoted in the kernel log.
    fn quote(&self, tables: &dyn Tables, fault: &Fault) -> Option<HostRange> {
        let _ = (tables, fault);
        None
    }
}

/// A registered parser.
#[derive(Clone, Copy)]
struct Entry {
    name: &'static CStr,
    module: &'static ThisModule,
    parser: &'static dyn Parser,
}

/// All registered parsers.
pub(crate) struct Registry(KVec<Entry>);

impl Registry {
    pub(crate) const fn new() -> Self {
        Self(KVec::new())
    }
}

/// Keeps a parser registered; dropping it unregisters the parser.
pub struct Registration {
    name: &'static CStr,
}

impl Registration {
    /// Registers `parser` under `name`.
    ///
    /// `stamp` is to be the [`INTERFACE_STAMP`] the caller was compiled with; nothing else is
    /// touched before it was compared.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` if the module was built against another interface, `EEXIST` if the name is taken,
    /// `ENOMEM`.
    #[inline(never)]
    pub fn new(
        stamp: u64,
        name: &'static CStr,
        module: &'static ThisModule,
        parser: &'static dyn Parser,
    ) -> Result<Self> {
        check_stamp(stamp)?;
        let mut registry = PARSERS.lock();
        let taken = name == c"raw" || registry.0.iter().any(|entry| entry.name == name);
        if taken {
            return Err(EEXIST);
        }
        registry.0.push(
            Entry {
                name,
                module,
                parser,
            },
            GFP_KERNEL,
        )?;
        Ok(Self { name })
    }
}

impl Drop for Registration {
    #[inline(never)]
    fn drop(&mut self) {
        PARSERS.lock().0.retain(|entry| entry.name != self.name);
    }
}

/// A parser in use: its module stays loaded.
pub(crate) struct BoundParser {
    pub(crate) name: &'static CStr,
    pub(crate) parser: &'static dyn Parser,
    module: &'static ThisModule,
    // Last: the name and the parser are part of the module.
    _pin: ModuleRef,
}

impl BoundParser {
    /// The name, for log lines and sysfs.
    pub(crate) fn display_name(&self) -> &BStr {
        BStr::from_bytes(self.name.to_bytes())
    }

    /// Whether it serves files as they are.
    pub(crate) fn is_raw(&self) -> bool {
        self.name == crate::raw::NAME
    }

    /// A parser that is part of this module.
    pub(crate) fn built_in(name: &'static CStr, parser: &'static dyn Parser) -> Result<Self> {
        Self::pin(&Entry {
            name,
            module: crate::this_module(),
            parser,
        })
        .ok_or(ENODEV)
    }

    /// One more reference.
    pub(crate) fn again(&self) -> Result<Self> {
        Self::pin(&Entry {
            name: self.name,
            module: self.module,
            parser: self.parser,
        })
        .ok_or(ENODEV)
    }

    /// `None` if the module is on its way out.
    fn pin(entry: &Entry) -> Option<Self> {
        Some(Self {
            name: entry.name,
            parser: entry.parser,
            module: entry.module,
            _pin: ModuleRef::try_get(entry.module)?,
        })
    }
}

/// Looks up a parser and takes a reference to its module.
pub(crate) fn find(name: &[u8]) -> Option<BoundParser> {
    let registry = PARSERS.lock();
    let entry = registry
        .0
        .iter()
        .find(|entry| entry.name.to_bytes() == name)?;
    BoundParser::pin(entry)
}

/// Drops what the registry keeps for more parsers, at module exit: statics are not dropped.
pub(crate) fn forget_all() {
    PARSERS.lock().0 = KVec::new();
}

/// What the registered parsers say about a file.
pub(crate) enum Claims {
    None,
    One(BoundParser),
    Several(BoundParser, BoundParser),
    /// A parser claims it, but its module is on its way out.
    Leaving,
}

/// Asks all registered parsers about a file.
pub(crate) fn claims(probe: &Probe<'_>) -> Claims {
    let registry = PARSERS.lock();
    let mut mine = registry
        .0
        .iter()
        .filter(|entry| entry.parser.probe(probe) == Verdict::Mine);
    let Some(first) = mine.next() else {
        return Claims::None;
    };
    let second = mine.next();
    match (BoundParser::pin(first), second.map(BoundParser::pin)) {
        (Some(first), None) => Claims::One(first),
        (Some(first), Some(Some(second))) => Claims::Several(first, second),
        _ => Claims::Leaving,
    }
}
