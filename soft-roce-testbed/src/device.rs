//! What sysfs tells about an RDMA device: its port and its GIDs, chosen by address.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// GID table entries looked at; rxe's table has 1024, of which a handful are in use.
const GIDS_MAX: u32 = 64;

/// The index of the RoCE v2 GID for `address`: an index found once may mean another GID later, or none.
pub(crate) fn gid_index(device: &str, address: Ipv4Addr) -> Option<u32> {
    let port = port(device);
    let wanted = mapped_gid(address);
    (0..GIDS_MAX).find(|index| {
        let read = |table: &str| {
            fs::read_to_string(port.join(table).join(index.to_string())).unwrap_or_default()
        };
        read("gids").trim() == wanted && read("gid_attrs/types").trim() == "RoCE v2"
    })
}

/// Whether the device's port can carry traffic.
pub(crate) fn port_is_active(device: &str) -> bool {
    fs::read_to_string(port(device).join("state")).is_ok_and(|state| state.contains("ACTIVE"))
}

fn port(device: &str) -> PathBuf {
    PathBuf::from("/sys/class/infiniband")
        .join(device)
        .join("ports/1")
}

/// An IPv4 address as the kernel writes its GID.
fn mapped_gid(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_the_kernel_does() {
        assert_eq!(
            mapped_gid(Ipv4Addr::new(10, 77, 0, 254)),
            "0000:0000:0000:0000:0000:ffff:0a4d:00fe"
        );
    }
}
