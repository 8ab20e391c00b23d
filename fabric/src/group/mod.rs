//! A replication group: the same pages on several memory nodes.
//!
//! ```text
//!   add(member) --copied from live members--> live <--- replicate(pages): all live members have them, or
//!                                              |        those that do not are durably stale
//!                                              '--fails--> failed --marked stale--> gone
//!                                              '--remove--------- marked stale ---> gone
//! ```
//!
//! A list of pages counts as replicated when every live member has it. A member that fails is first marked
//! stale with the [`RegionAuthority`](crate::authority::RegionAuthority), durably, and only then does the
//! list count; the group goes on with those that are left. When the authority cannot be asked the list is
//! not replicated, and the next call asks again first.
//!
//! `roll` says who counts, `runs` makes long pieces of neighbouring pages; both are pure. Bytes are moved by
//! [`crate::transfer`]. It does not place, does not lend memory and knows no leases: members are handed in
//! with their memory ready, and an owner that was fenced is told so.

mod member;
mod replicate;
mod roll;
mod runs;

pub use member::{Member, MemberState, MemberStatus};
pub use replicate::{
    AddMemberError, PageFrom, RemoveMemberError, ReplicateError, Replicated, ReplicationGroup,
};
