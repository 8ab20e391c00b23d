//! `myco control move-store`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use mycoram_control::service::StoreAddress;
use mycoram_control::store::{MoveError, RedbStore, copy_all};
use serde::Serialize;

use crate::command::Outcome;
use crate::control::EtcdFlags;
use crate::exit_codes;
use crate::failure::Failure;
use crate::output::Output;

/// Longer than the lease of a control plane that was killed.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The store that is left: redb:PATH. Its control plane is stopped before
    #[arg(long, value_name = "STORE")]
    store: StoreAddress,

    /// The store that takes its place, which is empty: etcd:URL,URL..., or redb:PATH
    #[arg(long, value_name = "STORE")]
    to: StoreAddress,

    #[command(flatten)]
    etcd: EtcdFlags,
}

/// Schema `myco.control-move-store`.
#[derive(Serialize)]
struct Moved {
    store: String,
    records: usize,
    /// What the former store's file is called now: nothing is read from it any more.
    left: PathBuf,
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let StoreAddress::Redb(path) = &args.store else {
        let error = format!("{} cannot be left by this command", args.store);
        return Err(Failure::new(exit_codes::USAGE, error)
            .advise("give the redb:PATH that the control plane served from"));
    };
    if args.to == args.store {
        let error = "both are the same store";
        return Err(Failure::new(exit_codes::USAGE, error).advise("give another one with --to"));
    }
    if !path.is_file() {
        let error = format!("there is no store {}", path.display());
        return Err(Failure::new(exit_codes::CONFIG, error)
            .advise("give the PATH that the control plane served from; a store that was moved is called PATH.moved"));
    }
    let left = left_behind(path);
    if left.exists() {
        let error = format!("{} is there already", left.display());
        return Err(Failure::new(exit_codes::CONFIG, error)
            .advise("put it elsewhere: it is what an earlier move left"));
    }
    let unopened = |error| {
        Failure::new(exit_codes::FAILURE, error)
            .advise("stop the control plane that works with it, and see that it can be read")
    };
    let mut former = RedbStore::open(path).map_err(unopened)?;
    let mut new = args.etcd.open(&args.to)?;
    let records = copy_all(&mut former, &mut *new, PATIENCE).map_err(not_moved)?;
    // Given back before the other one is left, so that the next leader need not wait.
    drop(new);
    drop(former);
    std::fs::rename(path, &left).map_err(|error| {
        Failure::new(exit_codes::FAILURE, error).advise(
            "everything is in the new store: put the former file away, two control planes must not serve one cluster",
        )
    })?;
    let moved = Moved {
        store: args.to.to_string(),
        records,
        left,
    };
    output.print("myco.control-move-store", 1, &moved, |out| {
        writeln!(out, "{} records are in {}", moved.records, moved.store)?;
        writeln!(out, "the former store is now {}", moved.left.display())?;
        writeln!(out, "serve with --store {}", moved.store)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn left_behind(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".moved");
    name.into()
}

fn not_moved(error: MoveError) -> Failure {
    let (code, advice) = match error {
        MoveError::Served { .. } => (
            exit_codes::REFUSED,
            "stop every control plane that works with it",
        ),
        MoveError::Nothing => (exit_codes::CONFIG, "give the store of a cluster"),
        MoveError::Taken { .. } => (
            exit_codes::REFUSED,
            "give an empty store, or another --store-prefix",
        ),
        MoveError::Differs | MoveError::Store { .. } => (
            exit_codes::FAILURE,
            "the former store is as it was: serve from it, or try again",
        ),
    };
    Failure::new(code, error).advise(advice)
}
