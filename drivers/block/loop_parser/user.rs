// SPDX-License-Identifier: GPL-2.0

//! Those who use an image: devices, and the images above it.

use kernel::{
    prelude::*,
    sync::{
        atomic::ordering::{
            Acquire,
            Full, //
        },
        Arc, //
    }, //
};

use crate::{
    image::{
        Image,
        Layer, //
    },
    images::{
        ImageList,
        Use,
        Wanted, //
    },
    reclaim,
    sys::{
        file::BackingFile,
        globals::IMAGES,
        work::{
            in_worker,
            WorkerContext, //
        }, //
    }, //
};

/// One use of an image. Dropping it is the detach: the last writer's makes everything durable. May
/// sleep.
pub(crate) struct ImageUser {
    image: Arc<Image>,
    file: Arc<BackingFile>,
    purpose: Use,
    direct: bool,
}

impl ImageUser {
    /// Joins those who have the image attached already. `None` if nobody has, or if it names other
    /// files: then the caller has to show that it may have those, too.
    ///
    /// # Errors
    ///
    /// As [`ImageList::find`].
    pub(crate) fn join(file: &Arc<BackingFile>, wanted: &Wanted<'_>) -> Result<Option<Self>> {
        let mut list = IMAGES.lock();
        let found = list.find(wanted)?;
        let Some(image) = found.filter(|image| !image.has_others()) else {
            return Ok(None);
        };
        Ok(Some(Self::listed(&mut list, image, file, wanted.purpose)))
    }

    /// The first use of an image, or one more if somebody has attached the same in the meantime.
    ///
    /// # Errors
    ///
    /// As for [`ImageUser::join`]; `EBUSY` also if it is in use with other files than these, or only
    /// reads the one with its data.
    pub(crate) fn add(
        file: &Arc<BackingFile>,
        image: Arc<Image>,
        wanted: &Wanted<'_>,
    ) -> Result<Self> {
        // What is dropped has users of its own, who leave the list.
        let unlocked;
        // The list is locked by those who make room for writes: not to wait for these to get memory.
        let _context = WorkerContext::enter();
        let mut list = IMAGES.lock();
        let found = list.find(wanted)?;
        {
            let used = found.as_ref().unwrap_or(&image);
            // Files with its data, while nobody wrote them, may have become layers of others.
            let mut data_files = used.data_files();
            let is_below = |data: &Self| list.is_parent(&data.image);
            let is_busy = wanted.purpose == Use::Write && data_files.any(is_below);
            if is_busy || !used.can_stand_for(&image) {
                return Err(EBUSY);
            }
        }
        let image = match found {
            Some(found) => {
                unlocked = Some(image);
                found
            }
            None => {
                unlocked = None;
                list.add(&image, file)?;
                image
            }
        };
        let user = Self::listed(&mut list, image, file, wanted.purpose);
        drop(list);
        drop(unlocked);
        Ok(user)
    }

    /// A user of an image in the list.
    fn listed(
        list: &mut ImageList,
        image: Arc<Image>,
        file: &Arc<BackingFile>,
        purpose: Use,
    ) -> Self {
        if purpose.writes() && !list.is_written(&image) {
            image.forget_errors(file);
        }
        list.join(&image, purpose);
        Self::new(image, file, purpose)
    }

    /// The image of a device that is about to get a child of it, as the child's parent.
    ///
    /// # Errors
    ///
    /// `EBUSY` if others write to it, too.
    pub(crate) fn as_parent(&self) -> Result<Self> {
        let mut list = IMAGES.lock();
        if list.writers(&self.image) > u32::from(self.purpose == Use::Write) {
            return Err(EBUSY);
        }
        list.join(&self.image, Use::Parent);
        drop(list);
        Ok(Self::new(self.image.clone(), &self.file, Use::Parent))
    }

    /// A parent, and the layers below it, as those of one more child.
    pub(crate) fn chain(self) -> Result<KVec<Self>> {
        let parents = self.image.parents();
        let mut chain = KVec::with_capacity(parents.len().saturating_add(1), GFP_KERNEL)?;
        let image = self.image.clone();
        chain.push(self, GFP_KERNEL)?;
        for parent in image.parents() {
            chain.push(parent.again(), GFP_KERNEL)?;
        }
        Ok(chain)
    }

