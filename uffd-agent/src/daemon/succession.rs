//! What a daemon inherits: regions of programs that an earlier daemon served, or was serving when it
//! was killed.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::arrival::serve;
use super::keeper::{Keeper, Mailbox};
use super::message::{Refusal, in_words};
use super::record::Record;
use super::server::StartError;
use super::shared::{
    Entry, Promise, Shared, State, engine, lock, news, region_config, set_state, spawn,
};
use crate::kernel::PidFd;
use crate::{Patience, Region, RegionStats, SavedRegion, Target};

/// Goes on where an earlier daemon stopped: with the descriptors that the program has brought, or with
/// those taken from it.
pub(super) fn take_over(
    shared: &Arc<Shared>,
    record: &Record,
    brought: Option<Target>,
) -> Result<(Region, Arc<Mailbox>), Refusal> {
    let saved = SavedRegion::open(&shared.config.state_dir, &record.name).map_err(engine)?;
    let target = match brought {
        Some(target) => target,
        None => saved.target().map_err(engine)?,
    };
    let (remote, owner) =
        shared
            .source
            .reopen(&saved.owner())
            .map_err(|error| Refusal::Remote {
                words: in_words(&*error),
            })?;
    let mailbox = Mailbox::new().map_err(engine)?;
    let config = region_config(shared, record);
    let region =
        Region::take_over(saved, target, remote, owner, config, news(&mailbox)).map_err(engine)?;
    tracing::info!(region = %record.name, pid = record.pid, "a client's region is taken over");
    Ok((region, mailbox))
}

/// Takes over, one after the other, what the last daemon has left.
pub(super) fn take_over_all(shared: &Arc<Shared>) -> Result<(), StartError> {
    for record in Record::read_all(&shared.config.state_dir)? {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(%error, "a client of the last daemon is not known any more");
                continue;
            }
        };
        let process = PidFd::open(record.pid)
            .ok()
            .filter(|process| process.began() == Some(record.began));
        let Some(process) = process else {
            free_what_is_left(shared, &record);
            continue;
        };
        let entry = Entry {
            record: record.clone(),
            state: State::Busy,
            patience: Patience::default(),
        };
        lock(&shared.regions).insert(record.name.clone(), entry);
        let promise = Promise::inherit(shared, &record);
        match take_over(shared, &record, None) {
            Ok((region, mailbox)) => {
                let keeper = Keeper::new(shared, (region, mailbox), process, promise, record);
                let keeper_of = Arc::clone(shared);
                let name = keeper.record.name.clone();
                if let Err(error) = spawn(shared, "myco-client", move || serve(&keeper_of, keeper))
                {
                    // Its region is left as it was, for the next daemon.
                    tracing::error!(%error, region = %name, "no thread for a client");
                    lock(&shared.regions).remove(&name);
                }
            }
            Err(refusal) => {
                tracing::warn!(region = %record.name, pid = record.pid, %refusal, "a client is waited for, as its region cannot be taken over without it");
                set_state(shared, &record.name, State::Waiting(promise));
                await_end(shared, process, record);
            }
        }
    }
    Ok(())
}

/// Sees to it that a program which ends while it is waited for is not waited for any longer.
pub(super) fn await_end(shared: &Arc<Shared>, process: PidFd, record: Record) {
    let of = Arc::clone(shared);
    let started = spawn(shared, "myco-waiting", move || {
        let mut fds = [
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
            PollFd::new(of.closing.as_fd(), PollFlags::POLLIN),
        ];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
        if fds[0].any() != Some(true) {
            return;
        }
        let mut regions = lock(&of.regions);
        let waiting = regions
            .get(&record.name)
            .is_some_and(|entry| matches!(entry.state, State::Waiting(_) | State::GivenUp(_)));
        if waiting {
            regions.remove(&record.name);
            drop(regions);
            free_what_is_left(&of, &record);
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "no thread to wait for a client");
    }
}

/// The program has ended while no daemon was there: nobody needs its pages any more.
fn free_what_is_left(shared: &Shared, record: &Record) {
    tracing::info!(region = %record.name, pid = record.pid, "a client has ended without a daemon");
    match SavedRegion::open(&shared.config.state_dir, &record.name) {
        Ok(saved) => match shared.source.reopen(&saved.owner()) {
            Ok((remote, _)) => {
                remote.release();
                saved.discard();
            }
            Err(error) => {
                tracing::warn!(error = %in_words(&*error), region = %record.name, "its remote memory could not be freed; the next daemon tries again");
                return;
            }
        },
        Err(error) => {
            tracing::warn!(error = %in_words(&error), region = %record.name, "it left no page table");
        }
    }
    let state_dir = &shared.config.state_dir;
    let _ = std::fs::remove_file(RegionStats::path(state_dir, &record.name));
    record.remove(state_dir);
}
