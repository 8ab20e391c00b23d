//! Random faults under a verifying workload, with real processes.
//!
//! ```text
//!   plan    a seed -> rounds of faults: what, when, for how long; pure
//!   net     who is reached how: namespaces on a bridge, cut, slow or lossy
//!   parts   control plane, three memory nodes, agent, an etcd: started, killed, stopped, started again
//!   worker  a process of its own whose every read checks the last write
//!   stale   what a run that was killed has left
//!   run     carries rounds out; between two of them everything has to be whole again
//! ```
//!
//! With R replicas at most R-1 memory nodes are in trouble at a time, and the agent or the control plane with
//! them, and one member of its etcd; so nothing may ever be lost. `MYCORAM_SEED` and `MYCORAM_FAULT_SECONDS` say
//! which and how long, `MYCORAM_FAULT_STORE=etcd` has two control planes on an etcd of three members.

pub(crate) mod net;
pub(crate) mod parts;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod stale;
pub(crate) mod worker;
