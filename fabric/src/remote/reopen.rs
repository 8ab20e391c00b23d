//! Taking a region over from an owner that is gone, or that is to be replaced.
//!
//! ```text
//!   the former owner's directory ------------- reopen --.
//!                                                       +--> each node: let in, with a higher epoch
//!   nothing of it: what the authority knows --- adopt --'      --> what is there counts, what is not does not
//! ```
//!
//! An owner that adopts a region knows which extents are placed, and no more: pages of these may have been written
//! or not, and nobody knows what they should be. They are read as they are.

use std::sync::Arc;

use super::assemble::{Grants, OpenedNode, Parts, RemoteOptions, assemble};
use super::directory::{Directory, DirectoryError, Home, NodeRecord, Worth};
use super::link::Death;
use super::region::Remote;
use super::transports::{TransportMissing, Transports};
use crate::authority::{
    AuthorityError, KnownHomes, OpenError, RegionAuthority, StaleMark, is_for_former_life,
    open_session,
};
use crate::placement::RegionEntry;
use crate::session::{Identity, Session, SessionError};
use crate::units::{Epoch, ExtentIndex};
use crate::wire::Refusal;
use crate::wire::control::Token;

/// How often a successor tries a higher epoch when the one it knew of is too low.
const EPOCH_TRIES: u32 = 8;

