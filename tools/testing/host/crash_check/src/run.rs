// SPDX-License-Identifier: GPL-2.0

//! All power failures of one recording.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use sha2::{Digest, Sha256};
use testkit::{crash::Survivors, rng::Rng, store::Sectors};

use crate::{
    args::Args,
    checker::Checker,
    disk,
    inspect::{Inspector, Seen},
    plan::{self, Class, Cut},
    recording::Recording,
    replay::Replay,
    report::Report,
};

/// Failures that are told in full.
const TOLD: u64 = 5;

/// Looks at a recording.
pub fn run(folder: &Path, args: &Args, report: &Report) -> Result<(), String> {
    let mut recording = Recording::load(folder)?;
    let checker = Checker::start(&args.checker, &recording.format)?;
    let cuts = plan::make(&recording.log, args.amount, args.seed);
    let mut run = Run {
        inspector: Inspector::new(checker),
        kept: Kept::new(folder)?,
        tallies: Default::default(),
    };
    let start = Instant::now();
    run.all(&mut recording, &cuts, report)?;
    run.tell(&recording, report);
    report.note(&format!(
        "{}: {} power failures in {:.0} s",
        recording.kind,
        cuts.len(),
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// What came of the power failures of a class.
#[derive(Default)]
struct Tally {
    done: u64,
    bad: u64,
    most_unused: u64,
}

impl Tally {
    /// Counts one of them, which has left so many unused bytes, or something bad.
    fn count(&mut self, unused: Result<u64, String>, what: &str, report: &Report) {
        self.done += 1;
        match unused {
            Ok(unused) => self.most_unused = self.most_unused.max(unused),
            Err(error) => {
                self.bad += 1;
                if self.bad <= TOLD {
                    report.note(&format!("{what}: {error}"));
                }
            }
        }
    }
}

/// In [`Run::tallies`].
const DETACHES: usize = 2;

struct Run {
    inspector: Inspector,
    kept: Kept,
    /// Of flush points, random ones, and detaches.
    tallies: [Tally; 3],
}

impl Run {
    fn all(&mut self, it: &mut Recording, cuts: &[Cut], report: &Report) -> Result<(), String> {
        // The model is told of the marks while the log is replayed.
        let log = std::mem::take(&mut it.log);
        self.inspector
            .inspect_detached(it, it.before.clone())
            .map_err(|it| format!("at first: {it}"))?;
        let mut replay = Replay::new(&log, std::mem::take(&mut it.before));
        let mut marks = 0;
        for cut in cuts {
            marks += self.advance(&mut replay, it, cut.position, report)?;
            let mut rng = Rng::new(cut.seed);
            let disk = replay.crash(cut.survivors, &mut rng);
            self.one(it, cut, disk, &mut rng, report)?;
        }
        marks += self.advance(&mut replay, it, log.entries.len(), report)?;
        if marks != it.model.promises() {
            let promises = it.model.promises();
            return Err(format!("{marks} marks in the log, {promises} flushes"));
        }
        Ok(())
    }

    /// Replays up to a position; how many marks it passed.
    fn advance(
        &mut self,
        replay: &mut Replay<'_>,
        it: &mut Recording,
        position: usize,
        report: &Report,
    ) -> Result<usize, String> {
        let mut marks = 0;
        while replay.position() < position {
            if let Some(mark) = replay.step() {
                it.model.pass(mark)?;
                marks += 1;
                if it.model.is_detach(mark) {
                    let disk = replay.crash(Survivors::Synced, &mut Rng::new(mark));
                    let seen = self.inspector.inspect_detached(it, disk);
                    let what = format!("{} detach {mark}", it.kind);
                    self.tallies[DETACHES].count(seen.map(|()| 0), &what, report);
                }
            }
        }
        Ok(marks)
    }

    fn one(
        &mut self,
        it: &Recording,
        cut: &Cut,
        disk: Sectors,
        rng: &mut Rng,
        report: &Report,
    ) -> Result<(), String> {
        let kept = cut.keep.map(|_| disk.clone());
        let seen = self.inspector.inspect(it, disk, rng);
        if let (Ok(seen), Some(number), Some(disk)) = (&seen, cut.keep, kept) {
            self.kept.keep(number, &disk, seen)?;
        }
        let what = format!("{} {cut:?}", it.kind);
        let tally = &mut self.tallies[usize::from(cut.class == Class::Random)];
        tally.count(seen.map(|seen| seen.unused), &what, report);
        Ok(())
    }

    fn tell(&self, it: &Recording, report: &Report) {
        let names = ["flush points", "random power failures", "detaches"];
        for (name, tally) in names.into_iter().zip(&self.tallies) {
            let Tally {
                done,
                bad,
                most_unused,
            } = tally;
            report.note(&format!(
                "{}: {done} {name}, {bad} bad, at most {most_unused} bytes unused",
                it.kind
            ));
            report.result(*bad == 0 && *done > 0, &format!("{}: {name}", it.kind));
        }
    }
}

/// Disks that are kept for the virtual machine.
struct Kept(PathBuf);

impl Kept {
    fn new(folder: &Path) -> Result<Self, String> {
        let folder = folder.join("cuts");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(|it| it.to_string())?;
        Ok(Self(folder))
    }

    /// Keeps a disk, and what the guest's has to be.
    fn keep(&self, number: usize, disk: &Sectors, seen: &Seen) -> Result<(), String> {
        let save = || {
            disk::save_runs(disk, &self.0.join(number.to_string()))?;
            let digest = format!("{:x}", Sha256::digest(&seen.guest));
            fs::write(self.0.join(format!("{number}.sha256")), digest)
        };
        save().map_err(|it| it.to_string())
    }
}
