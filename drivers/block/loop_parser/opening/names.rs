// SPDX-License-Identifier: GPL-2.0

//! The names that an image has for another file, and what may be opened by them.

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
        Parent,
        Part, //
    },
    image,
    log_name::LogName,
    parser::{
        Attached,
        BoundParser, //
    },
    parts::Parts,
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
    tables::FileTables, //
};

use super::{
    levels::Level,
    Opening, //
};

/// Longest name, without the NUL behind it.
const NAME_MAX: usize = 4095;
/// Most names that are tried for one file: more than a format has room for.
pub(super) const MAX_NAMES: usize = 32;
/// A name, with a NUL behind it.
pub(super) struct Buffer {
    pub(super) bytes: KVec<u8>,
    len: usize,
}

impl Buffer {
    pub(super) fn new() -> Result<Self> {
        let mut bytes = KVec::new();
        bytes.resize(NAME_MAX + 1, 0, GFP_KERNEL)?;
        Ok(Self { bytes, len: 0 })
    }

    /// Takes the `index`th name; `false` if there are no more.
    pub(super) fn load(
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
    pub(super) fn name(&self) -> &CStr {
        let with_nul = self.len.saturating_add(1);
        let bytes = self.bytes.get(..with_nul).unwrap_or(&[]);
        CStr::from_bytes_with_nul(bytes).unwrap_or(c"")
    }
}

/// What a named file is to the image.
#[derive(Clone, Copy)]
pub(super) enum Role {
    /// It is below.
    Parent,
    /// Its data lie there.
    Data {
        /// The device is to be written.
        writable: bool,
    },
    /// A part of the disk is there.
    Extent {
        /// The device is to be written.
        writable: bool,
        /// What is said of it, if it is not raw.
        part: Option<Part>,
    },
}

impl Role {
    /// For the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Parent => "parent",
            Role::Data { .. } => "data file",
            Role::Extent { .. } => "extent",
        }
    }

    fn is_writable(self) -> bool {
        match self {
            Role::Parent => false,
            Role::Data { writable } | Role::Extent { writable, .. } => writable,
        }
    }

    fn part(self) -> Option<Part> {
        match self {
            Role::Extent { part, .. } => part,
            _ => None,
        }
    }
}

/// The names that an image has for another file, and how to open one of them.
pub(super) struct Names<'a> {
    pub(super) opening: &'a Opening<'a>,
    pub(super) child: &'a BackingFile,
    /// The child's parser.
    pub(super) by: &'static CStr,
    pub(super) named: &'a dyn Parent,
    pub(super) role: Role,
    pub(super) folder: Option<Path>,
    pub(super) opener: Credentials,
    /// Those who own the files above, if they are not who opened them: nobody is to read, by way of
    /// an image of theirs, what they may not read.
    pub(super) owners: &'a [Credentials],
    /// Which files may be named.
    pub(super) allowed: Parents,
}

