//! Which parts of a memory file have pages now.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Why the pages could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("the pages of the guest's memory cannot be listed")]
pub struct ResidentError(#[from] io::Error);

/// The runs of `(offset, bytes)` in the file that hold pages, between `from` and `from + bytes`.
///
/// Asked with SEEK_DATA and SEEK_HOLE, so nothing is touched. A QEMU that runs adds pages meanwhile:
/// register the faults first, then ask.
pub fn resident_runs(
    file: impl AsFd,
    from: u64,
    bytes: u64,
) -> Result<Vec<(u64, u64)>, ResidentError> {
    let file = file.as_fd();
    let end = from.saturating_add(bytes);
    let mut runs = Vec::new();
    let mut at = from;
    while at < end {
        let Some(start) = seek(&file, at, libc::SEEK_DATA)?.filter(|&start| start < end) else {
            break;
        };
        let stop = seek(&file, start, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        runs.push((start, stop - start));
        at = stop;
    }
    Ok(runs)
}

/// `None` if there is nothing behind `at`.
fn seek(file: &impl AsRawFd, at: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: lseek takes integers only. The descriptor's position is nobody's: all reads are positioned.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, whence) };
    match Errno::result(found) {
        Ok(found) => Ok(Some(found as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn written_pages_are_listed_in_runs() {
        let file = File::from(memfd_create(c"resident", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(1 << 20).unwrap();
        assert_eq!(resident_runs(&file, 0, 1 << 20).unwrap(), []);
        for page in [3_u64, 4, 9, 255] {
            file.write_all_at(b"x", page * 4096).unwrap();
        }
        assert_eq!(
            resident_runs(&file, 0, 1 << 20).unwrap(),
            [(3 * 4096, 2 * 4096), (9 * 4096, 4096), (255 * 4096, 4096)]
        );
        assert_eq!(
            resident_runs(&file, 4 * 4096, 4096).unwrap(),
            [(4 * 4096, 4096)]
        );
        assert_eq!(resident_runs(&file, 0, 2 << 20).unwrap().len(), 3);
    }
}
