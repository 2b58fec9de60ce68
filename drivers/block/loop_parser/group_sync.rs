// SPDX-License-Identifier: GPL-2.0

//! One sync for all who wait for one.

use kernel::{
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        CondVar,
        Mutex, //
    }, //
};

/// Counts of syncs; one at most is under way.
struct Turns {
    begun: u64,
    ended: u64,
}

/// Those who want to sync, and arrive while a sync is under way, share the next one: it begins after
/// all of them have written what they want to be durable.
#[pin_data]
pub(crate) struct GroupSync {
    #[pin]
    turns: Mutex<Turns>,
    #[pin]
    ended: CondVar,
}

impl GroupSync {
    /// Creates an initialiser.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            turns <- new_mutex!(Turns { begun: 0, ended: 0 }, "GroupSync::turns"),
            ended <- new_condvar!("GroupSync::ended"),
        })
    }

    /// Returns when a sync has ended that began after the call: that of somebody else, or `sync`. Of
    /// a failure only the one who has synced is told.
    pub(crate) fn run(&self, sync: impl FnOnce() -> Result) -> Result {
        let mut turns = self.turns.lock();
        let mine = turns.begun.wrapping_add(1);
        while turns.ended != turns.begun {
            self.ended.wait(&mut turns);
            if turns.ended >= mine {
                return Ok(());
            }
        }
        turns.begun = mine;
        drop(turns);
        let result = sync();
        self.turns.lock().ended = mine;
        self.ended.notify_all();
        result
    }
}
