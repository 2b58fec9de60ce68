// SPDX-License-Identifier: GPL-2.0

//! The parameters of `loop.ko`, which `front/drop_in_params.c` declares.

use kernel::ThisModule;
use loop_parser::front::{
    lp_params,
    Params, //
};

extern "C" {
    static mut lp_drop_in_params: lp_params;
}

/// The parameters of this module.
pub(crate) fn get(module: &'static ThisModule) -> Params {
    // SAFETY: The variable is part of this very module, lives as long as it, and is written by the
    // kernel's parameter code only.
    unsafe { Params::new(&raw mut lp_drop_in_params, module) }
}
