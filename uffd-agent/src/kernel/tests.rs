//! Each primitive on the running kernel, and the ways around what older kernels lack.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{ByteCount, PAGE_BYTES, PageCount, PageIndex};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

/// Longest wait for an event that must come; only a failing test gets that far.
const PATIENCE_MS: u16 = 10_000;

/// A memfd, its mapping in this process, and the userfaultfd that watches it.
struct Watched {
    file: MemoryFile,
    mapping: Arc<Mapping>,
    range: TargetRange,
    userfault: Arc<Userfault>,
}

fn watched(pages: u32, features: &[Feature]) -> Watched {
    let bytes = PageCount::new(pages).bytes();
    let file = MemoryFile::create(c"mycoram-test", bytes).expect("a memfd");
    let mapping = Arc::new(Mapping::shared(file.as_fd(), bytes.as_usize()).expect("a mapping"));
    let range = TargetRange::new(TargetAddr::new(mapping.as_ptr() as u64), bytes.get())
        .expect("whole pages");
    let userfault = Userfault::new_in_this_process().expect(
        "these tests need a userfaultfd: run them as root or set vm.unprivileged_userfaultfd=1",
    );
    userfault
        .handshake(FeatureSet::of(features).with(Feature::MissingShmem))
        .expect("features of Linux 6.1");
    userfault
        .register(range, Watch::Missing)
        .expect("a memfd can be watched");
    Watched {
        file,
        mapping,
        range,
        userfault: Arc::new(userfault),
    }
}

impl Watched {
    fn page(&self, page: u32) -> TargetRange {
        self.pages(page, 1)
    }

    fn pages(&self, page: u32, count: u32) -> TargetRange {
        self.range
            .slice(PageIndex::new(page), PageCount::new(count))
            .expect("inside")
    }

    fn copy(&self, page: u32, bytes: &[u8]) -> Filled {
        let count = (bytes.len() / PAGE_BYTES) as u32;
        // SAFETY: the source is a borrowed slice as long as the range.
        unsafe {
            self.userfault
                .copy(self.pages(page, count), bytes.as_ptr(), Wake::Now)
        }
    }

    /// Reads the first byte of a page the way a program does: it may fault.
    fn touch(&self, page: u32) -> u8 {
        touch(&self.mapping, page)
    }

    /// A thread that reads the first byte of `page` and tells it.
    fn toucher(&self, page: u32) -> (thread::JoinHandle<()>, mpsc::Receiver<u8>) {
        let (tell, told) = mpsc::channel();
        let mapping = Arc::clone(&self.mapping);
        let handle = thread::spawn(move || {
            let _ = tell.send(touch(&mapping, page));
        });
        (handle, told)
    }

