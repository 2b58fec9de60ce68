// SPDX-License-Identifier: GPL-2.0

//! Opening an image, and the files that it names.
//!
//! To name other files is a privilege: a guest can write a header into its own raw disk. An image
//! whose format was recognised may name none, unless the administrator allows it (`loop.parents`);
//! one whose parser was named for the device may name those in its folder and beneath. A named file
//! is opened as whoever opened the image would; and if somebody else owns the image, or one between it
//! and the file, that owner has to be able to read the file, too.
//!
//! A file with the image's data is opened for writing, too, if the device is to be written; then all of
//! them have to be able to do that.
//!
//! The format of a named file is what the image says it is, and not guessed. Where the image does not
//! say, the file is recognised, as a device's own is; then what it names has not been vouched for, however
//! the device's own parser was chosen.

mod extents;
mod levels;
mod names;

use kernel::{
    prelude::*,
    str::BStr,
    sync::Arc, //
};

use crate::{
    chain,
    contract::{
        Error as ImageError,
        Fault,
        Parent, //
    },
    device::Device,
    image::{
        self,
        Image, //
    },
    images::{
        Use,
        Wanted, //
    },
    layers::MAX_LAYERS,
    log_name::LogName,
    parser::{
        Attached,
        BoundParser, //
    },
    raw,
    select::{
        self,
        Choice, //
    },
    sys::{
        creds::Credentials,
        file::BackingFile,
        io,
        params::Parents,
        path::Path, //
    },
    tables::FileTables,
    user::ImageUser, //
};

pub(crate) use levels::Others;
use names::{
    look_up,
    Buffer,
    MAX_NAMES, //
};

/// Most bytes of an image that are quoted in the log.
const QUOTE_MAX: usize = 64;

/// The opening of an image for a device.
pub(crate) struct Opening<'a> {
    pub(crate) device: &'a Device,
    pub(crate) choice: &'a Choice,
    pub(crate) writable: bool,
}

