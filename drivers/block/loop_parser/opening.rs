// SPDX-License-Identifier: GPL-2.0

//! Opening an image, and the files that it names.
//!
//! To name other files is a privilege: a guest can write a header into its own raw disk. An image
//! whose format was recognised may name none, unless the administrator allows it (`loop.parents`);
//! one whose parser was named for the device may name those in its folder and beneath. A named file
//! is opened as whoever opened the image would; and if somebody else owns the image, or one between it
//! and the file, that owner has to be able to read the file, too.
//!
//! The format of a named file is what the image says it is. It is never guessed.

use kernel::{
    prelude::*,
    str::BStr,
    sync::Arc, //
};

use crate::{
    chain,
    contract::{
        self,
        Error as ImageError,
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
        file::{
            BackingFile,
            Kind, //
        },
        params::Parents,
        path::Path, //
    },
    tables::FileTables,
    user::ImageUser, //
};

/// Longest name, without the NUL behind it.
const NAME_MAX: usize = 4095;

/// Most names that are tried for one parent: more than a format has room for.
const MAX_NAMES: usize = 32;

/// The opening of an image for a device.
pub(crate) struct Opening<'a> {
    pub(crate) device: &'a Device,
    pub(crate) choice: &'a Choice,
    pub(crate) writable: bool,
}

