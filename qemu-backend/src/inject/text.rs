//! The two pieces of the target's own text that an injection borrows.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::unistd::Pid;

use super::{InjectError, arch};
use crate::process::{Mapping, read_maps};

/// Executable mappings larger than this are searched only up to here; the C library's text is 1.5 MiB.
const SEARCH_BYTES: u64 = 16 << 20;

/// Where the borrowed instructions lie in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gadgets {
    /// A system call instruction, with a return behind it.
    pub(super) syscall: u64,
    /// The C library's return from a signal handler.
    pub(super) restorer: u64,
}

/// Looks for both in the target's text: the C library first, then the vDSO, then whatever there is.
pub(super) fn find_gadgets(pid: Pid, memory: &File) -> Result<Gadgets, InjectError> {
    let mut maps = read_maps(pid)?;
    maps.retain(|m| m.permissions.execute && m.permissions.read && m.name != "[vsyscall]");
    maps.sort_by_key(preference);

    let mut syscall = None;
    let mut restorer = None;
    let mut text = Vec::new();
    let mut searched = 0;
    for mapping in &maps {
        let wanted = mapping.bytes().min(SEARCH_BYTES);
        text.resize(wanted as usize, 0);
        if memory.read_exact_at(&mut text, mapping.start).is_err() {
            continue;
        }
        searched += 1;
        syscall =
            syscall.or_else(|| find(&text, arch::SYSCALL_RETURN).map(|at| mapping.start + at));
        restorer =
            restorer.or_else(|| find(&text, arch::SIGNAL_RESTORER).map(|at| mapping.start + at));
        if let (Some(syscall), Some(restorer)) = (syscall, restorer) {
            return Ok(Gadgets { syscall, restorer });
        }
    }
    if searched == 0 {
        // Its address space is gone already: it is on its way out.
        return Err(InjectError::TargetExited { pid });
    }
    let wanted = if syscall.is_none() {
        "system call instruction"
    } else {
        "signal restorer"
    };
    Err(InjectError::NoInstruction { pid, wanted })
}

fn preference(mapping: &Mapping) -> u8 {
    let file = mapping.name.rsplit('/').next().unwrap_or_default();
    if file.starts_with("libc.") || file.starts_with("libc-") || file.starts_with("ld-musl") {
        0
    } else if file == "[vdso]" {
        1
    } else {
        2
    }
}

fn find(text: &[u8], pattern: &[u8]) -> Option<u64> {
    let (&first, _) = pattern.split_first()?;
    text.iter()
        .enumerate()
        .find(|&(at, &byte)| {
            byte == first
                && at.is_multiple_of(arch::INSTRUCTION_ALIGNMENT)
                && text[at..].starts_with(pattern)
        })
        .map(|(at, _)| at as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_text_has_both() {
        let memory = File::open("/proc/self/mem").unwrap();
        let found = find_gadgets(Pid::this(), &memory).unwrap();
        let mut bytes = vec![0; arch::SYSCALL_RETURN.len()];
        memory.read_exact_at(&mut bytes, found.syscall).unwrap();
        assert_eq!(bytes, arch::SYSCALL_RETURN);
        assert_ne!(found.syscall, found.restorer);
    }
}
