//! The exit codes of `myco`. They are public: scripts may rely on them, and they are never renumbered.
//! `myco vm run` ends with the exit code of QEMU once QEMU has started.

/// Everything was done.
pub(crate) const OK: u8 = 0;
/// Failed for a reason that no other code names.
pub(crate) const FAILURE: u8 = 1;
/// The arguments do not make sense. (clap uses the same number.)
pub(crate) const USAGE: u8 = 2;
/// A configuration file is missing or wrong.
pub(crate) const CONFIG: u8 = 3;
/// A memory node, an agent or a VM cannot be reached at its address.
pub(crate) const UNREACHABLE: u8 = 4;
/// There is not as much memory as was asked for, on this machine or on the memory nodes.
pub(crate) const FULL: u8 = 5;
/// A device, kernel feature or program that was asked for is not on this machine.
pub(crate) const MISSING: u8 = 6;
/// The system does not permit it; the message names the capability or sysctl.
pub(crate) const PERMISSION: u8 = 7;
/// The other side refused: a version, an epoch, a token, or it is draining.
pub(crate) const REFUSED: u8 = 8;
/// Pages were lost, because their memory node is gone.
pub(crate) const LOST: u8 = 9;

/// Replicas do not hold what was written to them, or could not be read.
pub(crate) const WRONG: u8 = 10;

/// Shown at the end of `myco --help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0 done          1 failed           2 wrong arguments   3 wrong configuration
  4 unreachable   5 full             6 device missing    7 not permitted
  8 refused       9 pages were lost  10 replicas are wrong
`myco vm run` ends with QEMU's own exit code once QEMU has started.

Environment:
  MYCO_LOG   what is logged on stderr, such as info or mycoram_fabric=debug (default: warn)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_public_and_never_change() {
        let all = [
            OK,
            FAILURE,
            USAGE,
            CONFIG,
            UNREACHABLE,
            FULL,
            MISSING,
            PERMISSION,
            REFUSED,
            LOST,
            WRONG,
        ];
        assert!(
            all.iter()
                .enumerate()
                .all(|(n, code)| n == usize::from(*code))
        );
    }
}
