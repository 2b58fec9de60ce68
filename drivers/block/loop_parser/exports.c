// SPDX-License-Identifier: GPL-2.0

/*
 * Exports the Rust symbols of the loop_parser crate to the parser modules. The
 * list is generated from the crate's object file: Kbuild has no support for
 * Rust symbols between modules yet.
 */

#include <linux/export.h>

/* The type does not matter: no C code uses these, only the address is taken. */
#define EXPORT_SYMBOL_RUST_GPL(sym) extern int sym; EXPORT_SYMBOL_GPL(sym)

#include "exports_generated.h"
