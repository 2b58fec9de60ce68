// SPDX-License-Identifier: GPL-2.0

//! Which parser serves a file.
//!
//! Three outcomes are kept apart: a parser, "no format we know" (raw), and "cannot tell" (an I/O
//! error, a parser that is not there, two that claim the file), which refuses the attach. There is
//! no way from the third to raw.

use kernel::{
    prelude::*,
    str::BStr, //
};

use crate::{
    contract::{
        Part,
        Probe, //
    },
    device::Device,
    parser::{
        self,
        BoundParser,
        Claims, //
    },
    raw::{
        self,
        Raw, //
    },
    signatures,
    sys::{
        file::BackingFile,
        io,
        module::request_parser,
        params::{
            Params,
            PARSER_NAME_MAX, //
        }, //
    }, //
};

/// A choice of parser: `auto`, `raw`, or a name, which options may follow after a comma.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    text: [u8; PARSER_NAME_MAX],
    len: usize,
    /// It was made for one device, not for all.
    of_device: bool,
    /// The file is an extent of a disk, and what is said of it. Its image is not that of the file as such.
    part: Option<Part>,
}

impl Choice {
    /// The choice of a device that was told nothing.
    pub(crate) fn default(params: &Params) -> Self {
        let mut buf = [0; PARSER_NAME_MAX];
        let text = params.default_parser(&mut buf).trim_ascii();
        let mut choice = Self {
            text: [0; PARSER_NAME_MAX],
            len: text.len(),
            of_device: false,
            part: None,
        };
        if let Some(room) = choice.text.get_mut(..text.len()) {
            room.copy_from_slice(text);
        }
        choice
    }

    /// Parses what was written to sysfs. `EINVAL` if it can be no parser's name.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let text = text.trim_ascii();
        let mut choice = Self {
            text: [0; PARSER_NAME_MAX],
            len: text.len(),
            of_device: true,
            part: None,
        };
        choice
            .text
            .get_mut(..text.len())
            .ok_or(EINVAL)?
            .copy_from_slice(text);
        let known = choice.is_auto()
            || choice.name() == raw::NAME.to_bytes()
            || signatures::static_name(choice.name()).is_some()
            || parser::find(choice.name()).is_some();
        if !known || !text.is_ascii() {
            return Err(EINVAL);
        }
        Ok(choice)
    }

    /// Nothing was chosen, and there are no options: what named parents are attached with.
    pub(crate) const fn none() -> Self {
        Self {
            text: [0; PARSER_NAME_MAX],
            len: 0,
            of_device: false,
            part: None,
        }
    }

    /// The same, for a file that another one lists as an extent of a disk.
    pub(crate) const fn part(part: Part) -> Self {
        Self {
            part: Some(part),
            ..Self::none()
        }
    }

    /// Whether a parser makes the same image of a file with both.
    pub(crate) fn means_the_same(&self, other: &Self) -> bool {
        self.options() == other.options() && self.part == other.part
    }

    /// What is said of the file as part of a disk.
    pub(crate) fn as_part(&self) -> Option<Part> {
        self.part
    }

    /// Whether somebody has named the parser for the device, and so vouched for the file.
    pub(crate) fn names_parser(&self) -> bool {
        self.of_device && !self.is_auto()
    }

    /// The text, as sysfs shows it.
    pub(crate) fn text(&self) -> &BStr {
        BStr::from_bytes(self.text.get(..self.len).unwrap_or(&[]))
    }

    fn name(&self) -> &[u8] {
        let mut parts = self.text().split(|byte| *byte == b',');
        parts.next().unwrap_or(&[])
    }

    /// What follows the name.
    pub(crate) fn options(&self) -> &str {
        let at = self.name().len().saturating_add(1);
        let options = self.text().get(at..).unwrap_or(&[]);
        core::str::from_utf8(options).unwrap_or("")
    }

    fn is_auto(&self) -> bool {
        matches!(self.name(), b"auto" | b"")
    }
}

/// Finds the parser for `file`, which is to be attached to `device`.
///
/// Called without any lock held, as it may load a module.
///
/// # Errors
///
/// `ENOPKG`: the file needs a parser that is not there. `ENOTUNIQ`: two parsers claim it. Errors of
/// reading the file.
pub(crate) fn select(file: &BackingFile, choice: &Choice, device: &Device) -> Result<BoundParser> {
    if choice.is_auto() {
        return recognise(file, device);
    }
    by_name(choice.name(), device.number())
}