    /// Waits until at least one event is there, and answers all that are.
    fn events(&self) -> Vec<TargetEvent> {
        let mut reader = EventReader::new(16);
        let mut events = Vec::new();
        while events.is_empty() {
            let mut fds = [PollFd::new(self.userfault.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::from(PATIENCE_MS)).expect("poll");
            assert!(ready > 0, "no event came");
            reader
                .read(&self.userfault, |event| events.push(event))
                .expect("known events");
        }
        events
    }

    fn fault(&self) -> (u32, i32) {
        match self.events().as_slice() {
            [TargetEvent::Fault { addr, tid, .. }] => {
                (self.range.page_at(*addr).expect("inside").get(), *tid)
            }
            other => panic!("one fault was expected: {other:?}"),
        }
    }
}

fn touch(mapping: &Mapping, page: u32) -> u8 {
    let mut byte = [0];
    mapping
        .copy_out(page as usize * PAGE_BYTES, &mut byte)
        .expect("inside");
    byte[0]
}

fn page_of(byte: u8) -> Vec<u8> {
    vec![byte; PAGE_BYTES]
}

fn null_sink() -> File {
    File::options()
        .write(true)
        .open("/dev/null")
        .expect("/dev/null")
}

#[test]
fn the_probe_tells_what_this_kernel_has() {
    let features = KernelFeatures::probe().expect("a userfaultfd");
    assert!(features.has(Feature::MissingShmem) && features.has(Feature::EventRemove));
    assert!(features.system_call == Way::Open || features.device == Way::Open);
    let since_6_6 = KernelRelease { major: 6, minor: 6 };
    assert_eq!(features.has(Feature::Poison), features.release >= since_6_6);
}

#[test]
fn a_fault_is_told_and_a_copy_ends_it() {
    let w = watched(4, &[Feature::ThreadId]);
    let (thread, told) = w.toucher(2);
    let (page, tid) = w.fault();
    assert_eq!(page, 2);
    assert!(tid > 0 && tid != i32::try_from(std::process::id()).expect("a pid"));
    assert_eq!(w.copy(2, &page_of(7)), Filled::Done);
    assert_eq!(told.recv().expect("the thread goes on"), 7);
    thread.join().expect("no panic");
    assert!(w.file.has_data(PageIndex::new(2)).expect("seek"));
    assert!(!w.file.has_data(PageIndex::new(1)).expect("seek"));
}

#[test]
fn nothing_waiting_is_no_events_and_no_error() {
    let w = watched(1, &[]);
    assert_eq!(EventReader::new(8).read(&w.userfault, |_| ()), Ok(0));
}

#[test]
fn many_faults_come_in_one_read_and_one_wake_ends_them() {
    let w = watched(8, &[]);
    let threads: Vec<_> = (0..8).map(|page| w.toucher(page)).collect();
    let mut seen = 0;
    while seen < threads.len() {
        seen += w.events().len();
    }
    for page in 0..8 {
        let bytes = page_of(page as u8 + 1);
        // SAFETY: the source is a page long.
        let answer = unsafe { w.userfault.copy(w.page(page), bytes.as_ptr(), Wake::Later) };
        assert_eq!(answer, Filled::Done);
    }
    w.userfault.wake(w.range).expect("wake");
    for (page, (thread, told)) in threads.into_iter().enumerate() {
        assert_eq!(told.recv().expect("woken") as usize, page + 1);
        thread.join().expect("no panic");
    }
}

#[test]
fn a_page_that_is_there_is_not_overwritten() {
    let w = watched(4, &[]);
    assert_eq!(w.copy(1, &page_of(1)), Filled::Done);
    assert_eq!(w.copy(1, &page_of(2)), Filled::Exists);
    // A run stops in front of it and says how far it came.
    assert_eq!(
        w.copy(0, &[3; 3 * PAGE_BYTES]),
        Filled::Again {
            pages: PageCount::new(1)
        }
    );
    assert_eq!(w.copy(1, &[3; 2 * PAGE_BYTES]), Filled::Exists);
    assert_eq!(w.userfault.zero(w.page(2), Wake::Now), Filled::Done);
    assert_eq!(w.userfault.zero(w.page(2), Wake::Now), Filled::Exists);
    assert_eq!((w.touch(0), w.touch(1), w.touch(2)), (3, 1, 0));
}

#[test]
fn a_copy_waits_until_a_removal_was_read() {
    let w = watched(4, &[Feature::EventRemove]);
    assert_eq!(w.copy(0, &page_of(1)), Filled::Done);
    let mapping = Arc::clone(&w.mapping);
    let remover = thread::spawn(move || {
        // SAFETY: the range is this test's mapping, into which no reference exists.
        unsafe { libc::madvise(mapping.as_ptr().cast(), PAGE_BYTES, libc::MADV_REMOVE) }
    });
    let mut fds = [PollFd::new(w.userfault.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(PATIENCE_MS)), Ok(1));
    // The event is unread: nothing may be filled, and the count is none, not a huge one.
    assert_eq!(
        w.copy(2, &[5; 2 * PAGE_BYTES]),
        Filled::Again {
            pages: PageCount::new(0)
        }
    );
    match w.events().as_slice() {
        [TargetEvent::Remove { start, end }] => {
            assert_eq!(
                w.range.overlap(*start, *end),
                Some((PageIndex::new(0), PageCount::new(1)))
            );
        }
        other => panic!("one removal was expected: {other:?}"),
    }
    assert_eq!(remover.join().expect("no panic"), 0);
    // The target clears its mark of a change only after it went on, so the copy may need another try.
    let filled = (0..10_000)
        .map(|_| w.copy(2, &[5; 2 * PAGE_BYTES]))
        .find(|filled| !matches!(filled, Filled::Again { .. }));
    assert_eq!(filled, Some(Filled::Done));
}

#[test]
fn what_is_unmapped_is_gone() {
    let w = watched(4, &[]);
    let nowhere = TargetRange::new(TargetAddr::new(1 << 32), 4096).expect("a page");
    let bytes = page_of(1);
    // SAFETY: the source is a page long; the kernel refuses the destination.
    let answer = unsafe { w.userfault.copy(nowhere, bytes.as_ptr(), Wake::Now) };
    assert_eq!(answer, Filled::Gone(Gone::Range));
    w.userfault.unregister(w.range).expect("it was registered");
    assert!(matches!(w.copy(0, &bytes), Filled::Gone(Gone::Range)));
    assert_eq!(w.touch(0), 0, "what is not watched reads as zeros");
}

#[test]
fn a_source_that_cannot_be_read_is_refused() {
    let w = watched(1, &[]);
    // SAFETY: the kernel reads the source, and refuses to.
    let answer = unsafe { w.userfault.copy(w.range, 4096 as *const u8, Wake::Now) };
    assert_eq!(answer, Filled::Refused(Errno::EFAULT));
}

#[test]
fn a_userfaultfd_takes_one_handshake_and_one_watcher() {
    let fresh = Userfault::new_in_this_process().expect("a userfaultfd");
    assert!(!fresh.is_set_up());
    let unknown = FeatureSet::from_bits(1 << 63);
    assert_eq!(
        fresh.handshake(unknown),
        Err(HandshakeError::Unsupported { asked: unknown })
    );
    fresh.handshake(FeatureSet::NONE).expect("the plain one");
    assert!(fresh.is_set_up());
    assert_eq!(
        fresh.handshake(FeatureSet::NONE),
        Err(HandshakeError::AlreadyMade)
    );
    let w = watched(2, &[]);
    assert!(matches!(
        fresh.register(w.range, Watch::Missing),
        Err(RegisterError::Busy { .. })
    ));
    let nowhere = TargetRange::new(TargetAddr::new(1 << 32), 4096).expect("a page");
    assert!(matches!(
        fresh.register(nowhere, Watch::Missing),
        Err(RegisterError::NotPageable { .. })
    ));
}

#[test]
fn only_a_userfaultfd_is_received_as_one() {
    let pipe = ParkingPipe::new(PageCount::new(1)).expect("a pipe");
    let not_one = pipe.out_end().try_clone_to_owned().expect("dup");
    assert!(matches!(
        Userfault::from_received(not_one),
        Err(ReceiveError::NotUserfault)
    ));
    let w = watched(1, &[]);
    let second = w.userfault.try_clone_fd().expect("dup");
    let received = Userfault::from_received(second).expect("it is one");
    assert!(received.is_set_up());
}

#[test]
fn a_device_that_was_handed_over_makes_userfaultfds() {
    match UserfaultDevice::open() {
        Ok(device) => {
            let handed =
                UserfaultDevice::from_received(device.as_fd().try_clone_to_owned().expect("dup"));
            let userfault = Userfault::new_from_device(&handed).expect("no rights are needed");
            userfault.handshake(FeatureSet::NONE).expect("handshake");
        }
        Err(e) => assert!(
            std::env::var_os("CI").is_none(),
            "/dev/userfaultfd (Linux 6.1, root) is needed for this test: {e}"
        ),
    }
    let null = UserfaultDevice::from_received(OwnedFd::from(null_sink()));
    assert!(matches!(
        null.create(),
        Err(OpenUserfaultError::NotTheDevice)
    ));
}

#[test]
fn a_poisoned_page_fails_a_system_call_and_a_sound_one_does_not() {
    let features = KernelFeatures::probe().expect("a userfaultfd");
    let w = watched(2, &[]);
    if !features.has(Feature::Poison) {
        assert_eq!(w.userfault.poison(w.page(0)), Poisoned::Unsupported);
        return;
    }
    let w = watched(2, &[Feature::Poison]);
    assert_eq!(w.copy(1, &page_of(9)), Filled::Done);
    assert_eq!(w.userfault.poison(w.page(0)), Poisoned::Done);
    assert_eq!(w.userfault.poison(w.page(1)), Poisoned::Exists);
    let (out, into) = nix::unistd::pipe().expect("a pipe");
    let write = |page: usize| {
        // SAFETY: the kernel reads the mapping; a poisoned page is its EFAULT.
        let n = unsafe {
            libc::write(
                into.as_raw_fd(),
                w.mapping.as_ptr().add(page * PAGE_BYTES).cast(),
                PAGE_BYTES,
            )
        };
        Errno::result(n)
    };
    assert_eq!(write(0), Err(Errno::EFAULT));
    assert_eq!(write(1), Ok(PAGE_BYTES as isize));
    drop(out);
}

#[test]
fn punched_pages_fault_again_and_the_kernel_counts_them_out() {
    let w = watched(8, &[]);
    assert_eq!(w.copy(0, &[1; 8 * PAGE_BYTES]), Filled::Done);
    assert_eq!(
        w.file.resident_bytes().expect("stat"),
        ByteCount::new(8 * 4096)
    );
    w.file
        .punch(PageIndex::new(2), PageCount::new(3))
        .expect("punch");
    assert_eq!(
        w.file.resident_bytes().expect("stat"),
        ByteCount::new(5 * 4096)
    );
    let extents: Vec<_> = w
        .file
        .resident_extents(PageIndex::new(1))
        .collect::<Result<_, _>>()
        .expect("seek");
    let extent = |page, pages| ResidentExtent {
        page: PageIndex::new(page),
        pages: PageCount::new(pages),
    };
    assert_eq!(extents, [extent(1, 1), extent(5, 3)]);
    let (thread, told) = w.toucher(3);
    assert_eq!(w.fault().0, 3);
    assert_eq!(w.userfault.zero(w.page(3), Wake::Now), Filled::Done);
    assert_eq!(told.recv().expect("woken"), 0);
    thread.join().expect("no panic");
}

#[test]
fn reading_a_hole_fills_nothing() {
    let file = MemoryFile::create(c"mycoram-test", ByteCount::mib(1)).expect("a memfd");
    let mut page = [1; PAGE_BYTES];
    file.read_page(PageIndex::new(7), &mut page).expect("pread");
    assert_eq!(page, [0; PAGE_BYTES]);
    assert_eq!(file.resident_bytes().expect("stat"), ByteCount::new(0));
    assert_eq!(file.resident_extents(PageIndex::new(0)).count(), 0);
}

#[test]
fn a_region_file_keeps_its_size_and_must_be_memory() {
    let file = MemoryFile::create(c"mycoram-test", ByteCount::mib(1)).expect("a memfd");
    assert!(file.size_is_sealed());
    assert_eq!(nix::unistd::ftruncate(&file, 0), Err(Errno::EPERM));
    assert!(matches!(
        MemoryFile::create(c"mycoram-test", ByteCount::new(5)),
        Err(MemoryFileError::Size { bytes: 5 })
    ));
    assert!(matches!(
        MemoryFile::from_fd(null_sink().into()),
        Err(MemoryFileError::NotMemory)
    ));
    let pipe = ParkingPipe::new(PageCount::new(1)).expect("a pipe");
    let end = pipe.out_end().try_clone_to_owned().expect("dup");
    assert!(matches!(
        MemoryFile::from_fd(end),
        Err(MemoryFileError::NotMemory)
    ));
}

#[test]
fn a_parked_page_keeps_its_last_bytes_after_the_punch() {
    let w = watched(4, &[]);
    for page in 0..4 {
        assert_eq!(w.copy(page, &page_of(page as u8 + 1)), Filled::Done);
    }
    let pipe = ParkingPipe::new(PageCount::new(16)).expect("a pipe");
    let all = PageCount::new(4);
    assert_eq!(
        pipe.park(&w.file, PageIndex::new(0), all),
        Ok(Park::Pages(all))
    );
    // Written after the splice and before the punch: the last chance, and it counts.
    w.mapping.copy_in(2 * PAGE_BYTES, &[77]).expect("inside");
    w.file.punch(PageIndex::new(0), all).expect("punch");
    assert_eq!(w.file.resident_bytes().expect("stat"), ByteCount::new(0));
    assert_eq!(pipe.queued(), Ok(all));
    let mut page = [0; PAGE_BYTES];
    for first in [1, 2, 77, 4] {
        assert_eq!(pipe.take(&mut page), Ok(true));
        assert_eq!(page[0], first);
    }
    assert_eq!(pipe.take(&mut page), Ok(false));
}

#[test]
fn a_parked_page_can_be_seen_at_its_slot_and_let_go() {
    let w = watched(8, &[]);
    for page in 0..8 {
        assert_eq!(w.copy(page, &page_of(page as u8 + 1)), Filled::Done);
    }
    let pipe = ParkingPipe::new(PageCount::new(8)).expect("a pipe");
    let scratch = ParkingPipe::new(PageCount::new(8)).expect("a pipe");
    let sink = null_sink();
    let all = PageCount::new(8);
    assert_eq!(
        pipe.park(&w.file, PageIndex::new(0), all),
        Ok(Park::Pages(all))
    );
    assert_eq!(
        pipe.park(&w.file, PageIndex::new(0), all),
        Ok(Park::Full),
        "8 slots hold 8 pages"
    );
    let mut page = [0; PAGE_BYTES];
    for slot in [5, 0, 7] {
        pipe.peek(slot, &scratch, sink.as_fd(), &mut page)
            .expect("a slot in use");
        assert_eq!(page[PAGE_BYTES - 1], slot as u8 + 1);
        assert_eq!(scratch.queued(), Ok(PageCount::new(0)));
    }
    assert_eq!(
        pipe.peek(8, &scratch, sink.as_fd(), &mut page),
        Err(ParkingError::NoSuchSlot { slot: 8, queued: 8 })
    );
    assert_eq!(scratch.queued(), Ok(PageCount::new(0)));
    assert_eq!(
        pipe.drop_oldest(PageCount::new(6), sink.as_fd()),
        Ok(PageCount::new(6))
    );
    assert_eq!(pipe.queued(), Ok(PageCount::new(2)));
    assert_eq!(
        pipe.drop_oldest(PageCount::new(6), sink.as_fd()),
        Ok(PageCount::new(2))
    );
}

#[test]
fn holes_are_parked_as_zeros_and_stay_holes() {
    let file = MemoryFile::create(c"mycoram-test", ByteCount::new(4 * 4096)).expect("a memfd");
    let pipe = ParkingPipe::new(PageCount::new(4)).expect("a pipe");
    let mut parked = 0;
    while parked < 4 {
        match pipe.park(&file, PageIndex::new(parked), PageCount::new(4 - parked)) {
            Ok(Park::Pages(pages)) => parked += pages.get(),
            other => panic!("a hole is a page of zeros: {other:?}"),
        }
    }
    assert_eq!(file.resident_bytes().expect("stat"), ByteCount::new(0));
    let mut page = [1; PAGE_BYTES];
    assert_eq!(pipe.take(&mut page), Ok(true));
    assert_eq!(page, [0; PAGE_BYTES]);
}

#[test]
fn only_the_two_ends_of_one_pipe_make_a_parking_pipe() {
    let (a, b) = (
        ParkingPipe::new(PageCount::new(4)).expect("a pipe"),
        ParkingPipe::new(PageCount::new(4)).expect("a pipe"),
    );
    let dup = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().expect("dup");
    let again = ParkingPipe::from_ends(dup(a.out_end()), dup(a.into_end())).expect("same pipe");
    assert_eq!(again.slots(), a.slots());
    for (out, into) in [
        (a.out_end(), b.into_end()),
        (a.into_end(), a.out_end()),
        (a.out_end(), a.out_end()),
    ] {
        assert!(matches!(
            ParkingPipe::from_ends(dup(out), dup(into)),
            Err(ParkingError::NotPipe)
        ));
    }
    nix::unistd::write(a.into_end(), b"abc").expect("room");
    assert!(matches!(
        ParkingPipe::from_ends(dup(a.out_end()), dup(a.into_end())),
        Err(ParkingError::NotPages { bytes: 3 })
    ));
}

/// A child of this test, ended and reaped whatever happens.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_is_held_and_its_end_is_seen() {
    let child = Command::new("sleep")
        .arg("600")
        .stdin(Stdio::null())
        .spawn()
        .expect("sleep");
    let mut child = Ended(child);
    let pid = i32::try_from(child.0.id()).expect("a pid");
    let held = PidFd::open(pid).expect("it lives");
    assert_eq!(held.has_ended(), Ok(false));
    let stdin = held.take_descriptor(0).expect("its standard input");
    drop(stdin);
    assert_eq!(
        held.take_descriptor(999).map(|_| ()),
        Err(PidFdError::NoDescriptor { pid, fd: 999 })
    );
    assert_eq!(held.signal(libc::SIGKILL), Ok(true));
    let mut fds = [PollFd::new(held.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(PATIENCE_MS)), Ok(1));
    assert_eq!(held.has_ended(), Ok(true));
    child.0.wait().expect("reaped");
    assert_eq!(held.signal(libc::SIGKILL), Ok(false));
    assert_eq!(
        PidFd::open(pid).map(|_| ()),
        Err(PidFdError::NoProcess { pid })
    );
}

