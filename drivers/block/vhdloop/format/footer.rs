// SPDX-License-Identifier: GPL-2.0

//! The footer and its copy: which of them is to be believed, and keeping both good.
//!
//! A fixed image has one footer, in its last 512 bytes (511 in files of Virtual PC before 2004). A
//! dynamic or differencing one has a copy of it at offset 0 besides. A good copy at 0 wins over one at
//! the end: a file whose extension was cut short may end in guest data that looks like a footer.

use loop_parser::contract::{
    Error,
    Fault,
    Identity,
    Result,
    State,
    Tables,
    TablesMut, //
};
use zerocopy::FromBytes;

use super::{
    checksum,
    num::{
        self,
        add, //
    },
    ondisk::*, //
};

/// Kinds of disk that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

/// A footer that was checked.
///
/// # Invariants
///
/// Cookie, version, type and checksum are right, and the creator is not tapdisk 0.1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footer {
    pub(super) kind: Kind,
    /// Four bytes, compared as such: `vpc\0` is not `vpc `.
    pub(super) creator: [u8; 4],
    pub(super) creator_version: u32,
    /// Offset of the dynamic header. Not checked.
    pub(super) data_offset: u64,
    /// Bytes. Not checked.
    pub(super) current_size: u64,
    /// Size in bytes that the geometry gives. Not checked.
    pub(super) chs_size: u64,
    /// By which a child recognises this image.
    pub(super) unique_id: Identity,
}

/// A place in the file where a footer may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Host offset in bytes.
    pub(super) at: u64,
    /// 512, or 511 for the footer of Virtual PC before 2004.
    pub(super) len: u64,
}

impl Place {
    /// The copy at the start of a dynamic image.
    pub(super) const FRONT: Self = Self {
        at: 0,
        len: FOOTER_LEN,
    };

    /// The footer at the end of a file of `size` bytes. A 511-byte one only if that makes it begin
    /// at a sector.
    pub(super) fn end(size: u64) -> Option<Self> {
        let len = if size % FOOTER_LEN == SHORT_FOOTER_LEN {
            SHORT_FOOTER_LEN
        } else {
            FOOTER_LEN
        };
        let at = size.checked_sub(len)?;
        Some(Self { at, len })
    }

    /// Host offset of the field at `offset` in the footer, for a fault.
    fn field(&self, offset: u64) -> u64 {
        self.at.saturating_add(offset)
    }
}

/// Bytes that may be a footer.
pub(super) struct Candidate {
    place: Place,
    fields: FooterFields,
    /// Sum of all bytes of the footer.
    sum: u32,
}

impl Candidate {
    /// Looks at `place`.
    #[inline(never)]
    pub(super) fn load<T: Tables + ?Sized>(tables: &T, place: Place) -> Result<Self> {
        Ok(Self {
            place,
            fields: num::load(tables, place.at)?,
            sum: checksum::sum_at(tables, place.at, place.len)?,
        })
    }

    /// Looks at bytes that were read from `place`.
    pub(super) fn from_bytes(place: Place, bytes: &[u8]) -> Option<Self> {
        let (fields, _) = FooterFields::read_from_prefix(bytes).ok()?;
        Some(Self {
            place,
            fields,
            sum: checksum::sum(bytes),
        })
    }

    /// Whether the cookie says VHD.
    pub(super) fn has_cookie(&self) -> bool {
        self.fields.cookie == FOOTER_COOKIE
    }

    /// Whether the cookie says that tapdisk is at work.
    pub(super) fn is_poisoned(&self) -> bool {
        self.fields.cookie == POISON_COOKIE
    }

    fn has_checksum(&self) -> bool {
        let stored = self.fields.checksum.get();
        checksum::matches(self.sum, stored)
            || (self.hidden_is_not_summed()
                && checksum::matches(self.sum.wrapping_sub(u32::from(self.fields.hidden)), stored))
    }

    /// Early tapdisk tools set `hidden` without computing the checksum anew.
    fn hidden_is_not_summed(&self) -> bool {
        self.fields.creator_app == CREATOR_TAPDISK
            && self.fields.creator_version.get() == TAPDISK_1_1
            && self.fields.hidden != 0
    }

    /// Cookie and checksum are right: these bytes were written as a footer. Whether it can be
    /// served is another question.
    pub(super) fn is_intact(&self) -> bool {
        self.has_cookie() && self.has_checksum()
    }

    /// The type is one that has a copy of the footer at 0.
    fn has_front_copy(&self) -> bool {
        matches!(
            self.fields.disk_type.get(),
            TYPE_DYNAMIC | TYPE_DIFFERENCING
        )
    }

