//! `myco region verify`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use mycoram_control::proto;
use serde::Serialize;

use crate::command::Outcome;
use crate::control::{Reach, client_failure};
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

    /// How long the region's owner may say nothing before it is given up
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = durations::parse)]
    patience: Duration,
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
    pages: u64,
    /// Replicas of pages that were compared. Pages whose newest content is on the compute side have none.
    compared_replicas: u64,
    /// Pages that were written all the time.
    unsettled_pages: u64,
    unreadable_replicas: u64,
    wrong_replicas: u64,
    repaired_replicas: u64,
    /// The first 1024 of them.
    wrong: Vec<Wrong<'a>>,
}

#[derive(Serialize)]
struct Wrong<'a> {
    page: u32,
    node: &'a str,
    repaired: bool,
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let report = check(args)?;
    let verified = Verified {
        name: &args.name,
        pages: report.pages,
        compared_replicas: report.compared,
        unsettled_pages: report.unsettled,
        unreadable_replicas: report.unreadable,
        wrong_replicas: report.wrong,
        repaired_replicas: report.repaired,
        wrong: report
            .named
            .iter()
            .map(|wrong| Wrong {
                page: wrong.page,
                node: &wrong.node,
                repaired: wrong.repaired,
            })
            .collect(),
    };
    output.print("myco.region-verify", 1, &verified, |out| {
        for wrong in &verified.wrong {
            let repaired = if wrong.repaired { ", repaired" } else { "" };
            writeln!(out, "page {} is wrong on {}{repaired}", wrong.page, wrong.node)?;
        }
        writeln!(
            out,
            "{}: {} replicas of {} pages compared, {} wrong, {} repaired, {} not readable; {} pages were written all the time",
            verified.name,
            verified.compared_replicas,
            verified.pages,
            verified.wrong_replicas,
            verified.repaired_replicas,
            verified.unreadable_replicas,
            verified.unsettled_pages
        )
    })?;
    let healthy = report.wrong == report.repaired && report.unreadable == 0;
    Ok(ExitCode::from(if healthy {
        exit_codes::OK
    } else {
        exit_codes::WRONG
    }))
}

/// Begins a check and follows it to its end.
fn check(args: &Args) -> Result<proto::CheckReport, Failure> {
    let client = args.reach.client()?;
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
            Some(report) => progress(&report),
            None => {}
        }
        if reply.silent_ms > durations::millis(args.patience) {
            let silent_s = reply.silent_ms / 1000;
            return Err(Failure::new(exit_codes::UNREACHABLE, Silent { silent_s })
                .advise("see that its agent runs; the check goes on if it comes back"));
        }
        std::thread::sleep(ASK_AGAIN);
        reply = ask(reply.check)?;
    }
}

/// One line that is written over, if a person looks.
fn progress(report: &proto::CheckReport) {
    let mut stderr = std::io::stderr().lock();
    if stderr.is_terminal() {
        // Nobody is left to tell if stderr is closed.
        let _ = write!(
            stderr,
            "\r{} of {} pages, {} replicas wrong\x1b[K\r",
            report.looked_at, report.pages, report.wrong
        );
    }
}
