//! Replicas that are rebuilt while their owner goes on writing, over the tcp transport on loopback.

mod cluster;
mod healer;
mod rebuild_suite;

rebuild_suite!(cluster::Fabric::Tcp);
