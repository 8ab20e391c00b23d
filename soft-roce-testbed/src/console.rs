//! What a guest's console log says went wrong: pure text in, one sentence out.

use std::fmt;

/// The kernel's race with its own code patching under emulation: a reason to boot once more.
const KNOWN_EMULATION_OOPS: &str = "Oops: int3";

/// Why a guest is gone or silent, as far as its console tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Diagnosis {
    /// The boot script gave up at a named step.
    BootFailed(Box<str>),
    /// The kernel panicked with this message.
    Panic(Box<str>),
    /// The kernel hit a fault with this message.
    Oops(Box<str>),
    /// It killed processes for want of memory.
    OutOfMemory(Box<str>),
    /// The last line, where nothing tells more.
    LastLine(Box<str>),
    /// The console is empty: the kernel never got going.
    Silent,
}

impl Diagnosis {
    /// Reads the whole console log.
    pub(crate) fn of(console: &str) -> Self {
        let find = |mark: &str| {
            console
                .lines()
                .find(|line| line.contains(mark))
                .map(|line| -> Box<str> { tidy(line).into() })
        };
        if let Some(line) = find("testbed: boot failed:") {
            return Self::BootFailed(line);
        }
        if let Some(line) = find("Oops").or_else(|| find("BUG: ")) {
            return Self::Oops(line);
        }
        if let Some(line) = find("Kernel panic") {
            return Self::Panic(line);
        }
        if let Some(line) = find("Out of memory") {
            return Self::OutOfMemory(line);
        }
        match console.lines().map(tidy).rfind(|line| !line.is_empty()) {
            Some(line) => Self::LastLine(line.into()),
            None => Self::Silent,
        }
    }

    /// Whether this is the known race of emulation, which a second boot does not meet.
    pub(crate) fn is_known_emulation_fault(&self) -> bool {
        matches!(self, Self::Oops(line) if line.contains(KNOWN_EMULATION_OOPS))
    }

    /// Whether the kernel itself broke.
    pub fn is_kernel_fault(&self) -> bool {
        matches!(self, Self::Panic(_) | Self::Oops(_))
    }
}

/// A console line without its time stamp and carriage returns.
fn tidy(line: &str) -> &str {
    let line = line.trim();
    match line.split_once("] ") {
        Some((stamp, rest)) if stamp.starts_with('[') => rest.trim(),
        _ => line,
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BootFailed(line) => write!(f, "{line}"),
            Self::Panic(line) => write!(f, "the guest's kernel panicked: {line}"),
            Self::Oops(line) => write!(f, "the guest's kernel crashed: {line}"),
            Self::OutOfMemory(line) => write!(f, "the guest ran out of memory: {line}"),
            Self::LastLine(line) => write!(f, "the last line on its console was: {line}"),
            Self::Silent => write!(f, "its console is empty"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_first_cause() {
        let log = "[    1.0] hello\r\n[    2.5] Oops: int3: 0000 [#1] SMP\r\n[    2.6] Kernel panic - not syncing: Fatal exception\r\n";
        let diagnosis = Diagnosis::of(log);
        assert_eq!(
            diagnosis,
            Diagnosis::Oops("Oops: int3: 0000 [#1] SMP".into())
        );
        assert!(diagnosis.is_known_emulation_fault() && diagnosis.is_kernel_fault());
    }

    #[test]
    fn tells_panic_boot_failure_memory_and_silence_apart() {
        assert_eq!(
            Diagnosis::of(
                "[ 3.1] sysrq: Trigger a crash\n[ 3.2] Kernel panic - not syncing: sysrq triggered crash\n"
            ),
            Diagnosis::Panic("Kernel panic - not syncing: sysrq triggered crash".into())
        );
        assert!(matches!(
            Diagnosis::of("testbed: boot failed: load x\n[ 1.0] Kernel panic - x\n"),
            Diagnosis::BootFailed(_)
        ));
        assert!(matches!(
            Diagnosis::of("[9.0] Out of memory: Killed process 7 (x)\n"),
            Diagnosis::OutOfMemory(_)
        ));
        assert_eq!(
            Diagnosis::of("[ 1.0] one\n\n"),
            Diagnosis::LastLine("one".into())
        );
        assert_eq!(Diagnosis::of(""), Diagnosis::Silent);
    }
}
