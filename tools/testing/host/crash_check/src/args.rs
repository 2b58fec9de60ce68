// SPDX-License-Identifier: GPL-2.0

//! The command line.

use std::path::PathBuf;

use crate::plan::Amount;

/// What was asked for.
#[derive(Debug)]
pub struct Args {
    /// The independent checker.
    pub checker: PathBuf,
    /// How many power failures.
    pub amount: Amount,
    /// Of the random numbers.
    pub seed: u64,
    /// The recordings.
    pub recordings: Vec<PathBuf>,
}

/// Reads the command line.
pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args {
        checker: PathBuf::new(),
        amount: Amount {
            flushes: usize::MAX,
            random: 100,
            keep: 0,
        },
        seed: 1,
        recordings: Vec::new(),
    };
    while let Some(word) = words.next() {
        if !word.starts_with("--") {
            args.recordings.push(word.into());
            continue;
        }
        let value = words
            .next()
            .ok_or_else(|| format!("{word} takes a value"))?;
        match word.as_str() {
            "--checker" => args.checker = value.into(),
            "--flushes" => args.amount.flushes = number(&word, &value)?,
            "--random" => args.amount.random = number(&word, &value)?,
            "--keep" => args.amount.keep = number(&word, &value)?,
            "--seed" => args.seed = number(&word, &value)?,
            _ => return Err(format!("no option {word}")),
        }
    }
    if args.checker.as_os_str().is_empty() || args.recordings.is_empty() {
        return Err("needs --checker PROGRAM, and a recording".into());
    }
    Ok(args)
}

fn number<T: std::str::FromStr>(word: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{word} {value}: not a number"))
}
