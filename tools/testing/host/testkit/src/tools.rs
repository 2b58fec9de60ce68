// SPDX-License-Identifier: GPL-2.0

//! Other programs that know the formats.

use std::{
    env, fs,
    io::{self, Write},
    path::PathBuf,
    process::{self, Command},
    sync::{
        atomic::{AtomicU64, Ordering},
        OnceLock,
    },
};

use crate::store::Store;

/// Prints a line that `cargo test` does not swallow.
pub fn say(line: &str) {
    // Unlike the macros, this goes straight to the terminal.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether `qemu-img` can be run. Says so once if it cannot.
pub fn has_qemu_img() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = Command::new("qemu-img").arg("--version").output().is_ok();
        if !found {
            say("SKIP: qemu-img is not on PATH: nothing is compared with it");
        }
        found
    })
}

/// A folder that is removed when dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Creates it.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("loop-parser-test-{}-{n}", process::id()));
        fs::create_dir_all(&path).expect("temporary folder");
        Self(path)
    }

    /// Path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Default for TempDir {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The guest disk as `qemu-img convert` shows it, or what it complains about. Only to be called if
/// [`has_qemu_img`].
pub fn qemu_img_read(store: &Store, format: &str) -> Result<Vec<u8>, String> {
    let folder = TempDir::new();
    let image = folder.path("image");
    let raw = folder.path("raw");
    store.save(&image).map_err(|error| error.to_string())?;
    let output = Command::new("qemu-img")
        .args(["convert", "-f", format, "-O", "raw"])
        .args([&image, &raw])
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    fs::read(&raw).map_err(|error| error.to_string())
}
