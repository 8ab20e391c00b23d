//! Comparing the replicas of a region that has no owner. Whoever does it is its owner meanwhile, so that nobody else
//! writes it unseen: the memory nodes refuse the former one before anything is read, and refuse this one as soon as a
//! successor is told to go on.
//!
//! ```text
//!   acquire (never from an owner whose lease runs) -> adopt -> compare -> with repair: missing replicas are made anew
//!                                                                \-> give back
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mycoram_fabric::authority::{
    AuthorityError, KnownHomes, Order, Places, RegionAuthority, Sighting, StaleMark,
};
use mycoram_fabric::compare::{CompareError, Comparison, compare};
use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::placement::{NodeEntry, RegionEntry};
use mycoram_fabric::random;
use mycoram_fabric::rebuild::Pace;
use mycoram_fabric::remote::{Remote, RemoteOptions, ReopenError, TransportError, Transports};
use mycoram_fabric::session::TlsDial;
use mycoram_fabric::units::{Epoch, ExtentIndex};

use super::authority::ControlAuthority;
use super::call::ControlClient;
use super::error::ClientError;
use super::lease::{LeaseError, RegionKey, RegionLease};
use super::regions::FENCE_PATIENCE;
use crate::cluster::StuckExtents;
use crate::proto;
use crate::words::BadField;

