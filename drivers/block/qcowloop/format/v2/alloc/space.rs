// SPDX-License-Identifier: GPL-2.0

//! Free clusters: where they are found, and how they get into the reserve.

use core::iter;

use loop_parser::contract::{
    Error,
    Result,
    TablesMut,
    SECTOR_SIZE, //
};

use super::{
    super::{
        super::num::{
            is_out_of_room,
            Region,
            NO_ROOM,
            TOO_LARGE, //
        },
        entry::MAX_OFFSET,
        layout::Layout,
        refcount::{
            overlap,
            Budget,
            Clusters,
            Found,
            Refcounts, //
        },
    },
    runs::{
        Run,
        Runs, //
    },
};

/// About this many bytes are reserved at a time.
const RESERVE_LEN: u64 = 2 * 1024 * 1024;
/// At least this many clusters are.
const RESERVE_CLUSTERS: u64 = 16;
/// Space that was given back is looked for when it is this many clusters. Until then the file grows:
/// space that was never written costs fewer syncs.
const WORTH_LOOKING: u64 = 16;

/// What the allocator knows of free clusters.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Clusters whose count is 1 and that nothing uses.
    reserve: Runs,
    /// Some of these counts, or the size of the file behind the clusters, may not be durable.
    is_unsynced: bool,
    /// In front of this cluster nothing is free, or nobody cares.
    cursor: Option<u64>,
    /// How many clusters were given back and not found again; at most that many are free from the
    /// cursor on if all of the file has been looked through.
    freed: u64,
    /// The file is looked through from its start, by as many calls as it takes.
    is_sweeping: bool,
    /// All of the file has been looked through.
    is_swept: bool,
    /// The end of the file when the image was begun to be written. What is free behind it can be cut
    /// off; what is free in front of it may be what somebody has forgotten to count.
    floor: Option<u64>,
    /// Clusters in front of that which were given back: if they reach up to it, they can be cut off,
    /// too.
    tail: Clusters,
}

/// A cluster that was taken from the reserve.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// Host offset in bytes.
    pub(super) offset: u64,
    /// It was never written and reads as zero, even after a crash.
    pub(super) is_clean: bool,
}

impl Space {
    /// Takes a cluster, if possible one that is clean or not, as asked for. Its count of 1 is durable.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] with `-ENOSPC` and the like: there is no room now.
    pub(super) fn take(
        &mut self,
        tables: &mut dyn TablesMut,
        counts: &mut Refcounts,
        layout: &Layout,
        is_clean: bool,
    ) -> Result<Taken> {
        if self.reserve.is_empty() {
            self.refill(tables, counts, layout)?;
        }
        if self.is_unsynced {
            tables.sync()?;
            self.is_unsynced = false;
        }
        for is_clean in [is_clean, !is_clean] {
            if let Some(cluster) = self.reserve.take(is_clean) {
                let offset = cluster.wrapping_shl(layout.cluster_bits);
                return Ok(Taken { offset, is_clean });
            }
        }
        Err(NO_ROOM)
    }

    /// Puts back a cluster that was not used after all. It may hold anything now.
    pub(super) fn put_back(&mut self, layout: &Layout, offset: u64) {
        let cluster = offset.wrapping_shr(layout.cluster_bits);
        self.reserve.put(Run {
            clusters: Clusters::one(cluster),
            is_clean: false,
        });
    }

    /// The image will be written.
    pub(super) fn begin(&mut self, tables: &dyn TablesMut, layout: &Layout) -> Result {
        self.floor = Some(tables.size()?.div_ceil(layout.cluster_size().max(1)));
        self.tail = Clusters::none(0);
        Ok(())
    }

    /// The counts of some clusters have dropped to 0.
    pub(super) fn freed(&mut self, clusters: Clusters) {
        if clusters.is_empty() {
            return;
        }
        let first = clusters.start;
        self.freed = self.freed.saturating_add(clusters.len());
        self.cursor = Some(self.cursor.map_or(first, |it| it.min(first)));
        self.tail = match self.tail.united_with(clusters) {
            Some(both) => both,
            None if clusters.end > self.tail.end => clusters,
            None => self.tail,
        };
    }

    /// Where a file can be cut, if nothing from there on is in use.
    fn cut(&self) -> Option<u64> {
        let floor = self.floor?;
        let is_at_floor = !self.tail.is_empty() && self.tail.end >= floor;
        Some(match is_at_floor {
            true => self.tail.start.min(floor),
            false => floor,
        })
    }