/// Finds the parser of a file for which nobody has named one. As [`select`].
pub(crate) fn recognise(file: &BackingFile, device: &Device) -> Result<BoundParser> {
    if device.instance().params().autodetect() {
        detect(file, device.number())
    } else {
        raw()
    }
}

/// The parser of this name. May load a module.
///
/// # Errors
///
/// `ENOPKG`: there is none.
pub(crate) fn by_name(name: &[u8], loop_number: u32) -> Result<BoundParser> {
    if name == raw::NAME.to_bytes() {
        return raw();
    }
    named(name, loop_number)
}

fn raw() -> Result<BoundParser> {
    BoundParser::built_in(raw::NAME, &Raw)
}

fn named(name: &[u8], loop_number: u32) -> Result<BoundParser> {
    if let Some(parser) = parser::find(name) {
        return Ok(parser);
    }
    if let Some(known) = signatures::static_name(name) {
        request_parser(known);
    }
    parser::find(name).ok_or_else(|| {
        pr_err!(
            "loop{loop_number}: refused: no parser \"{}\" is there\n",
            BStr::from_bytes(name)
        );
        ENOPKG
    })
}

/// The parser of the format that the file has.
///
/// # Errors
///
/// As [`select`].
pub(crate) fn detect(file: &BackingFile, loop_number: u32) -> Result<BoundParser> {
    // Too large for the stack.
    let mut ends = KVec::new();
    ends.resize(Probe::HEAD + Probe::TAIL, 0u8, GFP_KERNEL)?;
    let (head, tail) = ends.split_at_mut(Probe::HEAD);
    let probe = read_ends(file, head, tail).inspect_err(|error| {
        // Nobody refused, if the caller is being killed.
        if *error != EINTR {
            pr_err!(
                "loop{loop_number}: refused: cannot read the file to recognise it ({error:?})\n"
            );
        }
    })?;
    // Held until the parsers have answered: none of them can be unloaded in between.
    let mut pinned = KVec::new();
    for name in signatures::matches(&probe) {
        match find_or_load(name) {
            Some(parser) => pinned.push(parser, GFP_KERNEL)?,
            None => return Err(missing(name, loop_number)),
        }
    }
    match parser::claims(&probe) {
        Claims::Leaving => {
            pr_err!("loop{loop_number}: refused: the file's parser is being unloaded\n");
            Err(ENOPKG)
        }
        Claims::None => raw(),
        Claims::One(parser) => Ok(parser),
        Claims::Several(first, second) => {
            pr_err!(
                "loop{loop_number}: refused: both {} and {} claim the file (write the right one to \
                 the device's loop/parser)\n",
                first.display_name(),
                second.display_name()
            );
            Err(ENOTUNIQ)
        }
    }
}

fn find_or_load(name: &'static CStr) -> Option<BoundParser> {
    parser::find(name.to_bytes()).or_else(|| {
        request_parser(name);
        parser::find(name.to_bytes())
    })
}

/// Logs that a parser is needed that is not there.
fn missing(name: &CStr, loop_number: u32) -> Error {
    let name = BStr::from_bytes(name.to_bytes());
    pr_err!(
        "loop{loop_number}: refused: looks like a {name} image, but no parser for {name} is there \
         (to attach it as it is, write raw to the device's loop/parser)\n"
    );
    ENOPKG
}

/// Reads the first and last bytes of a file. One that ends before its size says, as those of sysfs
/// do, has only the first.
fn read_ends<'a>(file: &BackingFile, head: &'a mut [u8], tail: &'a mut [u8]) -> Result<Probe<'a>> {
    let size = file.size();
    let fit = |len: usize| len.min(usize::try_from(size).unwrap_or(usize::MAX));
    let (head_len, tail_len) = (fit(head.len()), fit(tail.len()));
    let head = head.get_mut(..head_len).ok_or(EINVAL)?;
    let tail = tail.get_mut(..tail_len).ok_or(EINVAL)?;
    let head_len = io::read(file, 0, head)?;
    let at = size.saturating_sub(tail_len as u64);
    let tail_len = if io::read(file, at, tail)? == tail_len {
        tail_len
    } else {
        0
    };
    Ok(Probe {
        head: head.get(..head_len).ok_or(EINVAL)?,
        tail: tail.get(..tail_len).ok_or(EINVAL)?,
        size,
    })
}
