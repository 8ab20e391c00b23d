//! The control plane, as others call it: blocking, typed, with bounded patience.
//!
//! ```text
//!   ControlClient    every call of the service; asks again while the control plane is away, not for ever
//!     Membership     a memory node's: registers, is heard, does what it is told   (a thread)
//!     RegionLease    an owner's: acquires a region, renews it                      (a thread)
//!       ControlAuthority   what `fabric` asks about that region
//!     ControlRegions   what agents run on: regions by a `control://` URL
//!     OwnerlessCheck   comparing the replicas of a region that nobody owns
//! ```
//!
//! Calls are not made on a thread of an asynchronous runtime. No page waits for any of them.

mod authority;
mod call;
mod error;
mod lease;
mod load;
mod membership;
mod ownerless;
mod regions;
mod url;

pub use authority::ControlAuthority;
pub(crate) use call::REQUEST_ID;
pub use call::{Access, AddressError, ControlAddress, ControlClient, SetupError};
pub use error::{ClientError, Refused};
pub use lease::{LeaseError, RegionKey, RegionLease};
pub use membership::{Member, Membership, MembershipError};
pub use ownerless::{OwnerlessCheck, OwnerlessError, OwnerlessReport};
pub use regions::{ControlRegions, NamedRegionError, OpenError};
pub use url::{CONTROL_SCHEME, ControlUrl, ControlUrlError};
