// SPDX-License-Identifier: GPL-2.0

//! The parent of a disk, as the descriptor records it ("Link Information in Descriptor Files").

use loop_parser::contract::{
    Disk,
    Error,
    HostRange,
    Identity,
    Parent,
    Result,
    Tables, //
};

/// What a disk with this CID is known by.
pub(super) fn identity(cid: u32) -> Identity {
    let [a, b, c, d] = cid.to_le_bytes();
    // A CID may be 0, an identity not: that is none.
    Identity([a, b, c, d, b'C', b'I', b'D', 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// The parent of a disk.
#[derive(Clone, Copy, Debug)]
pub struct ParentName {
    /// Where the name is in the file.
    name: HostRange,
    /// The CID that the parent has to have.
    cid: u32,
}

impl ParentName {
    pub(super) fn new(name: HostRange, cid: u32) -> Self {
        Self { name, cid }
    }
}

impl Parent for ParentName {
    fn parser(&self) -> Option<&'static str> {
        Some("vmdk")
    }

    /// The name as it is recorded, then the last component of it: disks are moved together with their
    /// parents. Of a path that begins at a drive of Windows only the latter is of use.
    fn name(&self, tables: &dyn Tables, index: usize, buf: &mut [u8]) -> Result<Option<usize>> {
        let at = self.name.offset;
        let too_long = Error::malformed("name of VMDK parent is too long", at);
        let len = usize::try_from(self.name.len).map_err(|_| too_long)?;
        let path = buf.get_mut(..len).ok_or(too_long)?;
        tables.load(at, path)?;
        let is_from_drive = begins_at_drive(path);
        if is_from_drive || !path.contains(&b'/') {
            use_slashes(path);
        }
        let last = last_component(path);
        let first = match index {
            0 if !is_from_drive => 0,
            0 => last,
            1 if !is_from_drive && last > 0 => last,
            _ => return Ok(None),
        };
        if path
            .get(last..)
            .is_none_or(|last| matches!(last, b"" | b"." | b".."))
        {
            return Err(Error::malformed(
                "name of VMDK parent is not that of a file",
                at,
            ));
        }
        path.copy_within(first.., 0);
        Ok(Some(len.saturating_sub(first)))
    }

    /// The CIDs have to be equal.
    fn check(&self, parent: &Disk) -> Result {
        if parent.identity != identity(self.cid) {
            return Err(Error::malformed(
                "CID of VMDK parent is not the one that is recorded",
                self.name.offset,
            ));
        }
        Ok(())
    }
}

/// Whether a path is one of Windows that begins with a drive or a server: `C:\…`, `C:/…`, `\…`.
fn begins_at_drive(path: &[u8]) -> bool {
    match path {
        [b'\\', ..] => true,
        [letter, b':', b'/' | b'\\', ..] => letter.is_ascii_alphabetic(),
        _ => false,
    }
}

fn use_slashes(path: &mut [u8]) {
    for byte in path.iter_mut().filter(|byte| **byte == b'\\') {
        *byte = b'/';
    }
}

/// Where the last component begins.
fn last_component(path: &[u8]) -> usize {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    slash.map_or(0, |slash| slash.saturating_add(1))
}
