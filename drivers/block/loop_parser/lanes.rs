// SPDX-License-Identifier: GPL-2.0

//! Who serves a request: a few workers for each control group that does I/O on a device.
//!
//! Workers act in the name of the group whose requests they serve. A group of its own has a lane of
//! its own, so that those who are slowed down, or short of memory, hold up nobody else. The lanes of
//! groups that have not done any I/O for a while are given up.

use kernel::{
    alloc::Flags,
    impl_has_work,
    new_spinlock_irq,
    new_work,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        atomic::{
            ordering::Relaxed,
            AtomicFlag, //
        },
        Arc,
        ArcBorrow,
        SpinLockIrq, //
    },
    workqueue::{
        Queue,
        Work,
        WorkItem, //
    }, //
};

use crate::{
    device::Device,
    service,
    sys::{
        cgroup::{
            Attribution,
            BlockCgroup, //
        },
        queue::Backlog,
        request::Request,
        work::{
            Deferred,
            Later,
            WorkerContext, //
        }, //
    }, //
};

/// How long a lane is kept that nobody uses, at least, in seconds.
const IDLE_SECONDS: u32 = 60;

/// The requests of one control group, and the workers for them.
#[pin_data]
pub(crate) struct Lane {
    #[pin]
    backlog: Backlog<Device>,
    /// `None`: the root, and those for whom there was no memory.
    cgroup: Option<BlockCgroup>,
    /// Used since the last look.
    used: AtomicFlag,
    #[pin]
    worker0: Work<Lane, 0>,
    #[pin]
    worker1: Work<Lane, 1>,
    #[pin]
    worker2: Work<Lane, 2>,
    #[pin]
    worker3: Work<Lane, 3>,
}

impl_has_work! {
    impl HasWork<Lane, 0> for Lane { self.worker0 }
    impl HasWork<Lane, 1> for Lane { self.worker1 }
    impl HasWork<Lane, 2> for Lane { self.worker2 }
    impl HasWork<Lane, 3> for Lane { self.worker3 }
}

impl Lane {
    /// Allocates a lane.
    pub(crate) fn new(cgroup: Option<BlockCgroup>, flags: Flags) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                backlog <- Backlog::new(),
                cgroup,
                used: AtomicFlag::new(true),
                worker0 <- new_work!("loop_worker"),
                worker1 <- new_work!("loop_worker"),
                worker2 <- new_work!("loop_worker"),
                worker3 <- new_work!("loop_worker"),
            }),
            flags,
        )
    }

    /// Adds a request and wakes a worker if need be. From any context.
    fn push(this: ArcBorrow<'_, Self>, queue: &Queue, request: Request<Device>) {
        let Some(worker) = this.backlog.push(request) else {
            return;
        };
        let lane: Arc<Lane> = this.into();
        // A worker that is asked for is not queued: the backlog asks for it once, and again only
        // when it has said that it found nothing to do.
        let _ = match worker {
            0 => queue.enqueue::<_, 0>(lane).is_ok(),
            1 => queue.enqueue::<_, 1>(lane).is_ok(),
            2 => queue.enqueue::<_, 2>(lane).is_ok(),
            _ => queue.enqueue::<_, 3>(lane).is_ok(),
        };
    }

    fn work(&self, worker: u32) {
        let context = WorkerContext::enter();
        let attribution = self.cgroup.as_ref().map(Attribution::enter);
        while let Some(request) = self.backlog.pop(worker) {
            service::serve(request);
            context.cond_resched();
        }
        drop(attribution);
    }

    /// Whether it was not used since this was last asked.
    fn is_unused(&self) -> bool {
        !self.used.xchg(false, Relaxed) && self.backlog.is_idle()
    }
}

impl WorkItem<0> for Lane {
    type Pointer = Arc<Lane>;

    fn run(this: Arc<Lane>) {
        this.work(0);
    }
}

impl WorkItem<1> for Lane {
    type Pointer = Arc<Lane>;

    fn run(this: Arc<Lane>) {
        this.work(1);
    }
}

impl WorkItem<2> for Lane {
    type Pointer = Arc<Lane>;

    fn run(this: Arc<Lane>) {
        this.work(2);
    }
}

impl WorkItem<3> for Lane {
    type Pointer = Arc<Lane>;

    fn run(this: Arc<Lane>) {
        this.work(3);
    }
}

/// The lanes of a device.
#[pin_data]
pub(crate) struct Lanes {
    root: Arc<Lane>,
    #[pin]
    others: Deferred<Others>,
}

impl Lanes {
    /// Creates an initialiser. `root` is the lane of the root group.
    pub(crate) fn new(root: Arc<Lane>) -> impl PinInit<Self> {
        pin_init!(Self {
            root,
            others <- Deferred::new(IDLE_SECONDS, Others::new()),
        })
    }

    /// Hands a request to a worker of its group. From any context.
    pub(crate) fn push(&self, queue: &Queue, request: Request<Device>) {
        if let Some(cgroup) = request.cgroup() {
            // Without memory for a lane the I/O is done as the root's, as with the C driver.
            if let Ok(lane) = self.lane(cgroup) {
                return Lane::push(lane.as_arc_borrow(), queue, request);
            }
        }
        Lane::push(self.root.as_arc_borrow(), queue, request);
    }

    /// The lane of a group.
    fn lane(&self, cgroup: BlockCgroup) -> Result<Arc<Lane>> {
        if let Some(lane) = self.others.find(&cgroup) {
            return Ok(lane);
        }
        let lane = self.others.add(cgroup)?;
        // After the lane has been added. The work asks for itself again as long as it finds lanes;
        // if it has just found none, it can be asked for again while it still runs.
        self.others.ask();
        Ok(lane)
    }
}

/// The lanes of groups other than the root, by what tells the groups apart.
#[pin_data]
struct Others {
    #[pin]
    tree: SpinLockIrq<RBTree<usize, Arc<Lane>>>,
}

impl Others {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            tree <- new_spinlock_irq!(RBTree::new()),
        })
    }

    /// The lane of a group, if it has one. The group of a lane in the tree is referred to, so its
    /// key is not reused.
    fn find(&self, cgroup: &BlockCgroup) -> Option<Arc<Lane>> {
        let tree = self.tree.lock();
        let lane = tree.get(&cgroup.key())?;
        lane.used.store(true, Relaxed);
        Some(lane.clone())
    }

    /// Gives a group a lane.
    fn add(&self, cgroup: BlockCgroup) -> Result<Arc<Lane>> {
        let key = cgroup.key();
        let lane = Lane::new(Some(cgroup), GFP_NOWAIT)?;
        let node = RBTreeNode::new(key, lane.clone(), GFP_NOWAIT)?;
        // If another processor was faster, its lane gives way: it ends with its requests.
        let replaced = self.tree.lock().insert(node);
        drop(replaced);
        Ok(lane)
    }
}

impl Later for Others {
    /// Gives up lanes that nobody has used since the last time.
    fn run(&self) -> bool {
        let mut tree = self.tree.lock();
        let mut cursor = tree.cursor_front_mut();
        while let Some(current) = cursor {
            cursor = if current.current().1.is_unused() {
                current.remove_current().0
            } else {
                current.move_next()
            };
        }
        !tree.is_empty()
    }
}
