//! Whether the target may have direct IO under way: then evicted pages are kept longer before they are read.
//!
//! ```text
//!   page pinned by a direct read -> evicted: spliced, hole punched (nobody can pin it any more)
//!     a file open for direct IO at some moment after the punch?  yes: the read may go on, keep the page
//!                                                                no:  it cannot, the page may be read
//! ```
//!
//! A direct read needs a descriptor with `O_DIRECT`, or a file that is registered with an io_uring, for as
//! long as it lasts. (A descriptor that is closed while one of its own reads is under way goes unseen.)
//! Looking costs a few microseconds a descriptor, so it is done once for all batches that are ripe, and
//! never for more than a tenth of the time.

use std::path::{Path, PathBuf};
use std::time::Instant;

/// Looking takes at most one part in so many of an evictor's time.
const SHARE: u64 = 10;

/// What an evictor knows of its target's direct IO.
#[derive(Debug)]
pub(super) struct DirectIo {
    descriptors: PathBuf,
    looked_at: u64,
    cost: u64,
    found: bool,
}

impl DirectIo {
    pub(super) fn of(pid: i32) -> Self {
        Self {
            descriptors: PathBuf::from(format!("/proc/{pid}/fdinfo")),
            looked_at: 0,
            cost: 0,
            found: true,
        }
    }

    /// How long pages that were punched by `since` have to settle, ns, as far as is known at `now`.
    pub(super) fn settle(&mut self, since: u64, now: u64, short: u64, long: u64) -> u64 {
        if now < since.saturating_add(short) {
            return short;
        }
        if self.looked_at <= since {
            let next = self.looked_at.saturating_add(self.cost * SHARE);
            if now < next {
                return next - since;
            }
            let begun = Instant::now();
            self.found = any_direct(&self.descriptors);
            self.cost = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX / SHARE);
            self.looked_at = now;
        }
        if self.found { long } else { short }
    }
}

/// Whether any descriptor is for direct IO. One that cannot be looked at may be.
fn any_direct(descriptors: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(descriptors) else {
        return true;
    };
    entries.flatten().any(|entry| {
        // One that was closed meanwhile is none.
        std::fs::read_to_string(entry.path()).is_ok_and(|text| is_direct(&text))
    })
}

fn is_direct(info: &str) -> bool {
    info.lines().any(|line| {
        let Some((key, value)) = line.split_once(':') else {
            return false;
        };
        let value = value.trim();
        match key {
            "flags" => i32::from_str_radix(value, 8).is_ok_and(|flags| flags & libc::O_DIRECT != 0),
            "UserFiles" => value != "0",
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{DirectIo, is_direct};
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn descriptors_for_direct_io_are_told_from_others() {
        let direct = format!("pos:\t0\nflags:\t{:o}\n", libc::O_DIRECT | libc::O_RDWR);
        assert!(is_direct(&direct));
        assert!(!is_direct("pos:\t0\nflags:\t0100002\nmnt_id:\t15\n"));
        assert!(is_direct("flags:\t02\nUserFiles:\t3\n"));
        assert!(!is_direct("flags:\t02\nUserFiles:\t0\n"));
    }

    #[test]
    fn pages_settle_longer_while_a_file_is_open_for_direct_io() {
        // The look itself costs real time, and is spaced by it; times far apart are always allowed.
        const SECOND: u64 = 1_000_000_000;
        let pid = i32::try_from(std::process::id()).expect("a process id");
        let mut io = DirectIo::of(pid);
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(std::env::current_exe().expect("a path"));
        if let Ok(file) = file {
            assert_eq!(
                io.settle(10 * SECOND, 10 * SECOND + 1, 2, 200),
                2,
                "not ripe yet"
            );
            assert_eq!(io.settle(10 * SECOND, 11 * SECOND, 2, 200), 200);
            drop(file);
            assert_eq!(
                io.settle(10 * SECOND, 12 * SECOND, 2, 200),
                200,
                "known from before"
            );
        }
        assert_eq!(io.settle(200 * SECOND, 300 * SECOND, 2, 200), 2);
    }
}
