//! A region on the simulated nodes: who they are, how its owner speaks to them, what its pages contain.

use std::sync::Arc;

use mycoram_fabric::placement::{FailureDomain, NodeEntry, RegionEntry};
use mycoram_fabric::remote::RemoteOptions;
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::transport::sim::SimNetwork;
use mycoram_fabric::units::{ByteCount, Epoch, PAGE_BYTES, RegionId, TenantId};
use mycoram_fabric::wire::control::Token;

use super::{Machines, NODES, SimClock, SimDial, control};

/// The entry of a node.
pub(crate) fn entry(index: usize) -> NodeEntry {
    NodeEntry {
        name: format!("n{index}"),
        control: control(index),
        transport: TransportKind::Sim,
        domain: FailureDomain::default(),
    }
}

pub(crate) fn entries() -> Vec<NodeEntry> {
    (0..NODES).map(entry).collect()
}

pub(crate) fn dial(network: &SimNetwork, machines: &Machines) -> Arc<SimDial> {
    Arc::new(SimDial {
        network: network.clone(),
        machines: Arc::clone(machines),
    })
}

/// Of the first owner.
pub(crate) fn options(network: &SimNetwork, machines: &Machines) -> RemoteOptions {
    RemoteOptions {
        dial: dial(network, machines),
        clock: Arc::new(SimClock(network.clone())),
        watched: false,
        owner: 1,
        token: Token([7; 16]),
        domain: FailureDomain::default(),
        rebuild: None,
        ahead: None,
    }
}

fn bytes(pages: u32) -> ByteCount {
    ByteCount::new(u64::from(pages) * PAGE_BYTES as u64)
}

pub(crate) fn region(pages: u32, extent_pages: u32, replicas: u8) -> RegionEntry {
    RegionEntry {
        id: RegionId::new(1),
        tenant: TenantId::new(1),
        epoch: Epoch::new(1),
        bytes: bytes(pages),
        extent_bytes: bytes(extent_pages),
        replicas,
    }
}

/// What a page contains that was written for the `version`th time; zeros before.
pub(crate) fn contents(page: u32, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; PAGE_BYTES];
    }
    let word = (u64::from(page) << 40 | version).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes().repeat(PAGE_BYTES / 8)
}