/// Between two looks how many replicas are missing.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Why replicas were not compared, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum OwnerlessError {
    /// The control plane.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The region could not be had.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// What it said of a node.
    #[error(transparent)]
    Field(#[from] BadField),
    /// A transport is not to be had here.
    #[error("the memory nodes cannot be reached from here")]
    Transport(#[from] TransportError),
    /// The memory nodes.
    #[error(transparent)]
    Reopen(#[from] ReopenError),
    /// The comparison.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// The system.
    #[error("no random numbers are to be had")]
    Random(#[from] std::io::Error),
}

impl OwnerlessError {
    /// Whether somebody owns the region by now.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(
            self,
            Self::Compare(CompareError::Fenced)
                | Self::Reopen(
                    ReopenError::Contended { .. }
                        | ReopenError::Authority(AuthorityError::EpochTooLow { .. })
                )
        )
    }
}

/// How it is to be done.
#[derive(Clone, Copy, Debug)]
pub struct OwnerlessCheck<'a> {
    /// The region's name.
    pub name: &'a str,
    /// Whether wrong replicas are written again, and missing ones made anew.
    pub repair: bool,
    /// How long making replicas anew may get nowhere.
    pub patience: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerlessReport {
    /// Live replicas, compared with each other.
    pub found: Comparison,
    /// Extents with fewer live replicas in the end than they should have.
    pub endangered: u64,
    /// Of these, extents that can get no other replica as the nodes are now.
    pub stuck: StuckExtents,
    /// Replicas that were made anew.
    pub rebuilt: u64,
}

impl OwnerlessCheck<'_> {
    /// Compares. `dial` opens the nodes' control channels; `None`: they are not encrypted.
    pub fn run(
        &self,
        client: &Arc<ControlClient>,
        dial: Option<TlsDial>,
        told: &mut dyn FnMut(&Comparison),
    ) -> Result<OwnerlessReport, OwnerlessError> {
        let status = self.status(client)?;
        if status.placed_extents == 0 {
            let region = status.region.unwrap_or_default();
            let pages = region.bytes / mycoram_fabric::units::PAGE_BYTES as u64;
            let found = Comparison {
                pages,
                looked_at: pages,
                ..Comparison::default()
            };
            return Ok(OwnerlessReport {
                found,
                ..OwnerlessReport::default()
            });
        }
        let transports = Transports::for_nodes(&nodes(client)?)?;
        let owner = random::System::open()?.number();
        let key = RegionKey::Name(self.name.to_owned());
        let lease = RegionLease::acquire(Arc::clone(client), &key, owner, false, FENCE_PATIENCE)?;
        let authority = Arc::new(Caretaker {
            control: lease.authority(),
            repair: self.repair,
            healing: AtomicBool::new(false),
        });
        let mut options = RemoteOptions::system()?;
        options.owner = owner;
        options.token = lease.token();
        match &mut options.rebuild {
            Some(rebuild) if self.repair => rebuild.pace = Pace::Share(lease.copy_percent()),
            _ => options.rebuild = None,
        }
        if let Some(dial) = dial {
            options.dial = Arc::new(dial);
        }
        let for_region = Arc::clone(&authority) as Arc<dyn RegionAuthority>;
        let remote = Remote::adopt(lease.entry(), for_region, &transports, &options)?;
        let found = compare(&*remote, self.repair, told)?;
        // Only now: a copy is as good as the replica that it is made from.
        let (endangered, stuck) = self.rebuild(client, &remote, &authority)?;
        let rebuilt = remote.stats().rebuilt_replicas;
        // Before the lease is given back.
        drop(remote);
        Ok(OwnerlessReport {
            found,
            endangered,
            stuck,
            rebuilt,
        })
    }

    fn status(&self, client: &ControlClient) -> Result<proto::RegionStatus, ClientError> {
        client.get_region(proto::GetRegionRequest {
            region: self.name.to_owned(),
        })
    }

    /// With repair waits until all extents have the replicas that they should have, or nothing more comes of it:
    /// at once where no node can take what is missing. Gives how many have not, and what they lack.
    fn rebuild(
        &self,
        client: &ControlClient,
        remote: &Remote,
        authority: &Caretaker,
    ) -> Result<(u64, StuckExtents), OwnerlessError> {
        let (mut before, mut moved) = (None, Instant::now());
        loop {
            let status = self.status(client)?;
            if status.epoch != remote.entry().epoch.get() {
                return Err(CompareError::Fenced.into());
            }
            let endangered = u64::from(status.endangered);
            let begun = authority.healing.load(Ordering::Acquire);
            let stuck = StuckExtents {
                no_source: status.no_source,
                no_domain: status.no_domain,
                no_room: status.no_room,
            };
            let copying = begun && status.copying > 0;
            if !self.repair || (endangered == u64::from(stuck.total()) && !copying) {
                return Ok((endangered, stuck));
            }
            authority.healing.store(true, Ordering::Release);
            let stats = remote.stats();
            let now = (
                endangered,
                status.copying,
                stats.rebuilt_bytes,
                stats.rebuild_pages_left,
            );
            if before != Some(now) {
                (before, moved) = (Some(now), Instant::now());
            } else if moved.elapsed() >= self.patience {
                return Ok((endangered, stuck));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

fn nodes(client: &ControlClient) -> Result<Vec<NodeEntry>, OwnerlessError> {
    let listed = client.list_nodes(proto::Nothing {})?.nodes;
    let entries = listed.into_iter().map(NodeEntry::try_from);
    Ok(entries.collect::<Result<_, _>>()?)
}

/// An owner that wants nothing for itself: it takes no places, says nothing of nodes that it may only not reach from
/// where it is, and changes what counts only if it is to repair.
struct Caretaker {
    control: Arc<ControlAuthority>,
    repair: bool,
    /// Everything was compared, and replicas are missing.
    healing: AtomicBool,
}

/// What a caretaker does not do.
#[derive(Debug, thiserror::Error)]
#[error("the region is only looked at")]
struct OnlyLooks;

impl RegionAuthority for Caretaker {
    fn place(
        &self,
        _region: &RegionEntry,
        _extents: &[ExtentIndex],
        _without: &[String],
    ) -> Result<Places, AuthorityError> {
        Err(AuthorityError::Refused(Box::new(OnlyLooks)))
    }

    fn mark_stale(&self, marks: &[StaleMark<'_>]) -> Result<(), AuthorityError> {
        match self.repair {
            true => self.control.mark_stale(marks),
            false => Err(AuthorityError::Refused(Box::new(OnlyLooks))),
        }
    }

    fn report(&self, _node: &str, _seen: Sighting) {}

    fn orders(&self) -> Result<Vec<Order>, AuthorityError> {
        match self.healing.load(Ordering::Acquire) {
            true => self.control.orders(),
            false => Ok(Vec::new()),
        }
    }

    fn copied(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        self.control.copied(extent, node)
    }

    fn dropped(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        self.control.dropped(extent, node)
    }

    fn gives_orders(&self) -> bool {
        self.repair
    }

    fn epoch(&self) -> Option<Epoch> {
        self.control.epoch()
    }

    fn grant(&self, node: &str) -> Result<Option<Vec<u8>>, AuthorityError> {
        self.control.grant(node)
    }

    fn forget_grant(&self, node: &str) {
        self.control.forget_grant(node);
    }

    fn homes(&self) -> Result<Option<KnownHomes>, AuthorityError> {
        self.control.homes()
    }
}
