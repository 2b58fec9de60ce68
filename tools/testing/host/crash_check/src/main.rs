// SPDX-License-Identifier: GPL-2.0

//! usage: `crash_check [OPTION]... RECORDING...`
//!
//! Replays recordings of `tools/testing/crash/record`, and looks at what power failures would have
//! left. Reports in TAP. See `tools/testing/crash/README.md`.

use std::process::ExitCode;

use crash_check::{args, report, run};

fn main() -> ExitCode {
    let args = match args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("crash_check: {error}");
            return ExitCode::from(2);
        }
    };
    let mut report = report::Report::default();
    for folder in &args.recordings {
        if let Err(error) = run::run(folder, &args, &mut report) {
            report.result(false, &format!("{}: {error}", folder.display()));
        }
    }
    report.end()
}