#[test]
fn own_memory_can_be_locked_and_kept_from_huge_pages() {
    let mapping = Arc::new(Mapping::anonymous(4 * PAGE_BYTES).expect("memory"));
    let range = TargetRange::new(
        TargetAddr::new(mapping.as_ptr() as u64),
        mapping.len() as u64,
    )
    .expect("pages");
    // SAFETY: the mapping is ours and outlives the call.
    unsafe { forbid_huge_pages(range) }.expect("advice");
    let lock = MemoryLock::of(Arc::clone(&mapping)).expect("4 pages are within any limit");
    drop(lock);
    let _ = shmem_huge_pages();
}

/// What the process of a lost-page test does with SIGBUS.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Default,
    Blocked,
    InSystemCall,
}

/// Forks a process that maps `w`'s file through a userfaultfd of its own and touches page 0, hands that
/// userfaultfd back through `socket`, and answers its pid.
fn lost_page_target(manner: Manner) -> (nix::unistd::Pid, Userfault, TargetRange) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let file = MemoryFile::create(c"mycoram-test", ByteCount::new(4096)).expect("a memfd");
    let mapping = Mapping::shared(file.as_fd(), PAGE_BYTES).expect("a mapping");
    let range = TargetRange::new(TargetAddr::new(mapping.as_ptr() as u64), 4096).expect("a page");
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("a socket pair");
    let (_pipe_out, pipe_in) = nix::unistd::pipe().expect("a pipe");
    let start = mapping.as_ptr();
    // SAFETY: the child calls nothing but system calls (no allocation, no lock) until it ends.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        nix::unistd::ForkResult::Child => {
            // SAFETY: as above; each call takes numbers or live addresses.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as libc::c_int;
                if manner == Manner::Blocked {
                    let mut set = std::mem::zeroed();
                    libc::sigemptyset(&raw mut set);
                    libc::sigaddset(&raw mut set, libc::SIGBUS);
                    libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
                } else {
                    // Test binaries may have a handler for stack overflow on SIGBUS.
                    libc::signal(libc::SIGBUS, libc::SIG_DFL);
                }
                let bytes = fd.to_ne_bytes();
                libc::write(theirs.as_raw_fd(), bytes.as_ptr().cast(), 4);
                let mut go = [0_u8; 1];
                libc::read(theirs.as_raw_fd(), go.as_mut_ptr().cast(), 1);
                if manner == Manner::InSystemCall {
                    libc::write(pipe_in.as_raw_fd(), start.cast(), 1);
                } else {
                    std::ptr::read_volatile(start);
                }
                libc::_exit(0);
            }
        }
        nix::unistd::ForkResult::Parent { child } => {
            let mut bytes = [0; 4];
            nix::unistd::read(&ours, &mut bytes).expect("the child's descriptor");
            let held = PidFd::open(child.as_raw()).expect("it lives");
            let fd = held
                .take_descriptor(i32::from_ne_bytes(bytes))
                .expect("its userfaultfd");
            let userfault = Userfault::from_received(fd).expect("a userfaultfd");
            userfault
                .handshake(FeatureSet::of(&[Feature::ThreadId, Feature::MissingShmem]))
                .expect("handshake");
            userfault
                .register(range, Watch::Missing)
                .expect("its mapping");
            nix::unistd::write(&ours, b"g").expect("go");
            (child, userfault, range)
        }
    }
}

