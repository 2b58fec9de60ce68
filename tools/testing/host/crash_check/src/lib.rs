// SPDX-License-Identifier: GPL-2.0

//! Power failures of recorded runs: what would have been left, and whether that is sound. The
//! program is `main.rs`; `tools/testing/crash` records, and tells it what to do.

pub mod args;
pub mod assembled;
pub mod bytes;
pub mod checker;
pub mod disk;
pub mod ext4;
pub mod files;
pub mod image;
pub mod inspect;
pub mod log;
pub mod model;
pub mod plan;
pub mod raw;
pub mod recording;
pub mod replay;
pub mod report;
pub mod run;
pub mod stamp;

#[cfg(test)]
mod host_run;
