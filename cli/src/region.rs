//! `myco region`: regions that the control plane places.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Subcommand;
use mycoram_control::client::ControlClient;
use mycoram_control::proto;
use mycoram_fabric::units::ByteCount;
use serde::Serialize;

use crate::command::Outcome;
use crate::control::{Reach, client_failure};
use crate::output::Output;
use crate::{region_create, region_reserve, region_verify};

/// Make, look at and delete regions
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a region; it takes no memory until it is used
    Create(region_create::Args),
    /// Show all regions
    List(ListArgs),
    /// Show one region, its lease and its replicas
    Show(NamedArgs),
    /// Delete a region; its memory is zeroed
    Delete(DeleteArgs),
    /// Compare all replicas of a region with what was written, or with each other where it has no owner
    Verify(region_verify::Args),
    /// Promise memory ahead; regions that are counted on it find it free
    Reserve(region_reserve::ReserveArgs),
    /// End such a promise
    Unreserve(region_reserve::UnreserveArgs),
    /// Show all promises
    Reservations(region_reserve::ListArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, clap::Args)]
struct NamedArgs {
    /// The region's name
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, clap::Args)]
struct DeleteArgs {
    #[command(flatten)]
    named: NamedArgs,

    /// Also under an owner, whose pages are lost
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: Args, output: &Output) -> Outcome {
    match args.verb {
        Verb::Create(args) => region_create::run(&args, output),
        Verb::List(args) => list(&args, output),
        Verb::Show(args) => {
            let client = args.reach.client()?;
            let region = args.name;
            let request = proto::GetRegionRequest { region };
            show(&client.get_region(request).map_err(client_failure)?, output)
        }
        Verb::Verify(args) => region_verify::run(&args, output),
        Verb::Reserve(args) => region_reserve::reserve(&args, output),
        Verb::Unreserve(args) => region_reserve::unreserve(&args, output),
        Verb::Reservations(args) => region_reserve::reservations(&args, output),
        Verb::Delete(args) => delete(&args, &args.named.reach.client()?, output),
    }
}

/// Schema `myco.region`.
#[derive(Serialize)]
struct Region<'a> {
    name: &'a str,
    /// Hexadecimal: it has 64 bits, more than a number in JSON can be trusted with.
    id: String,
    tenant: u64,
    bytes: ByteCount,
    extent_bytes: ByteCount,
    replicas: u32,
    min_live: u32,
    copy_percent: u32,
    class: &'static str,
    lease: &'static str,
    epoch: u64,
    deleting: bool,
    extents: u64,
    /// Of these, extents that are somewhere, or were. The others cost nothing.
    placed_extents: u32,
    placed_bytes: ByteCount,
    live_replicas: u32,
    copying_replicas: u32,
    stale_replicas: u32,
    endangered_extents: u32,
    lost_extents: u32,
}

impl<'a> Region<'a> {
    /// `None`: the status names no region.
    fn of(status: &'a proto::RegionStatus) -> Option<Self> {
        let region = status.region.as_ref()?;
        Some(Self {
            name: &region.name,
            id: format!("{:016x}", region.id),
            tenant: region.tenant,
            bytes: ByteCount::new(region.bytes),
            extent_bytes: ByteCount::new(region.extent_bytes),
            replicas: region.replicas,
            min_live: region.min_live,
            copy_percent: region.copy_percent,
            class: match region.class() {
                proto::PriorityClass::Low => "low",
                proto::PriorityClass::High => "high",
                proto::PriorityClass::Normal | proto::PriorityClass::Unspecified => "normal",
            },
            lease: match status.lease() {
                proto::LeaseState::Fencing => "fencing",
                proto::LeaseState::Granted => "granted",
                proto::LeaseState::Free | proto::LeaseState::Unspecified => "free",
            },
            epoch: status.epoch,
            deleting: status.deleting,
            extents: region.bytes.div_ceil(region.extent_bytes.max(1)),
            placed_extents: status.placed_extents,
            placed_bytes: ByteCount::new(status.placed_bytes),
            live_replicas: status.live,
            copying_replicas: status.copying,
            stale_replicas: status.stale,
            endangered_extents: status.endangered,
            lost_extents: status.lost,
        })
    }

    fn words(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "region    {} ({}) of tenant {}{}",
            self.name,
            self.id,
            self.tenant,
            if self.deleting { ", being deleted" } else { "" }
        )?;
        writeln!(
            out,
            "size      {} in extents of {}, {} replicas of each, class {}",
            self.bytes, self.extent_bytes, self.replicas, self.class
        )?;
        writeln!(out, "lease     {} at epoch {}", self.lease, self.epoch)?;
        writeln!(
            out,
            "placed    {} of {} extents, {} with all replicas",
            self.placed_extents, self.extents, self.placed_bytes
        )?;
        writeln!(
            out,
            "replicas  {} live, {} being made, {} stale",
            self.live_replicas, self.copying_replicas, self.stale_replicas
        )?;
        writeln!(
            out,
            "extents   {} with too few replicas, {} lost",
            self.endangered_extents, self.lost_extents
        )
    }
}

/// Prints one region.
pub(crate) fn show(status: &proto::RegionStatus, output: &Output) -> Outcome {
    if let Some(region) = Region::of(status) {
        output.print("myco.region", 1, &region, |out| region.words(out))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Schema `myco.region-list`.
#[derive(Serialize)]
struct List<'a> {
    regions: Vec<Region<'a>>,
}

fn list(args: &ListArgs, output: &Output) -> Outcome {
    let client = args.reach.client()?;
    let reply = client
        .list_regions(proto::Nothing {})
        .map_err(client_failure)?;
    let list = List {
        regions: reply.regions.iter().filter_map(Region::of).collect(),
    };
    output.print("myco.region-list", 1, &list, |out| {
        writeln!(
            out,
            "{:<20} {:>10} {:>8} {:<8} {:>6} {:>8} {:>8} {:>8}",
            "NAME", "SIZE", "REPLICAS", "LEASE", "EPOCH", "LIVE", "MISSING", "LOST"
        )?;
        for region in &list.regions {
            writeln!(
                out,
                "{:<20} {:>10} {:>8} {:<8} {:>6} {:>8} {:>8} {:>8}",
                region.name,
                region.bytes.to_string(),
                region.replicas,
                region.lease,
                region.epoch,
                region.live_replicas,
                region.endangered_extents,
                region.lost_extents
            )?;
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Schema `myco.region-delete`.
#[derive(Serialize)]
struct Deleted<'a> {
    name: &'a str,
    /// Nodes that have yet to free something of it.
    unreleased_nodes: u32,
}

fn delete(args: &DeleteArgs, client: &ControlClient, output: &Output) -> Outcome {
    let request = proto::DeleteRegionRequest {
        region: args.named.name.clone(),
        force: args.force,
        epoch: 0,
    };
    let reply = client.delete_region(request).map_err(client_failure)?;
    let deleted = Deleted {
        name: &args.named.name,
        unreleased_nodes: reply.unreleased,
    };
    output.print("myco.region-delete", 1, &deleted, |out| {
        match deleted.unreleased_nodes {
            0 => writeln!(out, "{} is deleted", deleted.name),
            nodes => writeln!(
                out,
                "{} is being deleted, {nodes} memory nodes have yet to free it",
                deleted.name
            ),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