/// Serves the faults of a lost page by signals, as on Linux 6.1, until the process has ended.
fn strike_until_ended(manner: Manner) -> (Vec<Struck>, nix::sys::wait::WaitStatus) {
    let (pid, userfault, range) = lost_page_target(manner);
    let mut stand_in = SigbusStandIn::new(PidFd::open(pid.as_raw()).expect("it lives"));
    let watch = PidFd::open(pid.as_raw()).expect("it lives");
    let mut reader = EventReader::new(4);
    let mut struck = Vec::new();
    loop {
        let mut fds = [
            PollFd::new(userfault.as_fd(), PollFlags::POLLIN),
            PollFd::new(watch.as_fd(), PollFlags::POLLIN),
        ];
        let ready = poll(&mut fds, PollTimeout::from(PATIENCE_MS)).expect("poll");
        assert!(ready > 0, "the target hangs after {struck:?}");
        if watch.has_ended().expect("poll") {
            let status = nix::sys::wait::waitpid(pid, None).expect("reaped");
            return (struck, status);
        }
        reader
            .read(&userfault, |event| {
                if let TargetEvent::Fault { addr, tid, .. } = event {
                    struck.push(stand_in.strike(Some(tid), addr).expect("may signal"));
                }
            })
            .expect("events");
        let _ = userfault.wake(range);
        thread::yield_now();
    }
}

