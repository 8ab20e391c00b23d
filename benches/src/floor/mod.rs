//! Floors: what the machine itself takes, measured in the same run, on the same processors, by threads
//! that wait the same way. None of them uses Mycoram's code.

mod server;
pub(crate) mod tcp;
pub(crate) mod userfault;

pub(crate) use server::{ReadLatency, Server, ServerError};

use serde::{Deserialize, Serialize};

/// How a thread waits for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Waiting {
    /// Asks again and again, and lets others run in between (`sched_yield`).
    Polling,
    /// Sleeps in the kernel until there is something.
    Sleeping,
}