    /// Whether this is a good footer of an image with a BAT.
    pub(super) fn is_good_copy(&self) -> bool {
        matches!(self.check(), Ok(footer) if footer.kind != Kind::Fixed)
    }

    /// Whether the rest looks like a footer, whatever cookie and checksum say. `size` is that of
    /// the file.
    pub(super) fn is_plausible(&self, size: u64) -> bool {
        let fields = &self.fields;
        let data_offset = fields.data_offset.get();
        let type_fits = match fields.disk_type.get() {
            TYPE_FIXED => {
                matches!(data_offset, NO_DATA_OFFSET | NO_DATA_OFFSET_32) && self.fits_in_front()
            }
            TYPE_DYNAMIC | TYPE_DIFFERENCING => {
                data_offset >= FOOTER_LEN
                    && matches!(data_offset.checked_add(HEADER_LEN), Some(end) if end <= size)
            }
            _ => false,
        };
        type_fits && fields.version.get() == VERSION_1_0 && fields.current_size.get() != 0
    }

    /// Whether a fixed disk's data fits in front of the footer; true for other types.
    pub(super) fn fits_in_front(&self) -> bool {
        self.fields.disk_type.get() != TYPE_FIXED || self.fields.current_size.get() <= self.place.at
    }

    /// Checks the footer: cookie, version, type, checksum.
    pub(super) fn check(&self) -> Result<Footer> {
        let fields = &self.fields;
        let place = &self.place;

        if self.is_poisoned() {
            return Err(Error::unsupported(
                "VHD disabled by tapdisk (cookie v_poison): finish its journal first",
                place.at,
            ));
        }
        if !self.has_cookie() {
            return Err(Error::malformed("no VHD footer", place.at));
        }
        if fields.version.get() != VERSION_1_0 {
            return Err(Error::unsupported(
                "VHD footer version is not 1.0",
                place.field(FOOTER_VERSION),
            ));
        }
        let kind = self.kind()?;
        if !self.has_checksum() {
            return Err(Error::malformed(
                "VHD footer checksum is wrong",
                place.field(FOOTER_CHECKSUM),
            ));
        }
        self.refuse_old_tapdisk()?;

        // INVARIANT: all of it was just checked.
        Ok(Footer {
            kind,
            creator: fields.creator_app,
            creator_version: fields.creator_version.get(),
            data_offset: fields.data_offset.get(),
            current_size: fields.current_size.get(),
            chs_size: self.chs_size(),
            unique_id: Identity(fields.unique_id),
        })
    }

    fn kind(&self) -> Result<Kind> {
        let at = self.place.field(FOOTER_DISK_TYPE);
        match self.fields.disk_type.get() {
            TYPE_FIXED => Ok(Kind::Fixed),
            TYPE_DYNAMIC => Ok(Kind::Dynamic),
            TYPE_DIFFERENCING => Ok(Kind::Differencing),
            _ => Err(Error::unsupported("unknown VHD disk type", at)),
        }
    }

    fn refuse_old_tapdisk(&self) -> Result {
        let fields = &self.fields;
        if fields.creator_app == CREATOR_TAPDISK && fields.creator_version.get() == TAPDISK_0_1 {
            return Err(Error::unsupported(
                "VHD of tapdisk 0.1 (little-endian bitmaps)",
                self.place.field(FOOTER_CREATOR_VERSION),
            ));
        }
        Ok(())
    }

    /// Size in bytes according to the geometry.
    fn chs_size(&self) -> u64 {
        // Less than 2^41: nothing saturates.
        u64::from(self.fields.cylinders.get())
            .saturating_mul(u64::from(self.fields.heads))
            .saturating_mul(u64::from(self.fields.sectors))
            .saturating_mul(FOOTER_LEN)
    }
}

/// The footer to believe.
pub(super) struct Chosen {
    pub(super) footer: Footer,
    /// Where it lies.
    pub(super) place: Place,
    /// Where the footer at the end lies, if that one is intact. Nothing else may lie there.
    pub(super) end: Option<Place>,
    /// What is wrong with the other copy.
    pub(super) damage: Option<Damage>,
}

/// What is wrong with one of two footers.
#[derive(Clone, Copy)]
pub(super) struct Damage {
    /// For the kernel log.
    pub(super) fault: Fault,
    /// What it says of the image.
    pub(super) state: State,
}

