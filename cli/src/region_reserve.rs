//! `myco region reserve`, `unreserve` and `reservations`.

use std::process::ExitCode;

use mycoram_control::proto;
use mycoram_fabric::random;
use mycoram_fabric::units::ByteCount;
use serde::Serialize;

use crate::command::Outcome;
use crate::control::{Reach, client_failure};
use crate::exit_codes;
use crate::failure::Failure;
use crate::output::Output;
use crate::region_create::Class;

#[derive(Debug, clap::Args)]
pub(crate) struct ReserveArgs {
    #[command(flatten)]
    reach: Reach,

    /// How much, all replicas together, such as 128GiB
    #[arg(long, value_name = "SIZE")]
    size: ByteCount,

    /// For whom
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    tenant: u64,

    /// As which class
    #[arg(long, value_enum, default_value = "normal")]
    class: Class,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UnreserveArgs {
    /// The reservation, as it was printed
    #[arg(value_name = "ID", value_parser = parse_id)]
    id: u64,

    #[command(flatten)]
    reach: Reach,

    /// Whose it is
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    tenant: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    reach: Reach,
}

/// Reads a number as it is printed: hexadecimal.
pub(crate) fn parse_id(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text, 16)
}

/// Schema `myco.reservation`.
#[derive(Serialize)]
struct Reservation {
    /// Hexadecimal: it has 64 bits, more than a number in JSON can be trusted with.
    id: String,
    tenant: u64,
    bytes: ByteCount,
    class: &'static str,
}

impl From<proto::Reservation> for Reservation {
    fn from(reservation: proto::Reservation) -> Self {
        Self {
            id: format!("{:016x}", reservation.id),
            tenant: reservation.tenant,
            bytes: ByteCount::new(reservation.bytes),
            class: match reservation.class() {
                proto::PriorityClass::Low => "low",
                proto::PriorityClass::High => "high",
                proto::PriorityClass::Normal | proto::PriorityClass::Unspecified => "normal",
            },
        }
    }
}

pub(crate) fn reserve(args: &ReserveArgs, output: &Output) -> Outcome {
    let mut random =
        random::System::open().map_err(|error| Failure::new(exit_codes::FAILURE, error))?;
    let asked = proto::Reservation {
        id: random.number(),
        tenant: args.tenant,
        bytes: args.size.get(),
        class: proto::PriorityClass::from(args.class).into(),
    };
    let client = args.reach.client()?;
    client.reserve(asked).map_err(client_failure)?;
    let made = Reservation::from(asked);
    output.print("myco.reservation", 1, &made, |out| {
        writeln!(
            out,
            "reserved: {} of {} ({})",
            made.id, made.bytes, made.class
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn unreserve(args: &UnreserveArgs, output: &Output) -> Outcome {
    let client = args.reach.client()?;
    let asked = proto::UnreserveRequest {
        id: args.id,
        tenant: args.tenant,
    };
    client.unreserve(asked).map_err(client_failure)?;
    list(&client, output)
}

pub(crate) fn reservations(args: &ListArgs, output: &Output) -> Outcome {
    list(&args.reach.client()?, output)
}

/// Schema `myco.reservation-list`.
#[derive(Serialize)]
struct List {
    reservations: Vec<Reservation>,
}

fn list(client: &mycoram_control::client::ControlClient, output: &Output) -> Outcome {
    let reply = client
        .list_reservations(proto::Nothing {})
        .map_err(client_failure)?;
    let list = List {
        reservations: reply.reservations.into_iter().map(Into::into).collect(),
    };
    output.print("myco.reservation-list", 1, &list, |out| {
        writeln!(out, "{:<16} {:>10} {:>10} CLASS", "ID", "TENANT", "SIZE")?;
        for reservation in &list.reservations {
            writeln!(
                out,
                "{:<16} {:>10} {:>10} {}",
                reservation.id,
                reservation.tenant,
                reservation.bytes.to_string(),
                reservation.class
            )?;
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
