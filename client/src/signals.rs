//! Keeps the program's signals away from the library's threads.
//!
//! A thread inherits the mask of the one that made it. Everything that may start a thread is called
//! with all signals blocked, so the program's handlers run on the program's own threads only.

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Blocks every signal for the calling thread until dropped.
pub(crate) struct Blocked {
    before: SigSet,
}

impl Blocked {
    pub(crate) fn all() -> Self {
        let mut before = SigSet::empty();
        // The call fails for an unknown `how` only; then the mask is as it was, and `before` is empty.
        let _ = pthread_sigmask(
            SigmaskHow::SIG_SETMASK,
            Some(&SigSet::all()),
            Some(&mut before),
        );
        Self { before }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

#[cfg(test)]
mod tests {
    use super::Blocked;
    use nix::sys::signal::{SigSet, Signal};

    #[test]
    fn a_thread_made_meanwhile_has_every_signal_blocked_and_its_maker_none_more() {
        let before = SigSet::thread_get_mask().unwrap();
        let thread = {
            let _blocked = Blocked::all();
            std::thread::spawn(|| SigSet::thread_get_mask().unwrap())
        };
        let inside = thread.join().unwrap();
        for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP))
        {
            assert!(
                inside.contains(signal),
                "{signal} reaches the library's threads"
            );
        }
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