    /// Fills the reserve. A file is extended, unless enough was given back in it or it cannot grow.
    // Not inlined, for the stack.
    #[inline(never)]
    fn refill(
        &mut self,
        tables: &mut dyn TablesMut,
        counts: &mut Refcounts,
        layout: &Layout,
    ) -> Result {
        if !tables.can_grow() {
            return self.search(tables, counts, layout);
        }
        if self.freed >= WORTH_LOOKING {
            match self.search(tables, counts, layout) {
                Err(error) if is_out_of_room(error) => {}
                result => return result,
            }
        }
        let batch = batch_of(layout);
        let result = match self.append(tables, counts, layout, batch) {
            // A nearly full file system, or a limit on the size of files.
            Err(error) if is_out_of_room(error) => self.append(tables, counts, layout, 1),
            result => result,
        };
        match result {
            Err(error) if is_out_of_room(error) && (!self.is_swept || self.freed > 0) => {
                if !self.is_sweeping {
                    self.is_sweeping = true;
                    self.cursor = Some(0);
                }
                // What is said is what the file system had to say.
                self.search(tables, counts, layout)
                    .map_err(|found| match is_out_of_room(found) {
                        true => error,
                        false => found,
                    })
            }
            result => result,
        }
    }

    /// Extends a file by `batch` clusters, and counts them.
    fn append(
        &mut self,
        tables: &mut dyn TablesMut,
        counts: &mut Refcounts,
        layout: &Layout,
        batch: u64,
    ) -> Result {
        let mut budget = Budget::new();
        // At most the table has to grow, and the next block to be made, before there is a cluster.
        for _ in 0..4 {
            let most = batch.saturating_add(1);
            let first = first_behind(tables, counts, layout, most, &mut budget)?;
            if counts.has_entry(first) {
                let end = first.saturating_add(most);
                let end = end.min(counts.block_end(first));
                let range = Clusters { start: first, end };
                self.extend(tables, layout, end)?;
                self.count_new(tables, counts, range)?;
            } else {
                let growth = counts.plan_growth(first)?;
                self.extend(tables, layout, growth.clusters().end)?;
                counts.grow(tables, growth)?;
            }
            if !self.reserve.is_empty() {
                return Ok(());
            }
        }
        Err(NO_ROOM)
    }

    /// Extends a file up to cluster `end`. If that fails, it is as it was.
    fn extend(&mut self, tables: &mut dyn TablesMut, layout: &Layout, end: u64) -> Result {
        let old = tables.size()?;
        let new = end.checked_shl(layout.cluster_bits).unwrap_or(u64::MAX);
        if end > MAX_OFFSET.wrapping_shr(layout.cluster_bits) {
            return Err(TOO_LARGE);
        }
        let result = tables.fill(new.saturating_sub(SECTOR_SIZE), SECTOR_SIZE, 0);
        if result.is_err() && tables.size().is_ok_and(|size| size > old) {
            // If not even that works, the file is just larger.
            let _ = tables.truncate(old);
        }
        self.is_unsynced = true;
        result
    }

    /// Counts the free ones of clusters that a file was extended by.
    fn count_new(
        &mut self,
        tables: &mut dyn TablesMut,
        counts: &Refcounts,
        range: Clusters,
    ) -> Result {
        match counts.find_free(tables, range, range.len(), &mut Budget::new())? {
            Found::NoBlock => {
                counts.add_block(tables, range)?;
                self.is_unsynced = false;
                self.reserve.put(Run {
                    clusters: Clusters {
                        start: range.start.saturating_add(1).min(range.end),
                        end: range.end,
                    },
                    is_clean: true,
                });
                Ok(())
            }
            Found::None => Ok(()),
            Found::Free(clusters) => {
                self.is_unsynced = true;
                raise(tables, counts, clusters)?;
                self.reserve.put(Run {
                    clusters,
                    is_clean: true,
                });
                Ok(())
            }
        }
    }

    /// Looks for free clusters within the file, from the cursor on, and counts them. A search that takes
    /// too long ends as if there were none; the next one goes on from there.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if some of them are not free at all. No cluster was counted then, but for new
    /// refcount blocks, or a new refcount table.
    fn search(
        &mut self,
        tables: &mut dyn TablesMut,
        counts: &mut Refcounts,
        layout: &Layout,
    ) -> Result {
        let before = (self.cursor, self.freed, self.is_swept);
        let result = self.collect(tables, counts, layout);
        if self.reserve.is_empty() {
            return result.and(Err(NO_ROOM));
        }
        let result = match result {
            Err(error) if !is_out_of_room(error) => {
                self.reserve.keep(0);
                Err(error)
            }
            _ => self.count_found(tables, counts),
        };
        if !matches!(result, Ok(true)) {
            // What was not counted after all is looked for again.
            (self.cursor, self.freed, self.is_swept) = before;
        }
        result.and(Ok(()))
    }

