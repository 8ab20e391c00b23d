//! Private memory of a process that serves itself: pages leave by a move.

mod support;

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use mycoram_agent::Region;
use mycoram_fabric::units::PAGE_BYTES;
use support::Dice;
use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach_private, config};

const PAGES: u32 = 2048;
const BUDGET: u64 = 256;

fn served(name: &str, workers: u8) -> Option<(LocalTarget, Region, tempfile::TempDir)> {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::private(PAGES);
    let mut config = config(name, dir.path(), BUDGET);
    config.fault_workers = workers;
    let region = attach_private(&target, FakeRemote::new(PAGES, 1), config)?;
    Some((target, region, dir))
}

/// Pushes everything out that may leave: goes twice over all pages but the first few.
fn push(target: &LocalTarget, from: u32) {
    for _ in 0..2 {
        for page in from..PAGES {
            target.fill(page, 7);
        }
    }
}

#[test]
fn many_threads_find_what_they_wrote_and_the_budget_holds() {
    for workers in [1, 2] {
        let Some((target, region, _dir)) = served("threads", workers) else {
            return;
        };
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let target = &target;
                scope.spawn(move || {
                    let mut dice = Dice::new(u64::from(thread));
                    let mut values = vec![None; PAGES as usize];
                    for round in 0..8000_u64 {
                        let page = dice.below(u64::from(PAGES / 4)) as u32 * 4 + thread;
                        match values[page as usize] {
                            Some(value) => target.check(page, value),
                            None => assert_eq!(target.word(page, 1).load(Ordering::Relaxed), 0),
                        }
                        if dice.below(2) == 0 {
                            target.fill(page, round);
                            values[page as usize] = Some(round);
                        }
                    }
                });
            }
        });
        let resident = target.private_bytes();
        assert!(resident <= BUDGET * PAGE_BYTES as u64, "{resident} bytes");
        let stats = region.stats();
        assert!(stats.evictions > 4000 && stats.lost == 0, "{stats:?}");
        region.flush().expect("flushed");
        region.end();
    }
}

#[test]
fn a_page_that_is_pinned_stays() {
    let Some((target, region, dir)) = served("pinned", 1) else {
        return;
    };
    target.fill(0, 1);
    let at: *const _ = target.word(0, 0);
    let mut ring = IoUring::new(4).expect("a ring");
    let page = libc::iovec {
        iov_base: at.cast_mut().cast(),
        iov_len: PAGE_BYTES,
    };
    // SAFETY: a page of the target, which outlives the ring.
    unsafe { ring.submitter().register_buffers(&[page]) }.expect("registered");
    push(&target, 1);
    assert!(region.stats().evictions > 1000);

    // The kernel writes into the page that it pinned. Had the page left, the program would not see it.
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(dir.path().join("file"))
        .expect("a file");
    file.write_all(&[0x5a; PAGE_BYTES]).expect("written");
    file.seek(SeekFrom::Start(0)).expect("at the start");
    let read = opcode::ReadFixed::new(
        types::Fd(file.as_raw_fd()),
        at.cast_mut().cast(),
        PAGE_BYTES as u32,
        0,
    );
    // SAFETY: the buffer is registered, and lives.
    unsafe { ring.submission().push(&read.build()) }.expect("room");
    ring.submit_and_wait(1).expect("read");
    let done = ring.completion().next().expect("one completion");
    assert_eq!(done.result(), PAGE_BYTES as i32);
    assert_eq!(target.byte(0, 77).load(Ordering::Relaxed), 0x5a);
    push(&target, 1);
    assert_eq!(target.byte(0, 77).load(Ordering::Relaxed), 0x5a);

    // Nobody has it pinned any more: it leaves like any other.
    drop(ring);
    let deadline = Instant::now() + Duration::from_secs(30);
    while target.is_present(0) {
        assert!(Instant::now() < deadline, "the page never leaves");
        push(&target, 1);
    }
    assert_eq!(target.byte(0, 77).load(Ordering::Relaxed), 0x5a);
    region.end();
}

