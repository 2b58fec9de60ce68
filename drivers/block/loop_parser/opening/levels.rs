// SPDX-License-Identifier: GPL-2.0

//! The files below an image.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    contract::Parent,
    image::Image,
    images::{
        Use,
        Wanted, //
    },
    layers::MAX_LAYERS,
    parser::{
        Attached,
        BoundParser, //
    },
    parts::Parts,
    select::Choice,
    sys::{
        creds::Credentials,
        file::BackingFile,
        params::Parents,
        path::Path, //
    },
    user::ImageUser, //
};

use super::{
    extents::List,
    names::{
        Buffer,
        Names,
        Role, //
    },
    Opening, //
};

/// A file below the image that is opened.
pub(super) struct Level {
    pub(super) attached: Attached,
    pub(super) file: Arc<BackingFile>,
    /// Nobody has said what serves it.
    pub(super) is_recognised: bool,
    /// The file that its data lie in.
    pub(super) data: Option<ImageUser>,
    /// The files that its disk is put together from.
    pub(super) parts: Parts,
    // Last: what is attached is code and data of the parser's module.
    pub(super) parser: BoundParser,
}

/// What an image is made of besides its own file.
#[derive(Default)]
pub(crate) struct Others {
    /// The layers below, nearest first.
    pub(crate) parents: KVec<ImageUser>,
    /// The file that its data lie in.
    pub(crate) data: Option<ImageUser>,
    /// The files that its disk is put together from.
    pub(crate) parts: Parts,
}

/// A file, and the name of its parser.
pub(super) type Above<'a> = (&'a BackingFile, &'static CStr);

impl Opening<'_> {
    /// Opens what an image names. `parser` is its own.
    // Not inlined, for the stack: and so below.
    #[inline(never)]
    pub(super) fn open_others(
        &self,
        file: &Arc<BackingFile>,
        parser: &BoundParser,
        attached: &mut Attached,
    ) -> Result<Others> {
        let mut others = Others::default();
        let (data, parent) = (attached.data.take(), attached.parent.take());
        let extents = attached.extents.take();
        if data.is_none() && parent.is_none() && extents.is_none() {
            return Ok(others);
        }
        let mut descent = Descent::new(self, file)?;
        let purpose = match self.writable {
            true => Use::Data(file.inode_key()),
            false => Use::Read,
        };
        if let Some(data) = data {
            others.data = Some(descent.open_data((file, parser.name), &*data, purpose)?);
        }
        if let Some(extents) = extents {
            others.parts = descent.open_extents(&List {
                extents: &*extents,
                above: (file, parser.name),
                has_parent: parent.is_some(),
                size: attached.disk.size,
                purpose,
            })?;
        }
        if let Some(parent) = parent {
            others.parents = descent.open_parents(file, parser, parent)?;
        }
        Ok(others)
    }
}

/// The way from an image down through the files that it is made of.
pub(super) struct Descent<'a> {
    pub(super) opening: &'a Opening<'a>,
    /// Identities of the files so far.
    keys: KVec<usize>,
    /// Those who own them, if they are not who opened them.
    owners: KVec<Credentials>,
    /// Which files may be named.
    allowed: Parents,
}

impl<'a> Descent<'a> {
    fn new(opening: &'a Opening<'a>, file: &BackingFile) -> Result<Self> {
        let mut descent = Self {
            opening,
            keys: KVec::new(),
            owners: KVec::new(),
            allowed: opening.allowed(),
        };
        descent.add(file)?;
        Ok(descent)
    }

