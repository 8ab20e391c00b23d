//! A connection before it is anybody's: who is it, and what does it want? Each has a thread and little
//! time; whatever it sends can end nothing but itself.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mycoram_fabric::units::ByteCount;
use mycoram_fabric::wire::FrameError;

use super::arrival::{Resumption, attach, resume};
use super::keeper::say;
use super::message::{self, Kind, MessageError, Refusal, Reply, Request};
use super::shared::{Shared, lock, spawn};
use super::socket::{Packet, Peer, Socket, SocketError};
use crate::kernel::PidFd;

/// How long a connection may take to say what it wants: 10 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// A place among the connections, given back when it is dropped.
struct Place {
    shared: Arc<Shared>,
    uid: u32,
}

impl Place {
    fn take(shared: &Arc<Shared>, uid: u32) -> Result<Self, Refusal> {
        lock(&shared.connections)
            .reserve(uid, 1)
            .map_err(|shortage| Refusal::TooManyClients {
                limit: shortage.limit as usize,
                of_user: shortage.of_user,
            })?;
        Ok(Self {
            shared: Arc::clone(shared),
            uid,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.shared.connections).release(self.uid, 1);
    }
}

pub(super) fn refuse(socket: &Socket, refusal: Refusal) {
    // Who has gone away does not need to be told.
    let _ = say(socket, Kind::Reply, &Reply::Refused(refusal));
}

/// Gives a new connection a thread of its own, if its user may have one more.
pub(super) fn receive_client(shared: &Arc<Shared>, socket: Socket) {
    let Ok(peer) = socket.peer() else { return };
    // A process of another pid namespace has the number 0: nothing can be kept for it.
    if !shared.config.allow.allows(peer.uid, shared.own_uid) || peer.pid <= 0 {
        refuse(&socket, Refusal::NotAllowed { uid: peer.uid });
        return;
    }
    let place = match Place::take(shared, peer.uid) {
        Ok(place) => place,
        Err(refusal) => {
            refuse(&socket, refusal);
            return;
        }
    };
    let started = spawn(shared, "myco-client", move || {
        serve_client(&place.shared, socket, peer);
        drop(place);
    });
    if let Err(error) = started {
        tracing::warn!(%error, "no thread for a client");
    }
}

fn serve_client(shared: &Arc<Shared>, socket: Socket, peer: Peer) {
    let Ok(process) = PidFd::of_peer(&socket) else {
        return;
    };
    match greet(shared, &socket) {
        Ok((request, descriptors)) => {
            let served = match request {
                Request::Attach { .. } => {
                    attach(shared, socket, peer, process, request, descriptors)
                }
                Request::Resume {
                    mapping,
                    name,
                    token,
                } => {
                    let asked = Resumption {
                        mapping,
                        name,
                        token,
                        descriptors,
                    };
                    resume(shared, socket, peer, process, asked)
                }
                _ => {
                    refuse(&socket, Refusal::Malformed);
                    return;
                }
            };
            if let Err(refusal) = served {
                tracing::info!(pid = peer.pid, uid = peer.uid, %refusal, "a client is refused");
            }
        }
        Err(Some(refusal)) => refuse(&socket, refusal),
        Err(None) => {}
    }
}

/// Hears a hello and what follows it. An error is the end of the connection, with what to say.
fn greet(shared: &Shared, socket: &Socket) -> Result<(Request, Vec<OwnedFd>), Option<Refusal>> {
    let next = || -> Result<(Request, Vec<OwnedFd>), Option<Refusal>> {
        socket
            .wait(PATIENCE, shared.closing.as_fd())
            .map_err(|_| None)?;
        let Packet { bytes, descriptors } = match socket.receive() {
            Ok(packet) => packet,
            Err(SocketError::TooLong) => return Err(Some(Refusal::Malformed)),
            Err(_) => return Err(None),
        };
        match message::decode(Kind::Request, &bytes) {
            Ok(request) => Ok((request, descriptors)),
            Err(MessageError::Frame(FrameError::Version { ours, theirs })) => {
                Err(Some(Refusal::Version {
                    daemon: ours,
                    program: theirs,
                }))
            }
            Err(_) => Err(Some(Refusal::Malformed)),
        }
    };
    let (Request::Hello { lend_device }, _) = next()? else {
        return Err(Some(Refusal::Malformed));
    };
    let device = shared.device.as_ref().filter(|_| lend_device);
    let welcome = Reply::Welcome {
        free: ByteCount::new(lock(&shared.local).free()),
        device: device.is_some(),
    };
    let bytes = message::encode(Kind::Reply, &welcome).map_err(|_| None)?;
    let lent: Vec<_> = device.iter().map(|device| device.as_fd()).collect();
    socket.send(&bytes, &lent).map_err(|_| None)?;
    next()
}