/// Why a region was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReopenError {
    /// The directory.
    #[error("the region's directory cannot be used")]
    Directory(#[from] DirectoryError),
    /// A transport.
    #[error(transparent)]
    Transport(#[from] TransportMissing),
    /// A node that may be alive, and that has the last live replica of an extent, could not be asked: try
    /// again. (One that is known to be dead does not stop a take-over; its pages are lost.)
    #[error("memory node {name} cannot be asked for the region")]
    Node {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: SessionError,
    },
    /// A node does not hold the last live replica of some extents, which it should.
    #[error("memory node {name} does not hold {missing} of the region's extents any more")]
    Incomplete {
        /// Its name.
        name: String,
        /// How many.
        missing: usize,
    },
    /// The authority leaves it to owners to know where extents are.
    #[error("nobody knows where the region's extents are but its former owner")]
    NothingKnown,
    /// The control plane names places that cannot be.
    #[error("what the control plane knows of the region contradicts itself")]
    Places,
    /// The control plane.
    #[error("the control plane does not allow it")]
    Authority(#[from] AuthorityError),
    /// Others kept taking it over meanwhile.
    #[error("the region is being taken over by others, at {current} by now")]
    Contended {
        /// Their epoch.
        current: Epoch,
    },
    /// Threads.
    #[error("the threads that watch the memory nodes could not be started")]
    Watch(#[source] std::io::Error),
}

impl Remote {
    /// Takes over the region that `directory` (see [`Remote::directory`]) speaks of, with a higher epoch
    /// than its former owner's: nothing that that one sent can land any more on a node that counts when
    /// this returns. Replicas on nodes that cannot be asked, that are dead, or that do not have what they
    /// should, count no more, as long as there are others.
    pub fn reopen(
        directory: &[u8],
        authority: Arc<dyn RegionAuthority>,
        transports: &Transports,
        options: &RemoteOptions,
    ) -> Result<Arc<Self>, ReopenError> {
        let mut directory = Directory::decode(directory)?;
        directory.compact();
        take_over(directory, Origin::Owner, authority, transports, options)
    }

    /// Takes `region` over without anything of its former owner's: with what the authority knows of it (see
    /// [`RegionAuthority::homes`]), at the authority's epoch and with the token in `options`. Pages of extents that
    /// were placed are [inherited](crate::pages::RemoteRegion::inherits).
    pub fn adopt(
        region: &RegionEntry,
        authority: Arc<dyn RegionAuthority>,
        transports: &Transports,
        options: &RemoteOptions,
    ) -> Result<Arc<Self>, ReopenError> {
        let known = authority.homes()?.ok_or(ReopenError::NothingKnown)?;
        let directory = directory_of(region, options.token, known).ok_or(ReopenError::Places)?;
        take_over(directory, Origin::Authority, authority, transports, options)
    }
}

/// Where a successor's directory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The former owner kept it.
    Owner,
    /// The authority knows so much.
    Authority,
}

/// A directory of what an authority knows; `None`: it contradicts itself.
fn directory_of(region: &RegionEntry, token: Token, known: KnownHomes) -> Option<Directory> {
    let extents = Directory::check_sizes(region).ok()?;
    let mut homes = vec![Vec::new(); extents as usize];
    let mut lost = Vec::new();
    for placed in known.extents {
        let of_extent: &mut Vec<Home> = homes.get_mut(placed.extent.get() as usize)?;
        of_extent.extend(placed.replicas.iter().map(|(node, live)| Home {
            node: *node,
            // What was being made is made anew. Of an extent that was lost nobody knows which pages have been
            // written again since: none of it is handed out.
            worth: match *live && !placed.lost {
                true => Worth::Live,
                false => Worth::Stale,
            },
        }));
        if placed.lost {
            lost.push(placed.extent);
        }
    }
    let nodes = known.nodes.into_iter();
    let nodes = nodes.map(|(entry, incarnation)| NodeRecord { entry, incarnation });
    let directory = Directory {
        region: region.clone(),
        token,
        nodes: nodes.collect(),
        homes,
        lost,
    };
    // Its rules are those of one that was kept.
    Directory::decode(&directory.encode()).ok()
}

fn take_over(
    mut directory: Directory,
    origin: Origin,
    authority: Arc<dyn RegionAuthority>,
    transports: &Transports,
    options: &RemoteOptions,
) -> Result<Arc<Remote>, ReopenError> {
    let mut used = Vec::with_capacity(directory.nodes.len());
    for node in &directory.nodes {
        used.push(transports.get(&node.entry)?);
    }
    let mut region = directory.region.clone();
    let mut current = region.epoch;
    for _ in 0..EPOCH_TRIES {
        let lease = authority.epoch();
        let Some(epoch) = lease.or_else(|| current.next()) else {
            break;
        };
        region.epoch = epoch;
        let identity = Identity {
            tenant: region.tenant,
            region: region.id,
            epoch,
            token: directory.token,
            owner: options.owner,
        };
        let mut asked = Vec::with_capacity(used.len());
        let mut too_low = None;
        for node in &directory.nodes {
            // A second session there would end the first.
            let mut before = directory.nodes.iter().zip(&asked);
            let open = before.any(|(other, asked)| {
                other.entry.name == node.entry.name && matches!(asked, Reopened::Open(_))
            });
            if open {
                asked.push(Reopened::Dead(Death::StartedAgain));
                continue;
            }
            match reopen_on(node, &*authority, options, identity)? {
                Reopened::TooLow(holds) => {
                    too_low = Some(holds);
                    break;
                }
                reopened => asked.push(reopened),
            }
        }
        if let Some(holds) = too_low {
            current = holds.max(epoch);
            if lease.is_some() {
                // Somebody has been given a newer one.
                break;
            }
            continue;
        }
        check_reached(&directory, &mut asked)?;
        let mut opened = Vec::with_capacity(used.len());
        for ((node, transport), asked) in directory.nodes.iter().zip(used).zip(asked) {
            let (session, grants) = list(node, asked)?;
            opened.push(OpenedNode {
                entry: node.entry.clone(),
                incarnation: node.incarnation,
                transport,
                session,
                grants,
            });
        }
        if origin == Origin::Authority {
            leave_out_unused(&mut directory, &opened);
        }
        let marks = count_what_is_there(&mut directory, &opened)?;
        tell_stale(&*authority, &opened, &marks)?;
        return assemble(Parts {
            region: &region,
            authority,
            transports,
            options,
            identity,
            homes: directory.homes,
            lost: directory.lost,
            adopted: origin == Origin::Authority,
            opened,
        })
        .map_err(ReopenError::Watch);
    }
    Err(ReopenError::Contended { current })
}

enum Reopened {
    Open(Session),
    Dead(Death),
    /// It may be alive.
    Silent(SessionError),
    TooLow(Epoch),
}

fn reopen_on(
    node: &NodeRecord,
    authority: &dyn RegionAuthority,
    options: &RemoteOptions,
    identity: Identity,
) -> Result<Reopened, ReopenError> {
    let opened = open_session(
        Some(authority),
        &*options.dial,
        &node.entry,
        identity,
        false,
    );
    Ok(match opened {
        Ok(session) if session.welcome().incarnation == node.incarnation => Reopened::Open(session),
        Ok(_) => Reopened::Dead(Death::StartedAgain),
        Err(OpenError::Grant(error)) => return Err(error.into()),
        Err(OpenError::Session(error)) => match error.refusal() {
            Some(Refusal::UnknownRegion {}) => Reopened::Dead(Death::RegionGone),
            Some(Refusal::EpochTooLow { current, .. } | Refusal::Owned { epoch: current }) => {
                Reopened::TooLow(current)
            }
            // What the authority counts is on the life that its grants are for.
            _ if is_for_former_life(&error) => Reopened::Dead(Death::StartedAgain),
            _ if error.says_dead() => Reopened::Dead(Death::NobodyListens),
            _ => Reopened::Silent(error),
        },
    })
}

/// That no extent depends on a node that does not answer now, but may be alive.
fn check_reached(directory: &Directory, asked: &mut Vec<Reopened>) -> Result<(), ReopenError> {
    let open = |node: u16| matches!(asked[usize::from(node)], Reopened::Open(_));
    let silent = |node: u16| matches!(asked[usize::from(node)], Reopened::Silent(_));
    let live = directory.homes.iter().map(|homes| {
        let live = homes.iter().filter(|home| home.worth == Worth::Live);
        live.map(|home| home.node)
    });
    let needed = live
        .filter(|live| !live.clone().any(open))
        .find_map(|mut live| live.find(|node| silent(*node)));
    if let Some(needed) = needed
        && let Reopened::Silent(source) = asked.swap_remove(usize::from(needed))
    {
        return Err(ReopenError::Node {
            name: directory.nodes[usize::from(needed)].entry.name.clone(),
            source,
        });
    }
    Ok(())
}

fn list(
    node: &NodeRecord,
    asked: Reopened,
) -> Result<(Result<Session, Death>, Grants), ReopenError> {
    let death = match asked {
        Reopened::Open(mut session) => {
            let grants = session.list().map_err(|source| ReopenError::Node {
                name: node.entry.name.clone(),
                source,
            })?;
            let grants = grants
                .into_iter()
                .map(|grant| (grant.index, grant))
                .collect();
            return Ok((Ok(session), grants));
        }
        Reopened::Dead(death) => death,
        Reopened::Silent(_) | Reopened::TooLow(_) => Death::NoAnswer,
    };
    tracing::error!(
        node = %node.entry.name,
        reason = %death,
        "a memory node is lost, and with it all replicas that it held"
    );
    Ok((Err(death), Grants::new()))
}

/// Of a placed extent that a node of it does not hold no page was ever written: its owner had not got memory for it
/// on all its nodes yet. (Where a replica is given up it stops to count with the authority before its memory
/// goes.)
fn leave_out_unused(directory: &mut Directory, opened: &[OpenedNode]) {
    for (extent, homes) in (0..).map(ExtentIndex::new).zip(&mut directory.homes) {
        let holds_not = |home: &Home| {
            let node = &opened[usize::from(home.node)];
            home.worth == Worth::Live && node.session.is_ok() && !node.grants.contains_key(&extent)
        };
        if homes.iter().any(holds_not) {
            homes.clear();
        }
    }
}

/// Has the authority know what does not count.
fn tell_stale(
    authority: &dyn RegionAuthority,
    opened: &[OpenedNode],
    marks: &[(ExtentIndex, u16)],
) -> Result<(), ReopenError> {
    let named = marks.iter().map(|(extent, node)| StaleMark {
        extent: *extent,
        node: &opened[usize::from(*node)].entry.name,
    });
    let named: Vec<_> = named.collect();
    if !named.is_empty() {
        authority.mark_stale(&named)?;
    }
    Ok(())
}

/// Replicas that a node should have and has not are stale, as are those that were being copied. Gives those that
/// counted until now.
fn count_what_is_there(
    directory: &mut Directory,
    opened: &[OpenedNode],
) -> Result<Vec<(ExtentIndex, u16)>, ReopenError> {
    let mut marks = Vec::new();
    let mut missing = vec![0; opened.len()];
    for (extent, homes) in (0..).map(ExtentIndex::new).zip(&mut directory.homes) {
        let there = |node: u16| {
            let node = &opened[usize::from(node)];
            node.session.is_ok() && node.grants.contains_key(&extent)
        };
        let any = homes
            .iter()
            .any(|home| home.worth == Worth::Live && there(home.node));
        for home in homes.iter_mut() {
            let node = usize::from(home.node);
            match home.worth {
                Worth::Copying => home.worth = Worth::Stale,
                Worth::Live if any && !there(home.node) && opened[node].session.is_ok() => {
                    marks.push((extent, home.node));
                    home.worth = Worth::Stale;
                }
                Worth::Live if !there(home.node) && opened[node].session.is_ok() => {
                    missing[node] += 1;
                }
                // On a lost node: the keeper's to mark.
                Worth::Live | Worth::Stale => {}
            }
        }
    }
    for (node, missing) in opened.iter().zip(missing) {
        if missing > 0 {
            return Err(ReopenError::Incomplete {
                name: node.entry.name.clone(),
                missing,
            });
        }
    }
    Ok(marks)
}
