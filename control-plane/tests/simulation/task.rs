//! What an owner is at, and what it knows of its replicas.

use mycoram_control::cluster::OrderId;
use mycoram_fabric::units::ExtentIndex;

use crate::message::{Place, Version};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Dead,
    Acquiring,
    Loading,
    Running,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(crate) place: Place,
    /// `None`: live.
    pub(crate) copying: Option<OrderId>,
    /// One that is dropped and made again is another one: what the former had does not count.
    pub(crate) serial: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Task {
    Write {
        extent: ExtentIndex,
        page: u8,
        version: Version,
        acks: Vec<(u64, Place, Option<bool>)>,
        marking: bool,
        stamp: u64,
    },
    Read {
        extent: ExtentIndex,
        page: u8,
        from: Place,
        /// The last write when it was begun.
        since: Option<Version>,
        stamp: u64,
    },
    Copy {
        extent: ExtentIndex,
        to: Place,
        order: OrderId,
        page: u8,
        /// Waiting for the page, reading it from there, writing it, or all is said.
        step: Step,
        stamp: u64,
    },
    Drop {
        extent: ExtentIndex,
        place: Place,
        stamp: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Waiting,
    Reading(Place),
    Writing,
    Telling,
}
