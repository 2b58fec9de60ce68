// SPDX-License-Identifier: GPL-2.0

//! The parent of a differencing image, as the image records it.

use loop_parser::contract::{
    Disk,
    Error,
    Identity,
    Parent,
    Result,
    Tables, //
};

use super::{
    footer::Chosen,
    header::{
        locator_at,
        locator_space,
        Header, //
    },
    num::{
        self,
        add, //
    },
    ondisk::*,
    path::{
        self,
        Url, //
    },
    text::{
        Encoding,
        Text, //
    }, //
};

/// The parent of a differencing VHD.
#[derive(Clone, Copy, Debug)]
pub struct VhdParent {
    /// Host offset in bytes of the dynamic header, which has the names.
    header: u64,
    /// Zero for a raw disk.
    id: Identity,
}

/// The id that XenServer gives a raw disk.
const RAW: Identity = Identity([0; 16]);

/// Where a name is recorded, and what can be made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A path of Windows in a locator with this code.
    Windows(u32, Encoding),
    /// A file URL, as seen from the image's folder.
    Url,
    /// The parent's name in the dynamic header.
    Header,
    /// A file URL that is absolute.
    AbsoluteUrl,
}

/// The forms, those that are best to trust first. A path of Windows that does not begin at the
/// image's folder cannot be followed; what its program saw of the folder is in the others.
const FORMS: [Form; 7] = [
    Form::Windows(CODE_W2RU, Encoding::Utf16Le),
    Form::Url,
    Form::Windows(CODE_W2KU, Encoding::Utf16Le),
    Form::Windows(CODE_WI2R, Encoding::Bytes),
    Form::Windows(CODE_WI2K, Encoding::Bytes),
    Form::Header,
    Form::AbsoluteUrl,
];

impl Form {
    /// In how many places such a name can be.
    fn places(self) -> u64 {
        match self {
            Form::Header => 1,
            _ => LOCATORS,
        }
    }
}

impl VhdParent {
    /// # Errors
    ///
    /// [`Error::Malformed`] if the image is its own parent.
    pub(super) fn new(chosen: &Chosen, header: &Header) -> Result<Self> {
        let id = header.parent_id;
        let parent = Self {
            header: header.layout.header,
            id,
        };
        if id != RAW && id == chosen.footer.unique_id {
            return Err(Error::malformed(
                "differencing VHD is its own parent",
                parent.id_at(),
            ));
        }
        Ok(parent)
    }

    /// Host offset of the parent's id.
    fn id_at(&self) -> u64 {
        self.header.saturating_add(HEADER_PARENT_ID)
    }

    fn header_name<'a>(&self, tables: &'a dyn Tables) -> Result<Text<'a>> {
        let at = add(self.header, HEADER_PARENT_NAME, self.header)?;
        Text::until_nul(tables, Encoding::Utf16Be, at, HEADER_PARENT_NAME_LEN)
    }

    fn locator(&self, tables: &dyn Tables, index: u64) -> Result<Locator> {
        num::load(tables, locator_at(self.header, index)?)
    }

    /// The name in a locator.
    fn text<'a>(
        &self,
        tables: &'a dyn Tables,
        locator: &Locator,
        encoding: Encoding,
    ) -> Result<Text<'a>> {
        let at = locator.data_offset.get();
        let len = u64::from(locator.data_length.get());
        if len > locator_space(locator) {
            return Err(Error::malformed(
                "name of VHD parent is longer than its space",
                at,
            ));
        }
        Text::new(tables, encoding, at, len)
    }

    /// Whether there is a name of this form in this place.
    fn has(&self, tables: &dyn Tables, form: Form, place: u64) -> Result<bool> {
        if form == Form::Header {
            return Ok(self.header_name(tables)?.units() > 0);
        }
        let locator = self.locator(tables, place)?;
        let code = locator.code.get();
        match form {
            Form::Windows(expected, _) => Ok(code == expected),
            Form::AbsoluteUrl if code == CODE_MACX => {
                // What is wrong with it was said when it was looked at for the first time.
                let url = self.text(tables, &locator, Encoding::Bytes);
                let url = url.and_then(|text| path::parse_url(&text));
                Ok(matches!(url, Ok(Url::Absolute(_))))
            }
            _ => Ok(code == CODE_MACX),
        }
    }

    fn write(&self, tables: &dyn Tables, form: Form, place: u64, buf: &mut [u8]) -> Result<usize> {
        if form == Form::Header {
            return path::write_windows_name(&self.header_name(tables)?, buf);
        }
        let locator = self.locator(tables, place)?;
        let text = |encoding| self.text(tables, &locator, encoding);
        match form {
            Form::Windows(_, encoding) => path::write_windows(&text(encoding)?, buf),
            Form::AbsoluteUrl => path::write_absolute_url(&text(Encoding::Bytes)?, buf),
            _ => path::write_url(&text(Encoding::Bytes)?, buf),
        }
    }
}

impl Parent for VhdParent {
    /// "raw" if the parent's id is zero, which is what XenServer records of a raw disk.
    fn parser(&self) -> Option<&'static str> {
        Some(if self.id == RAW { "raw" } else { "vhd" })
    }

    fn name(&self, tables: &dyn Tables, index: usize, buf: &mut [u8]) -> Result<Option<usize>> {
        let mut left = index;
        for form in FORMS {
            for place in 0..form.places() {
                if !self.has(tables, form, place)? {
                    continue;
                }
                match left.checked_sub(1) {
                    Some(less) => left = less,
                    None => return self.write(tables, form, place, buf).map(Some),
                }
            }
        }
        Ok(None)
    }

    /// The unique ids have to be equal; nothing is known of a raw disk.
    fn check(&self, parent: &Disk) -> Result {
        if self.id != RAW && self.id != parent.identity {
            return Err(Error::malformed(
                "VHD parent's unique id is not the one that is recorded",
                self.id_at(),
            ));
        }
        Ok(())
    }
}
