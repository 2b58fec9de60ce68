// SPDX-License-Identifier: GPL-2.0

//! What a header says while a file is open for writing.

use loop_parser::contract::{
    num::ensure_same,
    HostRange,
    Result,
    TablesMut, //
};

use super::{
    super::descriptor::ContentId,
    layout::Layout, //
};

/// Marks a file as open for writing, and as changed.
#[derive(Debug)]
pub(in super::super) struct Marker {
    /// Where the header says that it is open: a number of at most four bytes, 0 if it is not.
    pub(in super::super) unclean: HostRange,
    /// The CID, if it is for this file to change.
    pub(in super::super) content: Option<ContentId>,
    /// Makes the next CID another one.
    pub(in super::super) random: u32,
    /// Learns the layout of a file from its header, as at attach. The flag is [`Layout::has_parent`], which
    /// not every header says.
    pub(in super::super) load: fn(&dyn TablesMut, bool) -> Result<Layout>,
}

impl Marker {
    /// Checks that the header says what `layout` does. Only the size of the disk can have become larger.
    ///
    /// # Errors
    ///
    /// As [`ensure_same`].
    // Not inlined, for the stack.
    #[inline(never)]
    pub(super) fn check_unchanged(&self, tables: &dyn TablesMut, layout: &Layout) -> Result {
        let is_same = |now: Layout| {
            let resized = Layout {
                size: layout.size,
                ..now
            };
            resized == *layout && now.size >= layout.size
        };
        ensure_same(
            (self.load)(tables, layout.has_parent).map(is_same),
            "VMDK header was changed by somebody else after it was attached",
        )
    }

    /// Whether the file is marked as open.
    pub(super) fn is_set(&self, tables: &dyn TablesMut) -> Result<bool> {
        let mut bytes = [0; 4];
        tables.load(self.unclean.offset, self.field(&mut bytes))?;
        Ok(bytes != [0; 4])
    }

    /// Marks it as open, and gives it a new CID. To be synced.
    pub(super) fn set(&mut self, tables: &mut dyn TablesMut) -> Result {
        // First what can be refused: nobody would take the mark away again.
        if let Some(content) = &mut self.content {
            content.change(tables, self.random)?;
        }
        self.store(tables, 1)
    }

    /// Marks it as closed.
    pub(super) fn clear(&self, tables: &mut dyn TablesMut) -> Result {
        self.store(tables, 0)
    }

    fn store(&self, tables: &mut dyn TablesMut, value: u32) -> Result {
        let mut bytes = value.to_le_bytes();
        tables.store(self.unclean.offset, self.field(&mut bytes))
    }

    fn field<'a>(&self, bytes: &'a mut [u8; 4]) -> &'a mut [u8] {
        let len = usize::try_from(self.unclean.len).unwrap_or(0);
        bytes.get_mut(..len).unwrap_or_default()
    }
}
