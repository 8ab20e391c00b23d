//! Taking over: a new agent goes on where a killed one stopped.
//!
//! ```text
//!   lock the state file -> fetch the target's descriptors -> (owner: reopen the remote pages, higher epoch)
//!     -> look at file and pipes -> recover every word -> start -> wake the whole range
//! ```

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};

use super::address::{AddressMap, Segment};
use super::attach::{check_place, lock_table, open_memory, open_pipes, places_of};
use super::memory::RegionMemory;
use super::region::{AttachError, EventHandler, Owner, Region, TakeOverError};
use super::set_up::{Beginning, start};
use crate::config::RegionConfig;
use crate::engine::{Credits, Pages, recover};
use crate::kernel::{PidFd, Userfault};
use crate::page_table::{Header, PageState, StateFile, StateFileError, Word, process_started};
use crate::seal;
use crate::target::{HeldDescriptors, ParkingPipe, Target};

/// What a dead agent left behind: its state file, locked.
#[derive(Debug)]
pub struct SavedRegion {
    state: StateFile,
}

impl SavedRegion {
    /// Locks and reads the state file of region `name`. The lock is held from here on.
    pub fn open(state_dir: &Path, name: &crate::RegionName) -> Result<Self, TakeOverError> {
        let state = StateFile::open(state_dir, name.as_str())?;
        Ok(Self { state })
    }

    /// Its owner, as it was. Open the remote pages again with the directory and a higher epoch.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner {
            region: self.state.header().region,
            epoch: self.state.header().epoch,
            directory: self.state.directory().to_vec(),
        }
    }

    /// The target's process number.
    #[must_use]
    pub fn target_pid(&self) -> i32 {
        self.state.header().target_pid
    }

    /// Whether the target lives. If not, the region is of no use to anybody: [`Self::discard`].
    #[must_use]
    pub fn target_lives(&self) -> bool {
        let header = self.state.header();
        process_started(header.target_pid) == Some(header.target_started)
    }

    /// Removes the state file of a region whose target has ended.
    pub fn discard(self) {
        self.state.remove();
    }

    /// The target, its descriptors fetched anew from the process that holds them. Needs the right to
    /// ptrace it.
    pub fn target(&self) -> Result<Target, TakeOverError> {
        let header = self.state.header();
        let pid = header.target_pid;
        let process = PidFd::open(pid)?;
        if !self.target_lives() {
            return Err(TakeOverError::TargetGone { pid });
        }
        let mut pipes = Vec::new();
        for (read, write) in &header.held_pipes {
            pipes.push(ParkingPipe {
                read: process.take_descriptor(*read)?,
                write: process.take_descriptor(*write)?,
            });
        }
        Ok(Target {
            pid,
            uffd: process.take_descriptor(header.held_uffd)?,
            memory: process.take_descriptor(header.held_memory)?,
            file_offset: header.file_offset,
            base: header.segments.first().map_or(0, |(addr, ..)| *addr),
            bytes: header.bytes,
            pipes,
            held: HeldDescriptors {
                uffd: header.held_uffd,
                memory: header.held_memory,
                pipes: header.held_pipes.clone(),
            },
            pidfd: process.into_fd(),
        })
    }
}

pub(crate) fn take_over(
    saved: SavedRegion,
    target: Target,
    remote: Arc<dyn RemoteRegion>,
    owner: Owner,
    config: RegionConfig,
    events: EventHandler,
) -> Result<Region, TakeOverError> {
    let mut state = saved.state;
    let header = state.header().clone();
    if owner.region != header.region {
        return Err(TakeOverError::OtherRegion {
            held: header.region,
            asked: owner.region,
        });
    }
    if owner.epoch <= header.epoch {
        return Err(TakeOverError::EpochTooLow {
            held: header.epoch,
            asked: owner.epoch,
        });
    }
    config
        .validate(target.pipes.len())
        .map_err(AttachError::from)?;
    let place = check_place(&target)?;
    if remote.pages() != place.pages || header.pages != place.pages {
        return Err(AttachError::SizeMismatch {
            remote: remote.pages(),
            target: place.pages,
        }
        .into());
    }
    let process = PidFd::open(target.pid)?;
    let memory = open_memory(target.memory, place)?;
    let pipes = open_pipes(target.pipes)?;
    let userfault = Userfault::from_received(target.uffd).map_err(AttachError::from)?;
    let segments: Vec<Segment> = header
        .segments
        .iter()
        .map(|(addr, page, pages)| Segment {
            addr: *addr,
            page: *page,
            pages: *pages,
        })
        .collect();
    let cipher = seal::go_on(
        config.seal_key.as_deref(),
        header.region,
        header.seal.as_ref(),
    )
    .map_err(AttachError::from)?;
    // First of all: from here on this agent is the one that the file names.
    state.set_header(Header {
        epoch: owner.epoch,
        ..header
    })?;
    state.set_directory(&owner.directory)?;
    let (table, mapping) = state.table()?;
    let remote = cipher.over(remote, state.seals(&mapping));
    let locks = lock_table(&mapping, StateFile::table_offset());

    let mut in_file = vec![false; place.pages.as_usize()];
    memory
        .each_resident(|page, count| {
            in_file[page.as_usize()..page.as_usize() + count as usize].fill(true);
        })
        .map_err(AttachError::from)?;
    let mut spliced = Vec::with_capacity(pipes.len());
    for pipe in &pipes {
        spliced.push(pipe.queued().map_err(AttachError::from)?.get());
    }
    let mut parked: Vec<(Vec<(u8, PageIndex)>, u64)> = spliced
        .iter()
        .map(|queued| (Vec::new(), u64::from(*queued)))
        .collect();
    let mut alive: u64 = spliced.iter().map(|queued| u64::from(*queued)).sum();
    for page in table.pages().indexes() {
        let word =
            Word::checked(table.word(page).bits()).map_err(|source| StateFileError::Word {
                path: state.path().to_owned(),
                source,
            })?;
        let recovered = recover(word, in_file[page.as_usize()], |batch| {
            spliced.get(usize::from(batch)).copied().unwrap_or(0)
        });
        table.set(page, recovered.word);
        if let Some((batch, slot)) = recovered.parked {
            parked[usize::from(batch)].0.push((slot, page));
        }
        alive += u64::from(recovered.word.state() == PageState::Resident);
        if recovered.word.state() != PageState::NeverWritten {
            remote.expect(page);
        }
    }
    let credits = Credits::new(config.local_budget.get() / PAGE_BYTES as u64);
    credits.overdraw(alive);
    let pages = Pages::new(table, credits, pipes.len());
    let poison = !config.without_poison;
    let state = Arc::new(Mutex::new(state));
    let running = start(Beginning {
        config,
        target_pid: target.pid,
        pidfd: target.pidfd,
        process,
        pages,
        userfault,
        memory: RegionMemory::File(memory),
        address: AddressMap::new(segments),
        parking: places_of(pipes),
        parked,
        remote,
        poison,
        events,
        state,
    })
    .map_err(AttachError::from)?;
    // Discards that the dead agent had heard of are looked at again.
    running.shared.suspects_missed.store(true, Ordering::SeqCst);
    running.shared.keeper_bell.ring();
    // Faults that the dead agent had read are known to nobody: their threads ask again.
    running.shared.wake_all();
    Ok(Region::over(running, locks))
}
