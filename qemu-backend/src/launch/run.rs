//! `vm run`: a QEMU of our own, from its start to its end.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use mycoram_agent::{Region, RegionConfig};
use mycoram_fabric::units::ByteCount;

use super::remote::Unused;
use super::served::{Events, Woken, end, target_of, wait};
use super::signals::Signals;
use super::terminal::Terminal;
use super::{Backing, Notice, OpenRemote, Outcome, RunError, SpawnError, merge, spawn};
use crate::attach::{AttachError, AttachOptions, TakeOver, attach};
use crate::inject::InjectError;
use crate::process::ProcessIdentity;
use crate::qmp::QmpError;
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
        nodes: &dyn OpenRemote,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Outcome, RunError> {
        let merged = merge(&self.arguments, self.memory, &self.backing)?;
        let name = &self.region.name;
        registry.claim(name)?;
        let signals = Signals::block()?;
        let _terminal = Terminal::remember();
        let opened = nodes.create(name, self.memory).map_err(RunError::Remote)?;
        let unused = Unused::new(&opened.remote);

        let qmp_path = registry.qmp_path(name);
        let _cleanup = Cleanup {
            registry,
            config: &self.region,
        };
        let (mut qemu, mut qmp) = match spawn(&self.qemu, &merged.arguments, &qmp_path) {
            Ok(started) => started,
            Err(SpawnError::Ended { status }) => return Ok(Outcome::Ended(Some(status))),
            Err(other) => return Err(other.into()),
        };

        // On each error from here on, dropping `qemu` ends it: it has not run yet.
        let start = Instant::now();
        let attached = match attach(qemu.pid(), Some(&mut qmp), &self.attach) {
            Ok(attached) => attached,
            // It gave up by itself, and has said why.
            Err(AttachError::Inject(InjectError::TargetExited { .. })) => {
                return Ok(Outcome::Ended(Some(qemu.wait()?)));
            }
            Err(other) => return Err(other.into()),
        };
        let process = attached.process;
        let stopped = attached.stopped_for;
        let record = TakeOver::from(&attached);
        let (handler, events) = Events::channel()?;
        let region = Region::attach(
            target_of(attached)?,
            opened.remote,
            opened.owner,
            self.region.clone(),
            handler,
        )
        .map_err(RunError::Region)?;
        unused.is_used();
        let attach = start.elapsed();
        registry.write(&VmRecord {
            version: RECORD_VERSION,
            name: name.clone(),
            agent: ProcessIdentity::own()?,
            target: record,
            qmp: Some(qmp_path),
            memory: self.memory,
            local_budget: self.region.local_budget,
            state_dir: self.region.state_dir.clone(),
            nodes: self.nodes.clone(),
            attach_us: attach.as_micros() as u64,
        })?;
        notify(Notice::Attached {
            pid: process.pid,
            attach,
            stopped,
            memory: self.memory,
            local_budget: self.region.local_budget,
        });

        if !merged.stay_paused {
            match qmp.cont() {
                // It may have been ended meanwhile: that is for the wait to see.
                Ok(()) | Err(QmpError::Closed) => {}
                Err(other) => return Err(other.into()),
            }
        }
        // The socket is for whoever wants to speak to this VM.
        drop(qmp);

        loop {
            match wait(qemu.pidfd(), &signals, &events, notify)? {
                Woken::QemuEnded => {
                    end(region);
                    return Ok(Outcome::Ended(Some(qemu.wait()?)));
                }
                Woken::Signal(received) => {
                    if !received.by_terminal {
                        // Gone already, then: the next wait sees it.
                        let _ = qemu.pidfd().send_signal(received.signal);
                    }
                }
                Woken::Fenced => {
                    // Another host has this VM: the copy here must not go on.
                    let _ = qemu.pidfd().send_signal(nix::sys::signal::Signal::SIGKILL);
                }
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
