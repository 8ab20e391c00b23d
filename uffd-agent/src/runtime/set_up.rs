//! Setting a region up: from descriptors and a page table to running threads. The same for a new region and
//! for one that is taken over.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use mycoram_fabric::pages::{HUGE_PAGES, KeepError, LaneConfig, LaneError, RemoteRegion};
use mycoram_fabric::units::{PageCount, PageIndex};
use nix::sys::signal::SigSet;

use super::address::AddressMap;
use super::bell::Bell;
use super::evictor::{Evictor, EvictorParts, HALL_PARTS};
use super::failure;
use super::fault_worker::{AdviceGiven, FaultWorker, FaultWorkerParts};
use super::flush::FlushLane;
use super::keeper::{Keeper, KeeperParts};
use super::memory::RegionMemory;
use super::parking::Parking;
use super::region::EventHandler;
use super::shared::{Counters, Leaving, Life, Shared, service_histogram};
use super::victim_desk::VictimDesk;
use crate::config::RegionConfig;
use crate::engine::{Batch, Gate, Pages};
use crate::kernel::{
    ParkingError, ParkingPipe, PidFd, SigbusStandIn, Userfault, allow_huge_pages,
    may_have_huge_pages,
};
use crate::page_table::StateFile;
use crate::policy::{HugeMap, admission_ring, prefetch_for, victims_for};
use crate::target::SLOTS_PER_PIPE;

/// Most pieces of news that wait for an evictor, for each fault worker.
const MAX_NEWS: usize = 1 << 16;
/// Huge pages that a fault worker may have on their way in at once.
const STAGES: u32 = 3;
/// Below this budget, pages, huge pages would be too large a part of it: 32 MiB.
const HUGE_LEAST_BUDGET: u32 = 16 * HUGE_PAGES;
/// Losses, suspect ranges and pieces of advice that wait to be taken.
const CHANNEL: usize = 256;

