// SPDX-License-Identifier: GPL-2.0

//! The files that a disk is in.

use std::{io, path::Path};

use testkit::store::Store;

use crate::disk;

/// An image, and the files that it is put together from.
pub struct Files {
    /// What is attached.
    pub image: Store,
    /// The others, with the names by which the image knows them.
    pub parts: Vec<(String, Store)>,
}

impl Files {
    /// Saves the image as `name`, in a folder with the others.
    pub fn save(&self, folder: &Path, name: &str) -> io::Result<()> {
        let parts = self.parts.iter().map(|(name, store)| (&name[..], store));
        for (name, store) in parts.chain([(name, &self.image)]) {
            disk::save(store.sectors(), store.len(), &folder.join(name))?;
        }
        Ok(())
    }
}

impl From<Store> for Files {
    fn from(image: Store) -> Self {
        let parts = Vec::new();
        Self { image, parts }
    }
}
