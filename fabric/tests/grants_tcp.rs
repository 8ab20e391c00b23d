//! Grants under attack, over the tcp transport on loopback.

mod cluster;
mod grants_suite;

grants_suite!(cluster::Fabric::Tcp);
