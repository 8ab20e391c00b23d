//! `vm attach`: a QEMU that runs already; one that never had an agent, or one whose agent has died.

use std::path::PathBuf;
use std::time::Instant;

use mycoram_agent::daemon::RemoteSource;
use mycoram_agent::{EventHandler, Region, RegionConfig};
use mycoram_fabric::units::ByteCount;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::going_on::{Served, succeed};
use super::remote::Unused;
use super::served::{Events, Woken, target_of};
use super::signals::Signals;
use super::{Notice, Outcome, Ran, RunError};
use crate::attach::{AttachError, AttachOptions, TakeOver, attach, guest_memory};
use crate::process::{PidFd, ProcessIdentity};
use crate::qmp::{self, Qmp};
use crate::registry::{RECORD_VERSION, Registry, VmRecord, VmState};

/// A running QEMU to be put on far memory.
#[derive(Clone, Debug)]
pub struct VmAttach {
    /// QEMU.
    pub pid: Pid,
    /// A QMP socket of it that nobody else uses. Without one, QEMU needs privileges of its own.
    pub qmp: Option<PathBuf>,
    /// The region. After a death its name must be the one that the VM had.
    pub region: RegionConfig,
    /// The region's unit of placement.
    pub extent_bytes: ByteCount,
    /// The file that named the memory nodes, for the record.
    pub nodes: PathBuf,
    /// Which memory, how many parking pipes, how long it may take.
    pub attach: AttachOptions,
}

impl VmAttach {
    /// Adopts the QEMU and stays with it until it ends, or until a signal asks us to let it go: then
    /// its memory is brought home first. A second signal leaves at once; QEMU waits then for
    /// another agent.
    ///
    /// To be called before the process has other threads: signals are blocked for all that follow.
    pub fn run(
        &self,
        registry: &Registry,
        nodes: &dyn RemoteSource,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Ran, RunError> {
        let signals = Signals::block()?;
        let (handler, events) = Events::channel()?;
        let known = registry.find_pid(self.pid.as_raw())?;
        let name = known
            .as_ref()
            .map_or(&self.region.name, |(record, _)| &record.name);
        let _claim = match &known {
            Some((record, VmState::Running)) => {
                return Err(RunError::HasAgent {
                    pid: self.pid.as_raw(),
                    agent: record.agent.pid,
                });
            }
            Some(_) => registry.claim_running(name)?,
            None => registry.claim(name)?,
        };
        let (record, region) = match known {
            Some((record, _)) => self.take_over(registry, nodes, record, handler, notify)?,
            None => self.first(registry, nodes, handler, notify)?,
        };
        let pidfd = PidFd::open_identity(record.target.process).map_err(AttachError::from)?;

        let mut signals = Some(signals);
        let mut served = Served::new((region, events), nodes, self.region_of(&record));
        let (outcome, figures) = loop {
            match served.wait(&pidfd, signals.as_ref(), notify)? {
                Woken::QemuEnded => break (Outcome::Ended(None), served.end(&record, notify)),
                Woken::Fenced => {
                    // Another host has this VM: the copy here must not go on.
                    let _ = pidfd.send_signal(Signal::SIGKILL);
                    break (
                        Outcome::Ended(None),
                        served.figures(&record, VmState::Ended),
                    );
                }
                Woken::Signal(_) => {
                    notify(Notice::ComingHome);
                    signals = None;
                    match served.region().map(Region::detach) {
                        // It goes on, or QEMU has ended: the next wait tells.
                        Some(Err(error)) => notify(Notice::StaysAway(error)),
                        None => {}
                        Some(Ok(())) => {
                            break (Outcome::Detached, served.figures(&record, VmState::Running));
                        }
                    }
                }
            }
        };
        registry.remove(&record.name)?;
        Ok(Ran {
            outcome,
            figures: Some(figures),
        })
    }

    fn first(
        &self,
        registry: &Registry,
        nodes: &dyn RemoteSource,
        handler: EventHandler,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<(VmRecord, Region), RunError> {
        let mut qmp = self
            .qmp
            .as_deref()
            .map(|path| Qmp::connect(path, qmp::DEFAULT_DEADLINE))
            .transpose()?;
        let start = Instant::now();
        // The far side first: if the nodes have no room, nothing is made in QEMU.
        let pidfd = PidFd::open(self.pid).map_err(AttachError::from)?;
        let found = guest_memory(&pidfd, qmp.as_mut(), &self.attach.memory)?;
        let memory = ByteCount::new(found.mapping.bytes());
        let (remote, owner) = nodes
            .create(memory, self.extent_bytes)
            .map_err(RunError::Remote)?;
        let unused = Unused::new(&remote);

        let attached = attach(self.pid, qmp.as_mut(), &self.attach)?;
        let stopped = attached.stopped_for;
        let mut record = VmRecord {
            version: RECORD_VERSION,
            name: self.region.name.clone(),
            agent: ProcessIdentity::own()?,
            target: TakeOver::from(&attached),
            qmp: self.qmp.clone(),
            memory,
            local_budget: self.region.local_budget,
            state_dir: self.region.state_dir.clone(),
            nodes: self.nodes.clone(),
            attach_us: 0,
            stopped_us: stopped.as_micros() as u64,
        };
        // Before faults wait for us: if we die, a successor finds QEMU by it.
        registry.write(&record)?;
        let region = target_of(attached).and_then(|target| {
            Region::attach(target, remote, owner, self.region.clone(), handler)
                .map_err(RunError::Region)
        });
        let region = match region {
            Ok(region) => region,
            Err(error) => {
                registry.remove(&record.name)?;
                return Err(error);
            }
        };
        unused.keep();
        let attach = start.elapsed();
        record.attach_us = attach.as_micros() as u64;
        if let Err(error) = registry.write(&record) {
            tracing::warn!(%error, "the time to attach is not recorded");
        }
        notify(Notice::Attached {
            pid: self.pid.as_raw(),
            attach,
            stopped,
            memory,
            local_budget: self.region.local_budget,
        });
        Ok((record, region))
    }

    /// The region of a VM that has a record.
    fn region_of(&self, record: &VmRecord) -> RegionConfig {
        RegionConfig {
            name: record.name.clone(),
            state_dir: record.state_dir.clone(),
            ..self.region.clone()
        }
    }

    /// The agent has died: everything is still in QEMU, in the state file and at the nodes.
    fn take_over(
        &self,
        registry: &Registry,
        nodes: &dyn RemoteSource,
        former: VmRecord,
        handler: EventHandler,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<(VmRecord, Region), RunError> {
        let start = Instant::now();
        let config = self.region_of(&former);
        let record = VmRecord {
            agent: ProcessIdentity::own()?,
            local_budget: config.local_budget,
            ..former
        };
        // From here on it is ours: a write that fails must not make QEMU wait again.
        let region = succeed(nodes, config, handler)?;
        if let Err(error) = registry.write(&record) {
            tracing::warn!(%error, "the new agent is not recorded");
        }
        notify(Notice::TakenOver {
            pid: self.pid.as_raw(),
            took: start.elapsed(),
        });
        Ok((record, region))
    }
}
