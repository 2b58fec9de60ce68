// SPDX-License-Identifier: GPL-2.0

//! `/sys/block/loopN/loop/`.
//!
//! `parser` is there all the time; the C driver's files while a file is attached (tools take
//! `backing_file` for the sign of that); what describes an image, while that is not a raw one.
//!
//! Reading them never waits for an attach, a detach or an ioctl that hangs: see
//! [`Shown`](crate::device::Shown).

mod layers;

use core::fmt::Write;

use kernel::{
    prelude::*,
    str::BStr, //
};

use crate::{
    device::{
        Device,
        Phase, //
    },
    image::Image,
    select::Choice,
    sys::{
        bindings::{
            LO_FLAGS_AUTOCLEAR,
            LO_FLAGS_DIRECT_IO,
            LO_FLAGS_PARTSCAN, //
        },
        sysfs::{
            Attribute,
            File,
            Group,
            GroupList,
            Page,
            WritableAttribute, //
        }, //
    }, //
};

const DIRECTORY: &CStr = c"loop";

static PARSER: File = File::writable::<Device, Parser>();
static BACKING_FILE: File = File::read_only::<Device, BackingFile>();
static OFFSET: File = File::read_only::<Device, Offset>();
static SIZE_LIMIT: File = File::read_only::<Device, SizeLimit>();
static AUTOCLEAR: File = File::read_only::<Device, Autoclear>();
static PARTSCAN: File = File::read_only::<Device, Partscan>();
static DIO: File = File::read_only::<Device, Dio>();
static VARIANT: File = File::read_only::<Device, Variant>();
static SIZE_SOURCE: File = File::read_only::<Device, SizeSource>();
static LAYERS: File = File::read_only::<Device, layers::Layers>();

static ALWAYS: Group = Group::new(DIRECTORY, &[Some(&PARSER), None]);
static BOUND: Group = Group::new(
    DIRECTORY,
    &[
        Some(&BACKING_FILE),
        Some(&OFFSET),
        Some(&SIZE_LIMIT),
        Some(&AUTOCLEAR),
        Some(&PARTSCAN),
        Some(&DIO),
        None,
    ],
);
static IMAGE: Group = Group::new(
    DIRECTORY,
    &[Some(&VARIANT), Some(&SIZE_SOURCE), Some(&LAYERS), None],
);

/// What a disk appears with.
pub(crate) static GROUPS: GroupList = GroupList::new(&[Some(&ALWAYS), None]);

/// Shows the files of a bound device. Without them the device still works, as with the C driver.
pub(crate) fn show(device: &Device, image: &Image) {
    show_group(device, &BOUND);
    if !image.is_raw() {
        show_group(device, &IMAGE);
    }
}

fn show_group(device: &Device, group: &'static Group) {
    if let Err(error) = device.disk_ref().merge_group(group) {
        pr_warn!(
            "loop{}: cannot create sysfs files ({error:?})\n",
            device.number()
        );
    }
}

/// Removes them. Waits for readers, who may be waiting for the device's configuration: not to be
/// called with that locked.
pub(crate) fn hide(device: &Device, image: &Image) {
    if !image.is_raw() {
        device.disk_ref().unmerge_group(&IMAGE);
    }
    device.disk_ref().unmerge_group(&BOUND);
}

/// Another image has taken the place of one. Like [`hide`], not with the configuration locked.
pub(crate) fn replace(device: &Device, old: &Image, new: &Image) {
    match (old.is_raw(), new.is_raw()) {
        (true, false) => show_group(device, &IMAGE),
        (false, true) => device.disk_ref().unmerge_group(&IMAGE),
        _ => {}
    }
}

/// Formats into the page; sysfs content always fits.
fn emit(page: &mut Page<'_>, args: core::fmt::Arguments<'_>) -> Result {
    page.write_fmt(args).map_err(|_| EFBIG)
}

/// One line about the attached image.
fn emit_image(
    device: &Device,
    page: &mut Page<'_>,
    what: impl FnOnce(&Image) -> &'static str,
) -> Result {
    match &device.shown().image {
        Some(image) => emit(page, format_args!("{}\n", what(image))),
        None => Ok(()),
    }
}

