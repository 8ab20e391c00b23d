//! What the kernel tells about another process: its mappings, its descriptors, who it is.
//!
//! Reading only, and duplicating descriptors. Nothing here stops, signals or changes a process:
//! that is [`crate::inject`]'s.

mod descriptors;
mod identity;
mod maps;
mod pidfd;

pub use descriptors::{DescriptorError, FileIdentity, find_descriptor, open_mapping};
pub use identity::{IdentityError, ProcessIdentity, arguments_of, tracer_of, user_of};
pub use maps::{Mapping, MapsError, Permissions, parse_maps, read_maps};
pub use pidfd::{GetFdError, PidFd, PidFdError};
