// SPDX-License-Identifier: GPL-2.0

//! Writes the seeds of all targets into a folder: `fuzzing FOLDER` makes `FOLDER/TARGET/NUMBER`.

use std::{env, fs, io, path::PathBuf};

use fuzzing::{seeds, TARGETS};

fn main() -> io::Result<()> {
    let folder = env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| io::Error::other("usage: fuzzing FOLDER"))?;
    for (target, _) in TARGETS {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        for (number, seed) in seeds::of(target).iter().enumerate() {
            fs::write(folder.join(format!("{number:03}")), seed)?;
        }
    }
    Ok(())
}
