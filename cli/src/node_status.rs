//! `myco node status`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use mycoram_fabric::session::{Dial, TcpDial};
use mycoram_fabric::units::ByteCount;
use serde::Serialize;

use crate::command::Outcome;
use crate::control;
use crate::durations;
use crate::node;
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node's control address
    #[arg(long, value_name = "IP:PORT")]
    node: SocketAddr,

    /// Certificates, of a node that was started with --tls
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,

    /// How long to wait for the node
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = durations::parse)]
    timeout: Duration,
}

/// Schema `myco.node-status`.
#[derive(Serialize)]
struct Status {
    node: SocketAddr,
    /// Hexadecimal: it has 64 bits, more than a number in JSON can be trusted with.
    incarnation: String,
    transport: &'static str,
    data: SocketAddr,
    uptime_ms: u64,
    draining: bool,
    hugepages: bool,
    capacity_bytes: ByteCount,
    lent_bytes: ByteCount,
    free_bytes: ByteCount,
    unzeroed_bytes: ByteCount,
    extents: u64,
    tenants: u32,
    regions: u32,
    orphans: u32,
    sessions: u32,
    control_connections: u32,
    data_connections: u32,
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let dial: Box<dyn Dial> = match &args.tls {
        Some(directory) => Box::new(
            control::person(directory)
                .and_then(|credentials| credentials.channel_client(args.timeout))
                .map_err(control::credentials_failure)?,
        ),
        None => Box::new(TcpDial {
            deadline: args.timeout,
        }),
    };
    let report = dial
        .dial(args.node)
        .and_then(|mut channel| channel.status())
        .map_err(node::session_failure)?;
    let status = Status {
        node: args.node,
        incarnation: format!("{:016x}", report.incarnation.get()),
        transport: node::word(report.transport),
        data: report.data,
        uptime_ms: report.uptime_ms,
        draining: report.draining,
        hugepages: report.hugepages,
        capacity_bytes: report.capacity,
        lent_bytes: report.lent,
        free_bytes: report.free,
        unzeroed_bytes: report.unzeroed,
        extents: report.extents,
        tenants: report.tenants,
        regions: report.regions,
        orphans: report.orphans,
        sessions: report.sessions,
        control_connections: report.control_connections,
        data_connections: report.data_connections,
    };
    output.print("myco.node-status", 1, &status, |out| {
        let state = if status.draining {
            "is being stopped"
        } else {
            "serves"
        };
        writeln!(out, "node         {} {state}", status.node)?;
        writeln!(out, "incarnation  {}", status.incarnation)?;
        writeln!(
            out,
            "data         {} over {}",
            status.data, status.transport
        )?;
        writeln!(out, "up           {} s", status.uptime_ms / 1000)?;
        writeln!(
            out,
            "memory       {} lent, {} free, {} in all{}",
            status.lent_bytes,
            status.free_bytes,
            status.capacity_bytes,
            if status.hugepages {
                ", in huge pages"
            } else {
                ""
            }
        )?;
        writeln!(
            out,
            "regions      {} of {} tenants, {} extents; {} without an owner",
            status.regions, status.tenants, status.extents, status.orphans
        )?;
        writeln!(
            out,
            "connections  {} control, {} data",
            status.control_connections, status.data_connections
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
