//! Who is the owner, and what its successor would know: an authority that is away now and then, and refuses
//! whoever has been succeeded.

use std::sync::{Arc, Mutex};

use mycoram_fabric::authority::{
    AuthorityError, Order, Places, RegionAuthority, Sighting, StaleMark, StaticAuthority,
};
use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::placement::{RegionEntry, RoundRobin};
use mycoram_fabric::units::{Epoch, ExtentIndex};

use super::Dice;

/// One call in so many finds the authority away.
const AWAY_ONE_IN: u64 = 3;

struct State {
    owner: u64,
    directory: Vec<u8>,
    dice: Dice,
    /// Nothing is placed any more.
    full: bool,
}

/// The seat of the region's owner.
#[derive(Clone)]
pub(crate) struct Throne {
    state: Arc<Mutex<State>>,
    placement: StaticAuthority,
}

impl Throne {
    pub(crate) fn new(placement: RoundRobin, seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                owner: 1,
                directory: Vec::new(),
                dice: Dice(seed ^ 0xa5a5),
                full: false,
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
        self.throne.placement.place(region, extents, without)
    }

    fn mark_stale(&self, _marks: &[StaleMark<'_>]) -> Result<(), AuthorityError> {
        self.ask()
    }

    fn report(&self, _node: &str, _seen: Sighting) {}

    fn orders(&self) -> Result<Vec<Order>, AuthorityError> {
        Ok(Vec::new())
    }

    fn copied(&self, _extent: ExtentIndex, _node: &str) -> Result<(), AuthorityError> {
        self.ask()
    }

    fn dropped(&self, _extent: ExtentIndex, _node: &str) -> Result<(), AuthorityError> {
        self.ask()
    }

    fn grant(&self, _node: &str) -> Result<Option<Vec<u8>>, AuthorityError> {
        Ok(None)
    }
}
