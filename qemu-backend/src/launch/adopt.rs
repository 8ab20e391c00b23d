//! `vm attach`: a QEMU that runs already; one that never had an agent, or one whose agent has died.

use std::path::PathBuf;
use std::time::Instant;

use mycoram_agent::{Region, RegionConfig, SavedRegion};
use mycoram_fabric::units::ByteCount;
use nix::unistd::Pid;

use super::remote::Unused;
use super::served::{Events, Woken, end, target_of, wait};
use super::signals::Signals;
use super::{Notice, OpenRemote, Outcome, RunError};
use crate::attach::{AttachOptions, TakeOver, attach};
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
        nodes: &dyn OpenRemote,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Outcome, RunError> {
        let known = registry.find_pid(self.pid.as_raw())?;
        let signals = Signals::block()?;
        let (handler, events) = Events::channel()?;
        let start = Instant::now();
        let (mut record, region) = match known {
            Some((record, VmState::Running)) => {
                return Err(RunError::HasAgent {
                    pid: self.pid.as_raw(),
                    agent: record.agent.pid,
                });
            }
            Some((record, _)) => {
                let region = self.take_over(nodes, &record, handler)?;
                notify(Notice::TakenOver {
                    pid: self.pid.as_raw(),
                    took: start.elapsed(),
                });
                (
                    VmRecord {
                        agent: ProcessIdentity::own()?,
                        ..record
                    },
                    region,
                )
            }
            None => self.first(registry, nodes, handler, notify)?,
        };
        record.local_budget = self.region.local_budget;
        registry.write(&record)?;
        let pidfd = PidFd::open_identity(record.target.process)
            .map_err(crate::attach::AttachError::from)?;

        match wait(&pidfd, &signals, &events, notify)? {
            Woken::QemuEnded => {
                end(region);
                registry.remove(&record.name)?;
                Ok(Outcome::Ended(None))
            }
            Woken::Fenced => {
                let _ = pidfd.send_signal(nix::sys::signal::Signal::SIGKILL);
                registry.remove(&record.name)?;
                Ok(Outcome::Ended(None))
            }
            Woken::Signal(_) => {
                notify(Notice::ComingHome);
                // From here on a signal does what it does by default: leave at once.
                drop(signals);
                region.detach().map_err(RunError::Detach)?;
                registry.remove(&record.name)?;
                Ok(Outcome::Detached)
            }
        }
    }

    fn first(
        &self,
        registry: &Registry,
        nodes: &dyn OpenRemote,
        handler: mycoram_agent::EventHandler,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<(VmRecord, Region), RunError> {
        let name = &self.region.name;
        registry.claim(name)?;
        let mut qmp = self
            .qmp
            .as_deref()
            .map(|path| Qmp::connect(path, qmp::DEFAULT_DEADLINE))
            .transpose()?;
        let start = Instant::now();
        let attached = attach(self.pid, qmp.as_mut(), &self.attach)?;
        let target = TakeOver::from(&attached);
        let stopped = attached.stopped_for;
        let memory = ByteCount::new(attached.bytes);
        let agent_target = target_of(attached)?;
        let opened = nodes.create(name, memory).map_err(RunError::Remote)?;
        let unused = Unused::new(&opened.remote);
        let region = Region::attach(
            agent_target,
            opened.remote,
            opened.owner,
            self.region.clone(),
            handler,
        )
        .map_err(RunError::Region)?;
        unused.is_used();
        let attach = start.elapsed();
        notify(Notice::Attached {
            pid: self.pid.as_raw(),
            attach,
            stopped,
            memory,
            local_budget: self.region.local_budget,
        });
        let record = VmRecord {
            version: RECORD_VERSION,
            name: name.clone(),
            agent: ProcessIdentity::own()?,
            target,
            qmp: self.qmp.clone(),
            memory,
            local_budget: self.region.local_budget,
            state_dir: self.region.state_dir.clone(),
            nodes: self.nodes.clone(),
            attach_us: attach.as_micros() as u64,
        };
        Ok((record, region))
    }

    /// The agent has died: everything is still in QEMU, in the state file and at the nodes.
    fn take_over(
        &self,
        nodes: &dyn OpenRemote,
        record: &VmRecord,
        handler: mycoram_agent::EventHandler,
    ) -> Result<Region, RunError> {
        let saved =
            SavedRegion::open(&record.state_dir, &record.name).map_err(RunError::TakeOver)?;
        let opened = nodes
            .reopen(&saved.owner(), record.memory)
            .map_err(RunError::Remote)?;
        let target = saved.target().map_err(RunError::TakeOver)?;
        let config = RegionConfig {
            name: record.name.clone(),
            state_dir: record.state_dir.clone(),
            ..self.region.clone()
        };
        Region::take_over(saved, target, opened.remote, opened.owner, config, handler)
            .map_err(RunError::TakeOver)
    }
}