    /// One more file that can name others.
    fn add(&mut self, file: &BackingFile) -> Result {
        self.keys.push(file.inode_key(), GFP_KERNEL)?;
        if let Some(owner) = Credentials::of_owner(file)? {
            self.owners.push(owner, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Opens all layers below `child`, nearest first.
    #[inline(never)]
    fn open_parents(
        &mut self,
        child: &Arc<BackingFile>,
        parser: &BoundParser,
        parent: KBox<dyn Parent>,
    ) -> Result<KVec<ImageUser>> {
        let mut levels: KVec<Level> = KVec::new();
        let mut next = Some(parent);
        while let Some(parent) = next {
            let (above, name) = match levels.last() {
                Some(level) => (&level.file, level.parser.name),
                None => (child, parser.name),
            };
            if levels.len() >= MAX_LAYERS.saturating_sub(1) {
                self.opening.log(name, fmt!("more than {MAX_LAYERS} files"));
                return Err(EMLINK);
            }
            let level = self.open_named((above, name), &*parent, Role::Parent)?;
            drop(parent);
            if level.is_recognised {
                self.allowed = self.opening.device.instance().params().parents();
            }
            self.add(&level.file)?;
            levels.push(level, GFP_KERNEL)?;
            // Not before the level is where its parser stays loaded.
            next = match levels.last_mut() {
                Some(level) => self.descend(level)?,
                None => None,
            };
        }
        self.stack(levels, parser.name)
    }

    /// Opens the files that the data of a level lie in. Returns what it says of the one below.
    fn descend(&mut self, level: &mut Level) -> Result<Option<KBox<dyn Parent>>> {
        if let Some(data) = level.attached.data.take() {
            let above = (&*level.file, level.parser.name);
            level.data = Some(self.open_data(above, &*data, Use::Parent)?);
        }
        let parent = level.attached.parent.take();
        if let Some(extents) = level.attached.extents.take() {
            level.parts = self.open_extents(&List {
                extents: &*extents,
                above: (&*level.file, level.parser.name),
                has_parent: parent.is_some(),
                size: level.attached.disk.size,
                purpose: Use::Parent,
            })?;
        }
        Ok(parent)
    }

    /// Opens the file that the data of the image in a file lie in.
    #[inline(never)]
    fn open_data(
        &mut self,
        (file, by): Above<'_>,
        data: &dyn Parent,
        purpose: Use,
    ) -> Result<ImageUser> {
        let writable = matches!(purpose, Use::Data(_));
        let role = Role::Data { writable };
        let level = self.open_named((file, by), data, role)?;
        self.keys.push(level.file.inode_key(), GFP_KERNEL)?;
        self.use_level(level, KVec::new(), purpose, Choice::none(), (by, role))
    }

    /// Opens a file that another one names, and its parser.
    #[inline(never)]
    pub(super) fn open_named(
        &self,
        (child, by): Above<'_>,
        named: &dyn Parent,
        role: Role,
    ) -> Result<Level> {
        let names = Names {
            opening: self.opening,
            child,
            by,
            named,
            role,
            folder: Path::folder_of(child),
            opener: Credentials::of_opener(child),
            owners: &self.owners,
            allowed: self.allowed,
        };
        names.open(&self.keys)
    }

    /// Makes images of the levels, from the last one up.
    #[inline(never)]
    fn stack(&self, levels: KVec<Level>, name: &CStr) -> Result<KVec<ImageUser>> {
        let mut levels = levels;
        let mut below = KVec::new();
        while let Some(level) = levels.pop() {
            let by = (name, Role::Parent);
            let user = self.use_level(level, below, Use::Parent, Choice::none(), by)?;
            below = user.chain()?;
        }
        Ok(below)
    }

    /// Makes an image of a level, on those below, nearest first. `by` is the parser of the image that
    /// names it, and what it is to that, for the log.
    // Not inlined, for the stack.
    #[inline(never)]
    pub(super) fn use_level(
        &self,
        level: Level,
        parents: KVec<ImageUser>,
        purpose: Use,
        choice: Choice,
        (by, role): (&CStr, Role),
    ) -> Result<ImageUser> {
        let Level {
            attached,
            file,
            is_recognised: _,
            data,
            parts,
            parser,
        } = level;
        let wanted = Wanted {
            key: file.inode_key(),
            parser: parser.name,
            choice: &choice,
            purpose,
        };
        let number = self.opening.device.number();
        // Its name is needed to the end.
        let _pinned = parser.again()?;
        let others = Others {
            parents,
            data,
            parts,
        };
        let name = base_name(&file)?;
        let image = Image::new(&file, parser, &choice, attached, others, number, name)?;
        ImageUser::add(&file, image, &wanted)
            .inspect_err(|error| self.opening.log_file(by, role.name(), &file, *error))
    }
}

/// The last component of a file's path, for the log.
fn base_name(file: &BackingFile) -> Result<KVec<u8>> {
    let mut buffer = Buffer::new()?;
    let path = file.show_path(&mut buffer.bytes).unwrap_or(b"?");
    let mut name = KVec::new();
    let last = path.rsplit(|byte| *byte == b'/').next();
    name.extend_from_slice(last.unwrap_or(path), GFP_KERNEL)?;
    Ok(name)
}
