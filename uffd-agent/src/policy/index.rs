//! Pages by number, in queues that forget from the middle: the bookkeeping under every victim policy.
//!
//! A queue is a ring of (page, ticket); the index holds the ticket that counts. An entry whose ticket is
//! no longer the index's is dead and skipped. Dead entries are swept when a ring is full, at most every
//! second time its capacity in pushes, so each operation is O(1) on average.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use mycoram_fabric::units::PageIndex;

/// Spreads page numbers, which come in runs, over the table (splitmix64's finish).
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }
    fn write_u32(&mut self, page: u32) {
        let mut z = (self.0 ^ u64::from(page)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ (z >> 31);
    }
}

/// Numbers without a pattern (xorshift64); the same seed gives the same ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn seeded(seed: u64) -> Self {
        Self(seed | 1)
    }
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

pub(super) type PageMap<T> = HashMap<u32, T, BuildHasherDefault<PageHasher>>;

/// Which life of a page an entry in a ring belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u32);

impl Ticket {
    /// Whether less than `count` tickets were handed out between the two.
    pub(super) fn is_within(self, count: u32, other: Self) -> bool {
        let distance = self.0.wrapping_sub(other.0);
        distance.min(distance.wrapping_neg()) < count
    }
}

/// Hands out tickets; one comes again after 2^32 others, when every ring has been swept many times.
#[derive(Debug, Default)]
pub(super) struct Tickets(u32);

impl Tickets {
    pub(super) fn next(&mut self) -> Ticket {
        self.0 = self.0.wrapping_add(1);
        Ticket(self.0)
    }
}

/// A FIFO of pages whose live part is bounded by its user.
#[derive(Debug, Default)]
pub(super) struct PageQueue {
    ring: VecDeque<(PageIndex, Ticket)>,
    live: usize,
}

impl PageQueue {
    pub(super) fn with_room_for(pages: usize) -> Self {
        Self {
            ring: VecDeque::with_capacity(pages.saturating_mul(2).max(16)),
            live: 0,
        }
    }

    /// Live pages.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Entries, dead ones too.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.ring.len()
    }

    /// Appends; `is_live` tells which of the entries that are there still count.
    pub(super) fn push(
        &mut self,
        page: PageIndex,
        ticket: Ticket,
        is_live: impl Fn(PageIndex, Ticket) -> bool,
    ) {
        if self.ring.len() == self.ring.capacity() && self.live * 2 <= self.ring.len() {
            self.ring.retain(|(page, ticket)| is_live(*page, *ticket));
        }
        self.ring.push_back((page, ticket));
        self.live += 1;
    }

    /// Takes the oldest live page out.
    pub(super) fn pop(&mut self, is_live: impl Fn(PageIndex, Ticket) -> bool) -> Option<PageIndex> {
        while let Some((page, ticket)) = self.ring.pop_front() {
            if is_live(page, ticket) {
                self.live -= 1;
                return Some(page);
            }
        }
        None
    }

    /// Takes a live page out of the middle; `random` is any number. The order behind it is lost.
    pub(super) fn pop_at(
        &mut self,
        mut random: impl FnMut() -> u64,
        is_live: impl Fn(PageIndex, Ticket) -> bool,
    ) -> Option<PageIndex> {
        while !self.ring.is_empty() {
            let at = (random() % self.ring.len() as u64) as usize;
            let (page, ticket) = self.ring.swap_remove_back(at)?;
            if is_live(page, ticket) {
                self.live -= 1;
                return Some(page);
            }
        }
        None
    }

    /// A page of this queue no longer counts; its user has forgotten its ticket.
    pub(super) fn forget_one(&mut self) {
        self.live -= 1;
    }
}
