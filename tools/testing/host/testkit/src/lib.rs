// SPDX-License-Identifier: GPL-2.0

//! What the tests of all formats need: an image in memory that can run full and crash
//! ([`store`], [`crash`]), what its disk may contain then ([`oracle`]), rules that are broken on purpose
//! ([`mutants`]), a driver that uses a parser the way the kernel's does ([`device`]), what reads
//! compressed units ([`compressed`]), the sample images ([`samples`]) and other programs ([`tools`]).

pub mod compressed;
pub mod crash;
pub mod device;
pub mod mutants;
pub mod oracle;
pub mod rng;
pub mod samples;
pub mod store;
pub mod tools;