#[test]
fn without_poison_a_thread_at_a_lost_page_gets_sigbus() {
    let (struck, status) = strike_until_ended(Manner::Default);
    assert_eq!(struck.first(), Some(&Struck::Thread));
    assert!(
        matches!(
            status,
            nix::sys::wait::WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGBUS, _)
        ),
        "{status:?}"
    );
}

#[test]
fn without_poison_a_thread_that_blocks_sigbus_does_not_hang() {
    let (struck, status) = strike_until_ended(Manner::Blocked);
    assert_eq!(struck.first(), Some(&Struck::Process));
    assert!(matches!(
        status,
        nix::sys::wait::WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGKILL, _)
    ));
}

#[test]
fn without_poison_a_system_call_on_a_lost_page_does_not_hang() {
    let (struck, status) = strike_until_ended(Manner::InSystemCall);
    assert!(!struck.is_empty());
    assert!(
        matches!(status, nix::sys::wait::WaitStatus::Signaled(..)),
        "{status:?}"
    );
}

#[test]
fn a_successor_wakes_faults_that_its_predecessor_had_read() {
    let w = watched(2, &[]);
    let (thread, told) = w.toucher(1);
    assert_eq!(w.fault().0, 1);
    // The predecessor dies here: it has read the fault, and nobody else is told of it.
    let successor =
        Userfault::from_received(w.userfault.try_clone_fd().expect("dup")).expect("a userfaultfd");
    assert!(told.recv_timeout(Duration::from_millis(20)).is_err());
    successor.wake(w.range).expect("wake");
    assert_eq!(w.fault().0, 1, "woken, it faults again");
    assert_eq!(w.copy(1, &page_of(4)), Filled::Done);
    assert_eq!(told.recv().expect("served"), 4);
    thread.join().expect("no panic");
}
