//! Memory nodes, sessions and lanes together, over the tcp transport on loopback.

mod cluster;
mod remote_suite;

remote_suite!(cluster::Fabric::Tcp);
