// SPDX-License-Identifier: GPL-2.0

//! Sectors as bytes and as files.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use testkit::store::{apply_write, Sectors, SECTOR};

/// Sectors with these bytes, but for those that are zero.
pub fn sectors(bytes: &[u8]) -> Sectors {
    let mut sectors = Sectors::new();
    for (number, sector) in (0..).zip(bytes.chunks(512)) {
        if sector.iter().any(|&byte| byte != 0) {
            apply_write(&mut sectors, number * SECTOR, sector);
        }
    }
    sectors
}

/// Runs of neighbours: the first sector, and the bytes of all of them.
pub fn runs(sectors: &Sectors) -> Vec<(u64, Vec<u8>)> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    for (&number, bytes) in sectors {
        match runs.last_mut() {
            Some((first, run)) if *first + run.len() as u64 / SECTOR == number => {
                run.extend_from_slice(&bytes[..]);
            }
            _ => runs.push((number, bytes.to_vec())),
        }
    }
    runs
}

/// Writes a sparse file.
pub fn save(sectors: &Sectors, size: u64, path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    for (first, mut bytes) in runs(sectors) {
        // The file may end within a sector.
        bytes.truncate(usize::try_from(size - first * SECTOR).unwrap_or(usize::MAX));
        file.write_all_at(&bytes, first * SECTOR)?;
    }
    Ok(())
}

/// Writes the runs alone, for `tools/testing/crash/attach`: first sector, number of sectors (both
/// little endian, 64 bits), bytes.
pub fn save_runs(sectors: &Sectors, path: &Path) -> io::Result<()> {
    let mut file = io::BufWriter::new(File::create(path)?);
    for (first, bytes) in runs(sectors) {
        file.write_all(&first.to_le_bytes())?;
        file.write_all(&(bytes.len() as u64 / SECTOR).to_le_bytes())?;
        file.write_all(&bytes)?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_as_long_as_can_be() {
        let mut bytes = vec![0; 5 * 512 + 100];
        bytes[512..3 * 512].fill(7);
        bytes[5 * 512] = 9;
        let sectors = sectors(&bytes);
        let mut last = vec![0; 512];
        last[0] = 9;
        assert_eq!(runs(&sectors), [(1, vec![7; 1024]), (5, last)]);
        let folder = testkit::tools::TempDir::new();
        let path = folder.path("disk");
        save(&sectors, bytes.len() as u64, &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}
