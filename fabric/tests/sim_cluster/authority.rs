//! Who is the owner, and what its successor would know: an authority that is away now and then, refuses whoever has
//! been succeeded, and knows where replicas are that count, on which life of their nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mycoram_fabric::authority::{
    AuthorityError, KnownExtent, KnownHomes, Order, Places, RegionAuthority, Sighting, StaleMark,
    StaticAuthority,
};
use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::placement::{NodeEntry, RegionEntry, RoundRobin};
use mycoram_fabric::units::{Epoch, ExtentIndex, Incarnation};

use super::{Dice, Machines, index_of};

/// One call in so many finds the authority away.
const AWAY_ONE_IN: u64 = 3;

struct State {
    owner: u64,
    directory: Vec<u8>,
    dice: Dice,
    /// Nothing is placed any more.
    full: bool,
    /// By extent: on which life of which node, and whether it counts.
    homes: BTreeMap<u32, Vec<(usize, u64, bool)>>,
}

/// The seat of the region's owner.
#[derive(Clone)]
pub(crate) struct Throne {
    state: Arc<Mutex<State>>,
    machines: Machines,
    nodes: Vec<NodeEntry>,
    placement: StaticAuthority,
}

impl Throne {
    pub(crate) fn new(placement: RoundRobin, machines: &Machines, seed: u64) -> Self {
        Self {
            machines: Arc::clone(machines),
            nodes: placement.0.clone(),
            state: Arc::new(Mutex::new(State {
                owner: 1,
                directory: Vec::new(),
                dice: Dice(seed ^ 0xa5a5),
                full: false,
                homes: BTreeMap::new(),
            })),
            placement: StaticAuthority::new(Arc::new(placement)),
        }
    }

    /// As the owner sees it.
    pub(crate) fn authority(&self) -> Arc<dyn RegionAuthority> {
        let owner = self.state.lock().expect("no panic").owner;
        Arc::new(Seat {
            throne: self.clone(),
            owner,
        })
    }

    /// As the next owner sees it: from now on the former one is refused.
    pub(crate) fn successor(&self) -> Arc<dyn RegionAuthority> {
        self.state.lock().expect("no panic").owner += 1;
        self.authority()
    }

    /// Whether there is no memory left for anybody.
    pub(crate) fn set_full(&self, full: bool) {
        self.state.lock().expect("no panic").full = full;
    }

    fn life(&self, node: usize) -> u64 {
        self.machines[node].lock().expect("no panic").incarnation
    }

    /// What the next owner knows of the region.
    pub(crate) fn directory(&self) -> Vec<u8> {
        self.state.lock().expect("no panic").directory.clone()
    }

    pub(crate) fn keep_directory_of(&self, remote: &dyn RemoteRegion) {
        let state = Arc::clone(&self.state);
        let owner = state.lock().expect("no panic").owner;
        let keep = move |directory: &[u8]| {
            let mut state = state.lock().expect("no panic");
            if state.owner != owner {
                return Err("the file is another owner's".into());
            }
            state.directory = directory.to_vec();
            Ok(())
        };
        remote.keep_directory(Box::new(keep)).expect("kept");
    }
}

struct Seat {
    throne: Throne,
    owner: u64,
}

impl Seat {
    fn ask(&self) -> Result<(), AuthorityError> {
        let mut state = self.throne.state.lock().expect("no panic");
        if state.owner != self.owner {
            return Err(AuthorityError::EpochTooLow {
                requested: Epoch::new(self.owner),
                current: Epoch::new(state.owner),
            });
        }
        match state.dice.roll(AWAY_ONE_IN) {
            0 => Err(AuthorityError::Away("it is away".into())),
            _ => Ok(()),
        }
    }
}

impl RegionAuthority for Seat {
    fn place(
        &self,
        region: &RegionEntry,
        extents: &[ExtentIndex],
        without: &[String],
    ) -> Result<Places, AuthorityError> {
        self.ask()?;
        if self.throne.state.lock().expect("no panic").full {
            return Err(AuthorityError::Full("it is full".into()));
        }
        let throne = &self.throne;
        let lives: Vec<_> = (0..throne.nodes.len())
            .map(|node| throne.life(node))
            .collect();
        let mut places = Places {
            nodes: throne.nodes.clone(),
            lives: lives.iter().copied().map(Incarnation::new).collect(),
            homes: Vec::with_capacity(extents.len()),
        };
        let excluded = |node: usize| without.contains(&throne.nodes[node].name);
        for extent in extents {
            let fresh = throne.placement.place(region, &[*extent], without)?;
            let mut state = throne.state.lock().expect("no panic");
            // What it had keeps its place, as long as that is one.
            let known = state.homes.entry(extent.get()).or_default();
            known.retain(|(node, life, counts)| {
                *counts && !excluded(*node) && lives[*node] == *life
            });
            for node in fresh.homes[0].iter().map(|node| usize::from(*node)) {
                let there = known.iter().any(|(other, ..)| *other == node);
                if known.len() < usize::from(region.replicas) && !there {
                    known.push((node, lives[node], true));
                }
            }
            let homes = known.iter().map(|(node, ..)| *node as u16);
            places.homes.push(homes.collect());
        }
        Ok(places)
    }

    fn mark_stale(&self, marks: &[StaleMark<'_>]) -> Result<(), AuthorityError> {
        self.ask()?;
        let mut state = self.throne.state.lock().expect("no panic");
        for mark in marks {
            let homes = state.homes.entry(mark.extent.get()).or_default();
            let marked = homes
                .iter_mut()
                .filter(|(node, ..)| *node == index_of(mark.node));
            marked.for_each(|(.., counts)| *counts = false);
        }
        Ok(())
    }

    fn report(&self, _node: &str, _seen: Sighting) {}

    fn orders(&self) -> Result<Vec<Order>, AuthorityError> {
        Ok(Vec::new())
    }

    fn copied(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        self.ask()?;
        let node = index_of(node);
        let life = self.throne.life(node);
        let mut state = self.throne.state.lock().expect("no panic");
        let homes = state.homes.entry(extent.get()).or_default();
        homes.retain(|(other, ..)| *other != node);
        homes.push((node, life, true));
        Ok(())
    }

    fn dropped(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        self.ask()?;
        let mut state = self.throne.state.lock().expect("no panic");
        let homes = state.homes.entry(extent.get()).or_default();
        homes.retain(|(other, _, counts)| *other != index_of(node) || *counts);
        Ok(())
    }

    fn homes(&self) -> Result<Option<KnownHomes>, AuthorityError> {
        self.ask()?;
        let state = self.throne.state.lock().expect("no panic");
        let mut known = KnownHomes::default();
        for (extent, homes) in state.homes.iter().filter(|(_, homes)| !homes.is_empty()) {
            let replicas = homes.iter().map(|(node, life, counts)| {
                let named = (self.throne.nodes[*node].clone(), Incarnation::new(*life));
                let at = known.nodes.iter().position(|other| *other == named);
                let at = at.unwrap_or_else(|| {
                    known.nodes.push(named);
                    known.nodes.len() - 1
                });
                (at as u16, *counts)
            });
            let replicas = replicas.collect();
            known.extents.push(KnownExtent {
                extent: ExtentIndex::new(*extent),
                replicas,
                lost: false,
            });
        }
        Ok(Some(known))
    }

    fn grant(&self, _node: &str) -> Result<Option<Vec<u8>>, AuthorityError> {
        Ok(None)
    }
}
