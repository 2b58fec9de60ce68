// SPDX-License-Identifier: GPL-2.0

//! Rules that are broken on purpose: operations are left out of what was recorded, as if the allocator
//! had not done them. That has to be found out.

use std::panic::{self, AssertUnwindSafe};

use crate::store::Op;

/// Whether an operation is a sync.
pub fn is_sync(op: &Op) -> bool {
    matches!(op, Op::Sync)
}

/// Numbers of the syncs that are the next ones after an operation of some kind.
pub fn syncs_after(trace: &[Op], is_kind: impl Fn(&Op) -> bool) -> Vec<usize> {
    let mut found = Vec::new();
    let mut is_due = false;
    for (number, op) in trace.iter().enumerate() {
        if is_sync(op) && is_due {
            found.push(number);
            is_due = false;
        } else if is_kind(op) {
            is_due = true;
        }
    }
    found
}

/// What was recorded, without the operations of these numbers.
pub fn without(mut trace: Vec<Op>, numbers: &[usize]) -> Vec<Op> {
    let mut number = 0..;
    trace.retain(|_| !numbers.contains(&number.next().unwrap()));
    trace
}

/// What a function says when it panics.
pub fn complaint(function: impl FnOnce()) -> Option<String> {
    let panic = panic::catch_unwind(AssertUnwindSafe(function)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.unwrap_or_else(|| "something".into()))
}
