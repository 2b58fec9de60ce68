// SPDX-License-Identifier: GPL-2.0

//! What an image says of the file below it.

use super::{
    Disk,
    Result,
    Tables, //
};

/// The parent of a differencing image, as recorded in the image. Names are all that this gives;
/// whether they may be followed is for the driver to decide.
pub trait Parent {
    /// The parser that is to serve the parent. `None` if the image does not say: then the driver
    /// looks what the file is, as it does with a device's own, and trusts what that names no more than
    /// that of any file which was recognised.
    fn parser(&self) -> Option<&'static str>;

    /// Writes the `index`th of the recorded names into `buf` and returns its length in bytes: a
    /// path with slashes, relative to the folder of the image unless it begins with one. The most
    /// trustworthy name comes first. `None` behind the last.
    ///
    /// # Errors
    ///
    /// [`Malformed`](super::Error::Malformed): this one is no name, or does not fit; others may.
    fn name(&self, tables: &dyn Tables, index: usize, buf: &mut [u8]) -> Result<Option<usize>>;

    /// Whether `parent`, an image that was attached under one of the names, is the one that was
    /// meant.
    ///
    /// # Errors
    ///
    /// [`Malformed`](super::Error::Malformed): says what gives it away.
    fn check(&self, parent: &Disk) -> Result;
}
