// SPDX-License-Identifier: GPL-2.0

//! The parameters of `loop_images.ko`, which `front/beside_params.c` declares.

use kernel::ThisModule;
use loop_parser::front::{
    lp_params,
    Params, //
};

extern "C" {
    static mut lp_beside_params: lp_params;
}

/// The parameters of this module.
pub(crate) fn get(module: &'static ThisModule) -> Params {
    // SAFETY: The variable is part of this very module, lives as long as it, and is written by the
    // kernel's parameter code only.
    unsafe { Params::new(&raw mut lp_beside_params, module) }
}
