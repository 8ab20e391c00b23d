//! `myco region verify`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use mycoram_control::client::{
    ControlClient, LeaseError, OwnerlessCheck, OwnerlessError, OwnerlessReport,
};
use mycoram_control::proto;
use mycoram_fabric::compare::Comparison;
use serde::Serialize;

use crate::command::Outcome;
use crate::control::{Reach, client_code, client_failure};
use crate::durations;
use crate::exit_codes;
use crate::failure::Failure;
use crate::output::Output;

/// Between two questions how far it is.
const ASK_AGAIN: Duration = Duration::from_millis(250);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The region's name
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    reach: Reach,

    /// Write wrong replicas again from right ones
    #[arg(long)]
    repair: bool,

    /// How long the region's owner may say nothing before it is given up, or copies may get nowhere
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = durations::parse)]
    patience: Duration,

    /// The owner is gone for good: fence it as soon as its lease has run out, and compare without it
    #[arg(long)]
    ownerless: bool,
}

/// The owner said nothing for too long.
#[derive(Debug, thiserror::Error)]
#[error("the region's owner has said nothing of the check for {silent_s} s")]
struct Silent {
    silent_s: u64,
}

/// Schema `myco.region-verify`.
#[derive(Serialize)]
struct Verified<'a> {
    name: &'a str,
    /// What replicas were compared with: what their owner knows, or each other.
    by: &'static str,
    pages: u64,
    /// Replicas of pages that were compared. Pages whose newest content is on the compute side have none.
    compared_replicas: u64,
    /// Pages with one live replica only, where it can be compared with others only.
    single_pages: u64,
    /// Pages that were written all the time.
    unsettled_pages: u64,
    unreadable_replicas: u64,
    wrong_replicas: u64,
    repaired_replicas: u64,
    /// Pages whose replicas differ, and nothing tells which is right.
    undecided_pages: u64,
    /// Extents with fewer live replicas than they should have; null where the owner was asked.
    endangered_extents: Option<u64>,
    /// Of these, extents that can get no other replica as the nodes are now, by why; null as above.
    stuck_extents: Option<Stuck>,
    /// Replicas of extents that were made anew.
    rebuilt_replicas: u64,
    /// The first 1024 of them.
    wrong: Vec<Wrong>,
    /// The first 1024 of them.
    undecided: Vec<u32>,
}

/// Why they can get none.
#[derive(Clone, Copy, Serialize)]
struct Stuck {
    /// All nodes that have a live replica are down.
    no_source: u32,
    /// No other node that is up is in a failure domain of its own.
    no_domain: u32,
    /// None of these has room.
    no_room: u32,
}