/// A pipe that was given a page by reference goes on holding what it was given.
#[test]
fn what_a_pipe_holds_of_a_page_is_not_used_for_another() {
    let Some((target, region, _dir)) = served("pipe", 1) else {
        return;
    };
    target.fill(0, 1);
    let (read, write) = nix::unistd::pipe().expect("a pipe");
    let page = libc::iovec {
        iov_base: std::ptr::from_ref(target.word(0, 0)).cast_mut().cast(),
        iov_len: PAGE_BYTES,
    };
    // SAFETY: one page of the target.
    let given = unsafe { libc::vmsplice(write.as_raw_fd(), &raw const page, 1, 0) };
    assert_eq!(given, PAGE_BYTES as isize);
    push(&target, 1);
    target.check(0, 1);
    let mut bytes = [0; PAGE_BYTES];
    std::fs::File::from(read)
        .read_exact(&mut bytes)
        .expect("a page");
    for at in [0, 1, 255, 511] {
        let word = u64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("8 bytes"));
        assert_eq!(word, support::local_target::pattern(0, 1, at));
    }
    region.end();
}

#[test]
fn what_is_thrown_away_reads_as_zeros() {
    let Some((target, region, _dir)) = served("discard", 2) else {
        return;
    };
    push(&target, 0);
    let mut dice = Dice::new(3);
    for round in 0..4000 {
        let page = dice.below(u64::from(PAGES)) as u32;
        target.discard(page, 1);
        assert_eq!(
            target.word(page, 1).load(Ordering::Relaxed),
            0,
            "page {page}, round {round}"
        );
        if dice.below(2) == 0 {
            target.fill(page, round);
        }
    }
    assert!(region.stats().discarded > 3000);
    region.end();
}

#[test]
fn it_goes_on_where_it_was_moved_to_and_ends_where_it_ended() {
    let Some((mut target, region, _dir)) = served("moved", 1) else {
        return;
    };
    push(&target, 0);
    target.move_mapping();
    let bytes = PAGES as usize * PAGE_BYTES;
    let parts = region.places().parts();
    assert_eq!(parts.len(), 1);
    assert_eq!(parts[0].0, target.mapping.as_ptr() as u64);
    for page in 0..PAGES {
        target.check(page, 7);
    }

    // Grown, where there is room: behind the end there is nothing, not even zeros, and nobody hangs.
    // SAFETY: a place for twice the mapping, taken and left again, so that growing finds room.
    let room = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            2 * bytes,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(room, libc::MAP_FAILED);
    // SAFETY: the mapping is the test's, and goes to the room that was taken for it.
    let grown = unsafe {
        libc::mremap(
            target.mapping.as_ptr().cast(),
            bytes,
            2 * bytes,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            room,
        )
    };
    assert_eq!(grown, room);
    let mut word = 0_u64;
    let local = libc::iovec {
        iov_base: (&raw mut word).cast(),
        iov_len: 8,
    };
    for (page, there) in [
        (0, true),
        (PAGES - 1, true),
        (PAGES, false),
        (PAGES + 9, false),
    ] {
        let remote = libc::iovec {
            iov_base: grown.wrapping_byte_add(page as usize * PAGE_BYTES),
            iov_len: 8,
        };
        // SAFETY: one word; the kernel checks the other address.
        let got = unsafe {
            libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
        };
        assert_eq!(got == 8, there, "page {page}: {got}");
    }
    region.end();
    let LocalTarget { uffd, mapping, .. } = target;
    // Unmapping what has grown would wait for somebody to read of it, while this is open.
    drop(uffd);
    // SAFETY: the test's own mapping, which `mapping` knows at its old place only.
    unsafe { libc::munmap(grown, 2 * bytes) };
    std::mem::forget(mapping);
}
