//! Which order is carried out next. Pure.
//!
//! ```text
//!   ordered --> waiting --next--> active --done--> gone
//!                 ^                 |
//!                 '--later, failed--'        (no longer ordered: gone, unless active)
//! ```

use crate::authority::Order;
use crate::units::ExtentIndex;

/// How long after a failure an order is tried again, at first, ms; it doubles up to [`RETRY_MOST_MS`].
const RETRY_FIRST_MS: u64 = 50;
/// See [`RETRY_FIRST_MS`].
const RETRY_MOST_MS: u64 = 5000;

/// What an order is known by: an extent and a node have one replica.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) extent: ExtentIndex,
    pub(super) node: String,
}

impl Key {
    fn of(order: &Order) -> Self {
        match order {
            Order::Copy { extent, to } => Self {
                extent: *extent,
                node: to.name.clone(),
            },
            Order::Drop { extent, node } => Self {
                extent: *extent,
                node: node.clone(),
            },
        }
    }
}

#[derive(Debug)]
struct Task {
    order: Order,
    active: bool,
    not_before_ms: u64,
    retry_ms: u64,
    still_ordered: bool,
}

/// See the module. Bounded by what the authority orders at a time.
#[derive(Debug, Default)]
pub(super) struct Plan {
    tasks: Vec<Task>,
}

impl Plan {
    /// What is ordered now, most urgent first. What is not ordered any more is forgotten, unless it is
    /// being done.
    pub(super) fn ordered(&mut self, orders: Vec<Order>) {
        for task in &mut self.tasks {
            task.still_ordered = false;
        }
        for order in orders {
            let known = self
                .tasks
                .iter_mut()
                .find(|task| Key::of(&task.order) == Key::of(&order));
            match known {
                Some(task) => {
                    task.still_ordered = true;
                    if !task.active {
                        task.order = order;
                    }
                }
                None => self.tasks.push(Task {
                    order,
                    active: false,
                    not_before_ms: 0,
                    retry_ms: RETRY_FIRST_MS,
                    still_ordered: true,
                }),
            }
        }
        self.tasks.retain(|task| task.still_ordered || task.active);
    }

    /// The next order, which is active from now on. Drops come first: they cost nothing and make room; of
    /// copies the one whose extent has the fewest live replicas, of equals the one that was ordered first.
    /// With `copies` false, drops only.
    pub(super) fn next(
        &mut self,
        now_ms: u64,
        copies: bool,
        live: impl Fn(ExtentIndex) -> usize,
    ) -> Option<Order> {
        let due = self
            .tasks
            .iter_mut()
            .filter(|task| !task.active && task.not_before_ms <= now_ms);
        let task = due
            .filter_map(|task| match &task.order {
                Order::Drop { .. } => Some((0, task)),
                Order::Copy { extent, .. } if copies => Some((1 + live(*extent), task)),
                Order::Copy { .. } => None,
            })
            .min_by_key(|(urgency, _)| *urgency)?
            .1;
        task.active = true;
        Some(task.order.clone())
    }

    /// It was done.
    pub(super) fn done(&mut self, order: &Order) {
        let key = Key::of(order);
        self.tasks.retain(|task| Key::of(&task.order) != key);
    }

    /// Others have yet to let go of what it needs: again at `again_ms`, which says nothing against it.
    pub(super) fn busy(&mut self, order: &Order, again_ms: u64) {
        let key = Key::of(order);
        for task in &mut self.tasks {
            if Key::of(&task.order) == key {
                task.active = false;
                task.not_before_ms = again_ms;
            }
        }
        self.tasks.retain(|task| task.still_ordered || task.active);
    }

    /// It could not be done now: again later, if it is still ordered then.
    pub(super) fn failed(&mut self, order: &Order, now_ms: u64) {
        let key = Key::of(order);
        for task in &mut self.tasks {
            if Key::of(&task.order) == key {
                task.active = false;
                task.not_before_ms = now_ms + task.retry_ms;
                task.retry_ms = (2 * task.retry_ms).min(RETRY_MOST_MS);
            }
        }
        self.tasks.retain(|task| task.still_ordered || task.active);
    }

