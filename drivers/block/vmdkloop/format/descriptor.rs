// SPDX-License-Identifier: GPL-2.0

//! The descriptor: the text that says what a disk is made of ("The Descriptor File"), a file of its own
//! or part of a sparse extent.
//!
//! Every line is a comment, a setting (`key = value`) or an extent. What programs write differs in many
//! ways, so all of these are understood: keys in upper and lower case; lines that end in LF, CR or both,
//! or with the text; blanks around keys, values and lines; values with and without quotes. Of several
//! settings with one key the first counts, as in QEMU and VirtualBox. Names are bytes in no certain
//! encoding. Settings that are not known here are ignored, but in a file of its own a line that is none of
//! the three is not: the disk would be shifted if it was meant to be an extent.
//!
//! The text is read through a small window, in one pass.

mod content;
mod create_type;
mod extent;
mod line;
mod reader;

use loop_parser::contract::{
    num::{
        add,
        Region, //
    },
    Error,
    Fault,
    HostRange,
    Identity,
    Result,
    Tables,
    BYTE_ORDER_MARK, //
};

use super::parent::{
    self,
    ParentName, //
};

use line::{
    Line,
    Setting,
    Value, //
};
use reader::Reader;

pub(super) use content::ContentId;
pub(super) use create_type::CreateType;
pub(super) use extent::ExtentLines;

/// Largest descriptor in bytes, in a file of its own or in a sparse extent: enough for ten thousand
/// extents.
pub(super) const MAX_LEN: u64 = 1 << 20;

/// `parentCID` of a disk that has no parent.
const NO_PARENT: u32 = 0xffff_ffff;

/// Where a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a file of its own: its lines are what the disk is made of.
    Own,
    /// In a sparse extent: whatever is listed, the disk is in that file.
    Embedded,
}

/// What a descriptor says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    /// Where the CID is, if there is one.
    pub(super) content: Option<ContentId>,
    /// The CID that the parent has to have; `None` for ffffffff or no line.
    pub(super) parent_cid: Option<u32>,
    /// Where the parent's name is.
    pub(super) parent_name: Option<HostRange>,
    /// What kind of disk it is.
    pub(super) create_type: CreateType,
    /// Something that allows reading only (change tracking, a read-only extent), and where it says so.
    pub(super) read_only: Option<Fault>,
    /// The extents.
    pub(super) extents: ExtentLines,
    /// Host offset of the line with the parent's CID.
    parent_at: u64,
}

impl Descriptor {
    /// Reads the text in `text`; it ends at the first NUL. An empty one says nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for a text that is not within the file, a line that is no line of a
    /// descriptor, a CID that is no number. [`Error::Unsupported`] for an encrypted disk, for a text that is
    /// too long, for too many extents, and for a parent that is not named in a way that others than
    /// VirtualBox understand.
    ///
    /// What is wrong with an extent as part of a disk is found when it is [asked for](ExtentLines::next):
    /// the descriptor in a sparse extent can be stale there.
    #[inline(never)]
    pub(super) fn load(tables: &dyn Tables, text: HostRange, place: Place) -> Result<Self> {
        let at = text.offset;
        if text.len > MAX_LEN {
            return Err(Error::unsupported(
                "VMDK descriptor is larger than 1 MiB",
                at,
            ));
        }
        let region = Region::new(at, text.len, at)?;
        if region.end > tables.size()? {
            return Err(Error::malformed(
                "VMDK descriptor lies past the end of the file",
                at,
            ));
        }
        let region = without_mark(tables, region)?;
        let mut found = Found::new(region);
        let mut reader = Reader::new(tables, region);
        while let Some(line) = line::next(&mut reader)? {
            match line {
                Line::Setting(setting) => found.setting(&setting)?,
                Line::Extent(extent) => found.extents.count_in(&extent)?,
                Line::Unknown(_) if place == Place::Embedded => {}
                Line::Unknown(at) => return Err(Line::unknown(at)),
            }
        }
        found.finish(tables)
    }

    /// What the disk is known by; zeros if it has no CID.
    pub(super) fn identity(&self) -> Identity {
        let cid = self.content.map(|content| content.value());
        cid.map_or(Identity::default(), parent::identity)
    }

