// SPDX-License-Identifier: GPL-2.0

//! Tests of writes to sparse extents and COWD files, from outside: the test plays the driver.

#![allow(missing_docs, unreachable_pub, clippy::precedence, dead_code)]

#[path = "../sparse/image.rs"]
mod image;
#[path = "../sparse/open.rs"]
mod open;

mod bounded;
mod crash;
mod damaged;
mod discard;
mod enospc;
mod random;
mod redundant;
mod rules;
