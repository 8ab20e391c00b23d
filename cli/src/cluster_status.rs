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
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let client = args.reach.client()?;
    let reply = client
        .get_cluster(proto::Nothing {})
        .map_err(client_failure)?;
    let pool = reply.pool.unwrap_or_default();
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
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
