// SPDX-License-Identifier: GPL-2.0

//! The independent checker: `tools/testing/crash/structure`, kept running.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A checker of the images of one format.
#[derive(Debug)]
pub struct Checker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Checker {
    /// Starts it.
    pub fn start(program: &Path, format: &str) -> Result<Self, String> {
        let mut child = Command::new(program)
            .arg(format)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or("no standard output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    /// Checks the structure of an image: how many of its bytes hold nothing, or what is wrong.
    pub fn check(&mut self, image: &Path) -> Result<u64, String> {
        let gone = |error: std::io::Error| format!("the checker has ended: {error}");
        let input = self.input.as_mut().ok_or("the checker has ended")?;
        writeln!(input, "{}", image.display()).map_err(gone)?;
        let mut answer = String::new();
        self.output.read_line(&mut answer).map_err(gone)?;
        match answer.trim().split_once(' ') {
            Some(("unused", bytes)) => bytes.parse().map_err(|_| answer.clone()),
            _ => Err(format!("structure: {}", answer.trim())),
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        self.input = None;
        let _ = self.child.wait();
    }
}
