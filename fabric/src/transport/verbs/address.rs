//! Which IP addresses of this network namespace belong to RDMA devices. rdma_cm is asked, address by
//! address, so that what holds here (RoCE, IPoIB, VLANs, namespaces) is what connecting will find.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;

use super::connection_manager::{CmId, EventChannel};
use super::device::{self, DeviceName};
use super::library::{self, OpenError};

/// Most interface addresses that are looked at.
const MAX_ADDRESSES: usize = 1024;

/// An address at which this machine can be reached over RDMA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address.
    pub ip: IpAddr,
    /// The device behind it.
    pub device: DeviceName,
}

/// All addresses of this network namespace that belong to an RDMA device whose port is up, in the order
/// in which the kernel lists the interfaces. Never empty: what is missing is an error that says so.
pub fn local_addresses() -> Result<Vec<LocalAddress>, OpenError> {
    library::ready()?;
    let devices = device::count();
    if devices == 0 {
        return Err(OpenError::NoDevice);
    }
    let channel =
        EventChannel::new().map_err(|source| OpenError::NoConnectionManager { source })?;
    let mut found: Vec<LocalAddress> = Vec::new();
    for ip in interface_addresses().map_err(|source| OpenError::System { source })? {
        let id = CmId::new(&channel).map_err(|source| OpenError::NoConnectionManager { source })?;
        if id.bind(SocketAddr::new(ip, 0)).is_err() || !id.port_is_active() {
            continue;
        }
        if let Some((device, _port)) = id.device() {
            let address = LocalAddress { ip, device };
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    if found.is_empty() {
        return Err(OpenError::NoAddress { devices });
    }
    Ok(found)
}

/// Addresses that can name a device: not loopback (rdma_cm takes any device for it), not link-local.
fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    let addresses = getifaddrs()?
        .filter_map(|interface| {
            let address = interface.address?;
            if let Some(v4) = address.as_sockaddr_in() {
                return Some(IpAddr::V4(v4.ip()));
            }
            address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
        })
        .filter(|ip| match ip {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        });
    Ok(addresses.take(MAX_ADDRESSES).collect())
}
