//! The way of a fault worker's news to the evictor: a ring with one writer and one reader, without locks.
//!
//! The worker never waits. When the ring is full its news is dropped and counted; the evictor, which
//! sees the count, then walks the page table and admits what it does not know, so that no resident page
//! is forgotten for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mycoram_fabric::units::PageIndex;

/// What happened to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionKind {
    /// Became resident because it was asked for.
    Asked,
    /// Became resident before anybody asked for it.
    Ahead,
    /// Was asked for again while it was leaving, or was otherwise seen to be in use.
    Again,
    /// Is no longer resident, and was not picked: the target gave it back.
    Discarded,
    /// The target will not need it soon.
    NotSoon,
    /// Became resident with all others of the huge page that it is the first of.
    Huge,
}

impl AdmissionKind {
    const ALL: [Self; 6] = [
        Self::Asked,
        Self::Ahead,
        Self::Again,
        Self::Discarded,
        Self::NotSoon,
        Self::Huge,
    ];
}

/// A piece of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which page.
    pub page: PageIndex,
    /// What happened to it.
    pub kind: AdmissionKind,
}

impl Admission {
    fn pack(self) -> u64 {
        (self.kind as u64) << 32 | u64::from(self.page.get())
    }

    fn unpack(word: u64) -> Self {
        let kind = AdmissionKind::ALL
            .get((word >> 32) as usize)
            .copied()
            .unwrap_or(AdmissionKind::Asked);
        Self {
            page: PageIndex::new(word as u32),
            kind,
        }
    }
}

/// A counter on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Padded(AtomicUsize);

#[derive(Debug)]
struct Ring {
    slots: Box<[AtomicU64]>,
    /// How many were ever written; only the writer changes it.
    written: Padded,
    /// How many were ever read; only the reader changes it.
    read: Padded,
    dropped: AtomicU64,
}

/// The fault worker's end.
#[derive(Debug)]
pub struct AdmissionSender {
    ring: Arc<Ring>,
}

/// The evictor's end.
#[derive(Debug)]
pub struct AdmissionReceiver {
    ring: Arc<Ring>,
    seen_dropped: u64,
}

/// A ring for at least `capacity` pieces of news (8 bytes each). A budget's worth of pages is plenty.
#[must_use]
pub fn admission_ring(capacity: usize) -> (AdmissionSender, AdmissionReceiver) {
    let slots = (0..capacity.max(1).next_power_of_two())
        .map(|_| AtomicU64::new(0))
        .collect();
    let ring = Arc::new(Ring {
        slots,
        written: Padded::default(),
        read: Padded::default(),
        dropped: AtomicU64::new(0),
    });
    let sender = AdmissionSender {
        ring: Arc::clone(&ring),
    };
    let receiver = AdmissionReceiver {
        ring,
        seen_dropped: 0,
    };
    (sender, receiver)
}

impl AdmissionSender {
    /// Tells the evictor; never waits. `false`: there was no room, and the evictor will notice.
    pub fn push(&mut self, news: Admission) -> bool {
        let ring = &*self.ring;
        let written = ring.written.0.load(Ordering::Relaxed);
        let read = ring.read.0.load(Ordering::Acquire);
        if written.wrapping_sub(read) >= ring.slots.len() {
            ring.dropped.fetch_add(1, Ordering::Release);
            return false;
        }
        ring.slots[written & (ring.slots.len() - 1)].store(news.pack(), Ordering::Relaxed);
        ring.written
            .0
            .store(written.wrapping_add(1), Ordering::Release);
        true
    }
}

impl AdmissionReceiver {
    /// The oldest piece of news.
    pub fn pop(&mut self) -> Option<Admission> {
        let ring = &*self.ring;
        let read = ring.read.0.load(Ordering::Relaxed);
        if read == ring.written.0.load(Ordering::Acquire) {
            return None;
        }
        let word = ring.slots[read & (ring.slots.len() - 1)].load(Ordering::Relaxed);
        ring.read.0.store(read.wrapping_add(1), Ordering::Release);
        Some(Admission::unpack(word))
    }

    /// How much news was dropped since the last call. Not 0: walk the page table. Ask before draining.
    pub fn dropped(&mut self) -> u64 {
        let now = self.ring.dropped.load(Ordering::Acquire);
        let new = now - self.seen_dropped;
        self.seen_dropped = now;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::{Admission, AdmissionKind, admission_ring};
    use mycoram_fabric::units::PageIndex;

    fn news(page: u32) -> Admission {
        Admission {
            page: PageIndex::new(page),
            kind: AdmissionKind::ALL[page as usize % AdmissionKind::ALL.len()],
        }
    }

    #[test]
    fn news_arrives_in_order_and_a_full_ring_says_so() {
        let (mut sender, mut receiver) = admission_ring(3);
        for page in 0..4 {
            assert!(sender.push(news(page)));
        }
        assert!(!sender.push(news(4)));
        assert_eq!((receiver.dropped(), receiver.dropped()), (1, 0));
        for page in 0..4 {
            assert_eq!(receiver.pop(), Some(news(page)));
        }
        assert_eq!(receiver.pop(), None);
        assert!(sender.push(news(u32::MAX)));
        assert_eq!(receiver.pop(), Some(news(u32::MAX)));
    }

    #[test]
    fn two_threads_lose_and_invent_nothing() {
        const COUNT: u32 = 200_000;
        let (mut sender, mut receiver) = admission_ring(64);
        let writer = std::thread::spawn(move || {
            for page in 0..COUNT {
                while !sender.push(news(page)) {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < COUNT {
            match receiver.pop() {
                Some(got) => {
                    assert_eq!(got, news(next));
                    next += 1;
                }
                None => std::thread::yield_now(),
            }
        }
        writer.join().expect("no panic");
    }
}
