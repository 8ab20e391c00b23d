//! `myco vm attach`.

use std::path::PathBuf;
use std::process::ExitCode;

use mycoram_agent::RegionName;
use mycoram_fabric::units::ByteCount;
use mycoram_qemu::attach::AttachOptions;
use mycoram_qemu::launch::VmAttach;
use mycoram_qemu::memory::MemoryChoice;
use mycoram_qemu::process::arguments_of;
use nix::unistd::Pid;

use crate::command::Outcome;
use crate::exit_codes;
use crate::vm::{self, Far};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The QEMU's process id. One whose agent has died is taken over
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,

    /// A QMP socket of it that no other program uses: QEMU then says itself which memory is its main one
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,

    /// The VM's name [default: qemu-PID]
    #[arg(long, value_name = "NAME")]
    name: Option<RegionName>,

    #[command(flatten)]
    far: Far,

    /// Which memory backend, by its id (needs --qmp)
    #[arg(long, value_name = "ID", requires = "qmp")]
    memory_id: Option<String>,

    /// Which memory backend, by the path of its file
    #[arg(long, value_name = "PATH", conflicts_with_all = ["memory_id", "memory_size"])]
    memory_path: Option<PathBuf>,

    /// Which memory backend, by its size
    #[arg(long, value_name = "SIZE", conflicts_with = "memory_id")]
    memory_size: Option<ByteCount>,

    /// Write the VM's last figures there, as JSON
    #[arg(long, value_name = "PATH")]
    report: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Outcome {
    let (registry, far) = (vm::registry()?, args.far.open()?);
    let name = match args.name {
        Some(name) => name,
        None => format!("qemu-{}", args.pid).parse().map_err(vm::usage)?,
    };
    let memory = match (args.memory_id, args.memory_path, args.memory_size) {
        (Some(id), _, _) => MemoryChoice::Id(id),
        (_, Some(path), _) => MemoryChoice::Path(path),
        (_, _, Some(bytes)) => MemoryChoice::Bytes(bytes.get()),
        _ => MemoryChoice::Main,
    };
    // A QEMU that cannot be looked at is refused below, with the reason.
    let arguments = arguments_of(Pid::from_raw(args.pid)).unwrap_or_default();
    let _metrics = args.far.metrics(&name)?;
    let (region, attach) = args.far.region(name.clone(), &arguments);
    let vm = VmAttach {
        pid: Pid::from_raw(args.pid),
        qmp: args.qmp,
        region,
        extent_bytes: far.extent_bytes,
        nodes: args.far.nodes.word(),
        attach: AttachOptions { memory, ..attach },
    };
    let ran = vm
        .run(&registry, &*far.source, &mut |notice| {
            vm::tell(&name, &notice)
        })
        .map_err(vm::run_failure)?;
    vm::report(args.report.as_deref(), &ran)?;
    // QEMU's own code is its parent's to know.
    let lost = ran
        .figures
        .as_ref()
        .and_then(|figures| figures.region.as_ref())
        .is_some_and(|region| region.lost > 0);
    Ok(ExitCode::from(if lost {
        exit_codes::LOST
    } else {
        exit_codes::OK
    }))
}
