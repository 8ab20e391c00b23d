//! The group itself: members in and out, pages to all of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::member::{Member, MemberState, MemberStatus};
use super::roll::Roll;
use super::runs::runs;
use crate::authority::{AuthorityError, RegionAuthority, Sighting, StaleMark};
use crate::placement::RegionEntry;
use crate::transfer::{
    EndpointIndex, MemoryIndex, NotArrived, OpenTransferError, Piece, PieceError, Place, Progress,
    Transfer, TransferConfig, Why,
};
use crate::transport::{Mapping, RegisterError, RemoteSlice};
use crate::units::{ByteCount, ExtentIndex, PAGE_BYTES, PageIndex, RemoteAddr};

/// A page that is to be replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageFrom {
    /// Which page of the region.
    pub page: PageIndex,
    /// Where its bytes are in the local memory; they do not change until the call returns.
    pub offset: u64,
}

/// What a call of [`ReplicationGroup::replicate`] came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicated {
    /// Live members, each of which has all the pages.
    pub members: usize,
    /// Members that failed since the call before, by name. They are durably stale.
    pub failed: Vec<String>,
}

/// Why a list of pages does not count as replicated.
#[derive(Debug, thiserror::Error)]
pub enum ReplicateError {
    /// Nobody is left: what was replicated is lost.
    #[error("the group has no live member")]
    NoMember,
    /// A member failed, and the authority could not be told. The next call tells it first.
    #[error("a member failed, and that could not be made durable")]
    NotDurable(#[source] AuthorityError),
    /// The region has an owner with a higher epoch.
    #[error("this owner was fenced: the region has a new one")]
    Fenced,
    /// The list.
    #[error("{0} is in the list twice")]
    Twice(PageIndex),
    /// The list.
    #[error("{0} is outside of the region")]
    OutsideRegion(PageIndex),
    /// The list.
    #[error("a page's bytes are not where the list says")]
    Piece(#[from] PieceError),
}

/// Why a member was not added.
#[derive(Debug, thiserror::Error)]
pub enum AddMemberError {
    /// There is one of that name.
    #[error("the group has a member of that name")]
    Known,
    /// It has not a place for each extent.
    #[error("the member has {given} extents, the region {wanted}")]
    Extents {
        /// What it has.
        given: usize,
        /// What it needs.
        wanted: usize,
    },
    /// It could not be connected.
    #[error(transparent)]
    Connect(#[from] OpenTransferError),
    /// It failed while it was being filled.
    #[error("the member failed while it was being filled: {0}")]
    Failed(Why),
    /// Nobody was left to fill it from, or a failure was not durable.
    #[error("the member could not be filled")]
    Fill(#[from] ReplicateError),
    /// The authority.
    #[error("that the member counts could not be made durable")]
    NotDurable(#[source] AuthorityError),
}

/// Why a member was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveMemberError {
    /// There is none of that name.
    #[error("the group has no member of that name")]
    Unknown,
    /// The authority could not be told; the member still takes part.
    #[error("that the member counts no more could not be made durable")]
    NotDurable(#[source] AuthorityError),
}

/// See the [module](super). One thread drives it; its calls block.
pub struct ReplicationGroup {
    transfer: Transfer,
    roll: Roll,
    region: RegionEntry,
    authority: Arc<dyn RegionAuthority>,
    /// There has been a live member: when none is left, the pages are lost.
    founded: bool,
    fenced: bool,
}

impl ReplicationGroup {
    /// A group without members for the pages of `region`. `transfer` bounds its memory and its share of the
    /// bandwidth, for writes and for the filling of members.
    pub fn open(
        region: &RegionEntry,
        authority: Arc<dyn RegionAuthority>,
        transfer: TransferConfig,
    ) -> Result<Self, OpenTransferError> {
        Ok(Self {
            transfer: Transfer::open(transfer)?,
            roll: Roll::default(),
            region: region.clone(),
            authority,
            founded: false,
            fenced: false,
        })
    }

    /// Makes memory known, so that pages can be replicated from it.
    pub fn register(&mut self, memory: Arc<Mapping>) -> Result<MemoryIndex, RegisterError> {
        self.transfer.register(memory)
    }

    /// The members and how they are.
    #[must_use]
    pub fn members(&self) -> Vec<MemberStatus> {
        let entries = self.roll.entries().iter();
        entries.map(|entry| entry.status.clone()).collect()
    }

    /// What was moved so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.transfer.progress()
    }

    /// Changes the share of the bandwidth.
    pub fn set_rate(&mut self, rate: Option<ByteCount>) {
        self.transfer.set_rate(rate);
    }

    fn extents(&self) -> u64 {
        let (bytes, extent) = (self.region.bytes.get(), self.region.extent_bytes.get());
        bytes.div_ceil(extent.max(1))
    }

    /// Adds a member: connects it, fills it from all live members at once, and has the authority know. The
    /// first member is taken as it is: what it holds is what the region holds.
    pub fn add(
        &mut self,
        member: Member,
        mut each: impl FnMut(&Progress),
    ) -> Result<(), AddMemberError> {
        if self.roll.find(&member.name).is_some() {
            return Err(AddMemberError::Known);
        }
        let (given, wanted) = (member.extents.len(), self.extents());
        if given as u64 != wanted {
            return Err(AddMemberError::Extents {
                given,
                wanted: usize::try_from(wanted).unwrap_or(usize::MAX),
            });
        }
        self.make_failures_durable()?;
        let endpoint = self.transfer.add_endpoint(member.endpoint)?;
        let name = member.name.clone();
        self.roll.join(member.name, endpoint, member.extents);
        let added = if self.founded {
            self.fill(endpoint, &mut each)
        } else {
            Ok(())
        };
        let added = added.and_then(|()| {
            let mut extents = (0..wanted as u32).map(ExtentIndex::new);
            extents
                .try_for_each(|extent| self.authority.copied(extent, &name))
                .map_err(AddMemberError::NotDurable)
        });
        match added {
            Ok(()) => {
                self.roll.filled(endpoint);
                self.founded = true;
                Ok(())
            }
            Err(error) => {
                self.roll.leave(endpoint);
                self.transfer.remove_endpoint(endpoint);
                Err(error)
            }
        }
    }

    /// Copies everything to the member at `endpoint`.
    fn fill(
        &mut self,
        endpoint: EndpointIndex,
        each: &mut impl FnMut(&Progress),
    ) -> Result<(), AddMemberError> {
        // What is left to be copied: bytes from and to in the member's extents.
        let extent_bytes = self.region.extent_bytes.get();
        let mut left: Vec<(usize, u64, u64)> = (0..self.extents() as usize)
            .map(|extent| (extent, 0, extent_bytes))
            .collect();
        // Ends: each round either copies all that is left or has a member less.
        while !left.is_empty() {
            let Some(target) = self.roll.writers().find(|entry| entry.endpoint == endpoint) else {
                return Err(AddMemberError::Failed(Why::Lost));
            };
            let sources: Vec<_> = self.roll.in_state(MemberState::Live).collect();
            if sources.is_empty() {
                return Err(ReplicateError::NoMember.into());
            }
            let piece = |(nth, (extent, at, bytes)): (usize, &(usize, u64, u64))| {
                let source = &sources[nth % sources.len()];
                Piece {
                    tag: nth as u64,
                    from: place(source.endpoint, source.extents[*extent], *at),
                    into: place(target.endpoint, target.extents[*extent], *at),
                    bytes: *bytes,
                }
            };
            let pieces: Vec<_> = left.iter().enumerate().map(piece).collect();
            let not_arrived = self
                .transfer
                .run(&pieces, &mut *each)
                .map_err(ReplicateError::from)?;
            let mut again = Vec::new();
            for not in &not_arrived {
                if not.endpoint == endpoint {
                    return Err(AddMemberError::Failed(not.why));
                }
                let (extent, at, bytes) = left[not.rest.tag as usize];
                again.push((extent, at + bytes - not.rest.bytes, not.rest.bytes));
            }
            left = again;
            self.note_failures(&not_arrived);
            self.make_failures_durable()?;
        }
        Ok(())
    }

    /// Takes a member out. It counts no more from now on, durably; its memory is its owner's to give back.
    pub fn remove(&mut self, name: &str) -> Result<(), RemoveMemberError> {
        let entry = self.roll.find(name).ok_or(RemoveMemberError::Unknown)?;
        let endpoint = entry.endpoint;
        mark_stale(&*self.authority, name, entry.extents.len())
            .map_err(RemoveMemberError::NotDurable)?;
        self.roll.leave(endpoint);
        self.transfer.remove_endpoint(endpoint);
        Ok(())
    }

    /// Writes pages to all members at once. `Ok`: every live member has all of them, and every member that
    /// has not is durably stale. Pages come from `memory`, each at most once.
    pub fn replicate(
        &mut self,
        memory: MemoryIndex,
        pages: &[PageFrom],
    ) -> Result<Replicated, ReplicateError> {
        let mut failed = self.make_failures_durable()?;
        let mut pages = pages.to_vec();
        pages.sort_unstable();
        if let Some(two) = pages.windows(2).find(|two| two[0].page == two[1].page) {
            return Err(ReplicateError::Twice(two[0].page));
        }
        if let Some(last) = pages.last() {
            let end = last.page.offset().get() + PAGE_BYTES as u64;
            if end > self.region.bytes.get() {
                return Err(ReplicateError::OutsideRegion(last.page));
            }
        }
        let mut pieces = Vec::new();
        for run in runs(&pages, self.region.extent_bytes.get()) {
            for member in self.roll.writers() {
                pieces.push(Piece {
                    tag: pieces.len() as u64,
                    from: Place::Local {
                        memory,
                        offset: run.offset,
                    },
                    into: place(
                        member.endpoint,
                        member.extents[run.extent.get() as usize],
                        run.at,
                    ),
                    bytes: run.bytes,
                });
            }
        }
        let not_arrived = self.transfer.run(&pieces, |_| {})?;
        self.note_failures(&not_arrived);
        failed.extend(self.make_failures_durable()?);
        let members = self.roll.in_state(MemberState::Live).count();
        if members == 0 {
            return Err(ReplicateError::NoMember);
        }
        Ok(Replicated { members, failed })
    }

    fn note_failures(&mut self, not_arrived: &[NotArrived]) {
        let ends: BTreeSet<_> = not_arrived.iter().map(|not| not.endpoint).collect();
        self.fenced |= not_arrived.iter().any(|not| not.why == Why::Fenced);
        for endpoint in ends {
            let named = self.roll.entries().iter();
            let name = named
                .filter(|entry| entry.endpoint == endpoint)
                .map(|entry| entry.status.name.clone())
                .next();
            if self.roll.failed(endpoint)
                && let Some(name) = name
            {
                tracing::error!(
                    node = %name,
                    region = %self.region.id,
                    "a member of a replication group failed"
                );
                self.authority.report(&name, Sighting::NoAnswer);
            }
            self.transfer.remove_endpoint(endpoint);
        }
    }

    /// Nothing counts while a member that missed something still does.
    fn make_failures_durable(&mut self) -> Result<Vec<String>, ReplicateError> {
        if self.fenced {
            return Err(ReplicateError::Fenced);
        }
        let mut names = Vec::new();
        for entry in self.roll.in_state(MemberState::Failed) {
            mark_stale(&*self.authority, &entry.status.name, entry.extents.len())
                .map_err(ReplicateError::NotDurable)?;
            names.push(entry.status.name.clone());
        }
        self.roll.marked();
        Ok(names)
    }
}

/// Has all replicas on a node marked stale.
fn mark_stale(
    authority: &dyn RegionAuthority,
    node: &str,
    extents: usize,
) -> Result<(), AuthorityError> {
    // A region has at most 2^32 extents.
    let extents = (0..extents as u32).map(ExtentIndex::new);
    let marks: Vec<_> = extents.map(|extent| StaleMark { extent, node }).collect();
    authority.mark_stale(&marks)
}

/// `at` bytes behind the start of an extent, inside of it.
fn place(endpoint: EndpointIndex, extent: RemoteSlice, at: u64) -> Place {
    Place::Remote {
        endpoint,
        at: RemoteSlice {
            addr: RemoteAddr::new(extent.addr.get().wrapping_add(at)),
            rkey: extent.rkey,
        },
    }
}

impl std::fmt::Debug for ReplicationGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicationGroup")
            .field("region", &self.region)
            .field("members", &self.members())
            .finish_non_exhaustive()
    }
}
