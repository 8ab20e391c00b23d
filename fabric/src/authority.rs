//! How a region's owner knows the control plane: the one trait, and the authority of a fixed list of nodes.
//!
//! ```text
//!   owner (remote, rebuild)             RegionAuthority
//!     where may extents live?   ------>   place
//!     this replica missed a write ----->  mark_stale    Ok: durable, the write may be called done
//!     a node looks dead         ------>   report
//!     what is to be moved?      ------>   orders        copy this extent there, drop that replica
//!     it was moved              ------>   copied, dropped
//!     are replicas to be compared? ---->  check_wanted, check_told
//!     may I open a session?     ------>   grant
//!     what did the one before me leave?   homes
//! ```
//!
//! Calls block, and may take seconds: they are made by threads that no page waits for. An authority that is
//! away answers [`AuthorityError::Away`]; pages keep flowing, and whatever needs a change waits.
//! The owner keeps a directory of its own beside (see [`crate::pages::RemoteRegion::keep_directory`]): with it a
//! successor goes on, also when the authority is away.

use std::sync::Arc;

use crate::check::{CheckOrder, CheckReport};
use crate::placement::{NodeEntry, Placement, PlacementError, RegionEntry, choose_apart};
use crate::session::{Dial, Identity, Session, SessionError};
use crate::units::{Epoch, ExtentIndex, Incarnation};
use crate::wire::grant::{GrantError, SignedGrant};
use crate::wire::{GrantField, Refusal};

/// Where extents may live: an answer of [`RegionAuthority::place`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The nodes that are named.
    pub nodes: Vec<NodeEntry>,
    /// The life of each node's process that is meant, in the order of `nodes`: one that has been started again since
    /// is not. Empty: whichever there is.
    pub lives: Vec<Incarnation>,
    /// Indexes into `nodes`, for each extent that was asked for, in its order: different ones, at least one
    /// and at most as many as the region has replicas. Fewer: there are not so many failure domains now, and
    /// the authority orders the rest when there are.
    pub homes: Vec<Vec<u16>>,
}

/// Where a region's extents are, as an authority knows it: an answer of [`RegionAuthority::homes`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownHomes {
    /// The nodes that are named, each with the life of its process that holds something.
    pub nodes: Vec<(NodeEntry, Incarnation)>,
    /// The extents that are placed, in order. Of the others no page was ever written.
    pub extents: Vec<KnownExtent>,
}

/// An extent that is placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownExtent {
    /// Which.
    pub extent: ExtentIndex,
    /// Its replicas: indexes into [`KnownHomes::nodes`], and whether it has all writes that were done.
    pub replicas: Vec<(u16, bool)>,
    /// Once all its replicas were lost.
    pub lost: bool,
}

/// A replica that does not count any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StaleMark<'a> {
    /// Of which extent.
    pub extent: ExtentIndex,
    /// On which node, by name.
    pub node: &'a str,
}

/// What an owner saw of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sighting {
    /// Nothing listens at its address.
    NobodyListens,
    /// Another life of it answers: its memory is new.
    StartedAgain,
    /// It no longer holds the region.
    RegionGone,
    /// It did not answer within the owner's deadline.
    NoAnswer,
    /// It gave a page with a wrong checksum.
    WrongPage,
}

/// Something that the authority wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// One more replica: copy the extent to this node, then say [`RegionAuthority::copied`].
    Copy {
        /// Which extent.
        extent: ExtentIndex,
        /// Where to.
        to: NodeEntry,
    },
    /// One replica less: give its memory back, then say [`RegionAuthority::dropped`].
    Drop {
        /// Which extent.
        extent: ExtentIndex,
        /// The node's name.
        node: String,
    },
}