/// A file below the image that is opened.
struct Level {
    attached: Attached,
    file: Arc<BackingFile>,
    // Last: what is attached is code and data of the parser's module.
    parser: BoundParser,
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
        let parents = match attached.parent.take() {
            Some(parent) => self.open_parents(file, &name, parent)?,
            None => KVec::new(),
        };
        self.finish(file, parser, attached, parents)
            .map_err(refused)
    }

    /// Opens the image in `file` as a child of `below`, which the device has now and which is a
    /// parent already. What refuses it is logged.
    ///
    /// # Errors
    ///
    /// `EINVAL`: it is no child of that.
    pub(crate) fn open_child(
        &self,
        file: &Arc<BackingFile>,
        parser: BoundParser,
        below: &ImageUser,
    ) -> Result<ImageUser> {
        let name = parser.again()?;
        let mut attached = self.attach(file, &parser)?;
        let is_child = match attached.parent.take() {
            Some(parent) => self.is_parent(file, &*parent, below)?,
            None => false,
        };
        let image = below.image();
        if !is_child || attached.disk.size != image.size(below.file()) {
            self.log(name.name, fmt!("not a child of the device's file"));
            return Err(EINVAL);
        }
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
        self.finish(file, parser, attached, parents)
            .map_err(refused)
    }

    fn wanted<'b>(&'b self, file: &BackingFile, parser: &BoundParser) -> Wanted<'b> {
        Wanted {
            key: file.inode_key(),
            parser: parser.name,
            options: self.choice.options(),
            purpose: if self.writable { Use::Write } else { Use::Read },
        }
    }

    /// Lets the parser attach the device's own file.
    #[inline(never)]
    fn attach(&self, file: &BackingFile, parser: &BoundParser) -> Result<Attached> {
        image::attach(file, parser, self.choice, self.writable)
            .map_err(|error| self.refused(parser.name, &error))
    }

    #[inline(never)]
    fn finish(
        &self,
        file: &Arc<BackingFile>,
        parser: BoundParser,
        attached: Attached,
        parents: KVec<ImageUser>,
    ) -> Result<ImageUser> {
        let wanted = self.wanted(file, &parser);
        let number = self.device.number();
        let image = Image::new(file, parser, self.choice, attached, parents, number)?;
        ImageUser::add(file, image, &wanted)
    }

    /// Opens all layers below `child`, nearest first.
    // Not inlined, for the stack: and so below.
    #[inline(never)]
    fn open_parents(
        &self,
        child: &Arc<BackingFile>,
        parser: &BoundParser,
        parent: KBox<dyn Parent>,
    ) -> Result<KVec<ImageUser>> {
        let mut levels: KVec<Level> = KVec::new();
        let mut keys = KVec::new();
        keys.push(child.inode_key(), GFP_KERNEL)?;
        let mut owners = KVec::new();
        let mut next = Some(parent);
        while let Some(parent) = next {
            let (above, name) = match levels.last() {
                Some(level) => (&level.file, level.parser.name),
                None => (child, parser.name),
            };
            if keys.len() >= MAX_LAYERS {
                self.log(name, fmt!("more than {MAX_LAYERS} files"));
                return Err(EMLINK);
            }
            if let Some(owner) = Credentials::of_owner(above)? {
                owners.push(owner, GFP_KERNEL)?;
            }
            let names = Names {
                opening: self,
                child: above,
                by: name,
                parent: &*parent,
                folder: Path::folder_of(above),
                opener: Credentials::of_opener(above),
                owners: &owners,
            };
            let level = names.open(&keys)?;
            drop(parent);
            keys.push(level.file.inode_key(), GFP_KERNEL)?;
            levels.push(level, GFP_KERNEL)?;
            // Not before the level is where its parser stays loaded.
            next = levels
                .last_mut()
                .and_then(|level| level.attached.parent.take());
        }
        self.stack(levels, parser.name)
    }

    /// Makes images of the levels, from the last one up.
    #[inline(never)]
    fn stack(&self, levels: KVec<Level>, name: &CStr) -> Result<KVec<ImageUser>> {
        let mut levels = levels;
        let mut below = KVec::new();
        while let Some(level) = levels.pop() {
            let choice = Choice::none();
            let Level {
                attached,
                file,
                parser,
            } = level;
            let wanted = Wanted {
                key: file.inode_key(),
                parser: parser.name,
                options: choice.options(),
                purpose: Use::Parent,
            };
            let number = self.device.number();
            let pinned = parser.again()?;
            let image = Image::new(&file, parser, &choice, attached, below, number)?;
            below = ImageUser::add(&file, image, &wanted)
                .inspect_err(|error| self.log_file(name, &file, *error))?
                .chain()?;
            drop(pinned);
        }
        Ok(below)
    }

    /// Whether `parent` says that the image in `child` belongs on `below`.
    fn is_parent(
        &self,
        child: &BackingFile,
        parent: &dyn Parent,
        below: &ImageUser,
    ) -> Result<bool> {
        let image = below.image();
        if &**image.parser_name() != parent.parser().as_bytes()
            || parent.check(image.disk()).is_err()
        {
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

    /// The same, if it is for a file below the image.
    fn log_file(&self, parser: &CStr, file: &BackingFile, error: Error) {
        let mut buffer = Buffer::new();
        let path = match &mut buffer {
            Ok(buffer) => file.show_path(&mut buffer.bytes).unwrap_or(b"?"),
            Err(_) => b"?",
        };
        let path = BStr::from_bytes(path);
        self.log(parser, fmt!("parent \"{path}\": {error:?}"));
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

/// A name, with a NUL behind it.
struct Buffer {
    bytes: KVec<u8>,
    len: usize,
}

impl Buffer {
    fn new() -> Result<Self> {
        let mut bytes = KVec::new();
        bytes.resize(NAME_MAX + 1, 0, GFP_KERNEL)?;
        Ok(Self { bytes, len: 0 })
    }

    /// Takes the `index`th name; `false` if there are no more.
    fn load(
        &mut self,
        child: &BackingFile,
        parent: &dyn Parent,
        index: usize,
    ) -> contract::Result<bool> {
        let tables = FileTables {
            file: child,
            peekable: child.is_peekable(),
        };
        let too_long = ImageError::Store(ENAMETOOLONG.to_errno());
        self.len = 0;
        let room = self.bytes.get_mut(..NAME_MAX).ok_or(too_long)?;
        let len = parent.name(&tables, index, room)?;
        self.len = len.unwrap_or(0);
        *self.bytes.get_mut(self.len).ok_or(too_long)? = 0;
        Ok(len.is_some())
    }

    /// The name; empty if it is not one.
    fn name(&self) -> &CStr {
        let with_nul = self.len.saturating_add(1);
        let bytes = self.bytes.get(..with_nul).unwrap_or(&[]);
        CStr::from_bytes_with_nul(bytes).unwrap_or(c"")
    }
}

/// The names that an image has for its parent, and how to open one of them.
struct Names<'a> {
    opening: &'a Opening<'a>,
    child: &'a BackingFile,
    /// The child's parser.
    by: &'static CStr,
    parent: &'a dyn Parent,
    folder: Option<Path>,
    opener: Credentials,
    /// Those who own the files above, if they are not who opened them: nobody is to read, by way of
    /// an image of theirs, what they may not read.
    owners: &'a [Credentials],
}

impl Names<'_> {
    /// Opens the parent. `above` has the identities of the files in use so far.
    fn open(&self, above: &[usize]) -> Result<Level> {
        let allowed = self.opening.allowed();
        let mut name = Buffer::new()?;
        if allowed == Parents::None {
            self.log_not_allowed(&mut name);
            return Err(EPERM);
        }
        let number = self.opening.device.number();
        // Kept to the end: what is logged may be part of its module.
        let parser = select::by_name(self.parent.parser().as_bytes(), number)?;
        self.try_names(&mut name, &parser, allowed, above)
    }

    /// Tries one name after the other. The first refusal that says more than that there is no such
    /// file is the one that is reported.
    #[inline(never)]
    fn try_names(
        &self,
        name: &mut Buffer,
        parser: &BoundParser,
        allowed: Parents,
        above: &[usize],
    ) -> Result<Level> {
        let mut told = None;
        for index in 0..MAX_NAMES {
            let result = match name.load(self.child, self.parent, index) {
                Ok(true) => self.try_name(name.name(), parser, allowed, above),
                Ok(false) => break,
                Err(error) => Err(error),
            };
            match (result, &told) {
                (Ok(level), _) => return Ok(level),
                (Err(error), Some((_, earlier))) if says_more(earlier) || !says_more(&error) => {}
                (Err(error), _) => told = Some((index, error)),
            }
        }
        let (index, error) = told.unwrap_or((0, ImageError::Store(ENOENT.to_errno())));
        // The buffer may hold another name by now.
        let _ = name.load(self.child, self.parent, index);
        Err(self.refused(name.name(), &error))
    }

    fn log_not_allowed(&self, name: &mut Buffer) {
        // Without a name it is still one that is not allowed.
        let _ = name.load(self.child, self.parent, 0);
        let name = BStr::from_bytes(name.name().to_bytes());
        let by = BStr::from_bytes(self.by.to_bytes());
        self.opening.log(
            self.by,
            fmt!(
                "the file names another one, \"{name}\", which is not allowed (write {by} to the \
                 device's loop/parser, or set the parameter parents)"
            ),
        );
    }

    /// Logs why a named file is refused, and returns what the caller is told.
    fn refused(&self, name: &CStr, error: &ImageError) -> Error {
        let name = BStr::from_bytes(name.to_bytes());
        let errno = Error::from_errno(error.to_errno());
        match error.fault() {
            Some(fault) => self.opening.log(
                self.by,
                fmt!("parent \"{name}\": {} at byte {}", fault.what, fault.at),
            ),
            None => self
                .opening
                .log(self.by, fmt!("parent \"{name}\": {errno:?}")),
        }
        errno
    }

    #[inline(never)]
    fn try_name(
        &self,
        name: &CStr,
        parser: &BoundParser,
        allowed: Parents,
        above: &[usize],
    ) -> core::result::Result<Level, ImageError> {
        let store = |error: Error| ImageError::Store(error.to_errno());
        let opened = self.find(name, allowed);
        let opened = opened.and_then(|path| path.open(&self.opener));
        let file = Arc::new(opened.map_err(store)?, GFP_KERNEL).map_err(|_| store(ENOMEM))?;
        if chain::leads_to(&file, self.opening.device, above) {
            return Err(store(ELOOP));
        }
        let attached = image::attach(&file, parser, &Choice::none(), false)?;
        self.parent.check(&attached.disk)?;
        Ok(Level {
            attached,
            file,
            parser: parser.again().map_err(store)?,
        })
    }

    /// Looks up a file that may be opened by this name.
    fn find(&self, name: &CStr, allowed: Parents) -> Result<Path> {
        let folder = self.folder.as_ref().ok_or(EXDEV)?;
        if self.child.kind() == Kind::Block && allowed != Parents::Any {
            return Err(EXDEV);
        }
        let found = {
            let _acting = self.opener.act();
            readable(folder, name, allowed)?
        };
        for owner in self.owners {
            let _acting = owner.act();
            if !readable(folder, name, allowed)?.is_same(&found) {
                return Err(EACCES);
            }
        }
        Ok(found)
    }
}

/// Looks up a file that the current credentials may read.
fn readable(folder: &Path, name: &CStr, allowed: Parents) -> Result<Path> {
    let path = look_up(folder, name, allowed)?;
    match path.kind() {
        Kind::Regular => {}
        Kind::Block if allowed == Parents::Any => {}
        _ => return Err(EACCES),
    }
    path.may_read()?;
    Ok(path)
}

/// Looks up a name, with the current credentials.
fn look_up(folder: &Path, name: &CStr, allowed: Parents) -> Result<Path> {
    let is_absolute = name.to_bytes().first() == Some(&b'/');
    match allowed {
        _ if name.is_empty() => Err(ENOENT),
        Parents::None => Err(EPERM),
        Parents::Beneath if is_absolute => Err(EXDEV),
        Parents::Beneath => folder.beneath(name),
        Parents::Any if is_absolute => Path::absolute(name),
        Parents::Any => {
            let mut buffer = KVec::new();
            buffer.resize(NAME_MAX + 1, 0, GFP_KERNEL)?;
            Path::absolute(join(folder, name, &mut buffer)?)
        }
    }
}

/// The path of `name` in `folder`.
fn join<'a>(folder: &Path, name: &CStr, buffer: &'a mut [u8]) -> Result<&'a CStr> {
    let start = folder.show(buffer)?;
    let len = buffer.len().saturating_sub(start).saturating_sub(1);
    buffer.copy_within(start.., 0);
    let name = name.to_bytes_with_nul();
    let (slash, rest) = buffer
        .get_mut(len..)
        .and_then(<[u8]>::split_first_mut)
        .ok_or(ENAMETOOLONG)?;
    *slash = b'/';
    let room = rest.get_mut(..name.len()).ok_or(ENAMETOOLONG)?;
    room.copy_from_slice(name);
    CStr::from_bytes_until_nul(buffer).map_err(|_| EINVAL)
}

/// Whether a refusal is worth more than that there is no such file.
fn says_more(error: &ImageError) -> bool {
    !matches!(error, ImageError::Store(errno) if *errno == ENOENT.to_errno())
}