/// Finds the footer of a file of `size` bytes.
#[inline(never)]
pub(super) fn choose<T: Tables + ?Sized>(tables: &T, size: u64) -> Result<Chosen> {
    let Some(end_place) = Place::end(size) else {
        return Err(Error::malformed("file is too small for a VHD", 0));
    };
    let end = Candidate::load(tables, end_place)?;
    if size < FOOTER_LEN {
        return choose_end(&end, None);
    }
    let front = Candidate::load(tables, Place::FRONT)?;
    // A fixed footer at 0 is a guest's: the first sector of a fixed image that holds another.
    if front.is_intact() && front.has_front_copy() {
        return Ok(Chosen {
            footer: front.check()?,
            place: Place::FRONT,
            end: end.is_intact().then_some(end_place),
            damage: end_damage(&end),
        });
    }
    choose_end(&end, Some(&front))
}

fn choose_end(end: &Candidate, front: Option<&Candidate>) -> Result<Chosen> {
    if !end.is_intact() {
        return Err(blame(end, front));
    }
    let footer = end.check()?;
    let damage = match (footer.kind, front) {
        (Kind::Fixed, _) => None,
        (_, Some(front)) if front.is_poisoned() => {
            front.check()?;
            None
        }
        _ => Some(Damage {
            fault: Fault::new("VHD footer copy at 0 is damaged", 0),
            state: State::Recovered,
        }),
    };
    Ok(Chosen {
        footer,
        place: end.place,
        end: Some(end.place),
        damage,
    })
}

/// The error for a file without an intact footer: about the copy at 0 if there ever was one.
fn blame(end: &Candidate, front: Option<&Candidate>) -> Error {
    let first = match front {
        Some(front) if front.has_cookie() || front.is_poisoned() => front,
        _ => end,
    };
    match first.check() {
        Err(error) => error,
        Ok(_) => Error::malformed("fixed VHD without a footer at its end", end.place.at),
    }
}

/// What is wrong with the footer at the end of a dynamic image.
fn end_damage(end: &Candidate) -> Option<Damage> {
    if end.is_intact() {
        return None;
    }
    let (what, state) = if end.fields.cookie == [TAPDISK_FILL; 8] {
        let what = "VHD footer filled by tapdisk: open elsewhere, or not closed";
        (what, State::Dirty)
    } else {
        let what = "VHD footer at the end of the file is missing or damaged";
        (what, State::Recovered)
    };
    Some(Damage {
        fault: Fault::new(what, end.place.at),
        state,
    })
}

/// Copies a good footer of an image with a BAT from one place to another, byte for byte. A short one
/// gets back its last, zero byte.
///
/// # Errors
///
/// [`Error::Malformed`] if the footer at `from` is not good (any more).
// Not inlined: `reserve`, at the end of all this, would need too much stack.
#[inline(never)]
pub(super) fn copy<T: TablesMut + ?Sized>(tables: &mut T, from: Place, to: u64) -> Result {
    if !Candidate::load(tables, from)?.is_good_copy() {
        return Err(Error::malformed("no good VHD footer is left", from.at));
    }
    tables.copy_sector(from.at, from.len, to)
}

/// Makes the footer copy at 0 good and durable, from the footer at the end if need be.
pub(super) fn repair_front<T: TablesMut + ?Sized>(tables: &mut T, size: u64) -> Result {
    if Candidate::load(tables, Place::FRONT)?.is_good_copy() {
        return Ok(());
    }
    let Some(end) = Place::end(size) else {
        return Err(Error::malformed("file is too small for a VHD", 0));
    };
    // The one at the end stays as it is until this one is durable.
    copy(tables, end, Place::FRONT.at)?;
    tables.sync()
}

/// Makes the footer at host offset `at` equal to the good copy at 0, durably.
pub(super) fn repair_end<T: TablesMut + ?Sized>(tables: &mut T, at: u64) -> Result {
    if same_as_front(tables, at)? {
        return Ok(());
    }
    copy(tables, Place::FRONT, at)?;
    tables.sync()
}

/// Whether the 512 bytes at `at` are those at 0.
fn same_as_front<T: Tables + ?Sized>(tables: &T, at: u64) -> Result<bool> {
    const PIECE: u64 = 64;
    let mut ours = [0; 64];
    let mut front = [0; 64];

    for piece in 0..FOOTER_LEN / PIECE {
        let offset = piece.saturating_mul(PIECE);
        tables.load(offset, &mut front)?;
        tables.load(add(at, offset, at)?, &mut ours)?;
        if front != ours {
            return Ok(false);
        }
    }
    Ok(true)
}
