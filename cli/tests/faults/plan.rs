//! What is done when: drawn from a seed, before any of it is done.

use std::fmt;

/// Numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `least` to below `end`.
    pub(crate) fn between(&mut self, least: u64, end: u64) -> u64 {
        least + self.number() % (end - least)
    }
}

/// Something that goes wrong, and is put right when its time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    /// kill -9; started again, empty.
    KillNode(usize),
    /// SIGSTOP.
    StopNode(usize),
    /// The bridge's port to it is cut: a path that swallows everything.
    CutNode(usize),
    /// Its own link is down: its device says so.
    DownNode(usize),
    /// So many percent of what it sends are lost.
    LoseOfNode(usize, u8),
    /// What it sends takes so many ms longer.
    DelayNode(usize, u8),
    /// kill -9; started again, it takes its programs over.
    KillAgent,
    /// SIGSTOP.
    StopAgent,
    /// kill -9; started again on its store.
    KillControl(usize),
    /// SIGSTOP.
    StopControl(usize),
    /// kill -9 of a member of the control plane's etcd; started again on what it has.
    KillMember(usize),
    /// SIGSTOP.
    StopMember(usize),
}

impl Trouble {
    /// What it is counted as.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::KillNode(_) => "kill node",
            Self::StopNode(_) => "stop node",
            Self::CutNode(_) => "cut node off",
            Self::DownNode(_) => "link down",
            Self::LoseOfNode(..) => "loss",
            Self::DelayNode(..) => "delay",
            Self::KillAgent => "kill agent",
            Self::StopAgent => "stop agent",
            Self::KillControl(_) => "kill control plane",
            Self::StopControl(_) => "stop control plane",
            Self::KillMember(_) => "kill etcd member",
            Self::StopMember(_) => "stop etcd member",
        }
    }
}

/// A fault of a round: from when, to when, ms from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) trouble: Trouble,
    pub(crate) from_ms: u64,
    pub(crate) until_ms: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} from {} to {} ms",
            self.trouble, self.from_ms, self.until_ms
        )
    }
}

/// What there is to go wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    /// The network can lose and delay packets.
    pub(crate) netem: bool,
    /// Processes of the control plane.
    pub(crate) controls: usize,
    /// Members of the etcd that they share; 0: the one has a file of its own.
    pub(crate) members: usize,
}

impl Means {
    /// One control plane with a file, and a network that can only be cut.
    pub(crate) const LEAST: Self = Self {
        netem: false,
        controls: 1,
        members: 0,
    };
}

/// One round of at most `replicas - 1` of `nodes` in trouble.
pub(crate) fn round(draw: &mut Draw, nodes: usize, replicas: usize, means: Means) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut left: Vec<usize> = (0..nodes).collect();
    for _ in 0..draw.between(1, replicas as u64) {
        let node = left.swap_remove(draw.between(0, left.len() as u64) as usize);
        let trouble = match draw.between(0, if means.netem { 10 } else { 8 }) {
            0..=2 => Trouble::KillNode(node),
            3..=4 => Trouble::StopNode(node),
            5..=6 => Trouble::CutNode(node),
            7 => Trouble::DownNode(node),
            8 => Trouble::LoseOfNode(node, draw.between(1, 30) as u8),
            _ => Trouble::DelayNode(node, draw.between(1, 60) as u8),
        };
        faults.push(timed(draw, trouble));
    }
    // One of the others at the same time, mostly.
    match draw.between(0, 10) {
        0..=2 => faults.push(timed(draw, Trouble::KillAgent)),
        3 => faults.push(timed(draw, Trouble::StopAgent)),
        4..=5 => {
            let control = one_of(draw, means.controls);
            faults.push(timed(draw, Trouble::KillControl(control)));
        }
        6 => {
            let control = one_of(draw, means.controls);
            faults.push(timed(draw, Trouble::StopControl(control)));
        }
        _ => {}
    }
    // One of three, beside all that.
    if means.members > 0 {
        let member = one_of(draw, means.members);
        match draw.between(0, 4) {
            0..=1 => faults.push(timed(draw, Trouble::KillMember(member))),
            2 => faults.push(timed(draw, Trouble::StopMember(member))),
            _ => {}
        }
    }
    faults
}

/// Of one nothing is drawn.
fn one_of(draw: &mut Draw, count: usize) -> usize {
    match count {
        1 => 0,
        _ => draw.between(0, count as u64) as usize,
    }
}

/// From a hiccup to longer than every deadline.
fn timed(draw: &mut Draw, trouble: Trouble) -> Fault {
    let from_ms = draw.between(0, 2500);
    let lasts_ms = match draw.between(0, 3) {
        0 => draw.between(20, 300),
        1 => draw.between(300, 2500),
        _ => draw.between(2500, 6000),
    };
    Fault {
        trouble,
        from_ms,
        until_ms: from_ms + lasts_ms,
    }
}

#[test]
fn a_seed_always_gives_the_same_rounds_and_never_too_many_dead() {
    let means = Means {
        netem: true,
        controls: 2,
        members: 3,
    };
    let rounds = |seed| -> Vec<_> {
        let mut draw = Draw::new(seed);
        (0..200).map(|_| round(&mut draw, 3, 3, means)).collect()
    };
    assert_eq!(rounds(5), rounds(5));
    assert_ne!(rounds(5), rounds(6));
    let mut kinds = std::collections::BTreeSet::new();
    for round in rounds(7) {
        kinds.extend(round.iter().map(|fault| fault.trouble.kind()));
        let of_nodes = round.iter().filter(|fault| {
            !matches!(
                fault.trouble,
                Trouble::KillAgent
                    | Trouble::StopAgent
                    | Trouble::KillControl(_)
                    | Trouble::StopControl(_)
                    | Trouble::KillMember(_)
                    | Trouble::StopMember(_)
            )
        });
        assert!((1..=2).contains(&of_nodes.count()), "{round:?}");
    }
    assert_eq!(kinds.len(), 12, "{kinds:?}");
}
