//! `myco node drain`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use mycoram_control::proto;
use mycoram_fabric::units::ByteCount;
use serde::Serialize;

use crate::command::Outcome;
use crate::control::{Reach, client_failure, state_word};
use crate::durations;
use crate::output::Output;

/// Between two questions how far it is.
const ASK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node's name
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    reach: Reach,

    /// End a drain instead; what was moved stays where it is
    #[arg(long)]
    end: bool,

    /// How long to wait until nothing is on it any more; the drain goes on afterwards
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = durations::parse)]
    wait: Duration,
}

/// Schema `myco.node-drain`.
#[derive(Serialize)]
struct Drain<'a> {
    name: &'a str,
    state: &'static str,
    left_bytes: Option<ByteCount>,
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let client = args.reach.client()?;
    let node = || proto::NodeNameRequest {
        node: args.name.clone(),
    };
    let drain = if args.end {
        let reply = client.end_drain(node()).map_err(client_failure)?;
        Drain {
            name: &args.name,
            state: state_word(reply.state()),
            left_bytes: None,
        }
    } else {
        let until = Instant::now() + args.wait;
        loop {
            let reply = client.drain_node(node()).map_err(client_failure)?;
            if reply.state() == proto::NodeState::Left || Instant::now() >= until {
                break Drain {
                    name: &args.name,
                    state: state_word(reply.state()),
                    left_bytes: Some(ByteCount::new(reply.left_bytes)),
                };
            }
            std::thread::sleep(ASK_AGAIN);
        }
    };
    output.print("myco.node-drain", 1, &drain, |out| match drain.left_bytes {
        Some(left) => writeln!(out, "{} is {}, {left} are on it", drain.name, drain.state),
        None => writeln!(out, "{} is {}", drain.name, drain.state),
    })?;
    Ok(ExitCode::SUCCESS)
}
