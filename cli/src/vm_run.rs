//! `myco vm run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use mycoram_agent::RegionName;
use mycoram_fabric::units::ByteCount;
use mycoram_qemu::launch::{Backing, VmRun};

use crate::command::Outcome;
use crate::vm::{self, Far};

/// QEMU as it is called for this machine's own architecture.
const DEFAULT_QEMU: &str = if cfg!(target_arch = "aarch64") {
    "qemu-system-aarch64"
} else {
    "qemu-system-x86_64"
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VM's name
    #[arg(long, value_name = "NAME")]
    name: RegionName,

    /// The guest's RAM, such as 4GiB
    #[arg(long, value_name = "SIZE")]
    memory: ByteCount,

    #[command(flatten)]
    far: Far,

    /// The QEMU to start
    #[arg(long, value_name = "BIN", default_value = DEFAULT_QEMU)]
    qemu: PathBuf,

    /// Put the resident pages in a file here, or without a name in a directory; both on tmpfs [default: a memfd]
    #[arg(long, value_name = "PATH")]
    backing: Option<PathBuf>,

    /// Write the VM's last figures there, as JSON
    #[arg(long, value_name = "PATH")]
    report: Option<PathBuf>,

    /// QEMU's own arguments; not -m or other memory options
    #[arg(last = true, value_name = "QEMU ARGS")]
    arguments: Vec<OsString>,
}

pub(crate) fn run(args: Args) -> Outcome {
    let (registry, far) = (vm::registry()?, args.far.open()?);
    let _metrics = args.far.metrics(&args.name)?;
    let (region, attach) = args.far.region(args.name.clone(), &args.arguments);
    let vm = VmRun {
        qemu: args.qemu,
        arguments: args.arguments,
        memory: args.memory,
        backing: args.backing.map_or(Backing::Memfd, Backing::File),
        region,
        extent_bytes: far.extent_bytes,
        nodes: args.far.nodes.word(),
        attach,
    };
    let ran = vm
        .run(&registry, &*far.source, &mut |notice| {
            vm::tell(&args.name, &notice)
        })
        .map_err(vm::run_failure)?;
    vm::report(args.report.as_deref(), &ran)?;
    Ok(ExitCode::from(ran.outcome.exit_code()))
}
