// SPDX-License-Identifier: GPL-2.0

//! Tests of writes to qcow2 images, from outside: the test plays the driver.

#![allow(missing_docs, unreachable_pub)]

mod bounded;
mod checker;
mod guest;
mod image;

mod crash;
mod enospc;
mod growth;
mod model;
mod overlap;
mod rules;
