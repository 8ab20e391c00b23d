//! The loss of a memory node in mid-run: what the control plane makes of it, and how long that takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::parts::{Control, Status};

/// How often the control plane is asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Replicas and bytes that were copied, for whatever reason.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    pub(super) replicas: u64,
    pub(super) bytes: u64,
}

/// How it ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Healed {
    /// From the kill until the control plane counted the node as down, s. `None`: never.
    pub(super) down_after: Option<f64>,
    /// From the kill until every extent had all its replicas again, s. `None`: not before the guest's end.
    pub(super) whole_after: Option<f64>,
    /// Extents that lost their last replica.
    pub(super) lost_extents: u64,
}

/// A thread that looks until all is whole, or until it is told to end.
pub(super) struct Loss {
    pub(super) node: String,
    /// What had been copied before: nodes that join are given their part too.
    before: Copied,
    ending: Arc<AtomicBool>,
    thread: JoinHandle<Healed>,
}

impl Loss {
    /// Just after `node` was killed.
    pub(super) fn watch(node: String, control: Control, before: Copied) -> Self {
        eprintln!("demo: kill -9 of {node}");
        let ending = Arc::<AtomicBool>::default();
        let told = Arc::clone(&ending);
        let name = node.clone();
        let thread = std::thread::spawn(move || look(&name, &control, &told));
        Self {
            node,
            before,
            ending,
            thread,
        }
    }

    /// The guest has ended: what became of it by now.
    pub(super) fn end(self) -> (String, Copied, Healed) {
        self.ending.store(true, Ordering::Release);
        let healed = self.thread.join().unwrap_or_default();
        (self.node, self.before, healed)
    }
}

fn look(node: &str, control: &Control, ending: &AtomicBool) -> Healed {
    let killed = Instant::now();
    let mut healed = Healed::default();
    while !ending.load(Ordering::Acquire) && healed.whole_after.is_none() {
        if let Some(status) = control.status() {
            note(&mut healed, &status, killed.elapsed().as_secs_f64(), node);
        }
        // Another process's state: it has no event for this one.
        std::thread::sleep(LOOK_INTERVAL);
    }
    healed
}

fn note(healed: &mut Healed, status: &Status, seconds: f64, node: &str) {
    healed.lost_extents = status.lost_extents;
    if healed.down_after.is_none() {
        if status.nodes_down == 0 {
            return;
        }
        healed.down_after = Some(seconds);
        eprintln!(
            "demo: {node} is down, {} extents have too few replicas",
            status.endangered_extents
        );
    }
    if status.endangered_extents == 0 {
        healed.whole_after = Some(seconds);
        eprintln!("demo: all extents have their replicas again, {seconds:.1} s after the kill");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(nodes_down: usize, endangered_extents: u64) -> Status {
        Status {
            nodes_up: 2,
            nodes_down,
            endangered_extents,
            lost_extents: 0,
        }
    }

    #[test]
    fn nothing_is_healed_before_the_loss_was_seen() {
        let mut healed = Healed::default();
        note(&mut healed, &status(0, 0), 0.1, "n");
        assert_eq!((healed.down_after, healed.whole_after), (None, None));
        note(&mut healed, &status(1, 9), 2.0, "n");
        note(&mut healed, &status(1, 3), 3.0, "n");
        assert_eq!((healed.down_after, healed.whole_after), (Some(2.0), None));
        note(&mut healed, &status(1, 0), 4.0, "n");
        assert_eq!(healed.whole_after, Some(4.0));
    }
}
