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
    names::Names,
    Opening, //
};

/// A file below the image that is opened.
pub(super) struct Level {
    pub(super) attached: Attached,
    pub(super) file: Arc<BackingFile>,
    /// Nobody has said what serves it.
    pub(super) is_recognised: bool,
    // Last: what is attached is code and data of the parser's module.
    pub(super) parser: BoundParser,
}

/// A file, and the name of its parser.
type Above<'a> = (&'a BackingFile, &'static CStr);

impl Opening<'_> {
    /// Opens all layers below an image, nearest first. `parser` is its own.
    // Not inlined, for the stack: and so below.
    #[inline(never)]
    pub(super) fn open_parents(
        &self,
        file: &Arc<BackingFile>,
        parser: &BoundParser,
        parent: KBox<dyn Parent>,
    ) -> Result<KVec<ImageUser>> {
        Descent::new(self, file)?.open_parents(file, parser, parent)
    }
}

/// The way from an image down through the files that it is made of.
struct Descent<'a> {
    opening: &'a Opening<'a>,
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
            let level = self.open_named((above, name), &*parent)?;
            drop(parent);
            if level.is_recognised {
                self.allowed = self.opening.device.instance().params().parents();
            }
            self.add(&level.file)?;
            levels.push(level, GFP_KERNEL)?;
            // Not before the level is where its parser stays loaded.
            next = levels
                .last_mut()
                .and_then(|level| level.attached.parent.take());
        }
        self.stack(levels, parser.name)
    }

    /// Opens a file that another one names, and its parser.
    #[inline(never)]
    fn open_named(&self, (child, by): Above<'_>, named: &dyn Parent) -> Result<Level> {
        let names = Names {
            opening: self.opening,
            child,
            by,
            named,
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
            let user = self.use_level(level, below, name)?;
            below = user.chain()?;
        }
        Ok(below)
    }
    /// Makes an image of a level, on those below, nearest first. `by` is the parser of the device's own
    /// image, for the log.
    // Not inlined, for the stack.
    #[inline(never)]
    fn use_level(
        &self,
        level: Level,
        parents: KVec<ImageUser>,
        by: &CStr,
    ) -> Result<ImageUser> {
        let Level {
            attached,
            file,
            is_recognised: _,
            parser,
        } = level;
        let choice = Choice::none();
        let wanted = Wanted {
            key: file.inode_key(),
            parser: parser.name,
            options: choice.options(),
            purpose: Use::Parent,
        };
        let number = self.opening.device.number();
        // Its name is needed to the end.
        let _pinned = parser.again()?;
        let image = Image::new(&file, parser, &choice, attached, parents, number)?;
        ImageUser::add(&file, image, &wanted)
            .inspect_err(|error| self.opening.log_file(by, &file, *error))
    }
}
