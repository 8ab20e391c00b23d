//! Taking a region over from an owner that is gone, or that is to be replaced.

use std::sync::Arc;

use super::assemble::{Grants, OpenedNode, Parts, RemoteOptions, assemble};
use super::directory::{Directory, DirectoryError, NodeRecord, Worth};
use super::link::Death;
use super::region::Remote;
use super::transports::{TransportMissing, Transports};
use crate::authority::{AuthorityError, RegionAuthority, grant_for};
use crate::session::{Identity, Session, SessionError};
use crate::units::{Epoch, ExtentIndex};
use crate::wire::Refusal;

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
            count_what_is_there(&mut directory, &opened)?;
            return assemble(Parts {
                region: &region,
                authority,
                transports,
                options,
                identity,
                homes: directory.homes,
                lost: directory.lost,
                opened,
            })
            .map_err(ReopenError::Watch);
        }
        Err(ReopenError::Contended { current })
    }
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
    let grant = grant_for(authority, &node.entry.name)?;
    let opened = options
        .dial
        .dial(node.entry.control)
        .and_then(|channel| Session::open_granted(channel, identity, false, grant));
    Ok(match opened {
        Ok(session) if session.welcome().incarnation == node.incarnation => Reopened::Open(session),
        Ok(_) => Reopened::Dead(Death::StartedAgain),
        Err(error) => match error.refusal() {
            Some(Refusal::UnknownRegion {}) => Reopened::Dead(Death::RegionGone),
            Some(Refusal::EpochTooLow { current, .. } | Refusal::Owned { epoch: current }) => {
                Reopened::TooLow(current)
            }
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

/// Replicas that a node should have and has not are stale, as are those that were being copied.
fn count_what_is_there(
    directory: &mut Directory,
    opened: &[OpenedNode],
) -> Result<(), ReopenError> {
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
    Ok(())
}
