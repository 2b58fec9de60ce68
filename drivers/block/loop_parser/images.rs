// SPDX-License-Identifier: GPL-2.0

//! The list of images in use.

use kernel::{
    prelude::*,
    sync::{
        atomic::ordering::Full,
        Arc, //
    }, //
};

use crate::{
    image::Image,
    select::Choice,
    sys::{
        bindings::gfp_t,
        file::BackingFile,
        globals::IMAGES, //
    }, //
};

/// What an image is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// By a device that only reads.
    Read,
    /// By a device that reads and writes.
    Write,
    /// As a layer below another image. It must not change.
    Parent,
    /// As the file that the data of another image lie in, which is written through that one only. Has
    /// the identity of that one's inode.
    Data(usize),
}

impl Use {
    /// Whether the file may change by it.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Use::Write | Use::Data(_))
    }
}

/// Which image somebody wants to use, and how.
pub(crate) struct Wanted<'a> {
    /// Identity of its inode.
    pub(crate) key: usize,
    /// The parser's name.
    pub(crate) parser: &'a CStr,
    /// What that was chosen with.
    pub(crate) choice: &'a Choice,
    pub(crate) purpose: Use,
}

struct ListedImage {
    image: Arc<Image>,
    /// Devices that write.
    writers: u32,
    /// Images that it is a layer of.
    parents: u32,
    /// Those that write to it as to the file with their data, and which image that is of.
    owners: u32,
    owner: usize,
}

impl ListedImage {
    fn count(&mut self, purpose: Use) -> Option<&mut u32> {
        match purpose {
            Use::Read => None,
            Use::Write => Some(&mut self.writers),
            Use::Parent => Some(&mut self.parents),
            Use::Data(owner) => {
                self.owner = owner;
                Some(&mut self.owners)
            }
        }
    }
}

struct ListedInode {
    key: usize,
    images: u32,
    gfp_mask: gfp_t,
}

/// Images in use, and the inodes they are on.
pub(crate) struct ImageList {
    images: KVec<ListedImage>,
    inodes: KVec<ListedInode>,
}

impl ImageList {
    pub(crate) const fn new() -> Self {
        Self {
            images: KVec::new(),
            inodes: KVec::new(),
        }
    }

    /// Whether those who use the file already are in the way.
    fn is_taken(&self, wanted: &Wanted<'_>) -> bool {
        let mut others = self
            .images
            .iter()
            .filter(|listed| listed.image.key() == wanted.key);
        let is_same = |listed: &ListedImage| listed.image.is_by(wanted.parser, wanted.choice);
        match wanted.purpose {
            Use::Read => false,
            Use::Write => others.any(|listed| {
                listed.parents > 0 || listed.owners > 0 || (!is_same(listed) && listed.writers > 0)
            }),
            Use::Parent => others.any(|listed| {
                listed.writers > 0 || (listed.owners > 0 && self.may_be_written(listed.owner))
            }),
            Use::Data(owner) => others.any(|listed| {
                listed.writers > 0
                    || listed.parents > 0
                    || (listed.owners > 0 && (listed.owner != owner || !is_same(listed)))
            }),
        }
    }

    /// Whether there are, or are about to be, writers of the images in an inode.
    fn may_be_written(&self, key: usize) -> bool {
        let mut images = self.images.iter().filter(|it| it.image.key() == key);
        let mut is_known = false;
        let is_written = images.any(|listed| {
            is_known = true;
            listed.writers > 0
        });
        is_written || !is_known
    }

    /// Whether an image is a layer of another one.
    pub(crate) fn is_parent(&self, image: &Arc<Image>) -> bool {
        let mut images = self.images.iter();
        images.any(|listed| Arc::ptr_eq(&listed.image, image) && listed.parents > 0)
    }

    /// The image, if it is listed.
    ///
    /// # Errors
    ///
    /// `EBUSY`: others use the file in a way that excludes this one. `EROFS`: it cannot be written
    /// any more.
    pub(crate) fn find(&self, wanted: &Wanted<'_>) -> Result<Option<Arc<Image>>> {
        if self.is_taken(wanted) {
            return Err(EBUSY);
        }
        let mut images = self.images.iter();
        let found = images.find(|listed| {
            listed.image.key() == wanted.key && listed.image.is_by(wanted.parser, wanted.choice)
        });
        let Some(found) = found else {
            return Ok(None);
        };
        if !matches!(wanted.purpose, Use::Read | Use::Parent) && found.image.is_poisoned() {
            return Err(EROFS);
        }
        Ok(Some(found.image.clone()))
    }

    /// Counts one more user of a listed image.
    pub(crate) fn join(&mut self, image: &Arc<Image>, purpose: Use) {
        image.users.fetch_add(1, Full);
        if let Some(count) = self.get(image).and_then(|listed| listed.count(purpose)) {
            *count = count.saturating_add(1);
        }
    }

    /// Lists a new image, without a user.
    pub(crate) fn add(&mut self, image: &Arc<Image>, file: &BackingFile) -> Result {
        self.images.reserve(1, GFP_KERNEL)?;
        let key = image.key();
        match self.inodes.iter_mut().find(|inode| inode.key == key) {
            Some(inode) => inode.images = inode.images.saturating_add(1),
            None => {
                self.inodes.reserve(1, GFP_KERNEL)?;
                self.inodes.push(
                    ListedInode {
                        key,
                        images: 1,
                        gfp_mask: file.forbid_io_recursion(),
                    },
                    GFP_KERNEL,
                )?;
            }
        }
        self.images.push(
            ListedImage {
                image: image.clone(),
                writers: 0,
                parents: 0,
                owners: 0,
                owner: 0,
            },
            GFP_KERNEL,
        )?;
        Ok(())
    }

    fn get(&mut self, image: &Arc<Image>) -> Option<&mut ListedImage> {
        let mut images = self.images.iter_mut();
        images.find(|listed| Arc::ptr_eq(&listed.image, image))
    }

    /// Whether anybody writes to an image.
    pub(crate) fn is_written(&mut self, image: &Arc<Image>) -> bool {
        self.get(image)
            .is_some_and(|listed| listed.writers > 0 || listed.owners > 0)
    }

    /// How many devices write to an image.
    pub(crate) fn writers(&mut self, image: &Arc<Image>) -> u32 {
        self.get(image).map_or(0, |listed| listed.writers)
    }

    /// One writer less: it goes on as one who reads.
    pub(crate) fn leave_writing(&mut self, image: &Arc<Image>) {
        if let Some(listed) = self.get(image) {
            listed.writers = listed.writers.saturating_sub(1);
        }
    }

    /// One user less. The last one of an inode restores its allocation flags.
    pub(crate) fn leave(&mut self, image: &Arc<Image>, file: &BackingFile, purpose: Use) {
        let Some(listed) = self.get(image) else {
            return;
        };
        if let Some(count) = listed.count(purpose) {
            *count = count.saturating_sub(1);
        }
        if image.users.fetch_sub(1, Full) > 1 {
            return;
        }
        self.images
            .retain(|listed| !Arc::ptr_eq(&listed.image, image));
        for inode in self.inodes.iter_mut() {
            if inode.key == image.key() {
                inode.images = inode.images.saturating_sub(1);
                if inode.images == 0 {
                    file.set_gfp_mask(inode.gfp_mask);
                }
            }
        }
        self.inodes.retain(|inode| inode.images > 0);
    }
}

/// Drops what the list keeps for more images, at module exit: statics are not dropped.
pub(crate) fn forget_all() {
    *IMAGES.lock() = ImageList::new();
}
