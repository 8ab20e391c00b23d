//! Changes of a region's homes: what follows when a node is lost, and replicas that come and go.
//!
//! ```text
//!   a node is lost --> its replicas are marked stale: with the authority, in the owner's directory
//!                      --> published: lanes answer the writes that missed them
//!
//!   begin_copy --> directory: copying --> published: lanes write to it --> (copied) --> finish_copy
//!      finish_copy --> authority: copied --> directory: live --> published: lanes read from it
//!   drop_replica --> authority: stale --> directory: stale --> published --> every lane has heard of it
//!      --> its memory is freed --> directory: gone --> authority: dropped
//! ```
//!
//!   places: an extent that was nowhere --> memory for it --> directory: live --> published
//!
//! One change at a time, each durable before it is published. Everything here blocks; in a region with
//! threads its keeper does what losses ask for, else a lane does when it is polled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use super::bell::Bell;
use super::copy::{CopyTracker, ExtentCopy};
use super::directory::{Directory, Home, MAX_HOMES, MAX_NODES, NodeRecord, Worth};
use super::homes::{Homes, Location, Standing};
use super::link::{Cause, Death, LinkParts, NodeLink, Tell, Trouble};
use super::published::Snapshot;
use super::region::{Remote, Shared};
use super::transports::TransportMissing;
use super::waits::LanesHeard;
use super::watch::Watch;
use crate::authority::{AuthorityError, OpenError, Sighting, StaleMark, open_session};
use crate::pages::{KeepDirectory, KeepError};
use crate::placement::NodeEntry;
use crate::session::SessionError;
use crate::units::{ExtentIndex, PAGE_SHIFT, PageIndex};

/// Most replicas of an extent that are read or written, beyond those that it is to have: of a rebuild, and
/// of a drain beside it.
pub(super) const SPARE_REPLICAS: usize = 2;

