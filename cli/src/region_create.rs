//! `myco region create`.

use clap::ValueEnum;
use mycoram_control::proto;
use mycoram_fabric::random;
use mycoram_fabric::units::ByteCount;

use crate::command::Outcome;
use crate::control::{Reach, client_failure};
use crate::exit_codes;
use crate::failure::Failure;
use crate::output::Output;
use crate::{region, region_reserve};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Its name, unique in the cluster
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    reach: Reach,

    /// Its size, such as 64GiB
    #[arg(long, value_name = "SIZE")]
    size: ByteCount,

    /// Replicas of each extent, on different machines
    #[arg(long, value_name = "N", default_value_t = 1)]
    replicas: u8,

    /// Its unit of placement
    #[arg(long, value_name = "SIZE", default_value = "16MiB")]
    extent: ByteCount,

    /// Whose it is
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    tenant: u64,

    /// Who is refused first when memory gets scarce
    #[arg(long, value_enum, default_value = "normal")]
    class: Class,

    /// A reservation of the same tenant, that its extents are counted on
    #[arg(long, value_name = "ID", value_parser = region_reserve::parse_id)]
    reservation: Option<u64>,

    /// With fewer live replicas of an extent nothing is written to it
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_live: u8,

    /// The share of the bandwidth that copies of its replicas may take, percent
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=100))]
    copy_percent: u8,

    /// Place it in zones of this name only
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,

    /// Place it in this geographic region only
    #[arg(long, value_name = "NAME")]
    region: Option<String>,

    /// In what the replicas of an extent must differ
    #[arg(long, value_enum, default_value = "host")]
    apart: Apart,
}

/// A priority class.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Class {
    /// First
    Low,
    /// Then these
    Normal,
    /// These last
    High,
}

impl From<Class> for proto::PriorityClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Low => Self::Low,
            Class::Normal => Self::Normal,
            Class::High => Self::High,
        }
    }
}

/// A level of failure domains.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Apart {
    /// The machine
    Host,
    /// The rack
    Rack,
    /// The zone
    Zone,
    /// The geographic region
    Region,
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let mut random =
        random::System::open().map_err(|error| Failure::new(exit_codes::FAILURE, error))?;
    let apart = match args.apart {
        Apart::Host => proto::Level::Host,
        Apart::Rack => proto::Level::Rack,
        Apart::Zone => proto::Level::Zone,
        Apart::Region => proto::Level::Region,
    };
    let request = proto::CreateRegionRequest {
        id: random.number(),
        name: args.name.clone(),
        tenant: args.tenant,
        bytes: args.size.get(),
        extent_bytes: args.extent.get(),
        replicas: args.replicas.into(),
        min_live: args.min_live.into(),
        copy_percent: args.copy_percent.into(),
        class: proto::PriorityClass::from(args.class).into(),
        reservation: args.reservation.unwrap_or(0),
        locality: Some(proto::Locality {
            region: args.region.clone().unwrap_or_default(),
            zone: args.zone.clone().unwrap_or_default(),
            apart: apart.into(),
            spread: proto::Level::Unspecified.into(),
        }),
    };
    let client = args.reach.client()?;
    let made = client.create_region(request).map_err(client_failure)?;
    region::show(&made, output)
}
