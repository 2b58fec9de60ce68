// SPDX-License-Identifier: GPL-2.0

//! A disk that is put together from files, as the driver does it.

use loop_parser::contract::{
    Allocate, AttachRequest, Backing, Disk, Extents, HostRange, ListedExtent, Part, Result, Tables,
};
use testkit::{device::Device, store::Store};
use vmdk_format::format as vmdk;

use crate::{
    files::Files,
    image::{device, said},
    raw,
};

/// Such a disk.
pub struct Assembled {
    /// What the list says of it.
    pub disk: Disk,
    /// The file with the list.
    list: Store,
    alloc: Box<dyn Allocate>,
    has_begun: bool,
    /// Without gaps.
    pieces: Vec<Piece>,
}

/// An extent.
struct Piece {
    name: String,
    /// Position on the disk, and length, in bytes.
    start: u64,
    len: u64,
    device: Device,
}

impl Assembled {
    /// Opens all files that are listed: each of them is one extent.
    pub fn open(
        list: Store,
        disk: Disk,
        alloc: impl Allocate + 'static,
        extents: &dyn Extents,
        has_parent: bool,
        mut files: Vec<(String, Store)>,
    ) -> std::result::Result<Self, String> {
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut start, mut cursor) = (0, 0);
        while let Some((it, next)) = extents.next(&list, cursor).map_err(said)? {
            let name = name_of(&list, &it)?;
            let index = files.iter().position(|(other, _)| *other == name);
            let index = index.ok_or_else(|| format!("extent '{name}' is not there"))?;
            let (name, file) = files.remove(index);
            pieces.push(Piece {
                device: open_extent(file, &it, has_parent)?,
                name,
                start,
                len: it.len,
            });
            start += it.len;
            cursor = next;
        }
        Ok(Self {
            disk,
            list,
            alloc: Box::new(alloc),
            has_begun: false,
            pieces,
        })
    }

    /// Puts the disk on `parent`. Only one extent can use that, from where it begins.
    pub fn on_top_of(mut self, parent: Device) -> std::result::Result<Self, String> {
        match self.pieces.pop() {
            Some(mut it) if it.start == 0 => {
                it.device = it.device.on_top_of(parent);
                self.pieces.push(it);
                Ok(self)
            }
            _ => Err("a disk of several extents on a parent is not made here".into()),
        }
    }

    /// Where the extents are on the disk: position and length in bytes.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        self.pieces.iter().map(|it| (it.start, it.len)).collect()
    }

    /// Reads guest bytes.
    pub fn read(&self, pos: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            if let Some((at, count)) = piece.part_of(pos, len) {
                bytes.extend(piece.device.read(at - piece.start, count)?);
            }
        }
        Ok(bytes)
    }

    /// Writes guest bytes. The list is told first, once.
    pub fn write(&mut self, pos: u64, data: &[u8]) -> Result {
        if !self.has_begun {
            self.alloc.begin(&mut self.list)?;
            self.has_begun = true;
        }
        for piece in &mut self.pieces {
            if let Some((at, count)) = piece.part_of(pos, data.len() as u64) {
                let part = &data[(at - pos) as usize..][..count as usize];
                piece.device.write(at - piece.start, part)?;
            }
        }
        Ok(())
    }

    /// A guest's flush.
    pub fn flush(&mut self) -> Result {
        self.pieces.iter_mut().try_for_each(|it| it.device.flush())
    }

    /// The last use of the disk: the extents first.
    pub fn close(mut self) -> Result<Files> {
        let mut parts = Vec::new();
        for piece in self.pieces {
            parts.push((piece.name, piece.device.close()?));
        }
        self.alloc.close(&mut self.list)?;
        let image = self.list;
        Ok(Files { image, parts })
    }
}

impl Piece {
    /// What it has of a guest range: position and length.
    fn part_of(&self, pos: u64, len: u64) -> Option<(u64, u64)> {
        let start = pos.max(self.start);
        let end = (pos + len).min(self.start + self.len);
        (start < end).then(|| (start, end - start))
    }
}

fn name_of(list: &Store, it: &ListedExtent) -> std::result::Result<String, String> {
    let HostRange { offset, len } = match it.backing {
        Backing::Flat { name, .. } | Backing::Image { name } => name,
        Backing::Zero => return Err("an extent without a file cannot be written to".into()),
    };
    let mut name = vec![0; len as usize];
    list.load(offset, &mut name).map_err(said)?;
    Ok(String::from_utf8_lossy(&name).into())
}

fn open_extent(
    file: Store,
    it: &ListedExtent,
    has_parent: bool,
) -> std::result::Result<Device, String> {
    if let Backing::Flat { offset, .. } = it.backing {
        return raw::extent(file, offset, it.len);
    }
    let request = AttachRequest {
        writable: true,
        part: Some(Part {
            len: it.len,
            has_parent,
        }),
        ..AttachRequest::default()
    };
    match vmdk::attach(&file, &request).map_err(said)? {
        vmdk::Image::Sparse(it) | vmdk::Image::Cowd(it) => {
            Ok(device(file, it.disk, it.map, it.alloc))
        }
        _ => Err("an extent is of a kind that cannot be written to".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{attach, Attached};

    const LIST: &str = "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID=ffffffff\n\
                        createType=\"twoGbMaxExtentFlat\"\nRW 4 FLAT \"a\" 0\nRW 2 FLAT \"b\" 1\n";

    fn files() -> Files {
        let filled = |byte| Store::new(&[byte; 2048]);
        Files {
            image: Store::new(LIST.as_bytes()),
            parts: vec![("b".into(), filled(2)), ("a".into(), filled(1))],
        }
    }

    #[test]
    fn extents_follow_each_other() {
        let mut disk = attach("vmdk", files(), None).unwrap();
        assert_eq!(disk.ranges(), [(0, 2048), (2048, 1024)]);
        disk.write(1536, &[9; 1024]).unwrap();
        disk.flush().unwrap();
        let expected = [[1; 1536].as_slice(), &[9; 1024], &[2; 512]].concat();
        assert_eq!(disk.read().unwrap(), expected);

        let Files { image, parts } = disk.close().unwrap();
        assert_ne!(image.to_vec(), LIST.as_bytes());
        assert_eq!(image.len() as usize, LIST.len());
        let found: Vec<(&str, Vec<u8>)> = parts
            .iter()
            .map(|(name, store)| (&name[..], store.to_vec()))
            .collect();
        let a = [[1; 1536].as_slice(), &[9; 512]].concat();
        let b = [[2; 512].as_slice(), &[9; 512], &[2; 1024]].concat();
        assert_eq!(found, [("a", a), ("b", b)]);
    }

    #[test]
    fn an_extent_is_missing_or_too_short() {
        let mut some = files();
        some.parts.pop();
        assert!(attach("vmdk", some, None).is_err_and(|it| it.contains("not there")));
        let mut short = files();
        short.parts[0].1.put_size(1024);
        assert!(attach("vmdk", short, None).is_err_and(|it| it.contains("past the end")));
        assert!(matches!(
            attach("vmdk", files(), None),
            Ok(Attached::Parts(_))
        ));
    }
}
