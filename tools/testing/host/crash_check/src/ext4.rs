// SPDX-License-Identifier: GPL-2.0

//! Getting files out of a file system that was not unmounted, with e2fsprogs: e2fsck replays the
//! journal, as the kernel does when it mounts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Recovers the file system in `disk`.
pub fn recover(disk: &Path) -> Result<(), String> {
    let mut fsck = Command::new("e2fsck");
    fsck.arg("-p").arg(disk);
    // 1: the journal was replayed, orphans were removed.
    run(&mut fsck, &[0, 1]).map(drop)
}

/// The content of file `name` of the file system in `disk`, which was recovered.
pub fn read(disk: &Path, name: &str) -> Result<Vec<u8>, String> {
    let out = extracted(disk);
    let mut debugfs = Command::new("debugfs");
    let dump = format!("dump {name} {}", out.display());
    debugfs.args(["-R", &dump]).arg(disk);
    let _ = fs::remove_file(&out);
    let said = run(&mut debugfs, &[0])?;
    // It does not fail if there is no such file.
    fs::read(&out).map_err(|error| format!("{name}: {error} ({said})"))
}

fn extracted(disk: &Path) -> PathBuf {
    disk.with_extension("file")
}

/// Runs a program; what it printed.
fn run(command: &mut Command, allowed: &[i32]) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    match output.status.code() {
        Some(code) if allowed.contains(&code) => Ok(said),
        _ => Err(format!("{command:?}: {}: {said}", output.status)),
    }
}
