// SPDX-License-Identifier: GPL-2.0

//! The loop driver, with parsers.
//!
//! Does what the C driver does (ioctls, sysfs, control node) and adds one thing: a backing file that
//! is a virtual-disk image is served as the disk in it. What an image looks like, parser modules
//! know; see [`contract`] and [`parser`]. Under which names and numbers it runs, a front module
//! says: `loop.ko` in the place of the C driver, `loop_images.ko` beside it; see [`front`].
//!
//! | file | job |
//! |---|---|
//! | `contract`, `parser` | the contract with parsers, the registry |
//! | `signatures`, `select`, `raw` | which parser serves a file |
//! | `image`, `images`, `user` | what devices on one file share; all of them; their users |
//! | `layers`, `opening`, `chain` | images on images: reading through them, opening them, cycles |
//! | `parts` | disks that are put together from other files |
//! | `tables`, `range`, `allocation`, `group_sync` | tables; making room |
//! | `discard`, `holes`, `zeros`, `reclaim` | discards; holes and zeros in files; giving back room |
//! | `bounce` | memory for units that are stored compressed, and for copies |
//! | `lanes`, `service` | handing requests to workers; serving them |
//! | `device`, `configure`, `change`, `snapshot`, `unbind`, `status`, `geometry` | a device and its life |
//! | `front`, `instance` | front modules, and what the driver runs for one of them |
//! | `ioctl`, `control`, `attributes` | user space: ioctls, `/dev/loop-control`, sysfs |
//! | `sys` | the kernel's C interfaces and all `unsafe` |

use kernel::prelude::*;

mod allocation;
mod attributes;
mod bounce;
mod chain;
mod change;
mod configure;
pub mod contract;
mod control;
mod device;
mod discard;
pub mod front;
mod geometry;
mod group_sync;
mod holes;
mod image;
mod images;
mod instance;
mod ioctl;
mod lanes;
mod layers;
mod log_name;
mod opening;
pub mod parser;
mod parts;
mod range;
mod raw;
mod reclaim;
mod retry;
mod select;
mod service;
mod signatures;
mod snapshot;
mod status;
mod sys;
mod tables;
mod unbind;
mod user;
mod zeros;

/// The module's declaration. In a module of its own, to have the names that it defines for the
/// crate defined below.
mod module {
    use super::LoopParser;
    use kernel::prelude::*;

    module! {
        type: LoopParser,
        name: "loop_parser",
        authors: ["loop-parser developers"],
        description: "The loop driver with parsers for virtual-disk images, less names and numbers",
        license: "GPL v2",
    }
}

type LocalModule = LoopParser;

/// What lines in the kernel log start with: the name that users know.
const __LOG_PREFIX: &[u8] = b"loop\0";

/// This module, for references to it.
pub(crate) fn this_module() -> &'static ThisModule {
    static MODULE: ThisModule = <LocalModule as kernel::ModuleMetadata>::THIS_MODULE;
    &MODULE
}

/// The library has nothing running by itself: fronts and parsers start and stop.
struct LoopParser;

impl kernel::Module for LoopParser {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        sys::globals::init();
        Ok(Self)
    }
}

impl Drop for LoopParser {
    /// Frees what the lists keep for more members: statics are not dropped.
    fn drop(&mut self) {
        front::forget_all();
        images::forget_all();
        parser::forget_all();
    }
}