/// Why homes were not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The region has no such extent.
    #[error("the region has no such extent")]
    NoSuchExtent,
    /// The extent has no such replica.
    #[error("the extent has no replica on this node")]
    NoSuchReplica,
    /// It lives nowhere yet.
    #[error("the extent is not placed yet")]
    NotPlaced,
    /// The control plane named places that cannot be.
    #[error("the control plane named too few places for an extent, or too many, or one twice")]
    Places,
    /// It has a live one there already, or one that is being copied.
    #[error("the extent has a replica on this node already")]
    AlreadyThere,
    /// More replicas than an extent may have at a time.
    #[error("the extent has as many replicas as it may have at a time")]
    TooMany,
    /// Its only live replica.
    #[error("it is the last live replica of its extent")]
    LastReplica,
    /// Pages of the copy are not right yet.
    #[error("the copy is not complete")]
    NotComplete,
    /// Its node was given up meanwhile, or it was dropped.
    #[error("the copy does not count any more: its node was lost, or it was dropped")]
    CopyLost,
    /// Lanes still have work under way that uses the replica. Call again.
    #[error("the replica is still in use: try again")]
    Busy,
    /// The owner has been replaced, or has released the region.
    #[error("the region is not this owner's any more")]
    NotOwner,
    /// The node's transport.
    #[error(transparent)]
    Transport(#[from] TransportMissing),
    /// The node.
    #[error("the memory node does not do it")]
    Node(#[source] SessionError),
    /// The node is gone.
    #[error("the memory node is gone")]
    NodeGone,
    /// The control plane.
    #[error("the control plane does not do it")]
    Authority(#[from] AuthorityError),
    /// The owner's own directory.
    #[error("the region's directory could not be stored")]
    Directory(#[source] KeepError),
    /// Threads.
    #[error("the thread that watches the memory node could not be started")]
    Watch(#[source] std::io::Error),
}

/// How many nodes have been lost, and whom to tell.
#[derive(Debug)]
pub(super) struct Losses {
    count: AtomicU64,
    /// How many were dealt with. A region that is new has one more to be looked for: nodes may have been
    /// lost before it was opened.
    handled: AtomicU64,
    /// Some node gave a wrong page of which the authority was not told yet.
    wrong: AtomicBool,
    /// The keeper's; none in simulated time.
    bell: Option<Arc<Bell>>,
}

impl Losses {
    pub(super) fn new(bell: Option<Arc<Bell>>) -> Self {
        Self {
            count: AtomicU64::new(1),
            handled: AtomicU64::new(0),
            wrong: AtomicBool::new(false),
            bell,
        }
    }

    /// Whether there is one that has not been dealt with.
    pub(super) fn any(&self) -> bool {
        self.handled.load(Ordering::Acquire) != self.count()
    }

    /// Whether there is anything to be done, or said.
    pub(super) fn any_news(&self) -> bool {
        self.any() || self.wrong.load(Ordering::Acquire)
    }

    /// A node gave a wrong page: its link knows which.
    pub(super) fn wrong_page(&self) {
        if !self.wrong.swap(true, Ordering::AcqRel)
            && let Some(bell) = &self.bell
        {
            bell.ring();
        }
    }

    pub(super) fn one_more(&self) {
        self.count.fetch_add(1, Ordering::Release);
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }
}

/// What only changes use. Its lock makes them one at a time.
#[derive(Default)]
pub(super) struct Changes {
    keep: Option<KeepDirectory>,
    /// Links whose end the authority was told of.
    reported: BTreeSet<u16>,
    /// Replicas that are being dropped: the lanes that have to hear that they do not count any more. Later
    /// changes are none of their business: a drop that waited for the newest would wait for each other drop.
    leaving: BTreeMap<(ExtentIndex, u16), LanesHeard>,
}

/// A replica that has no place in what was published yet.
pub(super) struct Added {
    pub(super) extent: ExtentIndex,
    pub(super) location: Location,
    /// Where it is copied.
    pub(super) tracker: Option<Arc<CopyTracker>>,
}

impl Changes {
    pub(super) fn keep(&mut self, directory: &Directory) -> Result<(), ChangeError> {
        match &mut self.keep {
            Some(keep) => keep(&directory.encode()).map_err(ChangeError::Directory),
            None => Ok(()),
        }
    }
}

impl Shared {
    pub(super) fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory as it is now.
    pub(super) fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keep_directory(&self, mut keep: KeepDirectory) -> Result<(), KeepError> {
        let mut changes = self.changes();
        keep(&self.directory().encode())?;
        changes.keep = Some(keep);
        Ok(())
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_fenced() || self.is_released()
    }

    /// Marks the replicas of lost nodes stale, and tells who gave wrong pages. False: it could not be done now, and
    /// is to be tried again.
    pub(super) fn tend(&self) -> bool {
        self.tend_losses() && self.tell_wrong()
    }

    /// A node that gives one wrong page may give many: the authority hears of it now and then.
    fn tell_wrong(&self) -> bool {
        // Before the links are looked at: what comes behind it is new.
        if !self.losses.wrong.swap(false, Ordering::AcqRel) || self.is_over() {
            return true;
        }
        let now_ms = self.options.clock.now_ms();
        let mut all = true;
        for link in self.published.newest().links.iter() {
            match link.tell_wrong(now_ms) {
                Tell::Nothing => {}
                Tell::Now => self
                    .authority
                    .report(&link.record.entry.name, Sighting::WrongPage),
                Tell::Later => all = false,
            }
        }
        if !all {
            self.losses.wrong.store(true, Ordering::Release);
        }
        all
    }

    fn tend_losses(&self) -> bool {
        let mut changes = self.changes();
        if !self.losses.any() {
            return true;
        }
        let losses = self.losses.count();
        if !self.is_over()
            && let Err(error) = self.mark_lost(&mut changes)
        {
            if let ChangeError::Authority(AuthorityError::EpochTooLow { .. }) = error {
                self.fence();
            } else {
                tracing::warn!(
                    region = %self.region.id,
                    error = &error as &dyn std::error::Error,
                    "replicas on a lost memory node cannot be marked stale now; writes to their extents wait"
                );
                return false;
            }
        }
        self.losses.handled.store(losses, Ordering::Release);
        true
    }

    fn mark_lost(&self, changes: &mut Changes) -> Result<(), ChangeError> {
        let newest = self.published.newest();
        let lost = |node: u16| newest.links[usize::from(node)].is_lost();
        let mut directory = self.directory().clone();
        let mut marks: Vec<(ExtentIndex, u16)> = Vec::new();
        for (extent, homes) in (0..).map(ExtentIndex::new).zip(&mut directory.homes) {
            let left = homes
                .iter()
                .any(|home| home.worth == Worth::Live && !lost(home.node));
            for home in homes.iter_mut().filter(|home| lost(home.node)) {
                let gone = match home.worth {
                    // The last live one is: no write is done without it, and if its node can be reached
                    // again, a successor finds all pages there.
                    Worth::Live => left,
                    Worth::Copying => true,
                    Worth::Stale => false,
                };
                if gone {
                    home.worth = Worth::Stale;
                    marks.push((extent, home.node));
                }
            }
        }
        for link in newest.links.iter().filter(|link| link.is_lost()) {
            if changes.reported.insert(link.index)
                && let Some(seen) = link.death().and_then(Death::sighting)
            {
                self.authority.report(&link.record.entry.name, seen);
            }
        }
        if !marks.is_empty() {
            let name = |node: u16| newest.links[usize::from(node)].record.entry.name.as_str();
            let named: Vec<_> = marks
                .iter()
                .map(|(extent, node)| StaleMark {
                    extent: *extent,
                    node: name(*node),
                })
                .collect();
            self.authority.mark_stale(&named)?;
            changes.keep(&directory)?;
        }
        let changed: BTreeSet<_> = marks.iter().map(|(extent, _)| *extent).collect();
        *self.directory() = directory;
        // Also without a mark: lanes hear of the loss.
        self.publish(changed.into_iter(), &[], |_| {});
        Ok(())
    }

    /// Publishes the replicas that the directory counts for `changed` extents.
    pub(super) fn publish(
        &self,
        changed: impl Iterator<Item = ExtentIndex>,
        added: &[Added],
        links: impl FnOnce(&mut Snapshot),
    ) -> LanesHeard {
        let mut next = self.published.newest();
        links(&mut next);
        let directory = self.directory();
        let standing = |extent: ExtentIndex, node: u16| {
            let homes = &directory.homes[extent.get() as usize];
            let home = homes.iter().find(|home| home.node == node)?;
            match home.worth {
                Worth::Live => Some(Standing::Live),
                Worth::Copying => Some(Standing::Copying),
                Worth::Stale => None,
            }
        };
        let homes = Arc::clone(&next.homes);
        let replicas = |extent: ExtentIndex| -> Vec<Location> {
            let added = added.iter().filter(|added| added.extent == extent);
            homes
                .of(extent)
                .chain(added.map(|added| added.location))
                .filter_map(|location| {
                    let standing = standing(extent, location.node)?;
                    Some(Location {
                        standing,
                        ..location
                    })
                })
                .collect()
        };
        let changed: Vec<_> = changed.map(|extent| (extent, replicas(extent))).collect();
        let mut trackers = homes.trackers().to_vec();
        trackers
            .retain(|(extent, tracker)| standing(*extent, tracker.node) == Some(Standing::Copying));
        let followed = |added: &Added| Some((added.extent, Arc::clone(added.tracker.as_ref()?)));
        trackers.extend(added.iter().filter_map(followed));
        drop(directory);
        let made: Homes = homes.next(changed.into_iter(), trackers);
        let version = made.version();
        next.homes = Arc::new(made);
        self.published.publish(next);
        self.lanes.tell(version)
    }

    fn check_extent(&self, extent: ExtentIndex) -> Result<(), ChangeError> {
        if self.is_over() {
            return Err(ChangeError::NotOwner);
        }
        match self.directory().homes.get(extent.get() as usize) {
            None => Err(ChangeError::NoSuchExtent),
            Some(homes) if homes.is_empty() => Err(ChangeError::NotPlaced),
            Some(_) => Ok(()),
        }
    }

    /// The link to a node that counts, made if there is none.
    pub(super) fn link_to(&self, entry: &NodeEntry) -> Result<Arc<NodeLink>, ChangeError> {
        let known = |snapshot: &Snapshot| {
            let mut links = snapshot.links.iter();
            let known = links.find(|link| link.record.entry.name == entry.name && !link.is_lost());
            known.cloned()
        };
        if let Some(link) = known(&self.published.newest()) {
            return Ok(link);
        }
        let transport = self.transports.get(entry)?;
        let (authority, dial) = (Some(&*self.authority), &*self.options.dial);
        let session = open_session(authority, dial, entry, self.identity, true);
        let session = session.map_err(|error| match error {
            OpenError::Grant(error) => error.into(),
            OpenError::Session(error) => ChangeError::Node(error),
        })?;
        let mut changes = self.changes();
        let newest = self.published.newest();
        if let Some(link) = known(&newest) {
            return Ok(link);
        }
        if newest.links.len() >= MAX_NODES {
            return Err(ChangeError::TooMany);
        }
        let record = NodeRecord {
            entry: entry.clone(),
            incarnation: session.welcome().incarnation,
        };
        let link = Arc::new(NodeLink::new(LinkParts {
            // There are at most MAX_NODES.
            index: newest.links.len() as u16,
            record: record.clone(),
            transport,
            dial: Arc::clone(&self.options.dial),
            identity: self.identity,
            authority: Arc::clone(&self.authority),
            session: Ok(session),
            fenced: Arc::clone(&self.fenced),
            losses: Arc::clone(&self.losses),
        }));
        let watch = match &newest.watches {
            Some(_) => {
                let clock = Arc::clone(&self.options.clock);
                Some(Watch::start(Arc::clone(&link), clock).map_err(ChangeError::Watch)?)
            }
            None => None,
        };
        let mut directory = self.directory().clone();
        directory.nodes.push(record);
        changes.keep(&directory)?;
        *self.directory() = directory;
        self.publish(std::iter::empty(), &[], |next| {
            next.links = next
                .links
                .iter()
                .cloned()
                .chain([Arc::clone(&link)])
                .collect();
            if let (Some(watches), Some(watch)) = (&next.watches, &watch) {
                let all = watches.iter().cloned().chain([watch.handle()]);
                next.watches = Some(all.collect());
            }
        });
        if let Some(watch) = watch {
            self.add_watch(watch);
        }
        Ok(link)
    }

    /// Changes one extent's homes, durably, and publishes them.
    fn change(
        &self,
        changes: &mut Changes,
        extent: ExtentIndex,
        added: &[Added],
        change: impl FnOnce(&mut Vec<Home>),
    ) -> Result<LanesHeard, ChangeError> {
        let mut directory = self.directory().clone();
        change(&mut directory.homes[extent.get() as usize]);
        changes.keep(&directory)?;
        *self.directory() = directory;
        Ok(self.publish([extent].into_iter(), added, |_| {}))
    }

    fn homes_of(&self, extent: ExtentIndex) -> Vec<Home> {
        self.directory().homes[extent.get() as usize].clone()
    }
}

impl Death {
    fn sighting(self) -> Option<Sighting> {
        match self {
            Self::NobodyListens => Some(Sighting::NobodyListens),
            Self::StartedAgain => Some(Sighting::StartedAgain),
            Self::RegionGone => Some(Sighting::RegionGone),
            Self::NoAnswer | Self::Refuses => Some(Sighting::NoAnswer),
            Self::Released => None,
        }
    }
}

fn in_words(trouble: Trouble) -> ChangeError {
    match trouble {
        Trouble::Again(Cause::Session(error)) => ChangeError::Node(error),
        Trouble::Again(Cause::Grant(error)) => error.into(),
        Trouble::Again(Cause::Connect(_)) => ChangeError::NodeGone,
        Trouble::Dead(_) => ChangeError::NodeGone,
        Trouble::Fenced => ChangeError::NotOwner,
    }
}

/// What a replica is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// It is written and read.
    Live,
    /// It is written, and read when it is complete.
    Copying,
    /// It missed a write, or is being dropped.
    Stale,
}

/// A replica of an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its node's place in the region's node list.
    pub node: u16,
    /// Its node's name.
    pub name: String,
    /// What it is worth.
    pub state: ReplicaState,
    /// Its node was given up.
    pub lost: bool,
}

impl Remote {
    /// The replicas of an extent, as they are now.
    #[must_use]
    pub fn replicas(&self, extent: ExtentIndex) -> Vec<Replica> {
        let links = self.shared.published.newest().links;
        let directory = self.shared.directory();
        let homes = directory.homes.get(extent.get() as usize);
        let replica = |home: &Home| {
            let link = &links[usize::from(home.node)];
            Replica {
                node: home.node,
                name: link.record.entry.name.clone(),
                state: match home.worth {
                    Worth::Live => ReplicaState::Live,
                    Worth::Copying => ReplicaState::Copying,
                    Worth::Stale => ReplicaState::Stale,
                },
                lost: link.is_lost(),
            }
        };
        homes.into_iter().flatten().map(replica).collect()
    }

    /// Begins a new replica of an extent on a node: from now on it receives all writes, and is not read.
    /// The caller copies the pages ([`ExtentCopy::next`]), over a lane or connections of its own. A stale
    /// replica there is dropped first. Blocks on the node.
    pub fn begin_copy(
        &self,
        extent: ExtentIndex,
        to: &NodeEntry,
    ) -> Result<ExtentCopy, ChangeError> {
        let shared = &self.shared;
        shared.check_extent(extent)?;
        let on = |shared: &Shared| {
            let snapshot = shared.published.newest();
            let homes = shared.homes_of(extent);
            homes
                .into_iter()
                .find(|home| snapshot.links[usize::from(home.node)].record.entry.name == to.name)
        };
        let link = shared.link_to(to)?;
        match on(shared) {
            Some(home) if home.worth == Worth::Stale => self.drop_replica(extent, &to.name)?,
            Some(_) => return Err(ChangeError::AlreadyThere),
            None => {}
        }
        let grants = link
            .allocate(shared.region.extent_bytes, &[extent])
            .map_err(in_words)?;
        // As many as were asked for: the session has seen to that.
        let grant = grants.first().ok_or(ChangeError::NodeGone)?;
        let mut changes = shared.changes();
        let counted = shared.published.newest().homes.of(extent).count();
        let most = usize::from(shared.region.replicas) + SPARE_REPLICAS;
        let refused = if on(shared).is_some() {
            Some(ChangeError::AlreadyThere)
        } else if counted >= most || shared.homes_of(extent).len() >= MAX_HOMES {
            link.free(&[extent]);
            Some(ChangeError::TooMany)
        } else if link.is_lost() {
            Some(ChangeError::NodeGone)
        } else {
            None
        };
        if let Some(refused) = refused {
            return Err(refused);
        }
        let first = u64::from(extent.get()) * (shared.region.extent_bytes.get() >> PAGE_SHIFT);
        let pages = (shared.region.extent_bytes.get() >> PAGE_SHIFT)
            .min(u64::from(shared.pages().get()) - first);
        // A region's pages are counted in 32 bits.
        let (first, pages) = (PageIndex::new(first as u32), pages as u32);
        let tracker = Arc::new(CopyTracker::new(link.index, pages));
        let location = Location {
            addr: grant.addr,
            rkey: grant.rkey,
            node: link.index,
            standing: Standing::Copying,
        };
        let added = Added {
            extent,
            location,
            tracker: Some(Arc::clone(&tracker)),
        };
        let heard = shared.change(&mut changes, extent, &[added], |homes| {
            homes.push(Home {
                node: link.index,
                worth: Worth::Copying,
            });
        })?;
        Ok(ExtentCopy::new(
            extent, link.index, first, pages, tracker, heard,
        ))
    }

    /// Makes a complete copy a live replica, durably.
    pub fn finish_copy(&self, copy: &ExtentCopy) -> Result<(), ChangeError> {
        let shared = &self.shared;
        let (extent, node) = (copy.extent(), copy.node());
        shared.check_extent(extent)?;
        if copy.left().get() > 0 {
            return Err(ChangeError::NotComplete);
        }
        let mut changes = shared.changes();
        let newest = shared.published.newest();
        let followed = newest.homes.tracker(extent);
        let link = &newest.links[usize::from(node)];
        if link.is_lost() || !followed.is_some_and(|known| Arc::ptr_eq(known, &copy.tracker)) {
            return Err(ChangeError::CopyLost);
        }
        shared.authority.copied(extent, &link.record.entry.name)?;
        shared.change(&mut changes, extent, &[], |homes| {
            for home in homes.iter_mut().filter(|home| home.node == node) {
                home.worth = Worth::Live;
            }
        })?;
        Ok(())
    }

    /// Drops a replica, whatever it is worth, and gives its memory back. The last live one stays. Says
    /// [`ChangeError::Busy`] while lanes have work under way that uses it: it is not used for anything new
    /// then, and the call is to be made again.
    pub fn drop_replica(&self, extent: ExtentIndex, node: &str) -> Result<(), ChangeError> {
        let shared = &self.shared;
        shared.check_extent(extent)?;
        let mut changes = shared.changes();
        let newest = shared.published.newest();
        let homes = shared.homes_of(extent);
        let named = |home: &&Home| newest.links[usize::from(home.node)].record.entry.name == node;
        let home = *homes.iter().find(named).ok_or(ChangeError::NoSuchReplica)?;
        if home.worth != Worth::Stale {
            let another = homes
                .iter()
                .any(|other| other.node != home.node && other.worth == Worth::Live);
            if home.worth == Worth::Live && !another {
                return Err(ChangeError::LastReplica);
            }
            shared.authority.mark_stale(&[StaleMark { extent, node }])?;
            let heard = shared.change(&mut changes, extent, &[], |homes| {
                for other in homes.iter_mut().filter(|other| other.node == home.node) {
                    other.worth = Worth::Stale;
                }
            })?;
            changes.leaving.insert((extent, home.node), heard);
        }
        let heard = changes
            .leaving
            .entry((extent, home.node))
            // It was stale before: what is newest by now knows of that.
            .or_insert_with(|| shared.lanes.tell(newest.homes.version()));
        if !heard.all() {
            return Err(ChangeError::Busy);
        }
        let links = shared.published.newest().links;
        let reachable = links
            .iter()
            .find(|link| link.record.entry.name == node && !link.is_lost());
        reachable
            .unwrap_or(&links[usize::from(home.node)])
            .free(&[extent]);
        match shared.authority.dropped(extent, node) {
            // Perhaps it heard of it the last time.
            Ok(()) | Err(AuthorityError::Unknown) => {}
            Err(error) => return Err(error.into()),
        }
        shared.change(&mut changes, extent, &[], |homes| {
            homes.retain(|other| other.node != home.node);
        })?;
        changes.leaving.remove(&(extent, home.node));
        Ok(())
    }
}
