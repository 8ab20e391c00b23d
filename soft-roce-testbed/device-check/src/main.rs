//! A second opinion on an RDMA device, by the independent `ibverbs` crate: opens both ends of a link,
//! finds their GIDs by address, connects a queue pair on each, sends a message across and back.
//!
//! Before our own transport is blamed, this says whether the device works at all. SEND and RECEIVE
//! only: that is what the crate offers.

mod check;

use std::net::Ipv4Addr;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some((one, two)) = addresses() else {
        eprintln!("device-check: give two addresses of RDMA devices, or run inside the test bed");
        return ExitCode::from(2);
    };
    match check::between(one, two) {
        Ok(report) => {
            println!("device-check: {report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("device-check: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Two addresses from the arguments, or from the test bed's variables.
fn addresses() -> Option<(Ipv4Addr, Ipv4Addr)> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |variable: &str| {
        arguments
            .next()
            .or_else(|| std::env::var(variable).ok())?
            .parse()
            .ok()
    };
    Some((next("MYCORAM_RXE_ADDR_1")?, next("MYCORAM_RXE_ADDR_2")?))
}
