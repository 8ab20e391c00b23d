//! Taking a region over from an owner that is gone, or that is to be replaced.

use std::sync::Arc;

use super::assemble::{Grants, OpenedNode, RemoteOptions, assemble};
use super::directory::{Directory, DirectoryError, NodeRecord};
use super::region::Remote;
use super::transports::{TransportMissing, Transports};
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
    /// A node that may be alive could not be asked: try again. (One that is known to be dead does not
    /// stop a take-over; its pages are lost.)
    #[error("memory node {name} cannot be asked for the region")]
    Node {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: SessionError,
    },
    /// A node holds less of the region than it should.
    #[error("memory node {name} does not hold {missing} of the region's extents any more")]
    Incomplete {
        /// Its name.
        name: String,
        /// How many.
        missing: usize,
    },
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
    /// than its former owner's: nothing that that one sent can land any more when this returns.
    pub fn reopen(
        directory: &[u8],
        transports: &Transports,
        options: &RemoteOptions,
    ) -> Result<Arc<Self>, ReopenError> {
        let directory = Directory::decode(directory)?;
        let mut used = Vec::with_capacity(directory.nodes.len());
        for node in &directory.nodes {
            used.push(transports.get(&node.entry)?);
        }
        let mut region = directory.region.clone();
        let mut current = region.epoch;
        for _ in 0..EPOCH_TRIES {
            let Some(epoch) = current.next() else { break };
            region.epoch = epoch;
            let identity = Identity {
                tenant: region.tenant,
                region: region.id,
                epoch,
                token: directory.token,
                owner: options.owner,
            };
            let mut sessions = Vec::with_capacity(used.len());
            let mut too_low = None;
            for node in &directory.nodes {
                match reopen_on(node, options, identity)? {
                    Reopened::Open(session) => sessions.push(Some(session)),
                    Reopened::Dead => sessions.push(None),
                    Reopened::TooLow(holds) => {
                        too_low = Some(holds);
                        break;
                    }
                }
            }
            if let Some(holds) = too_low {
                current = holds.max(epoch);
                continue;
            }
            let mut opened = Vec::with_capacity(used.len());
            for ((node, transport), session) in directory.nodes.iter().zip(used).zip(sessions) {
                let (session, grants) = list(node, session)?;
                opened.push(OpenedNode {
                    entry: node.entry.clone(),
                    incarnation: node.incarnation,
                    transport,
                    session,
                    grants,
                });
            }
            check_complete(&directory, &opened)?;
            let (copies, homes) = (directory.copies, &directory.homes);
            let frames = transports.frames();
            return assemble(&region, options, identity, copies, homes, opened, frames)
                .map_err(ReopenError::Watch);
        }
        Err(ReopenError::Contended { current })
    }
}

enum Reopened {
    Open(Session),
    Dead,
    TooLow(Epoch),
}

fn reopen_on(
    node: &NodeRecord,
    options: &RemoteOptions,
    identity: Identity,
) -> Result<Reopened, ReopenError> {
    let opened = options
        .dial
        .dial(node.entry.control)
        .and_then(|channel| Session::open(channel, identity, false));
    match opened {
        Ok(session) if session.welcome().incarnation == node.incarnation => {
            Ok(Reopened::Open(session))
        }
        Ok(_) => Ok(Reopened::Dead),
        Err(error) => match error.refusal() {
            Some(Refusal::UnknownRegion {}) => Ok(Reopened::Dead),
            Some(Refusal::EpochTooLow { current, .. } | Refusal::Owned { epoch: current }) => {
                Ok(Reopened::TooLow(current))
            }
            _ if error.says_dead() => Ok(Reopened::Dead),
            _ => Err(ReopenError::Node {
                name: node.entry.name.clone(),
                source: error,
            }),
        },
    }
}

fn list(
    node: &NodeRecord,
    session: Option<Session>,
) -> Result<(Option<Session>, Grants), ReopenError> {
    let Some(mut session) = session else {
        tracing::error!(node = %node.entry.name, "a memory node is lost, and with it the pages that it held");
        return Ok((None, Grants::new()));
    };
    let grants = session.list().map_err(|source| ReopenError::Node {
        name: node.entry.name.clone(),
        source,
    })?;
    let grants = grants
        .into_iter()
        .map(|grant| (grant.index, grant))
        .collect();
    Ok((Some(session), grants))
}

fn check_complete(directory: &Directory, opened: &[OpenedNode]) -> Result<(), ReopenError> {
    let mut missing = vec![0; opened.len()];
    for (place, home) in directory.homes.iter().enumerate() {
        let node = &opened[usize::from(*home)];
        let extent = ExtentIndex::new((place / usize::from(directory.copies)) as u32);
        if node.session.is_some() && !node.grants.contains_key(&extent) {
            missing[usize::from(*home)] += 1;
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
