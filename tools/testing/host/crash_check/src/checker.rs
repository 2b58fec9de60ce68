// SPDX-License-Identifier: GPL-2.0

//! The independent checker: `tools/testing/crash/structure`, kept running.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// What it says of an image that is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sound {
    /// How many of its bytes hold nothing.
    pub unused: u64,
    /// It is marked as one that was not detached.
    pub is_open: bool,
}

impl Sound {
    fn parse(answer: &str) -> Option<Self> {
        let told = answer.strip_prefix("unused ")?;
        let bytes = told.strip_suffix(" open");
        Some(Self {
            unused: bytes.unwrap_or(told).parse().ok()?,
            is_open: bytes.is_some(),
        })
    }

    /// An image that was detached says so.
    pub fn closed(self) -> Result<(), String> {
        match self.is_open {
            true => Err("structure: the image is marked as open".into()),
            false => Ok(()),
        }
    }
}

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

    /// Checks the structure of an image.
    pub fn check(&mut self, image: &Path) -> Result<Sound, String> {
        let gone = |error: std::io::Error| format!("the checker has ended: {error}");
        let input = self.input.as_mut().ok_or("the checker has ended")?;
        writeln!(input, "{}", image.display()).map_err(gone)?;
        let mut answer = String::new();
        self.output.read_line(&mut answer).map_err(gone)?;
        Sound::parse(answer.trim()).ok_or_else(|| format!("structure: {}", answer.trim()))
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        self.input = None;
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let sound = |unused, is_open| Some(Sound { unused, is_open });
        assert_eq!(Sound::parse("unused 512"), sound(512, false));
        assert_eq!(Sound::parse("unused 0 open"), sound(0, true));
        for answer in [
            "",
            "unused",
            "unused x",
            "unused 1 closed",
            "a grain is unused 1",
        ] {
            assert_eq!(Sound::parse(answer), None);
        }
        assert_eq!(Sound::parse("unused 1").unwrap().closed(), Ok(()));
        assert!(Sound::parse("unused 1 open").unwrap().closed().is_err());
    }
}