impl Opening<'_> {
    /// Opens the image in `file`, or joins those who use it already. What refuses it is logged.
    pub(crate) fn open(&self, file: &Arc<BackingFile>, parser: BoundParser) -> Result<ImageUser> {
        let wanted = self.wanted(file, &parser);
        // What is logged below is part of the parser's module.
        let name = parser.again()?;
        let refused = |error| self.refused(name.name, &ImageError::Store(Error::to_errno(error)));
        if !parser.is_raw() && !file.is_readable() {
            return Err(refused(EBADF));
        }
        if let Some(user) = ImageUser::join(file, &wanted).map_err(refused)? {
            // Others have it attached, but perhaps only for reading, and then the parser has not
            // been asked yet whether this image can be written.
            if self.writable {
                self.attach(file, &parser)?;
            }
            return Ok(user);
        }
        let mut attached = self.attach(file, &parser)?;
        let others = self.open_others(file, &name, &mut attached)?;
        self.finish(file, parser, attached, others).map_err(refused)
    }

    /// Opens the image in `file` as a child of `below`, which the device has now and which is a
    /// parent already. Returns also what it says of that. What refuses it is logged.
    ///
    /// # Errors
    ///
    /// `EINVAL`: it is no child of that.
    pub(crate) fn open_child(
        &self,
        file: &Arc<BackingFile>,
        parser: BoundParser,
        below: &ImageUser,
    ) -> Result<(ImageUser, KBox<dyn Parent>)> {
        let name = parser.again()?;
        let mut attached = self.attach(file, &parser)?;
        let parent = attached.parent.take();
        let is_child = match &parent {
            Some(parent) => self.is_parent(file, &**parent, below)?,
            None => false,
        };
        let image = below.image();
        if attached.data.is_some() || attached.extents.is_some() {
            // No file is opened by a name here.
            self.log(
                name.name,
                fmt!("its data lie in other files: attach it by itself"),
            );
            return Err(EINVAL);
        }
        let is_as_large = attached.disk.size == image.size(below.file());
        let Some(parent) = parent.filter(|_| is_child && is_as_large) else {
            self.log(name.name, fmt!("not a child of the device's file"));
            return Err(EINVAL);
        };
        let refused = |error| self.refused(name.name, &ImageError::Store(Error::to_errno(error)));
        let parents = below.again().chain();
        let parents = parents.map_err(refused)?;
        if parents.len() >= MAX_LAYERS {
            return Err(refused(EMLINK));
        }
        let mut keys = KVec::with_capacity(MAX_LAYERS, GFP_KERNEL)?;
        for parent in &parents {
            keys.push(parent.image().key(), GFP_KERNEL)?;
        }
        if chain::leads_to(file, self.device, &keys) {
            return Err(refused(ELOOP));
        }
        let others = Others {
            parents,
            ..Others::default()
        };
        let user = self.finish(file, parser, attached, others);
        Ok((user.map_err(refused)?, parent))
    }

    fn wanted<'b>(&'b self, file: &BackingFile, parser: &BoundParser) -> Wanted<'b> {
        Wanted {
            key: file.inode_key(),
            parser: parser.name,
            choice: self.choice,
            purpose: if self.writable { Use::Write } else { Use::Read },
        }
    }

    /// Lets the parser attach the device's own file.
    #[inline(never)]
    fn attach(&self, file: &BackingFile, parser: &BoundParser) -> Result<Attached> {
        image::attach(file, parser, self.choice, self.writable)
            .map_err(|error| self.refused_file(parser, file, &error))
    }

    #[inline(never)]
    fn finish(
        &self,
        file: &Arc<BackingFile>,
        parser: BoundParser,
        attached: Attached,
        others: Others,
    ) -> Result<ImageUser> {
        let wanted = self.wanted(file, &parser);
        let number = self.device.number();
        // The device has its own file's name.
        let unnamed = KVec::new();
        let image = Image::new(file, parser, self.choice, attached, others, number, unnamed)?;
        ImageUser::add(file, image, &wanted)
    }

    /// Whether `parent` says that the image in `child` belongs on `below`.
    fn is_parent(
        &self,
        child: &BackingFile,
        parent: &dyn Parent,
        below: &ImageUser,
    ) -> Result<bool> {
        let image = below.image();
        let is_by = match parent.parser() {
            Some(name) => &**image.parser_name() == name.as_bytes(),
            // What will be found when it is attached the next time.
            None => select::recognise(below.file(), self.device)
                .is_ok_and(|parser| parser.display_name() == image.parser_name()),
        };
        if !is_by || !self.knows(parent, below)? {
            return Ok(false);
        }
        let Some(folder) = Path::folder_of(child) else {
            return Ok(false);
        };
        let opener = Credentials::of_opener(child);
        let mut buffer = Buffer::new()?;
        for index in 0..MAX_NAMES {
            match buffer.load(child, parent, index) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => continue,
            }
            let _acting = opener.act();
            // Nothing is opened by this name: it only says which file is meant.
            if look_up(&folder, buffer.name(), Parents::Any).is_ok_and(|path| path.is(below.file()))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether `parent` says that the image of the device is the right one, as it is now: what it is known
    /// by can have changed since it was attached.
    pub(crate) fn knows(&self, parent: &dyn Parent, below: &ImageUser) -> Result<bool> {
        let image = below.image();
        if image.is_raw() {
            return Ok(parent.check(image.disk()).is_ok());
        }
        let parser = select::by_name(image.parser_name(), self.device.number())?;
        let now = image::attach(below.file(), &parser, image.choice(), false);
        Ok(now.is_ok_and(|now| parent.check(&now.disk).is_ok()))
    }

    /// Which files the image may name.
    fn allowed(&self) -> Parents {
        match self.device.instance().params().parents() {
            Parents::None if self.choice.names_parser() => Parents::Beneath,
            allowed => allowed,
        }
    }

    /// The log line of a refused image.
    fn log(&self, parser: &CStr, why: core::fmt::Arguments<'_>) {
        pr_err!(
            "loop{}: refused: {}: {why}\n",
            self.device.number(),
            BStr::from_bytes(parser.to_bytes())
        );
    }

    /// The same, if it is for a file that the image is made of.
    fn log_file(&self, parser: &CStr, what: &str, file: &BackingFile, error: Error) {
        self.log_about(parser, what, file, fmt!("{error:?}"));
    }

    /// The same, in other words.
    fn log_about(
        &self,
        parser: &CStr,
        what: &str,
        file: &BackingFile,
        why: core::fmt::Arguments<'_>,
    ) {
        let mut buffer = Buffer::new();
        let path = path_of(file, &mut buffer);
        self.log(parser, fmt!("{what} \"{path}\": {why}"));
    }

    /// Logs why the device's own image is refused, with the words that it has itself for that. Returns
    /// what the caller is told.
    #[inline(never)]
    fn refused_file(&self, parser: &BoundParser, file: &BackingFile, error: &ImageError) -> Error {
        let mut buffer = [0; QUOTE_MAX];
        let quote = error.fault().and_then(|fault| {
            let text = quote(parser, file, fault, &mut buffer)?;
            Some((fault, BStr::from_bytes(text)))
        });
        let Some((fault, text)) = quote else {
            return self.refused(parser.name, error);
        };
        self.log(
            parser.name,
            fmt!("{} (\"{text}\") at byte {}", fault.what, fault.at),
        );
        Error::from_errno(error.to_errno())
    }

    /// Logs why the device's own image is refused; not if the caller is being killed, as then nobody
    /// refused. Returns what the caller is told.
    fn refused(&self, parser: &CStr, error: &ImageError) -> Error {
        let errno = Error::from_errno(error.to_errno());
        let hint = match error {
            ImageError::NeedsReadOnly(_) => " (attach it read-only: losetup -r)",
            _ => "",
        };
        match (error.fault(), error) {
            (Some(fault), _) => self.log(parser, fmt!("{} at byte {}{hint}", fault.what, fault.at)),
            (None, ImageError::BadOption) => {
                self.log(parser, fmt!("unknown option in loop/parser"));
            }
            (None, _) if errno == EINTR => {}
            // As the C driver.
            (None, _) if errno == ENOMEM && parser == raw::NAME => {}
            (None, _) => self.log(parser, fmt!("{errno:?}")),
        }
        errno
    }
}

/// The path of a file, for the log.
fn path_of<'a>(file: &BackingFile, buffer: &'a mut Result<Buffer>) -> LogName<'a> {
    let path = match buffer {
        Ok(buffer) => file.show_path(&mut buffer.bytes).unwrap_or(b"?"),
        Err(_) => b"?",
    };
    LogName(path)
}

/// What the image in a file says itself of a fault that it is refused for.
fn quote<'a>(
    parser: &BoundParser,
    file: &BackingFile,
    fault: &Fault,
    buffer: &'a mut [u8; QUOTE_MAX],
) -> Option<&'a [u8]> {
    let tables = FileTables {
        file,
        peekable: false,
    };
    let range = parser.parser.quote(&tables, fault)?;
    let len = usize::try_from(range.len).map_or(QUOTE_MAX, |len| len.min(QUOTE_MAX));
    let text = buffer.get_mut(..len)?;
    io::read_exact(file, range.offset, text).ok()?;
    text.split(|&byte| byte == 0).next()
}
