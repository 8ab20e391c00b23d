//! A control plane of two copies, for tests: what becomes stale is ordered anew elsewhere.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use mycoram_fabric::authority::{
    AuthorityError, Order, Places, RegionAuthority, Sighting, StaleMark,
};
use mycoram_fabric::placement::{NodeEntry, RegionEntry};
use mycoram_fabric::units::ExtentIndex;

/// A control plane of two copies: what becomes stale is ordered anew on a node that has none.
#[derive(Debug)]
pub(crate) struct Healer {
    nodes: Vec<NodeEntry>,
    extents: u32,
    state: Mutex<Healing>,
}

#[derive(Debug, Default)]
struct Healing {
    /// By extent: nodes with a copy that counts.
    live: BTreeMap<u32, Vec<String>>,
    orders: Vec<Order>,
    /// Nodes that get nothing.
    avoid: Vec<String>,
    copied: u64,
    dropped: u64,
    away: bool,
}

impl Healer {
    pub(crate) fn new(nodes: Vec<NodeEntry>, extents: u32) -> Arc<Self> {
        Arc::new(Self {
            nodes,
            extents,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, Healing> {
        self.state.lock().expect("no panic")
    }

    pub(crate) fn be_away(&self, away: bool) {
        self.state().away = away;
    }

    /// How many copies were made.
    pub(crate) fn copied(&self) -> u64 {
        self.state().copied
    }

    /// How many replicas were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// As when it has not been heard for too long: what is on it counts no more once its owner says so, and
    /// it gets nothing.
    pub(crate) fn node_down(&self, node: usize) {
        let name = self.nodes[node].name.clone();
        self.give_nothing(&name);
    }

    /// It is there again, and empty.
    pub(crate) fn node_up(&self, node: usize) {
        let name = &self.nodes[node].name;
        let mut state = self.state();
        state.avoid.retain(|other| other != name);
        for extent in 0..self.extents {
            state.order_anew(&self.nodes, extent);
        }
    }

    /// Every extent has its two copies, and nothing is to be done.
    pub(crate) fn is_content(&self) -> bool {
        let state = self.state();
        let enough = |extent| state.live.get(&extent).is_some_and(|live| live.len() == 2);
        state.orders.is_empty() && (0..self.extents).all(enough)
    }

    fn give_nothing(&self, node: &str) {
        let mut state = self.state();
        if !state.avoid.iter().any(|other| other == node) {
            state.avoid.push(node.to_owned());
        }
        // Copies to it are ordered elsewhere.
        state
            .orders
            .retain(|order| !matches!(order, Order::Copy { to, .. } if to.name == node));
        for extent in 0..self.extents {
            state.order_anew(&self.nodes, extent);
        }
    }

    /// Copies everything that is on `from` to `to`, and drops it there afterwards.
    pub(crate) fn drain(&self, from: usize, to: usize) {
        let mut state = self.state();
        state.avoid.push(self.nodes[from].name.clone());
        for extent in 0..self.extents {
            state.orders.push(Order::Copy {
                extent: ExtentIndex::new(extent),
                to: self.nodes[to].clone(),
            });
        }
    }

    /// Copies everything to `to`, and drops nothing.
    pub(crate) fn copy_all_to(&self, to: usize) {
        let copies = (0..self.extents).map(|extent| Order::Copy {
            extent: ExtentIndex::new(extent),
            to: self.nodes[to].clone(),
        });
        self.state().orders.extend(copies);
    }

    /// Has everything on `node` dropped, all at once.
    pub(crate) fn drop_all_on(&self, node: usize) {
        let name = &self.nodes[node].name;
        let mut state = self.state();
        for live in state.live.values_mut() {
            live.retain(|other| other != name);
        }
        let drops = (0..self.extents).map(|extent| Order::Drop {
            extent: ExtentIndex::new(extent),
            node: name.clone(),
        });
        state.orders.extend(drops);
    }

    pub(crate) fn all_live_on(&self, node: usize) -> bool {
        let state = self.state();
        let name = &self.nodes[node].name;
        (0..self.extents).all(|extent| state.live.get(&extent).is_some_and(|on| on.contains(name)))
    }
}

impl Healing {
    fn answer(&self) -> Result<(), AuthorityError> {
        if self.away {
            let why = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(AuthorityError::Away(why.into()));
        }
        Ok(())
    }

    fn order_anew(&mut self, nodes: &[NodeEntry], extent: u32) {
        let live = self.live.entry(extent).or_default().clone();
        let ordered = self
            .orders
            .iter()
            .any(|order| matches!(order, Order::Copy { extent: of, .. } if of.get() == extent));
        if live.len() >= 2 || ordered {
            return;
        }
        let free = nodes
            .iter()
            .find(|node| !live.contains(&node.name) && !self.avoid.contains(&node.name));
        if let Some(to) = free {
            self.orders.push(Order::Copy {
                extent: ExtentIndex::new(extent),
                to: to.clone(),
            });
        }
    }
}

impl RegionAuthority for Healer {
    fn place(
        &self,
        _region: &RegionEntry,
        extents: &[ExtentIndex],
        _without: &[String],
    ) -> Result<Places, AuthorityError> {
        let mut state = self.state();
        for extent in extents {
            let first = self.nodes[..2].iter().map(|node| node.name.clone());
            state.live.insert(extent.get(), first.collect());
        }
        Ok(Places {
            nodes: self.nodes.clone(),
            lives: Vec::new(),
            homes: vec![vec![0, 1]; extents.len()],
        })
    }

    fn mark_stale(&self, marks: &[StaleMark<'_>]) -> Result<(), AuthorityError> {
        let mut state = self.state();
        state.answer()?;
        for mark in marks {
            let extent = mark.extent.get();
            if let Some(live) = state.live.get_mut(&extent) {
                live.retain(|node| node != mark.node);
            }
            // Nobody copies to where it failed.
            state.orders.retain(|order| {
                !matches!(order, Order::Copy { extent: of, to }
                    if *of == mark.extent && to.name == mark.node)
            });
            state.order_anew(&self.nodes, extent);
        }
        Ok(())
    }

    fn report(&self, node: &str, _seen: Sighting) {
        self.give_nothing(node);
    }

    fn orders(&self) -> Result<Vec<Order>, AuthorityError> {
        let state = self.state();
        state.answer()?;
        Ok(state.orders.clone())
    }

    fn copied(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        let mut state = self.state();
        state.answer()?;
        let ordered = state.orders.len();
        state.orders.retain(|order| {
            !matches!(order, Order::Copy { extent: of, to } if *of == extent && to.name == node)
        });
        if state.orders.len() == ordered {
            // It was ordered elsewhere meanwhile.
            return Err(AuthorityError::Unknown);
        }
        let live = state.live.entry(extent.get()).or_default();
        live.push(node.to_owned());
        // One more than wanted: one that is drained goes.
        if live.len() > 2 {
            let avoid = state.avoid.clone();
            let live = state.live.entry(extent.get()).or_default();
            if let Some(at) = live.iter().position(|node| avoid.contains(node)) {
                let node = live.remove(at);
                state.orders.push(Order::Drop { extent, node });
            }
        }
        state.copied += 1;
        Ok(())
    }

    fn dropped(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        let mut state = self.state();
        state.answer()?;
        state.orders.retain(|order| {
            !matches!(order, Order::Drop { extent: of, node: on } if *of == extent && on == node)
        });
        state.dropped += 1;
        Ok(())
    }

    fn grant(&self, _node: &str) -> Result<Option<Vec<u8>>, AuthorityError> {
        Ok(None)
    }
}