fn emit_flag(device: &Device, page: &mut Page<'_>, flag: u32) -> Result {
    let set = device.shown().flags & flag != 0;
    emit(page, format_args!("{}\n", u32::from(set)))
}

/// The parser in use, or the one chosen for the next attach.
struct Parser;

impl Attribute<Device> for Parser {
    const NAME: &'static CStr = c"parser";

    fn show(device: &Device, page: &mut Page<'_>) -> Result {
        let choice = {
            let shown = device.shown();
            if let Some(image) = &shown.image {
                return emit_name(page, image.parser_name());
            }
            shown.choice
        };
        emit_name(page, device.choice_or_default(choice).text())
    }
}

fn emit_name(page: &mut Page<'_>, name: &BStr) -> Result {
    let name = core::str::from_utf8(name).map_err(|_| EINVAL)?;
    emit(page, format_args!("{name}\n"))
}

impl WritableAttribute<Device> for Parser {
    fn store(device: &Device, bytes: &[u8]) -> Result {
        let choice = Choice::parse(bytes)?;
        let mut config = device.config_killable()?;
        if config.phase() != Phase::Unbound {
            return Err(EBUSY);
        }
        config.choice = Some(choice);
        Ok(())
    }
}

struct BackingFile;

impl Attribute<Device> for BackingFile {
    const NAME: &'static CStr = c"backing_file";

    fn show(device: &Device, page: &mut Page<'_>) -> Result {
        let shown = device.shown();
        // There until the last close of a device that is being detached, as with the C driver.
        let Some(file) = &shown.file else {
            return Ok(());
        };
        let buffer = page.buffer();
        let last = buffer.len().saturating_sub(1);
        let room = buffer.get_mut(..last).ok_or(EINVAL)?;
        // The path is built from the end of the page: move it to the front.
        let len = file.show_path(room)?.len();
        let start = last.saturating_sub(len).saturating_sub(1);
        buffer.copy_within(start..start.saturating_add(len), 0);
        *buffer.get_mut(len).ok_or(EINVAL)? = b'\n';
        page.set_len(len.saturating_add(1));
        Ok(())
    }
}

struct Offset;

impl Attribute<Device> for Offset {
    const NAME: &'static CStr = c"offset";

    fn show(device: &Device, page: &mut Page<'_>) -> Result {
        let offset = device.shown().offset;
        emit(page, format_args!("{offset}\n"))
    }
}

struct SizeLimit;

impl Attribute<Device> for SizeLimit {
    const NAME: &'static CStr = c"sizelimit";

    fn show(device: &Device, page: &mut Page<'_>) -> Result {
        let limit = device.shown().size_limit;
        emit(page, format_args!("{limit}\n"))
    }
}

struct Autoclear;

impl Attribute<Device> for Autoclear {
    const NAME: &'static CStr = c"autoclear";

    fn show(device: &Device, page: &mut Page<'_>) -> Result {
        emit_flag(device, page, LO_FLAGS_AUTOCLEAR)
    }
}

struct Partscan;

impl Attribute<Device> for Partscan {
    const NAME: &'static CStr = c"partscan";

    fn show(device: &Device, page: &mut Page<'_>) -> Result {
        emit_flag(device, page, LO_FLAGS_PARTSCAN)
    }
}

struct Dio;

impl Attribute<Device> for Dio {
    const NAME: &'static CStr = c"dio";

    fn show(device: &Device, page: &mut Page<'_>) -> Result {
        emit_flag(device, page, LO_FLAGS_DIRECT_IO)
    }
}

/// The sub-format of the image.
struct Variant;

impl Attribute<Device> for Variant {
    const NAME: &'static CStr = c"variant";

    fn show(device: &Device, page: &mut Page<'_>) -> Result {
        emit_image(device, page, |image| image.disk().variant)
    }
}

/// Which of the sizes an image records was believed.
struct SizeSource;

impl Attribute<Device> for SizeSource {
    const NAME: &'static CStr = c"size_source";

    fn show(device: &Device, page: &mut Page<'_>) -> Result {
        emit_image(device, page, |image| image.disk().size_source)
    }
}
