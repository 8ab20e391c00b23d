//! `myco vm`: QEMUs on far memory. What its verbs share: options of the far side, words on stderr, failures.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use mycoram_agent::daemon::SourceError;
use mycoram_agent::{ConfigError, RegionConfig, RegionName};
use mycoram_control::client::{ClientError, LeaseError};
use mycoram_control::metrics::MetricsServer;
use mycoram_fabric::remote::CreateError;
use mycoram_fabric::units::ByteCount;
use mycoram_qemu::attach::{AttachError, AttachOptions};
use mycoram_qemu::inject::InjectError;
use mycoram_qemu::launch::{Notice, Ran, RunError, SpawnError, has_direct_io};
use mycoram_qemu::registry::{Registry, RegistryError};

use crate::agent_metrics::Metrics;
use crate::agent_serve::keep_in_memory;
use crate::command::Outcome;
use crate::control::client_code;
use crate::exit_codes;
use crate::failure::Failure;
use crate::far_nodes::{FarNodes, OpenFar};
use crate::output::Output;
use crate::{vm_attach, vm_list, vm_run, vm_stats};

/// Run QEMU guests whose RAM lives on memory nodes
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a QEMU with its RAM on memory nodes, and stay with it until it ends
    Run(Box<vm_run::Args>),
    /// Put the RAM of a running QEMU on memory nodes, or take over from an agent that died
    Attach(Box<vm_attach::Args>),
    /// List the VMs that run on this machine
    List(vm_list::Args),
    /// Show what a VM's memory has done, and what of it is resident
    Stats(vm_stats::Args),
}

pub(crate) fn run(args: Args, output: &Output) -> Outcome {
    match args.verb {
        Verb::Run(args) => vm_run::run(*args),
        Verb::Attach(args) => vm_attach::run(*args),
        Verb::List(args) => vm_list::run(&args, output),
        Verb::Stats(args) => vm_stats::run(&args, output),
    }
}

/// What is local, and where the rest goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Far {
    /// How much of the guest's RAM may be resident on this machine, such as 1GiB
    #[arg(long, value_name = "SIZE")]
    local: ByteCount,

    /// The memory nodes: a nodes file, or a control plane as in control://HOST:PORT?tls=DIR&replicas=2
    #[arg(long, value_name = "FILE|URL")]
    pub(crate) nodes: FarNodes,

    /// Threads that serve faults
    #[arg(long, value_name = "N", default_value_t = 1)]
    fault_workers: u8,

    /// Threads that evict
    #[arg(long, value_name = "N", default_value_t = 1)]
    eviction_workers: u8,

    /// How long an evicted page is kept before its bytes are read, ms [default: 2]. While QEMU has a disk
    /// open for direct IO it is 200 at least
    #[arg(long, value_name = "MS")]
    settle_ms: Option<u32>,

    /// Where the page table and the figures live, for a successor: a directory on tmpfs
    #[arg(long, value_name = "DIR", default_value = mycoram_agent::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,

    /// Seal the pages (encrypt and authenticate them) with the key in this file; see docs/sealing.md. A successor
    /// names the same file
    #[arg(long, value_name = "FILE")]
    seal_key: Option<PathBuf>,

    #[command(flatten)]
    metrics: Metrics,
}

impl Far {
    /// Serves the region's figures, if that was asked for, as long as the answer lives.
    pub(crate) fn metrics(&self, name: &RegionName) -> Result<Option<MetricsServer>, Failure> {
        let server = self.metrics.of_one(&self.state_dir, name)?;
        if let Some(server) = &server {
            eprintln!("myco: {name}: metrics: http://{}/metrics", server.address());
        }
        Ok(server)
    }

    pub(crate) fn open(&self) -> Result<OpenFar, Failure> {
        let far = self.nodes.open()?;
        keep_in_memory();
        Ok(far)
    }

    /// The region and how to attach it, for a QEMU with these arguments.
    pub(crate) fn region(
        &self,
        name: RegionName,
        qemu: &[OsString],
    ) -> (RegionConfig, AttachOptions) {
        let defaults = RegionConfig::new(name, self.local);
        let mut attach = AttachOptions::default();
        if has_direct_io(qemu) {
            // The agent lets pages wait longer then; so there are more places to wait.
            attach.parking_pipes = mycoram_agent::MAX_PARKING_PIPES;
        }
        let region = RegionConfig {
            fault_workers: self.fault_workers,
            eviction_workers: self.eviction_workers,
            settle_ms: self.settle_ms.unwrap_or(defaults.settle_ms),
            direct_settle_ms: defaults.direct_settle_ms.max(self.settle_ms.unwrap_or(0)),
            state_dir: self.state_dir.clone(),
            seal_key: self.seal_key.clone(),
            ..defaults
        };
        (region, attach)
    }
}

