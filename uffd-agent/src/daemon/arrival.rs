//! A program's region comes in: new, or with a program that connects again.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::intake::{self, Life};
use super::keeper::{Ending, Failed, Keeper, Mail, Mailbox};
use super::message::{Mapping, Refusal, Request, Token, in_words};
use super::record::Record;
use super::shared::{
    Entry, Promise, Shared, State, engine, lock, new_name, news, region_config, set_state,
};
use super::socket::{Peer, Socket};
use super::succession::{await_end, take_over};
use super::visitor::refuse;
use crate::kernel::PidFd;
use crate::{Region, RegionName};

/// Most fault workers that a client may ask for: each spins on a core while it is busy.
const MAX_FAULT_WORKERS: u8 = 4;

/// Takes a new region in and serves it to its end. A refusal has been told to the program.
pub(super) fn attach(
    shared: &Arc<Shared>,
    socket: Socket,
    peer: Peer,
    process: PidFd,
    request: Request,
    descriptors: Vec<OwnedFd>,
) -> Result<(), Refusal> {
    match begin(shared, peer, &process, request, descriptors) {
        Ok((region, promise, record, mailbox)) => {
            mailbox.put(Mail::Socket(socket));
            serve(
                shared,
                Keeper::new(shared, (region, mailbox), process, promise, record),
            );
            Ok(())
        }
        Err(refusal) => {
            refuse(&socket, refusal.clone());
            Err(refusal)
        }
    }
}

fn begin(
    shared: &Arc<Shared>,
    peer: Peer,
    process: &PidFd,
    request: Request,
    descriptors: Vec<OwnedFd>,
) -> Result<(Region, Promise, Record, Arc<Mailbox>), Refusal> {
    let Request::Attach {
        mapping,
        local_budget,
        extent_bytes,
        fault_workers,
    } = request
    else {
        return Err(Refusal::Malformed);
    };
    let target = intake::target(own(process)?, &mapping, descriptors, Life::New)
        .map_err(Refusal::Descriptor)?;
    let promise = Promise::make(shared, peer.uid, local_budget, mapping.bytes)?;
    let record = Record {
        name: new_name(shared, peer),
        token: Token(lock(&shared.random).bytes()),
        uid: peer.uid,
        pid: peer.pid,
        began: process.began().ok_or(Refusal::Over)?,
        local_budget,
        bytes: mapping.bytes,
        fault_workers: fault_workers.clamp(1, MAX_FAULT_WORKERS),
    };
    let config = region_config(shared, &record);
    config.validate(target.pipes.len()).map_err(engine)?;
    let mailbox = Mailbox::new().map_err(engine)?;
    let (remote, owner) = shared
        .source
        .create(mapping.bytes, extent_bytes)
        .map_err(|error| Refusal::Remote {
            words: in_words(&*error),
        })?;
    // Before the region is served: a daemon that dies right after must not be forgotten by the next.
    if let Err(error) = record.write(&shared.config.state_dir) {
        remote.release();
        return Err(engine(error));
    }
    match Region::attach(target, Arc::clone(&remote), owner, config, news(&mailbox)) {
        Ok(region) => {
            tracing::info!(region = %record.name, pid = peer.pid, uid = peer.uid, budget = %local_budget, "a client is served");
            Ok((region, promise, record, mailbox))
        }
        Err(error) => {
            record.remove(&shared.config.state_dir);
            remote.release();
            Err(engine(error))
        }
    }
}

fn own(process: &PidFd) -> Result<PidFd, Refusal> {
    process.try_clone().map_err(engine)
}

/// Enters the region in the table and keeps it on this thread.
pub(super) fn serve(shared: &Arc<Shared>, keeper: Keeper) {
    let name = keeper.record.name.clone();
    {
        let mut regions = lock(&shared.regions);
        let known = regions.get(&name);
        let entry = Entry {
            record: keeper.record.clone(),
            state: State::Served(Arc::clone(&keeper.mailbox)),
            patience: known.map(|entry| entry.patience).unwrap_or_default(),
        };
        regions.insert(name.clone(), entry);
    }
    match keeper.run() {
        Ending::Over => {
            lock(&shared.regions).remove(&name);
        }
        Ending::Left => {}
        Ending::Failed(failed) => failed_here(shared, failed),
    }
}

/// The region waits for its program to ask for it again, or, if that has been tried too often, to be told that it is
/// over.
fn failed_here(shared: &Arc<Shared>, failed: Failed) {
    let Failed {
        process,
        promise,
        record,
        socket,
    } = failed;
    if let Some(entry) = lock(&shared.regions).get_mut(&record.name) {
        let again = entry.patience.again(Instant::now());
        let (region, times) = (&record.name, entry.patience.total());
        if again {
            tracing::warn!(%region, times, "a client's region has failed; it is taken over when its program asks");
            entry.state = State::Waiting(promise);
        } else {
            tracing::error!(%region, times, "a client's region fails again and again: it is given up");
            entry.state = State::GivenUp(promise);
        }
    }
    await_end(shared, process, record);
    drop(socket);
}

/// What a program that connects again brings.
pub(super) struct Resumption {
    pub(super) mapping: Mapping,
    pub(super) name: RegionName,
    pub(super) token: Token,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// A program has connected again: its keeper gets the connection, or, if there is none yet, it is made
/// from what the program brings.
pub(super) fn resume(
    shared: &Arc<Shared>,
    socket: Socket,
    peer: Peer,
    process: PidFd,
    asked: Resumption,
) -> Result<(), Refusal> {
    let (record, promise, panics) = {
        let mut regions = lock(&shared.regions);
        let entry = regions.get_mut(&asked.name).filter(|entry| {
            entry.record.token.matches(&asked.token)
                && (entry.record.uid, entry.record.pid) == (peer.uid, peer.pid)
                && process.began() == Some(entry.record.began)
        });
        let Some(entry) = entry else {
            refuse(&socket, Refusal::UnknownRegion);
            return Err(Refusal::UnknownRegion);
        };
        match std::mem::replace(&mut entry.state, State::Busy) {
            State::Served(mailbox) => {
                mailbox.put(Mail::Socket(socket));
                entry.state = State::Served(mailbox);
                return Ok(());
            }
            // It is told no: it will ask again.
            State::Busy => {
                refuse(&socket, Refusal::Busy);
                return Err(Refusal::Busy);
            }
            State::Waiting(promise) => (entry.record.clone(), promise, entry.patience.total()),
            State::GivenUp(promise) => {
                entry.state = State::GivenUp(promise);
                refuse(&socket, Refusal::Over);
                return Err(Refusal::Over);
            }
        }
    };
    let taken = own(&process)
        .and_then(|process| {
            intake::target(process, &asked.mapping, asked.descriptors, Life::GoesOn)
                .map_err(Refusal::Descriptor)
        })
        .and_then(|target| take_over(shared, &record, Some(target)));
    match taken {
        Ok((region, mailbox)) => {
            region.after_panics(panics);
            mailbox.put(Mail::Socket(socket));
            serve(
                shared,
                Keeper::new(shared, (region, mailbox), process, promise, record),
            );
            Ok(())
        }
        Err(refusal) => {
            set_state(shared, &record.name, State::Waiting(promise));
            refuse(&socket, refusal.clone());
            Err(refusal)
        }
    }
}
