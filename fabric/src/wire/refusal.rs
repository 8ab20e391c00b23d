//! Refusals: what was asked and what holds. They travel, so each has a number of its own for ever.

use super::codec::{Malformed, Reader, Wire};
use crate::units::{ByteCount, Epoch, ExtentIndex};

/// Defines the enum and its encoding: a tag, then the fields.
macro_rules! refusals {
    ($($(#[$doc:meta])* $tag:literal $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        /// Why a memory node does not do what it was asked. The connection goes on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum Refusal {
            $($(#[$doc])* $name { $($(#[$field_doc])* $field: $type),* },)*
        }

        impl Refusal {
            /// All names that there are.
            pub const KINDS: &[&str] = &[$(stringify!($name)),*];

            /// Its name.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => stringify!($name),)*
                }
            }
        }

        impl Wire for Refusal {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name { $($field),* } => {
                        let tag: u16 = $tag;
                        tag.put(out);
                        $($field.put(out);)*
                    })*
                }
            }
            fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                match u16::get(from)? {
                    $($tag => Ok(Self::$name { $($field: Wire::get(from)?),* }),)*
                    other => Err(Malformed::Unknown { what: "refusal", value: other.into() }),
                }
            }
        }
    };
}

refusals! {
    /// The node speaks another version of the protocol.
    #[error("the node speaks version {node} of the control protocol, version {requested} was asked for")]
    1 Version {
        /// What came.
        requested: u16,
        /// What the node speaks.
        node: u16,
    }
    /// The region has, or had, an owner with a higher epoch.
    #[error("{requested} is too low, the region is at {current}: it has a new owner")]
    2 EpochTooLow {
        /// What came.
        requested: Epoch,
        /// What holds.
        current: Epoch,
    }
    /// The region has an owner at this very epoch. A successor takes it over with a higher one.
    #[error("the region has another owner at {epoch}: take it over with a higher epoch, or choose another region")]
    3 Owned {
        /// What holds.
        epoch: Epoch,
    }
    /// The region's secret is another one, or its tenant.
    #[error("the region's token is not this one")]
    4 WrongToken {}
    /// Nothing of the region is here: it was released, it had no owner for too long, or it never was here.
    #[error("the node holds nothing of this region")]
    5 UnknownRegion {}
    /// Not enough free memory. Nothing was allocated.
    #[error("the node is full: {asked} asked, {free} free of {capacity}")]
    6 Full {
        /// What was asked for.
        asked: ByteCount,
        /// What could be had in extents of the size that was asked for.
        free: ByteCount,
        /// What the node lends in all.
        capacity: ByteCount,
    }
    /// The tenant has as much as it may. Nothing was allocated.
    #[error("the tenant's quota is reached: {asked} asked, {held} held of {quota}")]
    7 Quota {
        /// What was asked for.
        asked: ByteCount,
        /// What the tenant has.
        held: ByteCount,
        /// What it may have.
        quota: ByteCount,
    }
    /// A bound on regions is reached.
    #[error("the node has {limit} regions already, more it does not take")]
    8 TooManyRegions {
        /// The bound.
        limit: u32,
    }
    /// A bound on queue pairs is reached.
    #[error("the session has {limit} queue pairs already, more it does not get")]
    9 TooManyTickets {
        /// The bound.
        limit: u32,
    }
    /// A bound on control connections is reached.
    #[error("the node has {limit} control connections already, more it does not take")]
    10 TooManyConnections {
        /// The bound.
        limit: u32,
    }
    /// The node is being stopped.
    #[error("the node is being stopped and takes nothing new")]
    11 Draining {}
    /// The request needs a session, and this connection has none.
    #[error("this needs a session: open one first")]
    12 NoSession {}
    /// The connection is a session already.
    #[error("this connection is a session already: open another connection")]
    13 AlreadyOpen {}
    /// Not a size for an extent: zero, no multiple of the page, or not that of the region's other extents.
    #[error("{asked} is no size for an extent of this region: whole pages, the same for all extents")]
    14 ExtentSize {
        /// What was asked for.
        asked: ByteCount,
    }
    /// The node's device did not register the memory. The node's log has the reason.
    #[error("the node's device refused to register the memory: see the node's log")]
    15 Device {}
    /// An extent that is asked for twice in one message.
    #[error("{extent} is asked for twice at once")]
    16 AskedTwice {
        /// Which one.
        extent: ExtentIndex,
    }
    /// A bound on extents is reached. Nothing was allocated.
    #[error("the node keeps account of at most {limit} extents: ask for fewer and larger ones")]
    17 TooManyExtents {
        /// The bound.
        limit: u32,
    }
    /// The node takes only what the control plane has granted, and no grant was shown.
    #[error("the node takes nobody without a grant of its cluster's control plane")]
    18 GrantMissing {}
    /// The grant was not signed by the node's cluster, or is none.
    #[error("the grant was not signed by the control plane of the node's cluster")]
    19 GrantForged {}
    /// The grant's time is over. If it should not be, the clocks of the two machines differ.
    #[error("the grant ended at {not_after_ms} ms, the node's clock says {now_ms} ms since 1970: ask for a new one")]
    20 GrantExpired {
        /// Until when it was worth something, ms since 1970.
        not_after_ms: u64,
        /// The node's time, ms since 1970.
        now_ms: u64,
    }
    /// A good grant, but for something else.
    #[error("the grant is for another {what}")]
    21 GrantForOther {
        /// What differs first.
        what: GrantField,
    }
}

/// What a grant is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantField {
    /// The cluster.
    Cluster,
    /// The tenant.
    Tenant,
    /// The region.
    Region,
    /// The epoch of the lease.
    Epoch,
    /// The memory node.
    Node,
    /// The owner: who knows the region's token.
    Owner,
    /// The life of the memory node's process.
    Incarnation,
}

impl std::fmt::Display for GrantField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Tenant => "tenant",
            Self::Region => "region",
            Self::Epoch => "epoch",
            Self::Node => "memory node",
            Self::Owner => "owner",
            Self::Incarnation => "life of the memory node",
        })
    }
}

impl Wire for GrantField {
    fn put(&self, out: &mut Vec<u8>) {
        let number: u8 = match self {
            Self::Cluster => 1,
            Self::Tenant => 2,
            Self::Region => 3,
            Self::Epoch => 4,
            Self::Node => 5,
            Self::Owner => 6,
            Self::Incarnation => 7,
        };
        number.put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match u8::get(from)? {
            1 => Self::Cluster,
            2 => Self::Tenant,
            3 => Self::Region,
            4 => Self::Epoch,
            5 => Self::Node,
            6 => Self::Owner,
            7 => Self::Incarnation,
            other => {
                return Err(Malformed::Unknown {
                    what: "part of a grant",
                    value: other.into(),
                });
            }
        })
    }
}
