//! `myco cluster status`.

use std::process::ExitCode;

use mycoram_control::proto;
use mycoram_fabric::units::ByteCount;
use serde::Serialize;

use crate::command::Outcome;
use crate::control::{Reach, client_failure};
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    reach: Reach,
}

/// Schema `myco.cluster-status`.
#[derive(Serialize)]
struct Status {
    cluster: String,
    uptime_ms: u64,
    nodes: u32,
    nodes_up: u32,
    nodes_down: u32,
    capacity_bytes: ByteCount,
    placed_bytes: ByteCount,
    available_bytes: ByteCount,
    regions: u32,
    live_replicas: u32,
    copying_replicas: u32,
    stale_replicas: u32,
    endangered_extents: u32,
    lost_extents: u32,
    /// Where the leader is reached; null: none leads just now.
    leader: Option<String>,
    /// Those that are ready to lead.
    followers: Vec<String>,
    store: Store,
}

#[derive(Serialize)]
struct Store {
    kind: String,
    /// What is said above was read from it.
    readable: bool,
    writable: bool,
    members: Vec<Member>,
}

/// A member of etcd.
#[derive(Serialize)]
struct Member {
    address: String,
    up: bool,
    /// Why it does not answer; null: it does.
    silent_because: Option<String>,
    leads: bool,
    bytes: ByteCount,
    version: String,
    alarms: Vec<String>,
}

impl Store {
    fn of(store: proto::StoreHealth, readable: bool) -> Self {
        let member = |member: proto::StoreMember| Member {
            address: member.address,
            up: member.up,
            silent_because: (!member.up).then_some(member.silent_because),
            leads: member.leads,
            bytes: ByteCount::new(member.bytes),
            version: member.version,
            alarms: member.alarms,
        };
        Self {
            kind: store.kind,
            readable,
            writable: store.writable,
            members: store.members.into_iter().map(member).collect(),
        }
    }
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let client = args.reach.client()?;
    let reply = client
        .get_cluster(proto::Nothing {})
        .map_err(client_failure)?;
    let pool = reply.pool.unwrap_or_default();
    let (leaders, followers): (Vec<_>, Vec<_>) = reply
        .processes
        .into_iter()
        .partition(|process| process.leads);
    let status = Status {
        cluster: reply.cluster,
        uptime_ms: reply.uptime_ms,
        nodes: reply.nodes,
        nodes_up: reply.nodes_up,
        nodes_down: reply.nodes_down,
        capacity_bytes: ByteCount::new(pool.capacity_bytes),
        placed_bytes: ByteCount::new(pool.placed_bytes),
        available_bytes: ByteCount::new(pool.available_bytes),
        regions: reply.regions,
        live_replicas: reply.live,
        copying_replicas: reply.copying,
        stale_replicas: reply.stale,
        endangered_extents: reply.endangered,
        lost_extents: reply.lost,
        leader: leaders.into_iter().map(|process| process.address).next(),
        followers: followers
            .into_iter()
            .map(|process| process.address)
            .collect(),
        store: Store::of(reply.store.unwrap_or_default(), reply.known),
    };
    output.print("myco.cluster-status", 1, &status, |out| {
        let name = if status.cluster.is_empty() {
            "without a key"
        } else {
            &status.cluster
        };
        writeln!(out, "cluster   {name}, up {} s", status.uptime_ms / 1000)?;
        writeln!(
            out,
            "nodes     {}: {} up, {} down",
            status.nodes, status.nodes_up, status.nodes_down
        )?;
        writeln!(
            out,
            "memory    {} placed, {} available, {} in all",
            status.placed_bytes, status.available_bytes, status.capacity_bytes
        )?;
        writeln!(
            out,
            "replicas  {} live, {} being made, {} stale, of {} regions",
            status.live_replicas, status.copying_replicas, status.stale_replicas, status.regions
        )?;
        writeln!(
            out,
            "extents   {} with too few replicas, {} lost",
            status.endangered_extents, status.lost_extents
        )?;
        let leader = status.leader.as_deref().unwrap_or("nobody");
        write!(out, "control   {leader} leads")?;
        for follower in &status.followers {
            write!(out, ", {follower} is ready")?;
        }
        let up = status.store.members.iter().filter(|member| member.up);
        write!(out, "\nstore     {}", status.store.kind)?;
        if !status.store.members.is_empty() {
            let (up, all) = (up.count(), status.store.members.len());
            write!(out, ", {up} of {all} members up")?;
        }
        writeln!(
            out,
            "{}",
            match (status.store.readable, status.store.writable) {
                (_, false) => ", takes no changes",
                (false, true) => ", could not be read",
                (true, true) => "",
            }
        )?;
        for member in &status.store.members {
            if let Some(because) = &member.silent_because {
                writeln!(out, "          {} is away: {because}", member.address)?;
            }
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