    /// Puts clusters into the empty reserve whose counts are 0.
    // Not inlined, for the stack.
    #[inline(never)]
    fn collect(
        &mut self,
        tables: &mut dyn TablesMut,
        counts: &mut Refcounts,
        layout: &Layout,
    ) -> Result {
        let mut range = Clusters {
            start: self.cursor.unwrap_or(0),
            end: tables.size()?.wrapping_shr(layout.cluster_bits),
        };
        let mut left = batch_of(layout);
        let mut budget = Budget::new();
        while !range.is_empty() && left > 0 && !self.reserve.is_full() {
            let has_enough = tables.can_grow() && self.freed == 0 && !self.reserve.is_empty();
            if has_enough || budget.is_spent() {
                return Ok(());
            }
            if !counts.has_entry(range.start) {
                if tables.can_grow() {
                    break;
                }
                range.start = grow_within(tables, counts, range)?;
                continue;
            }
            let run = match counts.find_free(tables, range, left, &mut budget)? {
                Found::Free(run) => usable(tables, counts, run)?,
                // Nothing of a file should be without a block that has one before its end.
                Found::NoBlock if !tables.can_grow() => {
                    range.start = make_block(tables, counts, range)?;
                    continue;
                }
                Found::NoBlock | Found::None => Clusters::none(counts.block_end(range.start)),
            };
            if !run.is_empty() {
                self.reserve.put(Run {
                    clusters: run,
                    is_clean: false,
                });
            }
            left = left.saturating_sub(run.len());
            self.freed = self.freed.saturating_sub(run.len());
            range.start = run.end;
            self.cursor = Some(range.start);
        }
        if left > 0 && !self.reserve.is_full() {
            // That was all from the cursor on, and what is given back takes the cursor along.
            self.is_swept |= self.is_sweeping;
            self.freed = 0;
        }
        Ok(())
    }

    /// Raises the counts of what was found to 1; says if there was room for all of them. Only what has
    /// that stays in the reserve.
    ///
    /// # Errors
    ///
    /// As if nothing were free, if that cannot be checked, and the file can grow instead.
    // Not inlined, for the stack.
    #[inline(never)]
    fn count_found(&mut self, tables: &mut dyn TablesMut, counts: &Refcounts) -> Result<bool> {
        if let Err(error) = overlap::check_free(tables, counts, self.reserve.iter()) {
            self.reserve.keep(0);
            return Err(match error {
                Error::Store(_) if tables.can_grow() => NO_ROOM,
                error => error,
            });
        }
        self.is_unsynced = true;
        let (done, result) = raise_all(tables, counts, self.reserve.iter());
        if result.is_err() {
            self.reserve.keep(done);
        }
        match result {
            Err(error) if done > 0 && is_out_of_room(error) => Ok(false),
            result => result.and(Ok(true)),
        }
    }

    /// Gives back the reserve, and cuts off what is free at the end of a file. The counts need not be
    /// durable before: what is behind the end of the file is found to be free all the same, or leaked.
    // Not inlined, for the stack.
    #[inline(never)]
    pub(super) fn close(&mut self, tables: &mut dyn TablesMut, counts: &Refcounts) -> Result {
        while let Some(run) = self.reserve.pop() {
            // Also if it fails: counts that were lowered and raised again are not durable.
            self.is_unsynced = true;
            if let Err((error, clusters)) = uncount(tables, counts, run.clusters) {
                self.reserve.put(Run { clusters, ..run });
                return Err(error);
            }
        }
        if let Some(cut) = self.cut().filter(|_| tables.can_grow()) {
            self.is_unsynced |= trim(tables, counts, cut)?;
        }
        if self.is_unsynced {
            tables.sync()?;
        }
        self.is_unsynced = false;
        self.cursor = None;
        self.freed = 0;
        self.is_sweeping = false;
        self.is_swept = false;
        self.floor = None;
        self.tail = Clusters::none(0);
        Ok(())
    }
}

/// Raises the counts of free clusters to 1.
fn raise(tables: &mut dyn TablesMut, counts: &Refcounts, clusters: Clusters) -> Result {
    counts.set(tables, clusters, 1).inspect_err(|_| {
        // What cannot be taken back is lost until a tool finds it.
        let _ = counts.set(tables, clusters, 0);
    })
}

/// The same for all runs; says how many of them were counted.
fn raise_all(
    tables: &mut dyn TablesMut,
    counts: &Refcounts,
    mut runs: impl Iterator<Item = Clusters>,
) -> (usize, Result) {
    let mut done = 0usize;
    let result = runs.try_for_each(|clusters| {
        raise(tables, counts, clusters)?;
        done = done.saturating_add(1);
        Ok(())
    });
    (done, result)
}

