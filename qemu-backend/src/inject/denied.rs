//! Why the kernel refuses to let us trace, in the words of the knob that decides it.

use std::fmt;

use nix::unistd::{Pid, geteuid};

use crate::process::{tracer_of, user_of};

const YAMA: &str = "/proc/sys/kernel/yama/ptrace_scope";
/// Bit 19 of the capability sets.
const CAP_SYS_PTRACE: u32 = 19;

/// A refused PTRACE_SEIZE, with the most likely reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PtraceDenial {
    /// The target.
    pub pid: Pid,
    /// Which rule refuses.
    pub reason: DenialReason,
}

/// Which of the kernel's rules refuses to let us trace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DenialReason {
    /// Another process traces it already; only one can.
    AlreadyTraced {
        /// The other tracer.
        tracer: Pid,
    },
    /// Yama refuses: 1 allows descendants only, 2 administrators only, 3 nobody at all.
    Yama {
        /// The value of kernel.yama.ptrace_scope.
        scope: u8,
    },
    /// The target runs as somebody else.
    OtherUser {
        /// The target's real user id.
        target: u32,
        /// Our effective user id.
        own: u32,
    },
    /// The target's memory is not dumpable (it changed its user, or asked for it), or a security module refuses.
    NotDumpable,
    /// We have the capability and were refused all the same: a security module, or a container's seccomp filter.
    SecurityPolicy,
}

impl PtraceDenial {
    /// Finds out why the right to trace (or to look closely at) a process was just refused.
    pub(crate) fn explain(pid: Pid) -> Self {
        let reason = if let Ok(Some(tracer)) = tracer_of(pid) {
            DenialReason::AlreadyTraced { tracer }
        } else {
            let own = geteuid().as_raw();
            let facts = Facts {
                scope: std::fs::read_to_string(YAMA)
                    .ok()
                    .and_then(|t| t.trim().parse().ok()),
                capable: has_capability(CAP_SYS_PTRACE),
                target: user_of(pid).unwrap_or(own),
                own,
            };
            facts.reason()
        };
        Self { pid, reason }
    }
}

/// What decides, apart from another tracer.
struct Facts {
    scope: Option<u8>,
    capable: bool,
    target: u32,
    own: u32,
}

impl Facts {
    fn reason(&self) -> DenialReason {
        match self.scope {
            Some(3) => DenialReason::Yama { scope: 3 },
            _ if self.capable => DenialReason::SecurityPolicy,
            _ if self.target != self.own => DenialReason::OtherUser {
                target: self.target,
                own: self.own,
            },
            Some(scope) if scope > 0 => DenialReason::Yama { scope },
            _ => DenialReason::NotDumpable,
        }
    }
}

fn has_capability(bit: u32) -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let hex = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
            u64::from_str_radix(hex.trim(), 16).ok()
        })
        .is_some_and(|set| set >> bit & 1 == 1)
}

impl fmt::Display for PtraceDenial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid;
        write!(f, "no permission to trace process {pid}: ")?;
        match &self.reason {
            DenialReason::AlreadyTraced { tracer } => {
                write!(
                    f,
                    "process {tracer} (a debugger?) traces it already; end that first"
                )
            }
            DenialReason::Yama { scope: 3 } => {
                write!(
                    f,
                    "kernel.yama.ptrace_scope is 3, which forbids tracing until the next boot"
                )
            }
            DenialReason::Yama { scope } => write!(
                f,
                "kernel.yama.ptrace_scope is {scope}; run with CAP_SYS_PTRACE (as root), start the VM with `myco vm run`, \
                 or set `sysctl kernel.yama.ptrace_scope=0`"
            ),
            DenialReason::OtherUser { target, own } => write!(
                f,
                "it runs as user {target} and we as user {own}; run as the same user, or with CAP_SYS_PTRACE (as root)"
            ),
            DenialReason::NotDumpable => write!(
                f,
                "it is not dumpable (it changed its user after it started); run with CAP_SYS_PTRACE (as root)"
            ),
            DenialReason::SecurityPolicy => write!(
                f,
                "we have CAP_SYS_PTRACE, so a security module, a user namespace or the container's seccomp filter refuses it"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(scope: Option<u8>, capable: bool, target: u32, own: u32) -> DenialReason {
        Facts {
            scope,
            capable,
            target,
            own,
        }
        .reason()
    }

    #[test]
    fn the_deciding_rule_is_named() {
        assert_eq!(
            reason(Some(1), false, 7, 7),
            DenialReason::Yama { scope: 1 }
        );
        assert_eq!(reason(Some(3), true, 7, 0), DenialReason::Yama { scope: 3 });
        assert_eq!(
            reason(Some(0), false, 0, 7),
            DenialReason::OtherUser { target: 0, own: 7 }
        );
        assert_eq!(
            reason(Some(1), false, 0, 7),
            DenialReason::OtherUser { target: 0, own: 7 }
        );
        assert_eq!(reason(None, false, 7, 7), DenialReason::NotDumpable);
        assert_eq!(reason(None, true, 7, 0), DenialReason::SecurityPolicy);
    }

    #[test]
    fn each_reason_says_what_to_do() {
        let pid = Pid::from_raw(42);
        for (reason, word) in [
            (
                DenialReason::Yama { scope: 1 },
                "kernel.yama.ptrace_scope=0",
            ),
            (DenialReason::Yama { scope: 3 }, "next boot"),
            (
                DenialReason::OtherUser {
                    target: 64055,
                    own: 1000,
                },
                "CAP_SYS_PTRACE",
            ),
            (DenialReason::NotDumpable, "CAP_SYS_PTRACE"),
            (
                DenialReason::AlreadyTraced {
                    tracer: Pid::from_raw(7),
                },
                "process 7",
            ),
            (DenialReason::SecurityPolicy, "seccomp"),
        ] {
            let text = PtraceDenial { pid, reason }.to_string();
            assert!(text.contains(word) && text.contains("process 42"), "{text}");
        }
    }
}
