//! Whether a node answers another one: by pings, which go where RDMA's packets go.

use mycoram_testbed::link::Node;

/// Seconds one ping waits for its answer.
const WAIT_S: &str = "2";
/// An emulated guest on a busy machine may be slow to answer; this many silences mean that nobody will.
const PATIENCE: u32 = 30;
/// Pings that all have to be lost before a path counts as cut.
const LOST: u32 = 2;

fn once(from: &Node, to: &Node) -> bool {
    let words = ["ping", "-c", "1", "-W", WAIT_S, &to.address().to_string()];
    let output = from.command("busybox").args(words).output();
    output.expect("busybox").status.success()
}

/// Whether an answer comes at last; the first one is enough.
pub(crate) fn answers(from: &Node, to: &Node) -> bool {
    (0..PATIENCE).any(|_| once(from, to))
}

/// Whether no answer comes at all. Only worth something where [`answers`] held just before.
pub(crate) fn is_cut_off(from: &Node, to: &Node) -> bool {
    (0..LOST).all(|_| !once(from, to))
}
