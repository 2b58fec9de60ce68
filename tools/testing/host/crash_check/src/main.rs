// SPDX-License-Identifier: GPL-2.0

//! usage: `crash_check [OPTION]... RECORDING...`
//!
//! Replays recordings of `tools/testing/crash/record`, and looks at what power failures would have
//! left. Reports in TAP. See `tools/testing/crash/README.md`.

use std::{
    num::NonZero,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use crash_check::{
    args::{self, Args},
    report::Report,
    run,
};

fn main() -> ExitCode {
    let args = match args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("crash_check: {error}");
            return ExitCode::from(2);
        }
    };
    let report = Report::default();
    let next = AtomicUsize::new(0);
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..processors.min(args.recordings.len()) {
            scope.spawn(|| look(&args, &next, &report));
        }
    });
    report.end()
}

/// Looks at the `next` recording, and so on, until there is none left.
fn look(args: &Args, next: &AtomicUsize, report: &Report) {
    while let Some(folder) = args.recordings.get(next.fetch_add(1, Relaxed)) {
        if let Err(error) = run::run(folder, args, report) {
            report.result(false, &format!("{}: {error}", folder.display()));
        }
    }
}