/// Why a region's threads did not start.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// A lane could not be opened.
    #[error("a lane to the memory nodes could not be opened")]
    Lane(#[from] LaneError),
    /// A descriptor of the agent's own could not be made.
    #[error("a descriptor could not be made: raise the limit of open files (ulimit -n)")]
    Descriptor(#[source] std::io::Error),
    /// A pipe for copies of parked pages could not be made.
    #[error("a pipe for the agent's own use could not be made")]
    Pipe(#[from] ParkingError),
    /// The directory of extents could not be stored for a successor.
    #[error("the region's directory could not be stored in its state file")]
    Directory(#[source] KeepError),
    /// A thread could not be started.
    #[error("a thread could not be started")]
    Thread(#[source] std::io::Error),
}

/// What a region starts from.
pub(crate) struct Beginning {
    pub(crate) config: RegionConfig,
    pub(crate) target_pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) process: PidFd,
    pub(crate) pages: Pages,
    pub(crate) userfault: Userfault,
    pub(crate) memory: RegionMemory,
    pub(crate) address: AddressMap,
    pub(crate) parking: Vec<Parking>,
    /// Slots and pages that a predecessor left in each pipe, and how many pages lie in it.
    pub(crate) parked: Vec<(Vec<(u8, PageIndex)>, u64)>,
    pub(crate) remote: Arc<dyn RemoteRegion>,
    pub(crate) poison: bool,
    pub(crate) events: EventHandler,
    pub(crate) state: Arc<Mutex<StateFile>>,
}

/// A running region.
pub(crate) struct Running {
    pub(crate) shared: Arc<Shared>,
    pub(crate) keeper: JoinHandle<()>,
    pub(crate) desk: Arc<Mutex<VictimDesk>>,
    pub(crate) advice: Vec<crossbeam_channel::Sender<AdviceGiven>>,
    pub(crate) state: Arc<Mutex<StateFile>>,
}

fn bells(count: usize) -> Result<Vec<Bell>, SetUpError> {
    (0..count)
        .map(|_| Bell::new())
        .collect::<Result<_, _>>()
        .map_err(|e| SetUpError::Descriptor(e.into()))
}

/// A thread that takes none of the process's signals: their handlers may touch the region.
fn thread(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, SetUpError> {
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            let _ = SigSet::all().thread_block();
            body();
        })
        .map_err(SetUpError::Thread)
}

/// The same, whose panic is the end of the region.
fn watched(
    shared: &Arc<Shared>,
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, SetUpError> {
    let shared = Arc::clone(shared);
    let as_told = name.clone();
    thread(name, move || {
        // What it says of its panic is said to the region.
        let _ = failure::watch(&shared, &as_told, body);
    })
}

/// From now on the state file has what a successor needs, whatever becomes of the region's replicas.
fn keep_directory(beginning: &Beginning) -> Result<(), SetUpError> {
    // The file belongs to whoever serves the region: it is closed, and unlocked, when nobody does.
    let state = Arc::downgrade(&beginning.state);
    let keep = move |directory: &[u8]| {
        let state = state.upgrade().ok_or("the region is not served any more")?;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(state.set_directory(directory)?)
    };
    beginning
        .remote
        .keep_directory(Box::new(keep))
        .map_err(SetUpError::Directory)
}

/// Starts everything. On an error nothing runs.
pub(crate) fn start(beginning: Beginning) -> Result<Running, SetUpError> {
    let config = beginning.config.clone();
    keep_directory(&beginning)?;
    let workers = usize::from(config.fault_workers);
    let evictors = usize::from(config.eviction_workers);
    let (losses, losses_out) = crossbeam_channel::bounded(CHANNEL);
    let (suspects, suspects_out) = crossbeam_channel::bounded(CHANNEL);
    let sink = OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .map_err(SetUpError::Descriptor)?;
    let held: u64 = beginning.parked.iter().map(|(_, held)| held).sum();
    let budget = u32::try_from(beginning.pages.credits.budget()).unwrap_or(u32::MAX);
    let table_pages = beginning.pages.table.pages();
    let mut keeper_bell = bells(1)?;
    let halls = beginning.memory.halls();
    let huge_budget = budget >= HUGE_LEAST_BUDGET;
    let lane = LaneConfig {
        stages: match halls > 0 && huge_budget && may_have_huge_pages() {
            true => STAGES,
            false => 0,
        },
        ..config.lane
    };
    let lanes: Vec<_> = (0..workers)
        .map(|_| beginning.remote.open_lane(&lane))
        .collect::<Result<_, _>>()?;
    // Huge pages come only where all workers have stages for them.
    let can_move = lane.stages > 0 && lanes.iter().all(|lane| lane.stage(0).is_some());
    let whole = beginning
        .address
        .range_of(PageIndex::new(0), table_pages.get());
    // A kernel without them refuses.
    let allowed = can_move && whole.is_some_and(|range| allow_huge_pages(range).is_ok());
    let huge = allowed.then(|| Arc::new(HugeMap::new(table_pages)));
    let shared = Arc::new(Shared {
        config: config.clone(),
        target_pid: beginning.target_pid,
        pages: beginning.pages,
        // Fault workers, evictors, and one for orders of the owner.
        gate: Gate::new(workers + evictors + 1),
        userfault: beginning.userfault,
        memory: beginning.memory,
        address: beginning.address,
        parking: beginning.parking,
        huge: huge.clone(),
        remote: Arc::clone(&beginning.remote),
        sink: sink.into(),
        worker_bells: bells(workers)?,
        evictor_bells: bells(evictors)?,
        keeper_bell: keeper_bell.remove(0),
        losses,
        suspects,
        poison: beginning.poison,
        sigbus: Mutex::new(SigbusStandIn::new(beginning.process)),
        counters: Counters::default(),
        waiting: AtomicU32::new(0),
        held: AtomicI64::new(held as i64),
        homeless: AtomicI64::new(0),
        suspects_missed: AtomicBool::new(false),
        service: Mutex::new(service_histogram()),
        leaving: Leaving::by(evictors),
        flush_lane: FlushLane::default(),
        life: Life::begin(),
    });

    let scratch = || ParkingPipe::new(PageCount::new(u32::from(SLOTS_PER_PIPE)));
    let mut news = Vec::new();
    let mut advice = Vec::new();
    let mut worker_parts = Vec::new();
    for (index, lane) in lanes.into_iter().enumerate() {
        let (sender, receiver) = admission_ring(MAX_NEWS.min(table_pages.as_usize()));
        news.push(receiver);
        let (give, given) = crossbeam_channel::bounded(CHANNEL);
        advice.push(give);
        worker_parts.push(FaultWorkerParts {
            shared: Arc::clone(&shared),
            index,
            lane,
            policy: prefetch_for(
                config.prefetch,
                table_pages,
                config.prefetch_window_pages,
                huge.clone(),
            ),
            advice: given,
            admissions: sender,
            scratch: scratch()?,
        });
    }
    let mut desk = VictimDesk::new(
        victims_for(config.victims, VictimDesk::share_of(PageCount::new(budget))),
        news,
        PageCount::new(budget),
    );
    desk.admit_all(&shared.pages);
    let desk = Arc::new(Mutex::new(desk));

    let mut parked = beginning.parked;
    parked.resize_with(shared.parking.len(), Default::default);
    let mut evictor_parts = Vec::new();
    for index in 0..evictors {
        // Halls are whole, so they are dealt out by the hall.
        let in_halls = halls as usize * HALL_PARTS;
        let whose = |pipe: usize| match pipe.checked_sub(in_halls) {
            Some(single) => single % evictors,
            None => pipe / HALL_PARTS % evictors,
        };
        let own_halls = (0..in_halls).filter(|pipe| whose(*pipe) == index).count();
        let batches = parked
            .iter()
            .enumerate()
            .filter(|(pipe, _)| whose(*pipe) == index)
            .map(|(pipe, (slots, held))| {
                let mut batch = Batch::new(pipe as u8, usize::from(SLOTS_PER_PIPE));
                if *held > 0 {
                    batch.adopt(&shared.pages, slots, *held, shared.now());
                }
                batch
            })
            .collect();
        evictor_parts.push(EvictorParts {
            shared: Arc::clone(&shared),
            index,
            thread: workers + index,
            lane: beginning.remote.open_lane(&config.lane)?,
            desk: Arc::clone(&desk),
            batches,
            in_halls: own_halls,
            scratch: scratch()?,
        });
    }

    // From here on threads run; what fails ends those that do.
    let mut threads = Vec::new();
    let started = (|| {
        for parts in worker_parts {
            let worker = FaultWorker::new(parts);
            let name = format!("myco-fault-{}", threads.len());
            threads.push(watched(&shared, name, || worker.run())?);
        }
        for parts in evictor_parts {
            let name = format!("myco-evict-{}", parts.index);
            let evictor = Evictor::new(parts);
            threads.push(watched(&shared, name, || evictor.run())?);
        }
        Ok(())
    })();
    let keeper = started.and_then(|()| {
        let keeper = Keeper::new(KeeperParts {
            shared: Arc::clone(&shared),
            pidfd: beginning.pidfd,
            threads: std::mem::take(&mut threads),
            losses: losses_out,
            suspects: suspects_out,
            events: beginning.events,
            state: Arc::clone(&beginning.state),
            figures: config
                .has_successor
                .then(|| crate::stats::RegionStats::path(&config.state_dir, &config.name)),
        });
        thread("myco-keeper".to_owned(), || keeper.run())
    });
    match keeper {
        Ok(keeper) => Ok(Running {
            shared,
            keeper,
            desk,
            advice,
            state: beginning.state,
        }),
        Err(error) => {
            shared.finish(super::shared::Standing::Stopping);
            for thread in threads {
                let _ = thread.join();
            }
            Err(error)
        }
    }
}