impl Stuck {
    fn words(self, out: &mut dyn Write) -> std::io::Result<()> {
        for (extents, why) in [
            (
                self.no_source,
                "the nodes that have their live replicas are down: bring one of them back",
            ),
            (
                self.no_domain,
                "no other node that is up is in a failure domain of its own: add one, or bring one back",
            ),
            (
                self.no_room,
                "the nodes that may hold one are full: add another, or make room",
            ),
        ] {
            if extents > 0 {
                writeln!(out, "{extents} extents can get no other replica: {why}")?;
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Wrong {
    page: u32,
    node: String,
    repaired: bool,
}

impl<'a> Verified<'a> {
    fn by_owner(name: &'a str, report: proto::CheckReport) -> Self {
        let wrong = report.named.into_iter().map(|wrong| Wrong {
            page: wrong.page,
            node: wrong.node,
            repaired: wrong.repaired,
        });
        Self {
            name,
            by: "owner",
            pages: report.pages,
            compared_replicas: report.compared,
            single_pages: 0,
            unsettled_pages: report.unsettled,
            unreadable_replicas: report.unreadable,
            wrong_replicas: report.wrong,
            repaired_replicas: report.repaired,
            undecided_pages: 0,
            endangered_extents: None,
            stuck_extents: None,
            rebuilt_replicas: 0,
            wrong: wrong.collect(),
            undecided: Vec::new(),
        }
    }

    fn by_each_other(name: &'a str, report: OwnerlessReport) -> Self {
        let found = report.found;
        let wrong = found.named.into_iter().map(|wrong| Wrong {
            page: wrong.page.get(),
            node: wrong.node,
            repaired: wrong.repaired,
        });
        let undecided = found.undecided_pages.iter().map(|page| page.get());
        Self {
            name,
            by: "each-other",
            pages: found.pages,
            compared_replicas: found.compared,
            single_pages: found.single,
            unsettled_pages: 0,
            unreadable_replicas: found.unreadable,
            wrong_replicas: found.wrong,
            repaired_replicas: found.repaired,
            undecided_pages: found.undecided,
            endangered_extents: Some(report.endangered),
            stuck_extents: Some(Stuck {
                no_source: report.stuck.no_source,
                no_domain: report.stuck.no_domain,
                no_room: report.stuck.no_room,
            }),
            rebuilt_replicas: report.rebuilt,
            wrong: wrong.collect(),
            undecided: undecided.collect(),
        }
    }

    fn is_healthy(&self) -> bool {
        self.wrong_replicas == self.repaired_replicas
            && self.unreadable_replicas == 0
            && self.undecided_pages == 0
            && self.endangered_extents.unwrap_or(0) == 0
    }

    fn words(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for wrong in &self.wrong {
            let repaired = if wrong.repaired { ", repaired" } else { "" };
            writeln!(
                out,
                "page {} is wrong on {}{repaired}",
                wrong.page, wrong.node
            )?;
        }
        for page in &self.undecided {
            writeln!(
                out,
                "page {page} differs, and nothing tells which replica is right: left as it is"
            )?;
        }
        writeln!(
            out,
            "{}: {} replicas of {} pages compared, {} wrong, {} repaired, {} not readable; {} pages were written all the time",
            self.name,
            self.compared_replicas,
            self.pages,
            self.wrong_replicas,
            self.repaired_replicas,
            self.unreadable_replicas,
            self.unsettled_pages
        )?;
        if let Some(endangered) = self.endangered_extents {
            writeln!(
                out,
                "it has no owner: replicas were compared with each other; {} pages undecided, {} with one replica only; {} replicas of extents made anew, {endangered} extents have too few",
                self.undecided_pages, self.single_pages, self.rebuilt_replicas
            )?;
        }
        self.stuck_extents.map_or(Ok(()), |stuck| stuck.words(out))
    }
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let client = Arc::new(args.reach.client()?);
    let status = client.get_region(proto::GetRegionRequest {
        region: args.name.clone(),
    });
    let is_free = status.map_err(client_failure)?.lease() == proto::LeaseState::Free;
    let verified = match is_free || args.ownerless {
        true => Verified::by_each_other(&args.name, without_owner(args, &client)?),
        false => Verified::by_owner(&args.name, with_owner(args, &client)?),
    };
    output.print("myco.region-verify", 1, &verified, |out| {
        verified.words(out)
    })?;
    Ok(ExitCode::from(if verified.is_healthy() {
        exit_codes::OK
    } else {
        exit_codes::WRONG
    }))
}

fn without_owner(args: &Args, client: &Arc<ControlClient>) -> Result<OwnerlessReport, Failure> {
    let check = OwnerlessCheck {
        name: &args.name,
        repair: args.repair,
        patience: args.patience,
    };
    let mut told = |found: &Comparison| {
        progress(found.looked_at, found.pages, found.wrong + found.undecided);
    };
    let report = check.run(client, args.reach.dial()?, &mut told);
    report.map_err(|error| {
        let code = match &error {
            OwnerlessError::Client(error) => client_code(error),
            OwnerlessError::Lease(LeaseError::Client(error)) => client_code(error),
            error if error.is_fenced() => exit_codes::REFUSED,
            OwnerlessError::Random(_) => exit_codes::FAILURE,
            _ => exit_codes::UNREACHABLE,
        };
        let failure = Failure::new(code, error);
        match code {
            exit_codes::REFUSED => failure
                .advise("ask again: where the region has an owner, it is the owner that compares"),
            _ => failure,
        }
    })
}

/// Begins a check and follows it to its end.
fn with_owner(args: &Args, client: &ControlClient) -> Result<proto::CheckReport, Failure> {
    let ask = |check| {
        client
            .verify_region(proto::VerifyRegionRequest {
                region: args.name.clone(),
                repair: args.repair,
                check,
            })
            .map_err(client_failure)
    };
    let mut reply = ask(0)?;
    loop {
        match reply.report {
            Some(report) if report.over => return Ok(report),
            Some(report) => progress(report.looked_at, report.pages, report.wrong),
            None => {}
        }
        if reply.silent_ms > durations::millis(args.patience) {
            let silent_s = reply.silent_ms / 1000;
            return Err(Failure::new(exit_codes::UNREACHABLE, Silent { silent_s })
                .advise("see that its agent runs: the check goes on if it comes back; if it is gone for good, give --ownerless"));
        }
        std::thread::sleep(ASK_AGAIN);
        reply = ask(reply.check)?;
    }
}

/// One line that is written over, if a person looks.
fn progress(looked_at: u64, pages: u64, wrong: u64) {
    let mut stderr = std::io::stderr().lock();
    if stderr.is_terminal() {
        // Nobody is left to tell if stderr is closed.
        let _ = write!(
            stderr,
            "\r{looked_at} of {pages} pages, {wrong} wrong\x1b[K\r"
        );
    }
}
