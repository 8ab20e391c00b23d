//! Refusals of the state machine as gRPC statuses.

use prost::Message;
use tonic::{Code, Status};

use super::keeper::NotDone;
use crate::cluster::{
    IllegalTransition, LeaseRefusal, NodeRefusal, RegionRefusal, ReplicaRefusal, ReservationRefusal,
};
use crate::proto;
use crate::proto::refusal::{
    EpochTooLow, Kind, LastLive, NoRoom, NotLeader, NotYet, Owned, RegisterAgain, Unknown,
};

impl From<NotDone> for Status {
    fn from(not_done: NotDone) -> Self {
        let kind = match &not_done {
            NotDone::NotLeader { leader } => Some(Kind::NotLeader(NotLeader {
                leader: leader.as_deref().unwrap_or_default().to_owned(),
            })),
            NotDone::Busy | NotDone::Ending | NotDone::Store => None,
        };
        status(Code::Unavailable, &not_done, kind)
    }
}

/// No region has that name.
pub(super) fn no_region(name: &str) -> Status {
    let details = proto::Refusal { kind: unknown() }.encode_to_vec();
    let message = format!("there is no region \"{name}\" in this cluster");
    Status::with_details(Code::NotFound, message, details.into())
}

/// Nobody is there who knows what a region's pages should be.
pub(super) fn no_owner(name: &str) -> Status {
    Status::failed_precondition(format!(
        "the region \"{name}\" has no owner now, and nobody else knows what its pages should be: acquire it, and compare its replicas with each other"
    ))
}

/// A check that is not known, or not any more.
pub(super) fn no_check(name: &str, check: u64) -> Status {
    Status::not_found(format!(
        "check {check} of the region \"{name}\" is not known any more: another one was begun, or the control plane started again"
    ))
}

fn status(code: Code, refusal: &dyn std::error::Error, kind: Option<Kind>) -> Status {
    let message = refusal.to_string();
    match kind {
        None => Status::new(code, message),
        Some(kind) => {
            let details = proto::Refusal { kind: Some(kind) }.encode_to_vec();
            Status::with_details(code, message, details.into())
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn unknown() -> Option<Kind> {
    Some(Kind::Unknown(Unknown {}))
}

impl From<LeaseRefusal> for Status {
    fn from(refusal: LeaseRefusal) -> Self {
        let (code, kind) = match &refusal {
            LeaseRefusal::UnknownRegion(_) => (Code::NotFound, unknown()),
            LeaseRefusal::Owned { epoch, left_ms, .. } => {
                let owned = Owned {
                    epoch: epoch.get(),
                    left_ms: *left_ms,
                };
                (Code::FailedPrecondition, Some(Kind::Owned(owned)))
            }
            LeaseRefusal::EpochTooLow { requested, current } => {
                let too_low = EpochTooLow {
                    requested: requested.get(),
                    current: current.get(),
                };
                (Code::FailedPrecondition, Some(Kind::EpochTooLow(too_low)))
            }
            LeaseRefusal::NotYet { waiting } => {
                let waiting = count(*waiting);
                let not_yet = Kind::NotYet(NotYet { waiting });
                (Code::FailedPrecondition, Some(not_yet))
            }
            _ => (Code::FailedPrecondition, None),
        };
        status(code, &refusal, kind)
    }
}

impl From<NodeRefusal> for Status {
    fn from(refusal: NodeRefusal) -> Self {
        let (code, kind) = match &refusal {
            NodeRefusal::Name { .. } | NodeRefusal::Nothing => (Code::InvalidArgument, None),
            NodeRefusal::TooMany { .. } => (Code::ResourceExhausted, None),
            NodeRefusal::NoRoom { .. } => (
                Code::ResourceExhausted,
                Some(Kind::NoRoom(NoRoom::default())),
            ),
            NodeRefusal::Unknown { .. } | NodeRefusal::Replaced { .. } => {
                let again = Kind::RegisterAgain(RegisterAgain {});
                (Code::FailedPrecondition, Some(again))
            }
            NodeRefusal::UnknownName { .. } => (Code::NotFound, unknown()),
            _ => (Code::FailedPrecondition, None),
        };
        status(code, &refusal, kind)
    }
}

impl From<IllegalTransition> for Status {
    fn from(refusal: IllegalTransition) -> Self {
        status(Code::FailedPrecondition, &refusal, None)
    }
}

impl From<RegionRefusal> for Status {
    fn from(refusal: RegionRefusal) -> Self {
        let no_room = |wanted: usize, left: usize| {
            let (wanted, left) = (count(wanted), count(left));
            Some(Kind::NoRoom(NoRoom { wanted, left }))
        };
        let (code, kind) = match &refusal {
            RegionRefusal::Lease(lease) => return lease.clone().into(),
            RegionRefusal::NameTaken { .. } | RegionRefusal::Taken(_) => {
                (Code::AlreadyExists, None)
            }
            RegionRefusal::Domains { asked, there } => (
                Code::ResourceExhausted,
                no_room(usize::from(*asked), *there),
            ),
            RegionRefusal::NobodyUp { up, min_live } => (
                Code::ResourceExhausted,
                no_room(usize::from(*min_live), *up),
            ),
            RegionRefusal::Full { .. } | RegionRefusal::Pressure(_) => {
                (Code::ResourceExhausted, no_room(0, 0))
            }
            RegionRefusal::TooMany { .. } => (Code::ResourceExhausted, None),
            RegionRefusal::InUse { .. } | RegionRefusal::Overtaken { .. } => {
                (Code::FailedPrecondition, None)
            }
            RegionRefusal::NoReservation(_) => (Code::NotFound, None),
            _ => (Code::InvalidArgument, None),
        };
        status(code, &refusal, kind)
    }
}

impl From<ReservationRefusal> for Status {
    fn from(refusal: ReservationRefusal) -> Self {
        let (code, kind) = match &refusal {
            ReservationRefusal::Pressure(_) => (
                Code::ResourceExhausted,
                Some(Kind::NoRoom(NoRoom::default())),
            ),
            ReservationRefusal::TooMany { .. } => (Code::ResourceExhausted, None),
            ReservationRefusal::Nothing => (Code::InvalidArgument, None),
            ReservationRefusal::Taken(_) => (Code::AlreadyExists, None),
            ReservationRefusal::Unknown(_) => (Code::NotFound, unknown()),
            ReservationRefusal::Foreign(_) => (Code::PermissionDenied, None),
            ReservationRefusal::InUse { .. } => (Code::FailedPrecondition, None),
        };
        status(code, &refusal, kind)
    }
}

impl From<ReplicaRefusal> for Status {
    fn from(refusal: ReplicaRefusal) -> Self {
        let (code, kind) = match &refusal {
            ReplicaRefusal::Lease(lease) => return lease.clone().into(),
            ReplicaRefusal::LastLive {
                extent,
                left,
                min_live,
            } => {
                let last = LastLive {
                    extent: extent.get(),
                    left: count(*left),
                    min_live: u32::from(*min_live),
                };
                (Code::FailedPrecondition, Some(Kind::LastLive(last)))
            }
            ReplicaRefusal::NoReplica { .. } => (Code::NotFound, unknown()),
            ReplicaRefusal::TooMuch { .. } => (Code::InvalidArgument, None),
            // The attempt that is told of is over: there is nothing left of it.
            _ => (Code::FailedPrecondition, unknown()),
        };
        status(code, &refusal, kind)
    }
}
