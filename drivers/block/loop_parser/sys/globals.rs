// SPDX-License-Identifier: GPL-2.0

//! The driver's global state, each part behind its own mutex.
//!
//! Callbacks without context (opening a dead node, a parser registering) need somewhere to start
//! from, and images are shared by all who run devices. Everything is empty again when the module
//! goes away.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::Full,
            AtomicFlag, //
        },
        global_lock,
        Arc, //
    }, //
};

use super::mutex::KillableMutex;
use crate::{
    images::ImageList,
    instance::Instance,
    parser::Registry, //
};

global_lock! {
    // SAFETY: Initialised by `init` before anything of the driver can be reached.
    /// What front modules run.
    pub(crate) unsafe(uninit) static INSTANCES: Mutex<KVec<Arc<Instance>>> = KVec::new();
}

global_lock! {
    // SAFETY: Initialised by `init` before anything of the driver can be reached.
    /// All registered parsers.
    pub(crate) unsafe(uninit) static PARSERS: Mutex<Registry> = Registry::new();
}

global_lock! {
    // SAFETY: Initialised by `init` before anything of the driver can be reached.
    /// All images in use.
    pub(crate) unsafe(uninit) static IMAGES: Mutex<ImageList> = ImageList::new();
}

/// Held while the chain of loop devices below a file is walked, and while a device is bound to
/// another loop device, so that no cycle can come into being. That can take long if the store of
/// the one below hangs, so those who wait can be killed.
// SAFETY: Initialised by `init` before anything of the driver can be reached.
pub(crate) static VALIDATE: KillableMutex<()> = unsafe { KillableMutex::uninit(()) };

static INITIALISED: AtomicFlag = AtomicFlag::new(false);

/// Initialises the locks. Called from the init of `loop_parser.ko`: modules that need its symbols
/// start only when it is live (`resolve_symbol_wait`), and nothing of it can be reached but through
/// them. A second call does nothing.
pub(crate) fn init() {
    if INITIALISED.xchg(true, Full) {
        return;
    }
    // SAFETY: The flag makes this happen once.
    unsafe {
        INSTANCES.init();
        PARSERS.init();
        IMAGES.init();
        VALIDATE.init(c"VALIDATE", kernel::static_lock_class!());
    }
}
