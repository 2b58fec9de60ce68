// SPDX-License-Identifier: GPL-2.0

//! TAP.

use std::process::ExitCode;

/// A report.
#[derive(Debug, Default)]
pub struct Report {
    results: u64,
    failed: u64,
}

impl Report {
    /// A result.
    pub fn result(&mut self, is_good: bool, what: &str) {
        self.results += 1;
        self.failed += u64::from(!is_good);
        let outcome = if is_good { "ok" } else { "not ok" };
        println!("{outcome} {} {what}", self.results);
    }

    /// Something to know.
    pub fn note(&self, what: &str) {
        println!("# {what}");
    }

    /// The plan, and the exit status.
    pub fn end(&self) -> ExitCode {
        println!("1..{}", self.results);
        ExitCode::from(u8::from(self.failed > 0))
    }
}
