// SPDX-License-Identifier: GPL-2.0

//! Tests of sparse extents and COWD files that are read, from outside.

#![allow(missing_docs, unreachable_pub, clippy::precedence, dead_code)]

mod image;
mod open;

mod attach;
mod hostile;
mod qemu;
mod refused;
mod resolve;
mod samples;
