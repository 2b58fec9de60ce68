// SPDX-License-Identifier: GPL-2.0

//! What the driver is told of an attached disk.

/// What tells an image from others of its format: the unique id of a VHD, the CID of a VMDK. All
/// zero where the format has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity(pub [u8; 16]);

/// In what state an image was found; the last is the worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing is wrong with it.
    #[default]
    Clean,
    /// A part that was damaged is served from its copy, or as far as it is there.
    Recovered,
    /// It was not closed: it is open elsewhere, or its writer was interrupted.
    Dirty,
}

/// What an image can do besides being read and written. What it lacks, its device does not
/// advertise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// [`Allocate::discard`](super::Allocate::discard) can be called for discards.
    pub discard: bool,
    /// It can be called for write-zeroes, too: it leaves zeros and nothing else.
    pub write_zeroes: bool,
    /// [`Allocate::reclaim`](super::Allocate::reclaim) can make space free for
    /// [`Allocate::reserve`](super::Allocate::reserve): the driver keeps track of requests in flight, and
    /// waits for those that may have resolved to it. Without this it does not wait, and space that was
    /// given back must not be handed out again while the image is attached.
    pub reuses_space: bool,
}

/// What the driver has to know about an attached disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Size of the virtual disk in bytes, a multiple of 512.
    pub size: u64,
    /// Sub-format in the words of its specification ("fixed", "dynamic"), shown in sysfs.
    pub variant: &'static str,
    /// Which of several recorded sizes was believed ("chs", "current_size"), shown in sysfs; empty
    /// where the format records only one.
    pub size_source: &'static str,
    /// The program that made the image, as recorded; zeros where the format does not say.
    pub creator: [u8; 4],
    /// Bytes of guest data in an allocation unit (block, cluster, grain); 0 if there are none.
    pub unit: u64,
    /// What its children know the image by.
    pub identity: Identity,
    /// In what state it was found.
    pub state: State,
    /// What it can do.
    pub features: Features,
}
