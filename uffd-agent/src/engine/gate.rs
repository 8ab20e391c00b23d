//! Keeps the reading of discards apart from what discards would undo.
//!
//! The target goes on with its discard as soon as its event has been read. From then on, until the event
//! has been applied to the page table, nobody may act on what the table says of the page:
//!
//! ```text
//!   reader    [ read events ... apply removals ]
//!   changer                                      [ look at the word, then COPY ]
//!   changer                                      [ look at the word, then PUNCH ]
//! ```
//!
//! * A copy of old content that lands behind the target's discard would bring it back.
//! * A punch behind the target's discard would take what the target has written since.
//!
//! One flag for each thread, set by it alone. Readers wait for the changers of that moment, which are one
//! system call long; changers step back when there is a reader. So readers, which faults wait for, go
//! first. Nobody sleeps in here; who waits yields its CPU.

use std::sync::atomic::{AtomicU32, Ordering, fence};

const OUT: u32 = 0;
const READING: u32 = 1;
const CHANGING: u32 = 2;
/// Looks before a waiter yields its CPU.
const SPINS: u32 = 200;

/// A cache line of its own for each flag.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Flag(AtomicU32);

/// One for each region. Threads are numbered by its owner.
#[derive(Debug)]
pub(crate) struct Gate {
    flags: Box<[Flag]>,
}

/// A section; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Section<'a>(&'a Flag);

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.0.0.store(OUT, Ordering::Release);
    }
}

impl Gate {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            flags: (0..threads).map(|_| Flag::default()).collect(),
        }
    }

    fn others_are(&self, thread: usize, what: u32) -> bool {
        self.flags
            .iter()
            .enumerate()
            .any(|(i, flag)| i != thread && flag.0.load(Ordering::SeqCst) == what)
    }

    fn wait_while(&self, thread: usize, what: u32) {
        let mut looks = 0_u32;
        while self.others_are(thread, what) {
            looks = looks.saturating_add(1);
            if looks < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Before reading events. A thread is in one section at a time.
    pub(crate) fn read(&self, thread: usize) -> Section<'_> {
        let flag = &self.flags[thread];
        flag.0.store(READING, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.wait_while(thread, CHANGING);
        Section(flag)
    }

    /// Waits until what had been read when it was called is applied. For who is none of the threads.
    pub(crate) fn after_readers(&self) {
        self.wait_while(self.flags.len(), READING);
    }

    /// Before looking at words in order to copy or to punch.
    pub(crate) fn change(&self, thread: usize) -> Section<'_> {
        let flag = &self.flags[thread];
        loop {
            flag.0.store(CHANGING, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !self.others_are(thread, READING) {
                return Section(flag);
            }
            flag.0.store(OUT, Ordering::SeqCst);
            self.wait_while(thread, READING);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;
    use std::sync::atomic::{AtomicI32, Ordering};

    #[test]
    fn readers_and_changers_never_meet() {
        let gate = Gate::new(4);
        let changers = AtomicI32::new(0);
        let readers = AtomicI32::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (gate, changers, readers) = (&gate, &changers, &readers);
                scope.spawn(move || {
                    for _ in 0..3000 {
                        if thread < 2 {
                            let _section = gate.read(thread);
                            readers.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(changers.load(Ordering::SeqCst), 0);
                            readers.fetch_sub(1, Ordering::SeqCst);
                        } else {
                            let _section = gate.change(thread);
                            changers.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(readers.load(Ordering::SeqCst), 0);
                            changers.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
    }
}
