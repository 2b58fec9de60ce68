// SPDX-License-Identifier: GPL-2.0

//! Recognising a VMDK.

use loop_parser::contract::{
    is_vmdk_text,
    Probe,
    Result,
    Tables,
    Verdict, //
};

/// What a file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Magic {
    /// A hosted sparse extent ("KDMV"), compressed or not.
    Sparse,
    /// A sparse extent of old ESX servers ("COWD").
    Cowd,
    /// A space efficient sparse extent of ESXi (`0xcafebabe`, eight bytes).
    SeSparse,
    /// A descriptor in a file of its own.
    Text,
}

impl Magic {
    /// `None` if the file is of another format.
    fn of(head: &[u8]) -> Option<Self> {
        const BINARY: [(&[u8], Magic); 3] = [
            (b"KDMV", Magic::Sparse),
            (b"COWD", Magic::Cowd),
            (b"\xbe\xba\xfe\xca\0\0\0\0", Magic::SeSparse),
        ];
        let binary = BINARY.iter().find(|(magic, _)| head.starts_with(magic));
        match binary {
            Some((_, magic)) => Some(*magic),
            None => is_vmdk_text(head).then_some(Magic::Text),
        }
    }
}

/// Answers whether a file is a VMDK.
pub fn probe(probe: &Probe<'_>) -> Verdict {
    match Magic::of(probe.head) {
        Some(_) => Verdict::Mine,
        None => Verdict::NotMine,
    }
}

/// What the file begins with; `None` if it is of another format.
// Not inlined, for the stack.
#[inline(never)]
pub(super) fn magic(tables: &dyn Tables) -> Result<Option<Magic>> {
    let mut head = [0; Probe::HEAD];
    let size = usize::try_from(tables.size()?).unwrap_or(usize::MAX);
    let Some(head) = head.get_mut(..size.min(Probe::HEAD)) else {
        return Ok(None);
    };
    tables.load(0, head)?;
    Ok(Magic::of(head))
}
