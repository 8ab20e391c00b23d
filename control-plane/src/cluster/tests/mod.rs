//! Tests of the state machine, through its commands.

mod healing;
mod leases;
mod nodes;
mod placement;
mod replicas;
mod reservations;
mod rig;
