//! The smallest thing that serves faults: every missing page is zeros.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use mycoram_agent::kernel::{
    EventReader, FeatureSet, Filled, RegisterError, TargetAddr, TargetEvent, TargetRange,
    Userfault, Wake, Watch,
};
use mycoram_qemu::attach::Attached;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

pub struct ZeroPages {
    served: Arc<AtomicU64>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl ZeroPages {
    /// Handshake, registration, and a thread that serves.
    pub fn serve(attached: &Attached) -> Result<Self, RegisterError> {
        let userfault = userfault(attached);
        userfault.handshake(FeatureSet::NONE).unwrap();
        userfault.register(range(attached), Watch::Missing)?;
        Ok(Self::run(userfault))
    }

    /// Goes on where one that died has stopped.
    pub fn succeed(attached: &Attached) -> Self {
        let userfault = userfault(attached);
        assert!(userfault.is_set_up());
        userfault.wake(range(attached)).unwrap();
        Self::run(userfault)
    }

    fn run(userfault: Userfault) -> Self {
        let served = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(EventFd::new().unwrap());
        let thread = std::thread::spawn({
            let (served, stop) = (Arc::clone(&served), Arc::clone(&stop));
            move || serve(&userfault, &served, &stop)
        });
        Self {
            served,
            stop,
            thread: Some(thread),
        }
    }

    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for ZeroPages {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn userfault(attached: &Attached) -> Userfault {
    Userfault::from_received(attached.userfaultfd.try_clone().unwrap()).unwrap()
}

pub fn range(attached: &Attached) -> TargetRange {
    TargetRange::new(TargetAddr::new(attached.base), attached.bytes).unwrap()
}

fn serve(userfault: &Userfault, served: &AtomicU64, stop: &EventFd) {
    let mut reader = EventReader::new(64);
    let zeros = [0_u8; 4096];
    loop {
        let mut fds = [
            PollFd::new(userfault.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        if fds[1].any() == Some(true) {
            return;
        }
        let read = reader.read(userfault, |event| {
            let TargetEvent::Fault { addr, .. } = event else {
                panic!("{event:?}");
            };
            let page = TargetRange::new(addr, 4096).unwrap();
            // SAFETY: `zeros` is as long as the range.
            let filled = unsafe { userfault.copy(page, zeros.as_ptr(), Wake::Now) };
            if filled == Filled::Exists {
                userfault.wake(page).unwrap();
            }
            served.fetch_add(1, Ordering::Relaxed);
        });
        if read.is_err()
            || fds[0]
                .revents()
                .is_some_and(|r| r.contains(PollFlags::POLLHUP))
        {
            return;
        }
    }
}

/// Serves `faults` faults, reads one more, and is killed without having answered it.
pub fn serve_until_killed(attached: &Attached, faults: u64, start: impl FnOnce()) -> ! {
    let userfault = userfault(attached);
    userfault.handshake(FeatureSet::NONE).unwrap();
    userfault.register(range(attached), Watch::Missing).unwrap();
    start();
    let mut reader = EventReader::new(1);
    let mut served = 0;
    loop {
        let mut fds = [PollFd::new(userfault.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        reader
            .read(&userfault, |event| {
                let TargetEvent::Fault { addr, .. } = event else {
                    panic!("{event:?}");
                };
                if served == faults {
                    nix::sys::signal::kill(
                        nix::unistd::Pid::this(),
                        nix::sys::signal::Signal::SIGKILL,
                    )
                    .unwrap();
                }
                userfault.zero(TargetRange::new(addr, 4096).unwrap(), Wake::Now);
                served += 1;
            })
            .unwrap();
    }
}
