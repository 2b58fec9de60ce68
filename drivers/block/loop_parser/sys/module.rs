// SPDX-License-Identifier: GPL-2.0

//! Module references and loading.

use kernel::prelude::*;

use super::bindings;

/// A counted reference to a module: it cannot be unloaded while this lives.
pub(crate) struct ModuleRef(*mut bindings::module);

// SAFETY: Module reference counts may be changed from any thread.
unsafe impl Send for ModuleRef {}
// SAFETY: Nothing can be done through a shared reference.
unsafe impl Sync for ModuleRef {}

impl ModuleRef {
    /// Takes a reference unless the module is on its way out.
    pub(crate) fn try_get(module: &'static ThisModule) -> Option<Self> {
        let module = module.as_ptr();
        // SAFETY: `ThisModule` is the address of a module, or null if built in.
        let live = unsafe { bindings::try_module_get(module) };
        live.then_some(Self(module))
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: `try_get` took a reference.
        unsafe { bindings::module_put(self.0) };
    }
}

/// Asks user space to load the module `loop-parser-NAME` and waits for it. Not to be called with a
/// lock held or from the I/O path. The outcome is seen by looking for what was to be loaded.
pub(crate) fn request_parser(name: &'static CStr) {
    // SAFETY: `name` is a NUL-terminated string. May sleep, as documented.
    unsafe { bindings::lp_request_module(name.as_char_ptr()) };
}