/// Why the authority did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// It cannot be asked now. Nothing is known of whether it was done; ask again.
    #[error("the control plane cannot be asked now")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The region has an owner with a higher epoch. Final.
    #[error("the control plane knows a newer owner of the region: {current}, not {requested}")]
    EpochTooLow {
        /// The caller's.
        requested: Epoch,
        /// The one that holds.
        current: Epoch,
    },
    /// It does not know the region, or the extent has no such replica. Final.
    #[error("the control plane knows nothing of this")]
    Unknown,
    /// Too few nodes are left to place an extent on.
    #[error(
        "too few memory nodes are left: {wanted} are needed for each extent, {left} can be used"
    )]
    NoRoom {
        /// Replicas of an extent.
        wanted: usize,
        /// Nodes that may hold one.
        left: usize,
    },
    /// The pool has too little memory left for who asks; the words are the authority's. Nothing was placed.
    #[error("the control plane has no memory left for this region")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What it gave as a grant is none.
    #[error("the control plane gave something else than a grant")]
    Grant(#[from] GrantError),
    /// It refuses for a reason of its own.
    #[error("the control plane refuses")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// See the module. One for each region and owner; an implementation knows which.
pub trait RegionAuthority: Send + Sync {
    /// Homes for extents, none of them on a node named in `without`: the owner has found those full or
    /// absent just now. What an earlier call said of an extent on such a node is void; it was not used.
    fn place(
        &self,
        region: &RegionEntry,
        extents: &[ExtentIndex],
        without: &[String],
    ) -> Result<Places, AuthorityError>;

    /// `Ok` when it is durable that these replicas do not count any more: until then no write that missed
    /// one of them is called done. Marking one twice is no error.
    fn mark_stale(&self, marks: &[StaleMark<'_>]) -> Result<(), AuthorityError>;

    /// A node behaves as if it were dead. A hint, which may be lost.
    fn report(&self, node: &str, seen: Sighting);

    /// What is to be done now, most urgent first. The same order may be given again until it is done.
    fn orders(&self) -> Result<Vec<Order>, AuthorityError>;

    /// A replica is complete. `Ok` when it is durable that it counts.
    fn copied(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError>;

    /// A replica is no more, and its memory is given back.
    fn dropped(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError>;

    /// Whether it ever gives [`Self::orders`]. If not, nobody asks for them.
    fn gives_orders(&self) -> bool {
        true
    }

    /// A check of the region's replicas that is to be made now, as far as is known from the last
    /// [`Self::orders`]. Does not block.
    fn check_wanted(&self) -> Option<CheckOrder> {
        None
    }

    /// How far a check is. A report that is lost is made up for by the next one, save the last.
    fn check_told(&self, report: &CheckReport) -> Result<(), AuthorityError> {
        let _ = report;
        Ok(())
    }

    /// The owner's lease. `None`: nobody gives any, and a successor takes the next one that the nodes know.
    fn epoch(&self) -> Option<Epoch> {
        None
    }

    /// The signed grant with which a session is opened on `node`, in the bytes that it is sent in. `None`:
    /// the nodes ask for none.
    fn grant(&self, node: &str) -> Result<Option<Vec<u8>>, AuthorityError>;

    /// The node has said that a grant of [`Self::grant`] was for a former life of its process: one that was kept
    /// is worth nothing.
    fn forget_grant(&self, node: &str) {
        let _ = node;
    }

    /// Where the region's extents are, for an owner that has nothing of the former one's. `None`: that is known
    /// to the owners alone.
    fn homes(&self) -> Result<Option<KnownHomes>, AuthorityError> {
        Ok(None)
    }
}

/// Why a session was not opened.
pub(crate) enum OpenError {
    /// There is no grant.
    Grant(AuthorityError),
    /// The node.
    Session(SessionError),
}

impl From<SessionError> for OpenError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

/// Opens the region on a node, by a grant of the authority. One that is for a former life of the node's process is
/// asked for anew, once.
pub(crate) fn open_session(
    authority: Option<&dyn RegionAuthority>,
    dial: &dyn Dial,
    node: &NodeEntry,
    identity: Identity,
    create: bool,
) -> Result<Session, OpenError> {
    let mut opened = open_once(authority, dial, node, identity, create);
    if let (Err(OpenError::Session(error)), Some(authority)) = (&opened, authority)
        && is_for_former_life(error)
    {
        authority.forget_grant(&node.name);
        opened = open_once(Some(authority), dial, node, identity, create);
    }
    opened
}

/// Whether a node says that a grant was given for a process that it is not.
pub(crate) fn is_for_former_life(error: &SessionError) -> bool {
    let what = GrantField::Incarnation;
    error.refusal() == Some(Refusal::GrantForOther { what })
}

fn open_once(
    authority: Option<&dyn RegionAuthority>,
    dial: &dyn Dial,
    node: &NodeEntry,
    identity: Identity,
    create: bool,
) -> Result<Session, OpenError> {
    // First, so that nobody is dialed in vain.
    let grant = authority.map(|authority| authority.grant(&node.name));
    let grant = grant.transpose().map_err(OpenError::Grant)?.flatten();
    let grant = grant.map(SignedGrant::from_bytes).transpose();
    let grant = grant.map_err(|error| OpenError::Grant(error.into()))?;
    let channel = dial.dial(node.control)?;
    Ok(Session::open_granted(channel, identity, create, grant)?)
}

/// The authority of nodes that do not change: places by a [`Placement`] and gives no orders. What is durable
/// is so in the owner's own directory.
#[derive(Clone)]
pub struct StaticAuthority {
    placement: Arc<dyn Placement>,
}

impl StaticAuthority {
    /// Over these nodes.
    #[must_use]
    pub fn new(placement: Arc<dyn Placement>) -> Self {
        Self { placement }
    }
}

impl RegionAuthority for StaticAuthority {
    fn place(
        &self,
        region: &RegionEntry,
        extents: &[ExtentIndex],
        without: &[String],
    ) -> Result<Places, AuthorityError> {
        let nodes = self.placement.nodes();
        let replicas = usize::from(region.replicas);
        let usable: Vec<bool> = nodes
            .iter()
            .map(|node| !without.contains(&node.name))
            .collect();
        let left = usable.iter().filter(|usable| **usable).count();
        if u16::try_from(nodes.len()).is_err() || left < replicas {
            return Err(AuthorityError::NoRoom {
                wanted: replicas,
                left,
            });
        }
        let mut homes = Vec::with_capacity(extents.len());
        let mut order = Vec::with_capacity(nodes.len());
        let mut chosen = Vec::with_capacity(replicas);
        for extent in extents {
            order.clear();
            chosen.clear();
            self.placement
                .candidates(region, *extent, &mut order)
                .map_err(|PlacementError::NoNodes| AuthorityError::NoRoom {
                    wanted: replicas,
                    left: 0,
                })?;
            order.retain(|node| usable.get(*node).is_some_and(|usable| *usable));
            if !choose_apart(nodes, &order, replicas, &mut chosen) {
                return Err(AuthorityError::NoRoom {
                    wanted: replicas,
                    left: order.len(),
                });
            }
            // There are at most 2^16 nodes: checked above.
            homes.push(chosen.iter().map(|node| *node as u16).collect());
        }
        Ok(Places {
            nodes: nodes.to_vec(),
            lives: Vec::new(),
            homes,
        })
    }

    fn mark_stale(&self, _marks: &[StaleMark<'_>]) -> Result<(), AuthorityError> {
        Ok(())
    }

    fn report(&self, _node: &str, _seen: Sighting) {}

    fn gives_orders(&self) -> bool {
        false
    }

    fn orders(&self) -> Result<Vec<Order>, AuthorityError> {
        Ok(Vec::new())
    }

    fn copied(&self, _extent: ExtentIndex, _node: &str) -> Result<(), AuthorityError> {
        Ok(())
    }

    fn dropped(&self, _extent: ExtentIndex, _node: &str) -> Result<(), AuthorityError> {
        Ok(())
    }

    fn grant(&self, _node: &str) -> Result<Option<Vec<u8>>, AuthorityError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::placement::{FailureDomain, RoundRobin};
    use crate::transport::TransportKind;
    use crate::units::{ByteCount, RegionId, TenantId};

    fn region(replicas: u8) -> RegionEntry {
        RegionEntry {
            id: RegionId::new(1),
            tenant: TenantId::new(1),
            epoch: Epoch::new(1),
            bytes: ByteCount::mib(4),
            extent_bytes: ByteCount::mib(1),
            replicas,
        }
    }

    #[test]
    fn homes_are_different_nodes_none_of_those_that_are_excluded() {
        let node = |n: u16| NodeEntry {
            name: format!("n{n}"),
            control: SocketAddr::from(([10, 0, 0, 1], 7000 + n)),
            transport: TransportKind::Tcp,
            domain: FailureDomain {
                zone: format!("z{}", n % 2),
                ..FailureDomain::default()
            },
        };
        let authority = StaticAuthority::new(Arc::new(RoundRobin((0..4).map(node).collect())));
        let extents: Vec<_> = (0..4).map(ExtentIndex::new).collect();
        let place = |replicas, without: &[String]| {
            authority
                .place(&region(replicas), &extents, without)
                .map(|places| places.homes)
        };
        let homes = place(2, &[]).expect("nodes");
        assert_eq!(homes, [[0, 1], [1, 2], [2, 3], [3, 0]]);
        // n1 and n3 share a zone: apart is better than near in the order.
        let without = ["n0".to_owned()];
        let homes = place(2, &without).expect("nodes");
        assert_eq!(homes, [[1, 2], [1, 2], [2, 3], [3, 2]]);
        let refused = place(4, &without).expect_err("three are left");
        assert!(matches!(
            refused,
            AuthorityError::NoRoom { wanted: 4, left: 3 }
        ));
    }
}
