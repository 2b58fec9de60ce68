// SPDX-License-Identifier: GPL-2.0

//! What every sector may contain, from what the guest did (`tools/testing/crash/lib/workload.py`).
//!
//! A sector may have the content that was last known to be durable, or any that was written to it
//! since. A write that lies in the future cannot be in the log: only what is too old has to be
//! told. Zeros do not say when they were written: those cannot have been that the guest wrote after
//! a flush whose mark is still to come.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::SplitWhitespace,
};

use crate::stamp::{self, Content};

/// What a completed flush promises.
#[derive(Clone, Copy, Debug)]
enum Promise {
    /// So many of the writes, in the order of their completion, are durable.
    Flush(usize),
    /// The write of this generation is.
    Fua(u64),
}

/// A sector.
#[derive(Clone, Debug, Default)]
struct Sector {
    /// It had a stamp of generation 0.
    was_stamped: bool,
    /// Generations written to it, in their order.
    written: Vec<u64>,
    /// Generations that were zeros, or may have been.
    zeroed: Vec<Zeros>,
    /// The one that is durable; 0 if none.
    durable: u64,
}

/// Zeros that are written.
#[derive(Clone, Copy, Debug)]
struct Zeros {
    generation: u64,
    /// How many marks were in the log before that.
    marks: usize,
}

/// A range of sectors.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u64,
    count: u64,
}

/// What every sector may contain.
#[derive(Clone, Debug)]
pub struct Model {
    sectors: Vec<Sector>,
    writes: BTreeMap<u64, Range>,
    /// Generations in the order of their completion.
    done: Vec<u64>,
    promises: BTreeMap<u64, Promise>,
    /// How many of `done` were promised.
    promised: usize,
    /// Marks in the order in which the guest went on after them.
    marks: Vec<u64>,
    passed: BTreeSet<u64>,
    /// Marks that say that the image was detached.
    detaches: BTreeSet<u64>,
    /// How many of `marks`, from the first one on, were passed.
    reached: usize,
}

impl Model {
    /// Reads what the guest did to a disk of so many sectors.
    pub fn parse(events: &str, sectors: u64) -> Result<Self, String> {
        let mut model = Self {
            sectors: vec![Sector::default(); usize::try_from(sectors).map_err(|_| "too large")?],
            writes: BTreeMap::new(),
            done: Vec::new(),
            promises: BTreeMap::new(),
            promised: 0,
            marks: Vec::new(),
            passed: BTreeSet::new(),
            detaches: BTreeSet::new(),
            reached: 0,
        };
        for line in events.lines() {
            model
                .note(line)
                .ok_or_else(|| format!("event '{line}' makes no sense"))?;
        }
        Ok(model)
    }

    fn note(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_whitespace();
        match words.next()? {
            "init" => self.each(range(&mut words)?, |sector| sector.was_stamped = true),
            "write" => {
                let generation = number(&mut words)?;
                let range = range(&mut words)?;
                self.writes.insert(generation, range);
                self.each(range, |sector| sector.written.push(generation))
            }
            "zero" => {
                let generation = number(&mut words)?;
                let range = range(&mut words)?;
                self.writes.insert(generation, range);
                self.zero(range, generation)
            }
            "discard" => {
                let generation = number(&mut words)?;
                self.zero(range(&mut words)?, generation)
            }
            "done" => {
                self.done.push(number(&mut words)?);
                Some(())
            }
            "flush" => self.promise(number(&mut words)?, Promise::Flush(self.done.len())),
            "detach" => {
                let mark = number(&mut words)?;
                self.detaches.insert(mark);
                self.promise(mark, Promise::Flush(self.done.len()))
            }
            "fua" => {
                let mark = number(&mut words)?;
                self.promise(mark, Promise::Fua(number(&mut words)?))
            }
            "durable" => {
                self.marks.push(number(&mut words)?);
                Some(())
            }
            _ => None,
        }
    }

    fn promise(&mut self, mark: u64, promise: Promise) -> Option<()> {
        self.promises.insert(mark, promise);
        Some(())
    }

    fn zero(&mut self, range: Range, generation: u64) -> Option<()> {
        let marks = self.marks.len();
        self.each(range, |sector| {
            sector.zeroed.push(Zeros { generation, marks });
        })
    }

    fn each(&mut self, range: Range, change: impl Fn(&mut Sector)) -> Option<()> {
        let first = usize::try_from(range.first).ok()?;
        let end = first.checked_add(usize::try_from(range.count).ok()?)?;
        self.sectors
            .get_mut(first..end)?
            .iter_mut()
            .for_each(change);
        Some(())
    }

    /// The guest has got to know that the flush with this mark has succeeded.
    pub fn pass(&mut self, mark: u64) -> Result<(), String> {
        let promise = self.promises.get(&mark).copied();
        let kept = match promise {
            Some(Promise::Flush(count)) => {
                let first = self.promised.min(count);
                self.promised = self.promised.max(count);
                self.done[first..count].to_vec()
            }
            Some(Promise::Fua(generation)) => vec![generation],
            None => return Err(format!("mark {mark} is not the guest's")),
        };
        for generation in kept {
            let range = self.writes.get(&generation).copied();
            range
                .and_then(|range| {
                    self.each(range, |sector| {
                        sector.durable = sector.durable.max(generation);
                    })
                })
                .ok_or_else(|| format!("write {generation} was never begun"))?;
        }
        self.passed.insert(mark);
        let next = |it: &Self| it.marks.get(it.reached).copied();
        while next(self).is_some_and(|mark| self.passed.contains(&mark)) {
            self.reached += 1;
        }
        Ok(())
    }

