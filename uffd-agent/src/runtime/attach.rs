//! Attaching: from a target's descriptors to a region that is served.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{PAGE_BYTES, PAGE_SHIFT, PageCount, PageIndex};

use super::address::{AddressMap, Segment};
use super::memory::{FileMemory, PrivateMemory, RegionMemory};
use super::parking::{Parking, PipeParking, RoomParking};
use super::region::{AttachError, EventHandler, Owner, Region};
use super::set_up::{Beginning, start};
use crate::config::RegionConfig;
use crate::engine::{Credits, Pages};
use crate::kernel::{
    Feature, FeatureSet, HandshakeError, MemoryFile, MemoryFileKind, MemoryLock, ParkingPipe,
    PidFd, TargetAddr, TargetRange, Userfault, Watch,
};
use crate::page_table::{Header, PageState, StateFile, Word, process_started};
use crate::seal;
use crate::target::{
    HeldDescriptors, ParkingPipe as PipeEnds, PrivateTarget, SLOTS_PER_PIPE, Target,
};

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

/// Pipes as places where pages wait.
pub(crate) fn places_of(pipes: Vec<ParkingPipe>) -> Vec<Parking> {
    pipes
        .into_iter()
        .map(|pipe| Parking::Pipe(PipeParking::new(pipe)))
        .collect()
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
) -> Result<FileMemory, AttachError> {
    let file = MemoryFile::from_fd(fd)?;
    if file.kind() == MemoryFileKind::HugePages {
        return Err(AttachError::HugePages);
    }
    FileMemory::new(file, place.first_in_file, place.pages).ok_or(AttachError::Mapping)
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

/// A mapping that is to become a region, with its descriptors looked at.
struct Found {
    pid: i32,
    pidfd: OwnedFd,
    uffd: OwnedFd,
    place: Place,
    file_offset: u64,
    memory: RegionMemory,
    parking: Vec<Parking>,
    held: HeldDescriptors,
}

/// A mapping of a file, of whatever process.
pub(crate) fn attach(
    target: Target,
    remote: Arc<dyn RemoteRegion>,
    owner: Owner,
    config: RegionConfig,
    events: EventHandler,
) -> Result<Region, AttachError> {
    config.validate(target.pipes.len())?;
    let place = check_place(&target)?;
    same_size(remote.as_ref(), place)?;
    let memory = open_memory(target.memory, place)?;
    let pipes = open_pipes(target.pipes)?;
    for pipe in &pipes {
        let queued = pipe.queued()?;
        if queued.get() > 0 {
            return Err(AttachError::PipeInUse(queued));
        }
    }
    let found = Found {
        pid: target.pid,
        pidfd: target.pidfd,
        uffd: target.uffd,
        place,
        file_offset: target.file_offset,
        memory: RegionMemory::File(memory),
        parking: places_of(pipes),
        held: target.held,
    };
    serve(found, remote, owner, config, events)
}

/// Private memory of this very process.
pub(crate) fn attach_private(
    target: PrivateTarget,
    remote: Arc<dyn RemoteRegion>,
    owner: Owner,
    config: RegionConfig,
    events: EventHandler,
) -> Result<Region, AttachError> {
    let range = TargetRange::new(TargetAddr::new(target.base), target.bytes.get())
        .map_err(|_| AttachError::Mapping)?;
    let place = Place {
        range,
        first_in_file: 0,
        pages: range.pages(),
    };
    same_size(remote.as_ref(), place)?;
    let memory = PrivateMemory::new(target.rooms)?;
    let parking: Vec<_> = RoomParking::all_of(&memory.rooms)
        .into_iter()
        .map(Parking::Rooms)
        .collect();
    config.validate(parking.len())?;
    let pid = std::process::id() as i32;
    let found = Found {
        pid,
        pidfd: PidFd::open(pid)?.into_fd(),
        uffd: target.uffd,
        place,
        file_offset: 0,
        memory: RegionMemory::Private(memory),
        parking,
        held: HeldDescriptors::default(),
    };
    // Whatever was asked for: when this process ends, so does its memory.
    let config = RegionConfig {
        has_successor: false,
        ..config
    };
    serve(found, remote, owner, config, events)
}

fn same_size(remote: &dyn RemoteRegion, place: Place) -> Result<(), AttachError> {
    if remote.pages() == place.pages {
        return Ok(());
    }
    Err(AttachError::SizeMismatch {
        remote: remote.pages(),
        target: place.pages,
    })
}

fn serve(
    found: Found,
    remote: Arc<dyn RemoteRegion>,
    owner: Owner,
    config: RegionConfig,
    events: EventHandler,
) -> Result<Region, AttachError> {
    let place = found.place;
    let process = PidFd::open(found.pid)?;
    let segment = Segment {
        addr: place.range.start().get(),
        page: 0,
        pages: place.pages.get(),
    };
    let (seal, cipher) = seal::begin(config.seal_key.as_deref(), owner.region)?;
    let header = Header {
        region: owner.region,
        epoch: owner.epoch,
        pages: place.pages,
        target_pid: found.pid,
        target_started: process_started(found.pid).unwrap_or(0),
        file_offset: found.file_offset,
        bytes: place.pages.bytes(),
        segments: vec![(segment.addr, segment.page, segment.pages)],
        held_uffd: found.held.uffd,
        held_memory: found.held.memory,
        held_pipes: found.held.pipes,
        seal,
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
    let remote = cipher.over(remote, state.seals(&mapping));
    let locks = lock_table(&mapping, StateFile::table_offset());

    let state = Arc::new(Mutex::new(state));
    let watched = watch(found.uffd, place, config.without_poison);
    let (userfault, poison) = watched.inspect_err(|_| remove(&state))?;
    // From here on nothing comes into the memory but by our hand, so that what is there now stays known.
    let mut resident = 0;
    // Read before anybody relies on them: see `Word::unseen`.
    let inherited = Word::NEVER_WRITTEN
        .with_state(PageState::Remote)
        .with_synced(true)
        .with_unseen(true);
    for page in place.pages.indexes().filter(|page| remote.inherits(*page)) {
        table.set(page, inherited);
        remote.expect(page);
    }
    let word = Word::NEVER_WRITTEN.with_state(PageState::Resident);
    let looked = match &found.memory {
        RegionMemory::File(file) => file.each_resident(|page, count| {
            resident += u64::from(count);
            for at in 0..count {
                table.set(PageIndex::new(page.get() + at), word);
            }
        }),
        // Mapped for this, and not touched yet.
        RegionMemory::Private(_) => Ok(()),
    };
    let credits = Credits::new(config.local_budget.get() / PAGE_BYTES as u64);
    credits.overdraw(resident);
    let pages = Pages::new(table, credits, found.parking.len());
    let started = looked.map_err(AttachError::from).and_then(|()| {
        // A second descriptor, to take the registration back if the threads do not start.
        let undo = userfault.try_clone_fd()?;
        start(Beginning {
            config,
            target_pid: found.pid,
            pidfd: found.pidfd,
            process,
            pages,
            userfault,
            memory: found.memory,
            address: AddressMap::new(vec![segment]),
            parking: found.parking,
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
