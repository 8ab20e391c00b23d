//! Whether there is an RDMA device here, and which address memory nodes take; what happens without one.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Once;

use mycoram_fabric::transport::verbs::local_addresses;

/// Where memory nodes listen: on the last device, so that the first one's traffic crosses the link.
pub(crate) fn node_address() -> Result<SocketAddr, String> {
    if let Ok(address) = std::env::var("MYCORAM_RXE_ADDR_2") {
        let ip: IpAddr = address
            .parse()
            .map_err(|_| format!("MYCORAM_RXE_ADDR_2={address} is not an address"))?;
        return Ok(SocketAddr::new(ip, 0));
    }
    let found = local_addresses().map_err(|error| error.to_string())?;
    let last = found.last().ok_or("no address")?;
    Ok(SocketAddr::new(last.ip, 0))
}

/// [`node_address`], where there is a device. Where there is none, says so; in CI that is a failure.
pub(crate) fn node_address_or_skip() -> Option<SocketAddr> {
    let reason = match node_address() {
        Ok(address) => return Some(address),
        Err(reason) => reason,
    };
    let elsewhere = std::env::var_os("MYCORAM_RXE_ELSEWHERE").is_some_and(|value| value == "1");
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(
        elsewhere || !ci,
        "CI wants this test on a real device: {reason}; run it with `cargo xtask testbed`"
    );
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        // Past the capture of the test harness: a skip is never silent.
        let _ = writeln!(
            std::io::stderr(),
            "the tests on an RDMA device are not run: {reason} (run it with `cargo xtask testbed`)"
        );
    });
    None
}
