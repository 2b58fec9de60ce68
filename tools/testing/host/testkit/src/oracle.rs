// SPDX-License-Identifier: GPL-2.0

//! What the sectors of a disk may contain, by what its guest has done.

use std::rc::Rc;

use crate::store::{Sector, SECTOR};

/// What a guest did, for marks in a trace. The first number is that of the first sector.
#[derive(Clone, Debug)]
pub enum Event {
    /// A write begins: from now on the sectors may have these contents.
    Begin(u64, Vec<Sector>),
    /// The write has succeeded: from now on the sectors read so.
    Done(u64, Vec<Sector>),
    /// A flush has succeeded: what was done is durable.
    Flushed,
}

/// What a sector may contain.
struct Contents {
    /// After a crash.
    durable: Vec<Sector>,
    /// Without one.
    live: Vec<Sector>,
}

/// What every sector may contain.
pub struct Oracle(Vec<Contents>);

impl Oracle {
    /// Begins with what a disk contains durably.
    pub fn new(disk: &[u8]) -> Self {
        let contents = disk.chunks_exact(SECTOR as usize).map(|bytes| {
            let sector: Sector = Rc::new(bytes.try_into().unwrap());
            Contents {
                durable: vec![sector.clone()],
                live: vec![sector],
            }
        });
        Self(contents.collect())
    }

    /// Applies what happened next.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Begin(first, sectors) => self.each(*first, sectors, |contents, sector| {
                contents.durable.push(sector.clone());
                contents.live.push(sector.clone());
            }),
            Event::Done(first, sectors) => self.each(*first, sectors, |contents, sector| {
                contents.live = vec![sector.clone()];
            }),
            Event::Flushed => {
                for contents in &mut self.0 {
                    contents.durable = contents.live.clone();
                }
            }
        }
    }

    fn each(&mut self, first: u64, sectors: &[Sector], change: impl Fn(&mut Contents, &Sector)) {
        let known = &mut self.0[first as usize..][..sectors.len()];
        for (contents, sector) in known.iter_mut().zip(sectors) {
            change(contents, sector);
        }
    }

    /// What is wrong with what a crash has left of the disk, if anything is.
    pub fn complaint(&self, disk: &[u8]) -> Option<String> {
        if disk.len() as u64 != self.0.len() as u64 * SECTOR {
            return Some(format!(
                "{} bytes, not {} sectors",
                disk.len(),
                self.0.len()
            ));
        }
        let mut sectors = disk.chunks_exact(SECTOR as usize).zip(&self.0).enumerate();
        sectors.find_map(|(number, (bytes, Contents { durable, .. }))| {
            let is_one = durable.iter().any(|sector| sector[..] == *bytes);
            (!is_one).then(|| {
                let (start, count) = (&bytes[..8], durable.len());
                format!("sector {number} is {start:02x?}, not one of {count}")
            })
        })
    }

    /// Fails if something is wrong with it.
    #[track_caller]
    pub fn check(&self, disk: &[u8], what: &str) {
        if let Some(complaint) = self.complaint(disk) {
            panic!("{what}: {complaint}");
        }
    }
}
