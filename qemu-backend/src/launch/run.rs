//! `vm run`: a QEMU of our own, from its start to its end.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use mycoram_agent::daemon::RemoteSource;
use mycoram_agent::{Region, RegionConfig};
use mycoram_fabric::units::ByteCount;
use nix::sys::signal::Signal;

use super::going_on::Served;
use super::remote::Unused;
use super::served::{Events, Woken, target_of};
use super::signals::Signals;
use super::terminal::Terminal;
use super::{Backing, Notice, Outcome, Ran, RunError, SpawnError, SpawnedQemu, merge, spawn};
use crate::attach::{AttachError, AttachOptions, TakeOver, attach};
use crate::inject::InjectError;
use crate::process::ProcessIdentity;
use crate::qmp::{Qmp, QmpError};
use crate::registry::{RECORD_VERSION, Registry, VmRecord};

/// A VM to be run on far memory.
#[derive(Clone, Debug)]
pub struct VmRun {
    /// The program, such as `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// The user's arguments for it.
    pub arguments: Vec<OsString>,
    /// The guest's RAM.
    pub memory: ByteCount,
    /// What that RAM is made on. Default: a memfd.
    pub backing: Backing,
    /// The region: its name is the VM's, its budget what may be resident.
    pub region: RegionConfig,
    /// The region's unit of placement.
    pub extent_bytes: ByteCount,
    /// The file that named the memory nodes, for the record.
    pub nodes: PathBuf,
    /// How many parking pipes to make in QEMU and how long it may take.
    pub attach: AttachOptions,
}

impl VmRun {
    /// Runs the VM and stays with it until it ends.
    ///
    /// To be called before the process has other threads: signals are blocked for all that follow.
    /// QEMU that ends by itself, however badly, is an [`Outcome`]; an error is ours.
    pub fn run(
        &self,
        registry: &Registry,
        nodes: &dyn RemoteSource,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Ran, RunError> {
        let merged = merge(&self.arguments, self.memory, &self.backing)?;
        let name = &self.region.name;
        let _claim = registry.claim(name)?;
        let signals = Signals::block()?;
        let _terminal = Terminal::remember();
        let (remote, owner) = nodes
            .create(self.memory, self.extent_bytes)
            .map_err(RunError::Remote)?;
        let unused = Unused::new(&remote);

        let qmp_path = registry.qmp_path(name);
        let _cleanup = Cleanup {
            registry,
            config: &self.region,
        };
        let (mut qemu, mut qmp) = match spawn(&self.qemu, &merged.arguments, &qmp_path) {
            Ok(started) => started,
            Err(SpawnError::Ended { status }) => {
                return Ok(Ran::never(Outcome::Ended(Some(status))));
            }
            Err(other) => return Err(other.into()),
        };

        // On each error from here on, dropping `qemu` ends it: it has not run yet.
        let start = Instant::now();
        let attached = match attach(qemu.pid(), Some(&mut qmp), &self.attach) {
            Ok(attached) => attached,
            // It gave up by itself, and has said why.
            Err(AttachError::Inject(InjectError::TargetExited { .. })) => {
                return Ok(Ran::never(Outcome::Ended(Some(qemu.wait()?))));
            }
            Err(other) => return Err(other.into()),
        };
        let stopped = attached.stopped_for;
        let target = TakeOver::from(&attached);
        let (handler, events) = Events::channel()?;
        let region = Region::attach(
            target_of(attached)?,
            remote,
            owner,
            self.region.clone(),
            handler,
        )
        .map_err(RunError::Region)?;
        unused.keep();
        let attach = start.elapsed();
        let record = VmRecord {
            version: RECORD_VERSION,
            name: name.clone(),
            agent: ProcessIdentity::own()?,
            target,
            qmp: Some(qmp_path),
            memory: self.memory,
            local_budget: self.region.local_budget,
            state_dir: self.region.state_dir.clone(),
            nodes: self.nodes.clone(),
            attach_us: attach.as_micros() as u64,
            stopped_us: stopped.as_micros() as u64,
        };
        let mut served = Served::new((region, events), nodes, self.region.clone());
        let ran = registry
            .write(&record)
            .map_err(RunError::from)
            .and_then(|()| {
                notify(Notice::Attached {
                    pid: record.target.process.pid,
                    attach,
                    stopped,
                    memory: self.memory,
                    local_budget: self.region.local_budget,
                });
                if !merged.stay_paused {
                    start_guest(qmp)?;
                }
                accompany(&qemu, &signals, &mut served, notify)
            });
        if ran.is_err() {
            // It does not outlive us; nothing of it is worth keeping.
            let _ = qemu.pidfd().send_signal(Signal::SIGKILL);
        }
        let status = qemu.wait()?;
        let figures = served.end(&record, notify);
        ran?;
        Ok(Ran {
            outcome: Outcome::Ended(Some(status)),
            figures: Some(figures),
        })
    }
}

/// The socket is closed then: it is for whoever wants to speak to this VM.
fn start_guest(mut qmp: Qmp) -> Result<(), RunError> {
    match qmp.cont() {
        // It may have been ended meanwhile: that is for the wait to see.
        Ok(()) | Err(QmpError::Closed) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

/// Stays with QEMU until it has ended.
fn accompany(
    qemu: &SpawnedQemu,
    signals: &Signals,
    served: &mut Served<'_>,
    notify: &mut dyn FnMut(Notice),
) -> Result<(), RunError> {
    loop {
        match served.wait(qemu.pidfd(), Some(signals), notify)? {
            Woken::QemuEnded => return Ok(()),
            Woken::Signal(received) => {
                if !received.by_terminal {
                    // Gone already, then: the next wait sees it.
                    let _ = qemu.pidfd().send_signal(received.signal);
                }
            }
            Woken::Fenced => {
                // Another host has this VM: the copy here must not go on.
                let _ = qemu.pidfd().send_signal(Signal::SIGKILL);
            }
        }
    }
}

/// Removes the record and the socket, whatever way we leave.
struct Cleanup<'a> {
    registry: &'a Registry,
    config: &'a RegionConfig,
}

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.registry.remove(&self.config.name) {
            tracing::warn!(%error, "the record of the VM stays behind");
        }
    }
}
