//! The kind of a failure, as a number that C programs can switch on.

/// What became of a call. The sentence that belongs to it is given by `mycoram_last_error`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// It was done.
    Ok = 0,
    /// An argument is not possible: NULL, out of range, not aligned, no advice.
    InvalidArgument = 1,
    /// The handle is not open (any more).
    InvalidHandle = 2,
    /// The address is not in a mapping made by this library (any more).
    NotMapped = 3,
    /// The configuration is not possible or cannot be read.
    Config = 4,
    /// A memory node or the agent's socket cannot be reached.
    Unreachable = 5,
    /// The memory nodes have no room for it.
    NoSpace = 6,
    /// A right is missing; the sentence says which.
    Permission = 7,
    /// Pages are lost: no memory node has them any more.
    Lost = 8,
    /// A forked child may not use its parent's far memory.
    Forked = 9,
    /// A bound of the library or of the agent was reached.
    Limit = 10,
    /// The operating system refused.
    System = 11,
    /// The memory node or the agent refused, or does not speak this version.
    Refused = 12,
    /// A bug in the library. What it was is in the sentence; nothing else can be said of the state.
    Bug = 13,
}
