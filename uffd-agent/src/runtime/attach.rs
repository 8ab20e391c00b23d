//! Attaching: from a target's descriptors to a region that is served.

use std::sync::{Arc, Mutex};

use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{PAGE_BYTES, PAGE_SHIFT, PageCount, PageIndex};

use super::address::{AddressMap, Segment};
use super::memory::RegionMemory;
use super::region::{AttachError, EventHandler, Owner, Region};
use super::set_up::{Beginning, start};
use crate::config::RegionConfig;
use crate::engine::{Credits, Pages};
use crate::kernel::{
    Feature, FeatureSet, HandshakeError, MemoryFile, MemoryFileKind, MemoryLock, ParkingPipe,
    PidFd, TargetAddr, TargetRange, Userfault, Watch,
};
use crate::page_table::{Header, PageState, StateFile, Word, process_started};
use crate::target::{ParkingPipe as PipeEnds, SLOTS_PER_PIPE, Target};

/// What every region asks the kernel for.
const WANTED: [Feature; 5] = [
    Feature::MissingShmem,
    Feature::EventRemove,
    Feature::EventRemap,
    Feature::EventUnmap,
    Feature::ThreadId,
];

/// Numbers of a target's mapping, checked.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) range: TargetRange,
    pub(crate) first_in_file: u32,
    pub(crate) pages: PageCount,
}

pub(crate) fn check_place(target: &Target) -> Result<Place, AttachError> {
    let range = TargetRange::new(TargetAddr::new(target.base), target.bytes.get())
        .map_err(|_| AttachError::Mapping)?;
    let first =
        u32::try_from(target.file_offset >> PAGE_SHIFT).map_err(|_| AttachError::Mapping)?;
    if !target.file_offset.is_multiple_of(PAGE_BYTES as u64) {
        return Err(AttachError::Mapping);
    }
    Ok(Place {
        range,
        first_in_file: first,
        pages: range.pages(),
    })
}

pub(crate) fn open_memory(
    fd: std::os::fd::OwnedFd,
    place: Place,
) -> Result<RegionMemory, AttachError> {
    let file = MemoryFile::from_fd(fd)?;
    if file.kind() == MemoryFileKind::HugePages {
        return Err(AttachError::HugePages);
    }
    RegionMemory::new(file, place.first_in_file, place.pages).ok_or(AttachError::Mapping)
}

pub(crate) fn open_pipes(pipes: Vec<PipeEnds>) -> Result<Vec<ParkingPipe>, AttachError> {
    let mut open = Vec::with_capacity(pipes.len());
    for ends in pipes {
        let pipe = ParkingPipe::from_ends(ends.read, ends.write)?;
        if pipe.slots().get() < u32::from(SLOTS_PER_PIPE) {
            return Err(crate::kernel::ParkingError::TooFewSlots {
                asked: SLOTS_PER_PIPE.into(),
                granted: pipe.slots().get(),
            }
            .into());
        }
        open.push(pipe);
    }
    Ok(open)
}

/// Locks what the fault path touches. Where the limit is too low, it may be slow at times, not wrong.
pub(crate) fn lock_table(mapping: &Arc<Mapping>, offset: usize) -> Vec<MemoryLock> {
    match MemoryLock::of_part(Arc::clone(mapping), offset) {
        Ok(lock) => vec![lock],
        Err(error) => {
            tracing::warn!(%error, "the page table is not locked in memory: raise RLIMIT_MEMLOCK (ulimit -l)");
            Vec::new()
        }
    }
}

/// Makes the handshake with as much as the kernel has; whether there is poison.
fn handshake(userfault: &Userfault, without_poison: bool) -> Result<bool, HandshakeError> {
    let wanted = FeatureSet::of(&WANTED);
    if !without_poison {
        match userfault.handshake(wanted.with(Feature::Poison)) {
            Ok(_) => return Ok(true),
            Err(HandshakeError::Unsupported { .. }) => {
                tracing::info!("{}", Feature::Poison.without_it());
            }
            Err(error) => return Err(error),
        }
    }
    userfault.handshake(wanted).map(|_| false)
}

pub(crate) fn attach(
    target: Target,
    remote: Arc<dyn RemoteRegion>,
    owner: Owner,
    config: RegionConfig,
    events: EventHandler,
) -> Result<Region, AttachError> {
    config.validate(target.pipes.len())?;
    let place = check_place(&target)?;
    if remote.pages() != place.pages {
        return Err(AttachError::SizeMismatch {
            remote: remote.pages(),
            target: place.pages,
        });
    }
    let process = PidFd::open(target.pid)?;
    let memory = open_memory(target.memory, place)?;
    let pipes = open_pipes(target.pipes)?;
    for pipe in &pipes {
        let queued = pipe.queued()?;
        if queued.get() > 0 {
            return Err(AttachError::PipeInUse(queued));
        }
    }
    let segment = Segment {
        addr: target.base,
        page: 0,
        pages: place.pages.get(),
    };
    let header = Header {
        region: owner.region,
        epoch: owner.epoch,
        pages: place.pages,
        target_pid: target.pid,
        target_started: process_started(target.pid).unwrap_or(0),
        file_offset: target.file_offset,
        bytes: target.bytes,
        segments: vec![(segment.addr, segment.page, segment.pages)],
        held_uffd: target.held.uffd,
        held_memory: target.held.memory,
        held_pipes: target.held.pipes,
    };
    let state = StateFile::create(
        &config.state_dir,
        config.name.as_str(),
        header,
        &owner.directory,
    )?;
    if !config.has_successor {
        state.remove();
    }
    let (table, mapping) = state.table()?;
    let locks = lock_table(&mapping, StateFile::table_offset());

    let state = Arc::new(Mutex::new(state));
    let watched = watch(target.uffd, place, config.without_poison);
    let (userfault, poison) = watched.inspect_err(|_| remove(&state))?;
    // From here on nothing comes into the file but by our hand, so that what is there now stays known.
    let mut resident = 0;
    let word = Word::NEVER_WRITTEN.with_state(PageState::Resident);
    let looked = memory.each_resident(|page, count| {
        resident += u64::from(count);
        for at in 0..count {
            table.set(PageIndex::new(page.get() + at), word);
        }
    });
    let credits = Credits::new(config.local_budget.get() / PAGE_BYTES as u64);
    credits.overdraw(resident);
    let pages = Pages::new(table, credits, pipes.len());
    let started = looked.map_err(AttachError::from).and_then(|()| {
        // A second descriptor, to take the registration back if the threads do not start.
        let undo = userfault.try_clone_fd()?;
        start(Beginning {
            config,
            target_pid: target.pid,
            pidfd: target.pidfd,
            process,
            pages,
            userfault,
            memory,
            address: AddressMap::new(vec![segment]),
            pipes,
            parked: Vec::new(),
            remote,
            poison,
            events,
            state: Arc::clone(&state),
        })
        .map_err(|error| {
            if let Ok(undo) = Userfault::from_received(undo) {
                let _ = undo.unregister(place.range);
            }
            error.into()
        })
    });
    started
        .map(|running| Region::over(running, locks))
        .inspect_err(|_| remove(&state))
}

fn remove(state: &Mutex<StateFile>) {
    state
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .remove();
}

/// From here on the target waits at every page that is not there.
fn watch(
    uffd: std::os::fd::OwnedFd,
    place: Place,
    without_poison: bool,
) -> Result<(Userfault, bool), AttachError> {
    let userfault = Userfault::from_received(uffd)?;
    let poison = handshake(&userfault, without_poison)?;
    userfault.register(place.range, Watch::Missing)?;
    Ok((userfault, poison))
}