    /// One more use of the same kind.
    pub(crate) fn again(&self) -> Self {
        IMAGES.lock().join(&self.image, self.purpose);
        Self::new(self.image.clone(), &self.file, self.purpose)
    }

    fn new(image: Arc<Image>, file: &Arc<BackingFile>, purpose: Use) -> Self {
        Self {
            image,
            file: file.clone(),
            purpose,
            direct: false,
        }
    }

    /// The image.
    pub(crate) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Its file.
    pub(crate) fn file(&self) -> &Arc<BackingFile> {
        &self.file
    }

    /// The image and its file.
    pub(crate) fn layer(&self) -> Layer<'_> {
        Layer::new(&self.image, &self.file)
    }

    /// Whether it writes to the file.
    pub(crate) fn is_writer(&self) -> bool {
        self.purpose.writes()
    }

    /// Whether direct I/O can be used: on an image with tables only by a device that has it to
    /// itself, as the buffered writes of others in flight could share pages with direct ones; and only
    /// in the image's own file.
    pub(crate) fn may_go_direct(&self) -> bool {
        let is_alone = || self.image.users.load(Acquire) == 1;
        let is_whole = self.image.data_file().is_none() && !self.image.has_parts();
        self.image.is_raw() || (is_alone() && is_whole)
    }

    /// Counts the device among those that write directly, or not. `false`: it may not, as another
    /// device has come in the meantime.
    pub(crate) fn set_direct(&mut self, direct: bool) -> bool {
        if direct == self.direct {
            return true;
        }
        if !direct {
            self.image.direct_devices.fetch_sub(1, Full);
            self.direct = false;
            return true;
        }
        // Counted first: whoever comes after the look at `users` sees the count.
        self.image.direct_devices.fetch_add(1, Full);
        self.direct = self.may_go_direct();
        if !self.direct {
            self.image.direct_devices.fetch_sub(1, Full);
        }
        self.direct
    }

    /// Makes everything written to the image durable: see [`Image::sync`]. As a worker, so that it does
    /// not fail because the caller is being killed.
    pub(crate) fn sync(&self) -> Result {
        in_worker(|| self.image.sync(&self.file))
    }

    /// Gives back what was reserved for writes and makes everything durable, while nobody writes. A child
    /// may be on the image already: to get memory must not mean to wait for writes to that.
    pub(crate) fn finish(&self) -> Result {
        in_worker(|| {
            self.give_back();
            self.image
                .finish(&mut self.image.allocation.lock(), &self.file)
        })
    }

    /// Gives space back that lost its pointer. What fails is in the log, and leaks.
    fn give_back(&self) {
        let layer = self.layer();
        for part in self.image.parts().users().filter(|part| part.is_writer()) {
            part.give_back();
        }
        if !self.image.is_raw() && !self.image.is_poisoned() {
            let _ = reclaim::give_back_all(layer);
        }
    }

    /// The end of a writer. The last one finishes the image, still counted as a writer, so that
    /// nobody else writes the file through another parser meanwhile, and with the image locked, so
    /// that one who joins now waits.
    fn leave_writers(&self) {
        // Before the image is locked: see `reclaim.rs`. If others still write, it is no loss.
        self.give_back();
        let mut allocation = self.image.allocation.lock();
        // Before the others are counted: who joins later begins anew, when this is done.
        self.image.begin_again();
        if IMAGES.lock().writers(&self.image) == 1 && !self.image.is_raw() {
            // The outcome is in the log, and there is nobody to tell.
            let _ = self.image.finish(&mut allocation, &self.file);
        }
        IMAGES.lock().leave_writing(&self.image);
    }
}

impl Drop for ImageUser {
    fn drop(&mut self) {
        self.set_direct(false);
        let mut purpose = self.purpose;
        if purpose == Use::Write {
            // There is no error to return.
            let _ = in_worker(|| {
                self.leave_writers();
                Ok(())
            });
            purpose = Use::Read;
        }
        IMAGES.lock().leave(&self.image, &self.file, purpose);
    }
}
