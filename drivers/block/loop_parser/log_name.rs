// SPDX-License-Identifier: GPL-2.0

//! Names of files in log lines.

use kernel::{
    fmt,
    prelude::*,
    str::BStr, //
};

/// Most characters of a name in a line. What does not fit into a kibibyte, printk cuts off: the reason,
/// which comes behind the name, and the newline, without which nobody sees the line until the next one.
const MOST: usize = 512;

/// A name or a path. Of a long one the end is shown: there a path has the name of the file.
pub(crate) struct LogName<'a>(pub(crate) &'a [u8]);

impl fmt::Display for LogName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut room = MOST;
        let fits = |byte: &&u8| match room.checked_sub(width(**byte)) {
            Some(left) => {
                room = left;
                true
            }
            None => false,
        };
        let len = self.0.iter().rev().take_while(fits).count();
        let cut = self.0.len().saturating_sub(len);
        if cut > 0 {
            f.write_str("...")?;
        }
        let end = BStr::from_bytes(self.0.get(cut..).unwrap_or_default());
        f.write_fmt(fmt!("{end}"))
    }
}

/// How many characters a byte takes in a line, at most.
fn width(byte: u8) -> usize {
    match byte {
        b' '..=b'~' => 1,
        _ => "\\x00".len(),
    }
}
