// SPDX-License-Identifier: GPL-2.0

//! `loop.ko`: the loop driver in the place of the C driver, with its device numbers, control node
//! and parameters.

use kernel::prelude::*;

use loop_parser::front::{
    ControlNode,
    Front,
    Major,
    Running,
    INTERFACE_STAMP, //
};

#[path = "../sys/front/drop_in.rs"]
mod params;

module! {
    type: LoopModule,
    name: "loop",
    authors: ["loop-parser developers"],
    description: "Loopback device support with parsers for virtual-disk images",
    license: "GPL v2",
}

struct LoopModule {
    _running: Running,
}

impl kernel::Module for LoopModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let front = Front {
            module,
            name: c"loop",
            major: Major::Loop,
            control: ControlNode::Loop,
            params: params::get(module),
        };
        let running = Running::start(INTERFACE_STAMP, front)?;
        pr_info!("module loaded\n");
        Ok(Self { _running: running })
    }
}