    /// When the next one may be tried that waits.
    pub(super) fn wake_ms(&self) -> Option<u64> {
        let waiting = self.tasks.iter().filter(|task| !task.active);
        waiting.map(|task| task.not_before_ms).min()
    }

    /// Orders that are not active.
    pub(super) fn waiting(&self) -> usize {
        self.tasks.iter().filter(|task| !task.active).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{FailureDomain, NodeEntry};
    use crate::transport::TransportKind;
    use proptest::prelude::*;
    use std::net::SocketAddr;

    fn copy(extent: u32, node: u16) -> Order {
        Order::Copy {
            extent: ExtentIndex::new(extent),
            to: NodeEntry {
                name: format!("n{node}"),
                control: SocketAddr::from(([10, 0, 0, 1], 7000 + node)),
                transport: TransportKind::Sim,
                domain: FailureDomain::default(),
            },
        }
    }

    fn drop_of(extent: u32, node: u16) -> Order {
        Order::Drop {
            extent: ExtentIndex::new(extent),
            node: format!("n{node}"),
        }
    }

    #[test]
    fn the_most_endangered_extent_is_first_and_drops_before_all() {
        let mut plan = Plan::default();
        plan.ordered(vec![copy(0, 1), copy(1, 1), copy(2, 1), drop_of(3, 1)]);
        let live = |extent: ExtentIndex| [2, 1, 1, 3][extent.get() as usize];
        let next = |plan: &mut Plan| plan.next(0, true, live);
        assert_eq!(next(&mut plan), Some(drop_of(3, 1)));
        assert_eq!(next(&mut plan), Some(copy(1, 1)));
        assert_eq!(next(&mut plan), Some(copy(2, 1)));
        assert_eq!(next(&mut plan), Some(copy(0, 1)));
        assert_eq!(next(&mut plan), None);
    }

    #[test]
    fn a_failure_waits_longer_each_time_and_is_forgotten_when_nobody_orders_it() {
        let mut plan = Plan::default();
        let (mut now, mut waits) = (0, Vec::new());
        for _ in 0..12 {
            plan.ordered(vec![copy(0, 1)]);
            let order = plan.next(now, true, |_| 1).expect("due");
            plan.failed(&order, now);
            let wake = plan.wake_ms().expect("waiting");
            assert_eq!(plan.next(wake - 1, true, |_| 1), None);
            waits.push(wake - now);
            now = wake;
        }
        assert!(waits.is_sorted() && waits[11] == RETRY_MOST_MS, "{waits:?}");
        plan.ordered(Vec::new());
        assert_eq!((plan.waiting(), plan.next(now, true, |_| 1)), (0, None));
    }

    proptest! {
        /// Nothing is active twice, and whatever is ordered and due is given out.
        #[test]
        fn each_order_is_carried_out_by_one(
            steps in prop::collection::vec((0..5u8, 0..4u32, 0..3u16), 0..200),
        ) {
            let mut plan = Plan::default();
            let mut active: Vec<Order> = Vec::new();
            let mut ordered: Vec<Order> = Vec::new();
            for (now, (what, extent, node)) in (0..).map(|step| step * 100_u64).zip(steps) {
                match what {
                    0 => {
                        let order = copy(extent, node);
                        if !ordered.contains(&order) {
                            ordered.push(order);
                        }
                        plan.ordered(ordered.clone());
                    }
                    1 => {
                        ordered.retain(|order| *order != copy(extent, node));
                        plan.ordered(ordered.clone());
                    }
                    2 => {
                        if let Some(order) = plan.next(now, true, |_| 1) {
                            prop_assert!(!active.contains(&order), "active twice");
                            active.push(order);
                        }
                    }
                    3 => if let Some(order) = active.pop() {
                        ordered.retain(|other| *other != order);
                        plan.done(&order);
                    },
                    _ => if let Some(order) = active.pop() {
                        plan.failed(&order, now);
                    },
                }
            }
            // Much later, everything that is ordered and not active comes out.
            let late = 1 << 40;
            plan.ordered(ordered.clone());
            while let Some(order) = plan.next(late, true, |_| 1) {
                prop_assert!(!active.contains(&order));
                active.push(order);
            }
            for order in ordered {
                prop_assert!(active.contains(&order));
            }
        }
    }
}