    /// Whether this mark says that the image was detached.
    pub fn is_detach(&self, mark: u64) -> bool {
        self.detaches.contains(&mark)
    }

    /// How many marks there have to be.
    pub fn promises(&self) -> usize {
        self.promises.len()
    }

    /// Judges a disk; the error names the first sector that is neither old nor new.
    pub fn judge(&self, disk: &[u8]) -> Result<(), String> {
        if disk.len() != self.sectors.len() * 512 {
            return Err(format!("the disk has {} bytes", disk.len()));
        }
        for (number, (bytes, sector)) in (0..).zip(disk.chunks_exact(512).zip(&self.sectors)) {
            sector
                .judge(stamp::read(number, bytes), self.reached)
                .map_err(|what| format!("guest sector {number} {what}"))?;
        }
        Ok(())
    }
}

impl Sector {
    /// `reached`: how many marks are in the log.
    fn judge(&self, content: Content, reached: usize) -> Result<(), String> {
        let zeros = self.zeroed.iter().rfind(|it| it.marks <= reached);
        let zero = zeros.map(|it| it.generation);
        let zero = zero.or((!self.was_stamped).then_some(0));
        let generation = match (content, zero) {
            (Content::Zero, Some(generation)) => generation,
            (Content::Generation(0), _) if self.was_stamped => 0,
            (Content::Generation(it), _) if self.written.contains(&it) => it,
            _ => return Err(format!("is foreign: {content:?}")),
        };
        if generation < self.durable {
            return Err(format!(
                "is lost: {generation}, {} was durable",
                self.durable
            ));
        }
        Ok(())
    }
}

fn number(words: &mut SplitWhitespace<'_>) -> Option<u64> {
    words.next()?.parse().ok()
}

fn range(words: &mut SplitWhitespace<'_>) -> Option<Range> {
    Some(Range {
        first: number(words)?,
        count: number(words)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: &str = "init 2 1\nwrite 1 0 2\nwrite 2 2 1\ndone 1\ndetach 1\ndone 2\n\
                          durable 1\nwrite 3 0 1\nfua 2 3\ndone 3\ndurable 2\n";

    fn disk<const N: usize>(generations: [u64; N]) -> Vec<u8> {
        let sectors = (0..).zip(generations).map(|(sector, it)| match it {
            u64::MAX => [0; 512],
            it => stamp::make(sector, it),
        });
        sectors.flatten().collect()
    }

    const ZERO: u64 = u64::MAX;

    #[test]
    fn sectors_are_old_or_new() {
        let mut model = Model::parse(EVENTS, 3).unwrap();
        for good in [[ZERO, ZERO, 0], [1, ZERO, 2], [3, 1, 2]] {
            assert_eq!(model.judge(&disk(good)), Ok(()));
        }
        for bad in [[0, ZERO, 0], [ZERO, ZERO, ZERO], [2, 1, 0], [ZERO, 3, 0]] {
            assert!(model.judge(&disk(bad)).unwrap_err().contains("foreign"));
        }
        assert!(model.is_detach(1) && !model.is_detach(2));
        model.pass(1).unwrap();
        for good in [[1, 1, 0], [3, 1, 2]] {
            assert_eq!(model.judge(&disk(good)), Ok(()));
        }
        assert!(model
            .judge(&disk([1, ZERO, 0]))
            .unwrap_err()
            .contains("lost"));
        model.pass(2).unwrap();
        assert_eq!(model.judge(&disk([3, 1, 0])), Ok(()));
        assert!(model.judge(&disk([1, 1, 2])).unwrap_err().contains("lost"));
        assert!(model.judge(&disk([3, 1, 0])[512..]).is_err());
        assert!(model.pass(3).is_err());
    }

    #[test]
    fn zeros_are_written_too() {
        let events = "write 1 0 2\ndone 1\nzero 2 0 1\ndone 2\ndiscard 3 1 1\nflush 1\n";
        let mut model = Model::parse(events, 2).unwrap();
        for good in [[1, 1], [ZERO, 1], [1, ZERO]] {
            assert_eq!(model.judge(&disk(good)), Ok(()));
        }
        model.pass(1).unwrap();
        for good in [[ZERO, 1], [ZERO, ZERO]] {
            assert_eq!(model.judge(&disk(good)), Ok(()));
        }
        assert!(model.judge(&disk([1, 1])).unwrap_err().contains("lost"));
    }

    #[test]
    fn zeros_of_the_future_are_not_there_yet() {
        let events = "write 1 0 1\ndone 1\nflush 1\nfua 2 1\ndurable 2\nzero 2 0 1\ndurable 1\n\
                      discard 3 1 1\n";
        let mut model = Model::parse(&format!("init 1 1\n{events}"), 2).unwrap();
        assert_eq!(model.judge(&disk([1, 0])), Ok(()));
        let foreign = |model: &Model| model.judge(&disk([1, ZERO])).unwrap_err();
        assert!(foreign(&model).contains("foreign"));
        // The marks need not come in the order in which the guest went on.
        model.pass(1).unwrap();
        assert!(foreign(&model).contains("foreign"));
        let lost = model.judge(&disk([ZERO, 0])).unwrap_err();
        assert!(lost.contains("lost"), "{lost}");
        model.pass(2).unwrap();
        for good in [[1, ZERO], [ZERO, 0]] {
            assert_eq!(model.judge(&disk(good)), Ok(()));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for events in ["writes 1 0 1", "write 1 0", "write 1 2 2", "done x"] {
            assert!(Model::parse(events, 3).is_err(), "{events}");
        }
    }
}