    /// What the disk lies on.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it has a parent without a name.
    pub(super) fn parent(&self) -> Result<Option<ParentName>> {
        match (self.parent_cid, self.parent_name) {
            (None, _) => Ok(None),
            (Some(cid), Some(name)) => Ok(Some(ParentName::new(name, cid))),
            (Some(_), None) => Err(Error::malformed("VMDK parent has no name", self.parent_at)),
        }
    }
}

/// What was found so far: of each setting the first.
struct Found {
    content: Option<Value>,
    long_content: Option<Value>,
    parent_cid: Option<Value>,
    parent_name: Option<Value>,
    parent_uuid: Option<Value>,
    create_type: Option<Value>,
    change_track: Option<Value>,
    extents: ExtentLines,
}

impl Found {
    fn new(text: Region) -> Self {
        Self {
            content: None,
            long_content: None,
            parent_cid: None,
            parent_name: None,
            parent_uuid: None,
            create_type: None,
            change_track: None,
            extents: ExtentLines::new(text),
        }
    }

    fn setting(&mut self, setting: &Setting) -> Result {
        // `encryption.keySafe`, `encryption.data` and others.
        if setting.key.starts_with(b"encryption") && !setting.value.is_empty() {
            return Err(Error::unsupported("VMDK is encrypted", setting.value.line));
        }
        let places: [(&[u8], &mut Option<Value>); 7] = [
            (content::KEY, &mut self.content),
            (content::LONG_KEY, &mut self.long_content),
            (b"parentCID", &mut self.parent_cid),
            (b"parentFileNameHint", &mut self.parent_name),
            (b"ddb.uuid.parent", &mut self.parent_uuid),
            (b"createType", &mut self.create_type),
            (b"changeTrackPath", &mut self.change_track),
        ];
        for (key, place) in places {
            if setting.key.is(key) {
                place.get_or_insert(setting.value);
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn finish(&self, tables: &dyn Tables) -> Result<Descriptor> {
        let cid = self.parent_cid.map(|cid| content::number(tables, &cid));
        let parent_cid = cid.transpose()?.filter(|cid| *cid != NO_PARENT);
        if let (None, Some(uuid)) = (parent_cid, self.parent_uuid) {
            check_uuid(tables, &uuid)?;
        }
        let parent_name = self.parent_name.map(|name| name.text()).transpose()?;
        let content = self
            .content
            .map(|value| ContentId::new(tables, &value, self.long_content.as_ref()));
        Ok(Descriptor {
            content: content.transpose()?,
            parent_cid,
            parent_name: parent_name.filter(|name| name.len > 0),
            create_type: CreateType::load(tables, self.create_type.as_ref())?,
            read_only: self.read_only(),
            extents: self.extents,
            parent_at: self.parent_cid.map_or(0, |cid| cid.line),
        })
    }

    /// What is written would be missing in the list of changes that ESX keeps beside the disk.
    fn read_only(&self) -> Option<Fault> {
        let tracked = self.change_track.filter(|path| !path.is_empty());
        let tracked = tracked.map(|path| Fault::new("changes of VMDK are tracked", path.line));
        tracked.or(self.extents.read_only())
    }
}

/// The text behind the mark of an editor that says that it is UTF-8.
fn without_mark(tables: &dyn Tables, text: Region) -> Result<Region> {
    let mut mark = [0; BYTE_ORDER_MARK.len()];
    let behind = add(text.start, mark.len() as u64, text.start)?;
    if behind > text.end {
        return Ok(text);
    }
    tables.load(text.start, &mut mark)?;
    Ok(match mark == *BYTE_ORDER_MARK {
        true => Region {
            start: behind,
            end: text.end,
        },
        false => text,
    })
}

/// A disk that has no parent by its CID may not have one by its UUID either: VirtualBox finds that in a
/// register of its own, and reading without it would be wrong.
fn check_uuid(tables: &dyn Tables, uuid: &Value) -> Result {
    let mut reader = Reader::new(tables, uuid.range());
    while let Some(byte) = reader.peek()? {
        if byte.is_ascii_hexdigit() && byte != b'0' {
            return Err(Error::unsupported(
                "VMDK has a parent that is only known to VirtualBox",
                uuid.line,
            ));
        }
        reader.advance();
    }
    Ok(())
}
