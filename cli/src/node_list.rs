//! `myco node list`.

use std::process::ExitCode;

use mycoram_control::proto;
use mycoram_fabric::units::ByteCount;
use serde::Serialize;

use crate::command::Outcome;
use crate::control::{Reach, client_failure, state_word};
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    reach: Reach,
}

/// Schema `myco.node-list`.
#[derive(Serialize)]
struct List {
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct Node {
    name: String,
    state: &'static str,
    control: String,
    transport: &'static str,
    region: String,
    zone: String,
    rack: String,
    host: String,
    capacity_bytes: ByteCount,
    placed_bytes: ByteCount,
    available_bytes: ByteCount,
    load_percent: u32,
    drain: bool,
    incarnation: String,
}

impl From<proto::NodeStatus> for Node {
    fn from(node: proto::NodeStatus) -> Self {
        let state = state_word(node.state());
        let address = node.addresses.into_iter().next().unwrap_or_default();
        let transport = match address.transport() {
            proto::Transport::Verbs => "verbs",
            proto::Transport::Tcp => "tcp",
            proto::Transport::Unspecified => "unknown",
        };
        let domain = node.domain.unwrap_or_default();
        let pool = node.pool.unwrap_or_default();
        Self {
            name: node.name,
            state,
            control: address.control,
            transport,
            region: domain.region,
            zone: domain.zone,
            rack: domain.rack,
            host: domain.host,
            capacity_bytes: ByteCount::new(pool.capacity_bytes),
            placed_bytes: ByteCount::new(pool.placed_bytes),
            available_bytes: ByteCount::new(pool.available_bytes),
            load_percent: node.load_percent,
            drain: node.drain,
            incarnation: format!("{:016x}", node.incarnation),
        }
    }
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let client = args.reach.client()?;
    let reply = client
        .list_nodes(proto::Nothing {})
        .map_err(client_failure)?;
    let list = List {
        nodes: reply.nodes.into_iter().map(Into::into).collect(),
    };
    output.print("myco.node-list", 1, &list, |out| {
        writeln!(
            out,
            "{:<16} {:<9} {:<22} {:<5} {:>10} {:>10} {:>10}  DOMAIN",
            "NAME", "STATE", "CONTROL", "OVER", "CAPACITY", "PLACED", "AVAILABLE"
        )?;
        for node in &list.nodes {
            writeln!(
                out,
                "{:<16} {:<9} {:<22} {:<5} {:>10} {:>10} {:>10}  {}/{}/{}/{}",
                node.name,
                node.state,
                node.control,
                node.transport,
                node.capacity_bytes.to_string(),
                node.placed_bytes.to_string(),
                node.available_bytes.to_string(),
                node.region,
                node.zone,
                node.rack,
                node.host
            )?;
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