/// Lowers the counts of clusters of the reserve to 0. If that fails, answers those that still have
/// theirs.
// Not inlined, for the stack.
#[inline(never)]
fn uncount(
    tables: &mut dyn TablesMut,
    counts: &Refcounts,
    mut clusters: Clusters,
) -> core::result::Result<(), (Error, Clusters)> {
    while !clusters.is_empty() {
        let piece = counts.stored_at_once(clusters);
        counts
            .set(tables, piece, 0)
            .map_err(|error| (error, clusters))?;
        clusters.start = piece.end;
    }
    Ok(())
}

/// Cuts a file where from there on nothing is in use, at cluster `cut` or behind it. Says if there was
/// something to cut.
// Not inlined, for the stack.
#[inline(never)]
fn trim(tables: &mut dyn TablesMut, counts: &Refcounts, cut: u64) -> Result<bool> {
    let layout = counts.layout();
    let size = tables.size()?;
    let range = Clusters {
        start: cut,
        end: size.div_ceil(layout.cluster_size().max(1)),
    };
    if range.is_empty() {
        return Ok(false);
    }
    let new = counts.used_end(tables, range)?;
    let new = new.wrapping_shl(layout.cluster_bits);
    if new >= size {
        return Ok(false);
    }
    tables.truncate(new)?;
    Ok(true)
}

/// How many clusters are reserved at a time.
fn batch_of(layout: &Layout) -> u64 {
    RESERVE_LEN
        .wrapping_shr(layout.cluster_bits)
        .max(RESERVE_CLUSTERS)
}

/// The first of `most` clusters behind the end of a file that are not counted: a crash can have left
/// some that are.
///
/// # Errors
///
/// [`Error::Store`] with `-ENOSPC` if that takes too long: more than any crash leaves.
fn first_behind(
    tables: &dyn TablesMut,
    counts: &Refcounts,
    layout: &Layout,
    most: u64,
    budget: &mut Budget,
) -> Result<u64> {
    let mut first = tables.size()?.div_ceil(layout.cluster_size().max(1));
    while counts.has_entry(first) {
        if budget.is_spent() {
            return Err(NO_ROOM);
        }
        let range = Clusters {
            start: first,
            end: u64::MAX,
        };
        match counts.find_free(tables, range, most, budget)? {
            Found::NoBlock => break,
            Found::Free(run) => return Ok(run.start),
            Found::None => first = counts.block_end(first),
        }
    }
    Ok(first)
}

/// Makes a larger refcount table at the start of `range`, on a device, if that may be handed out.
/// Answers where to look on.
fn grow_within(tables: &mut dyn TablesMut, counts: &mut Refcounts, range: Clusters) -> Result<u64> {
    let growth = counts.plan_growth(range.start)?;
    let clusters = growth.clusters();
    if clusters.end > range.end {
        return Err(NO_ROOM);
    }
    let usable = usable(tables, counts, clusters)?;
    overlap::check_free(tables, counts, iter::once(usable))?;
    if usable == clusters {
        counts.grow(tables, growth)?;
    }
    Ok(usable.end)
}

/// Makes a refcount block at the start of `range`, on a device. Answers where to look on.
fn make_block(tables: &mut dyn TablesMut, counts: &Refcounts, range: Clusters) -> Result<u64> {
    let block = usable(tables, counts, Clusters::one(range.start))?;
    if !block.is_empty() {
        overlap::check_free(tables, counts, iter::once(block))?;
        counts.add_block(tables, block)?;
    }
    Ok(block.end)
}

/// That part of a run of free clusters, from its start, that may be handed out. If that is none, they
/// end behind the first one.
///
/// # Errors
///
/// [`Error::Malformed`] if one of them is not free at all.
fn usable(tables: &dyn TablesMut, counts: &Refcounts, run: Clusters) -> Result<Clusters> {
    let layout = counts.layout();
    let all = Region {
        start: run.start.wrapping_shl(layout.cluster_bits),
        end: run.end.wrapping_shl(layout.cluster_bits),
    };
    if counts.are_in(tables, all)? {
        return Err(Error::malformed(
            "qcow2 refcount of what holds refcounts is 0",
            all.start,
        ));
    }
    for cluster in run.start..run.end {
        let at = cluster.wrapping_shl(layout.cluster_bits);
        let region = Region::new(at, layout.cluster_size(), at)?;
        if counts.is_old_table(region) {
            return Ok(match cluster == run.start {
                true => Clusters::none(cluster.saturating_add(1)),
                false => Clusters {
                    start: run.start,
                    end: cluster,
                },
            });
        }
        if counts.is_in_tables(region) {
            return Err(Error::malformed(
                "qcow2 refcount of a table of the header is 0",
                at,
            ));
        }
    }
    Ok(run)
}
