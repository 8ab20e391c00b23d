//! The error of a system call that has no story of its own.

use nix::errno::Errno;

/// A system call that the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed")]
pub struct CallFailed {
    /// The call as its manual page names it.
    pub call: &'static str,
    /// The kernel's reason.
    #[source]
    pub source: Errno,
}

impl CallFailed {
    /// For `map_err`.
    pub(crate) fn of(call: &'static str) -> impl Fn(Errno) -> Self {
        move |source| Self { call, source }
    }

    /// From `errno` after a call that answered -1.
    pub(crate) fn last(call: &'static str) -> Self {
        Self {
            call,
            source: Errno::last(),
        }
    }
}
