//! What a serving process may use of the system: as much as the system lets it.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors for many connections, and memory that may be pinned or locked: as far as the hard limits
/// go. What then still fails says so itself.
pub(crate) fn raise() {
    for limit in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK] {
        if let Ok((soft, hard)) = getrlimit(limit)
            && soft < hard
            && let Err(errno) = setrlimit(limit, hard, hard)
        {
            tracing::debug!(?limit, %errno, "a resource limit could not be raised");
        }
    }
}
