//! The region of a VM that is served, and its successor when it fails: what became of an agent that was killed becomes
//! of a thread that panicked, without another process.

use std::time::Instant;

use mycoram_agent::daemon::RemoteSource;
use mycoram_agent::{EventHandler, Patience, Region, RegionConfig, SavedRegion, ThreadPanic};

use super::served::{Events, Heard, Woken, last_figures, wait};
use super::signals::Signals;
use super::{Notice, RunError};
use crate::process::PidFd;
use crate::registry::{VmFigures, VmRecord, VmState};

/// See the module.
pub(super) struct Served<'a> {
    /// None: it has failed, and could not be taken over.
    region: Option<Region>,
    events: Events,
    nodes: &'a dyn RemoteSource,
    config: RegionConfig,
    patience: Patience,
}

/// Goes on where another one stopped: `config` names it.
pub(super) fn succeed(
    nodes: &dyn RemoteSource,
    config: RegionConfig,
    handler: EventHandler,
) -> Result<Region, RunError> {
    let saved = SavedRegion::open(&config.state_dir, &config.name).map_err(RunError::TakeOver)?;
    let (remote, owner) = nodes.reopen(&saved.owner()).map_err(RunError::Remote)?;
    let target = saved.target().map_err(RunError::TakeOver)?;
    Region::take_over(saved, target, remote, owner, config, handler).map_err(RunError::TakeOver)
}

impl<'a> Served<'a> {
    pub(super) fn new(
        (region, events): (Region, Events),
        nodes: &'a dyn RemoteSource,
        config: RegionConfig,
    ) -> Self {
        Self {
            region: Some(region),
            events,
            nodes,
            config,
            patience: Patience::default(),
        }
    }

    /// As [`wait`]; a region that fails is taken over. After an error the target waits for another agent.
    pub(super) fn wait(
        &mut self,
        pidfd: &PidFd,
        signals: Option<&Signals>,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Woken, RunError> {
        loop {
            match wait(pidfd, signals, &self.events, notify)? {
                Heard::Woken(woken) => return Ok(woken),
                Heard::Failed(panic) => {
                    notify(Notice::Failed(panic.clone()));
                    self.go_on(panic)?;
                    notify(Notice::GoesOn);
                }
            }
        }
    }

    fn go_on(&mut self, panic: ThreadPanic) -> Result<(), RunError> {
        if !self.patience.again(Instant::now()) {
            return Err(RunError::Failed(panic));
        }
        let (handler, events) = Events::channel()?;
        // Its page table is closed with it.
        self.region = None;
        let region = succeed(self.nodes, self.config.clone(), handler)?;
        region.after_panics(self.patience.total());
        self.region = Some(region);
        self.events = events;
        Ok(())
    }

    /// While it is served.
    pub(super) fn region(&self) -> Option<&Region> {
        self.region.as_ref()
    }

    pub(super) fn figures(&self, record: &VmRecord, state: VmState) -> VmFigures {
        VmFigures::new(record, state, self.region.as_ref().map(Region::stats))
    }

    /// QEMU has ended: the nodes get their memory back. Its last figures.
    pub(super) fn end(self, record: &VmRecord, notify: &mut dyn FnMut(Notice)) -> VmFigures {
        let stats = self.region.map(|region| {
            let stats = last_figures(&region, &self.events, notify);
            region.end();
            stats
        });
        VmFigures::new(record, VmState::Ended, stats)
    }
}