impl Names<'_> {
    /// Opens the file. `above` has the identities of the files in use so far.
    pub(super) fn open(&self, above: &[usize]) -> Result<Level> {
        let mut name = Buffer::new()?;
        if self.allowed == Parents::None {
            self.log_not_allowed(&mut name);
            return Err(EPERM);
        }
        let number = self.opening.device.number();
        // Kept to the end: what is logged may be part of its module.
        let stated = self.named.parser();
        let parser = stated.map(|name| select::by_name(name.as_bytes(), number));
        self.try_names(&mut name, parser.transpose()?.as_ref(), above)
    }

    /// Tries one name after the other. The first refusal that says more than that there is no such
    /// file is the one that is reported.
    #[inline(never)]
    fn try_names(
        &self,
        name: &mut Buffer,
        parser: Option<&BoundParser>,
        above: &[usize],
    ) -> Result<Level> {
        let mut told = None;
        for index in 0..MAX_NAMES {
            let result = match name.load(self.child, self.named, index) {
                Ok(true) => self.try_name(name.name(), parser, above),
                Ok(false) => break,
                Err(error) => Err((error, None)),
            };
            match (result, &told) {
                (Ok(level), _) => return Ok(level),
                (Err(new), Some((_, (old, _)))) if says_more(old) || !says_more(&new.0) => {}
                (Err(new), _) => told = Some((index, new)),
            }
        }
        // What is logged may be part of the parser's module.
        let nothing = (ImageError::Store(ENOENT.to_errno()), None);
        let (index, (error, _parser)) = told.unwrap_or((0, nothing));
        // The buffer may hold another name by now.
        let _ = name.load(self.child, self.named, index);
        Err(self.refused(name.name(), &error))
    }

    fn log_not_allowed(&self, name: &mut Buffer) {
        // Without a name it is still one that is not allowed.
        let _ = name.load(self.child, self.named, 0);
        let name = LogName(name.name().to_bytes());
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
        let name = LogName(name.to_bytes());
        let role = self.role.name();
        let errno = Error::from_errno(error.to_errno());
        match error.fault() {
            Some(fault) => self.opening.log(
                self.by,
                fmt!("{role} \"{name}\": {} at byte {}", fault.what, fault.at),
            ),
            None => self
                .opening
                .log(self.by, fmt!("{role} \"{name}\": {errno:?}")),
        }
        errno
    }

    /// Opens a file by this name and lets its parser attach it. A failure comes with the parser that
    /// has found the reason, if that was not `stated`.
    #[inline(never)]
    fn try_name(
        &self,
        name: &CStr,
        stated: Option<&BoundParser>,
        above: &[usize],
    ) -> core::result::Result<Level, (ImageError, Option<BoundParser>)> {
        let store = |error: Error| (ImageError::Store(error.to_errno()), None);
        let opened = self.find(name);
        let opened = opened.and_then(|path| {
            path.open(&self.opener, self.role.is_writable())
                .map_err(no_file_of_bytes)
        });
        let file = Arc::new(opened.map_err(store)?, GFP_KERNEL).map_err(|_| store(ENOMEM))?;
        if chain::leads_to(&file, self.opening.device, above) {
            return Err(store(ELOOP));
        }
        let parser = match stated {
            Some(parser) => parser.again(),
            None => select::recognise(&file, self.opening.device),
        };
        let parser = parser.map_err(store)?;
        match self.attach(&file, &parser) {
            Ok(attached) => Ok(Level {
                attached,
                file,
                is_recognised: stated.is_none(),
                data: None,
                parts: Parts::default(),
                parser,
            }),
            Err(error) => Err((error, Some(parser))),
        }
    }

    /// Attaches the file that was found, if it is the one that was meant.
    fn attach(
        &self,
        file: &BackingFile,
        parser: &BoundParser,
    ) -> core::result::Result<Attached, ImageError> {
        let choice = self.role.part().map_or(Choice::none(), Choice::part);
        let attached = image::attach(file, parser, &choice, self.role.is_writable())?;
        self.named.check(&attached.disk)?;
        Ok(attached)
    }

    /// Looks up a file that may be opened by this name.
    fn find(&self, name: &CStr) -> Result<Path> {
        let (allowed, is_writable) = (self.allowed, self.role.is_writable());
        let folder = self.folder.as_ref().ok_or(EXDEV)?;
        if self.child.kind() == Kind::Block && allowed != Parents::Any {
            return Err(EXDEV);
        }
        let found = {
            let _acting = self.opener.act();
            usable(folder, name, allowed, is_writable)?
        };
        for owner in self.owners {
            let _acting = owner.act();
            if !usable(folder, name, allowed, is_writable)?.is_same(&found) {
                return Err(EACCES);
            }
        }
        Ok(found)
    }
}

/// What is said of a file that cannot back a device, as there are in /proc: it is as good as no regular
/// one. `EINVAL` is for what the caller got wrong, and makes losetup try once more.
fn no_file_of_bytes(error: Error) -> Error {
    match error {
        EINVAL => EACCES,
        other => other,
    }
}

/// Looks up a file that the current credentials may read, and, if `is_writable`, write.
fn usable(folder: &Path, name: &CStr, allowed: Parents, is_writable: bool) -> Result<Path> {
    let path = look_up(folder, name, allowed)?;
    match path.kind() {
        Kind::Regular => {}
        Kind::Block if allowed == Parents::Any => {}
        _ => return Err(EACCES),
    }
    path.may_open(is_writable)?;
    Ok(path)
}

/// Looks up a name, with the current credentials.
pub(super) fn look_up(folder: &Path, name: &CStr, allowed: Parents) -> Result<Path> {
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