/// Says on stderr what happens to a VM. Its stdout is QEMU's.
pub(crate) fn tell(name: &RegionName, notice: &Notice) {
    let line = format!("myco: {name}: {}\n", words(notice));
    // In one piece: QEMU writes to the same terminal. Nobody is left to tell if stderr is closed.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn words(notice: &Notice) -> String {
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    match notice {
        Notice::Attached {
            pid,
            attach,
            stopped,
            memory,
            local_budget,
        } => format!(
            "attached to QEMU {pid} in {:.1} ms (its main thread stood still for {:.2} ms): {memory} of RAM, {local_budget} local",
            ms(attach),
            ms(stopped),
        ),
        Notice::TakenOver { pid, took } => format!("took QEMU {pid} over in {:.1} ms", ms(took)),
        Notice::Lost { pages, total } => {
            let node = pages.iter().find_map(|page| page.node.as_deref());
            let why = match node {
                Some(node) => format!("memory node {node} is gone"),
                None if pages.is_empty() => "a memory node is gone".to_owned(),
                None => "their content came back wrong".to_owned(),
            };
            format!(
                "{total} pages are lost, because {why}; QEMU gets SIGBUS when the guest touches one"
            )
        }
        Notice::Fenced => "another owner has its memory; this copy of the VM is ended".to_owned(),
        Notice::Failed(panic) => {
            format!(
                "its memory is not served, because {panic}, which is a bug in mycoram; QEMU waits"
            )
        }
        Notice::GoesOn => "its memory is served again; nothing was lost".to_owned(),
        Notice::ComingHome => {
            "bringing its memory home; another signal leaves QEMU waiting for `myco vm attach`"
                .to_owned()
        }
        Notice::StaysAway(error) => format!("its memory stays where it is: {error}"),
    }
}

/// Writes a VM's last figures, if it has any.
pub(crate) fn report(path: Option<&Path>, ran: &Ran) -> Result<(), Failure> {
    if let (Some(path), Some(figures)) = (path, &ran.figures) {
        let text = serde_json::to_vec_pretty(figures).map_err(std::io::Error::from)?;
        std::fs::write(path, text)?;
    }
    Ok(())
}

/// The VMs of this user.
pub(crate) fn registry() -> Result<Registry, Failure> {
    Registry::open().map_err(registry_failure)
}

pub(crate) fn usage(error: ConfigError) -> Failure {
    Failure::new(exit_codes::USAGE, error)
}

/// What a failed look into the registry means to a script.
pub(crate) fn registry_failure(error: RegistryError) -> Failure {
    match error {
        RegistryError::Unknown => Failure::new(exit_codes::UNREACHABLE, error)
            .advise("look at `myco vm list`; VMs are seen by the user who started them"),
        RegistryError::Taken { .. } => Failure::new(exit_codes::REFUSED, error).advise(
            "choose another --name, or take an orphaned VM over with `myco vm attach --pid PID`",
        ),
        RegistryError::InUse => {
            Failure::new(exit_codes::REFUSED, error).advise("choose another --name")
        }
        RegistryError::Foreign { .. } => Failure::new(exit_codes::PERMISSION, error),
        other => Failure::new(exit_codes::FAILURE, other),
    }
}

/// What the control plane said, if it was that.
fn control_error(source: &SourceError) -> Option<&ClientError> {
    match source.downcast_ref::<LeaseError>() {
        Some(LeaseError::Client(error)) => Some(error),
        _ => source.downcast_ref(),
    }
}

/// What a VM that could not be run or adopted means to a script.
pub(crate) fn run_failure(error: RunError) -> Failure {
    let code = match &error {
        RunError::Registry(_) => {
            let RunError::Registry(error) = error else {
                return Failure::new(exit_codes::FAILURE, error);
            };
            return registry_failure(error);
        }
        RunError::Arguments(_)
        | RunError::Region(
            mycoram_agent::AttachError::Config(_) | mycoram_agent::AttachError::Seal(_),
        )
        | RunError::TakeOver(mycoram_agent::TakeOverError::Attach(
            mycoram_agent::AttachError::Seal(_),
        )) => exit_codes::USAGE,
        RunError::Remote(source) if control_error(source).is_some() => {
            // Its own words say what to do.
            control_error(source).map_or(exit_codes::FAILURE, client_code)
        }
        RunError::Remote(source) => match source.downcast_ref::<CreateError>() {
            Some(CreateError::NoRoom { .. }) => {
                return Failure::new(exit_codes::FULL, error)
                    .advise("add memory nodes to the file, or give them more --capacity");
            }
            _ => {
                return Failure::new(exit_codes::UNREACHABLE, error)
                    .advise("see whether the nodes run: `myco node status`");
            }
        },
        RunError::Spawn(SpawnError::Program { .. }) => exit_codes::MISSING,
        RunError::Attach(
            AttachError::Inject(InjectError::Denied(_))
            | AttachError::UserfaultfdDenied(_)
            | AttachError::GetFd(_),
        ) => exit_codes::PERMISSION,
        RunError::Attach(AttachError::NoUserfaultfd) => exit_codes::MISSING,
        RunError::Attach(AttachError::AlreadyManaged { .. }) | RunError::HasAgent { .. } => {
            exit_codes::REFUSED
        }
        RunError::Attach(AttachError::Process(_)) => exit_codes::UNREACHABLE,
        _ => exit_codes::FAILURE,
    };
    Failure::new(code, error)
}

/// Nothing more to say.
pub(crate) const DONE: Outcome = Ok(ExitCode::SUCCESS);
