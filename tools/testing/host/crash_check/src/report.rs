// SPDX-License-Identifier: GPL-2.0

//! TAP.

use std::{
    process::ExitCode,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A report of several threads.
#[derive(Debug, Default)]
pub struct Report(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    results: u64,
    failed: u64,
}

impl Report {
    /// A result.
    pub fn result(&self, is_good: bool, what: &str) {
        let mut counts = self.counts();
        counts.results += 1;
        counts.failed += u64::from(!is_good);
        let outcome = if is_good { "ok" } else { "not ok" };
        println!("{outcome} {} {what}", counts.results);
    }

    /// Something to know.
    pub fn note(&self, what: &str) {
        println!("# {what}");
    }

    /// How many results were not good.
    pub fn failed(&self) -> u64 {
        self.counts().failed
    }

    /// The plan, and the exit status.
    pub fn end(&self) -> ExitCode {
        let counts = self.counts();
        println!("1..{}", counts.results);
        ExitCode::from(u8::from(counts.failed > 0))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
