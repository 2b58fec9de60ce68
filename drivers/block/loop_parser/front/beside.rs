// SPDX-License-Identifier: GPL-2.0

//! `loop_images.ko`: the loop driver beside another one that is built in or in use.
//!
//! Its devices are named `loopN`, too, as losetup takes only such, but with numbers from `first` on,
//! far above those that the other driver hands out, on a major device number of their own.

use kernel::prelude::*;

use loop_parser::front::{
    ControlNode,
    Front,
    Major,
    Running,
    INTERFACE_STAMP, //
};

#[path = "../sys/front/beside.rs"]
mod params;

module! {
    type: LoopImagesModule,
    name: "loop_images",
    authors: ["loop-parser developers"],
    description: "Loop devices with parsers for virtual-disk images, beside the stock loop driver",
    license: "GPL v2",
}

struct LoopImagesModule {
    _running: Running,
}

impl kernel::Module for LoopImagesModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let front = Front {
            module,
            name: c"loop_images",
            major: Major::Dynamic,
            control: ControlNode::Named(c"loop-images-control"),
            params: params::get(module),
        };
        let running = Running::start(INTERFACE_STAMP, front)?;
        pr_info!(
            "devices from /dev/loop{} on, major {}\n",
            running.first(),
            running.major()
        );
        Ok(Self { _running: running })
    }
}
