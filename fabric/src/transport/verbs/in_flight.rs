//! The ledger of a queue pair: which requests are in flight, in order. Pure.
//!
//! ```text
//!             oldest                      next
//!   settled ....|  s  s  S  s  s  S  |....  free          S: signaled, s: silent
//!               `--------'
//!          the device reports S: both s before it are settled as well
//! ```
//!
//! A request's sequence number is its name at the device. RC queue pairs complete in order, so one
//! report settles all that stands before it.

use crate::transport::{Opcode, WorkId};

/// A request as its owner named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) id: WorkId,
    pub(super) opcode: Opcode,
    pub(super) signaled: bool,
}

/// A ring of the requests in flight; allocated once.
pub(super) struct InFlight {
    slots: Box<[Request]>,
    oldest: u64,
    next: u64,
    reads: usize,
    writes: usize,
    atomics: usize,
}

impl InFlight {
    pub(super) fn new(depth: usize) -> Self {
        let empty = Request {
            id: WorkId(0),
            opcode: Opcode::Read,
            signaled: false,
        };
        Self {
            slots: vec![empty; depth].into_boxed_slice(),
            oldest: 0,
            next: 0,
            reads: 0,
            writes: 0,
            atomics: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        // Never more than the slots.
        (self.next - self.oldest) as usize
    }

    pub(super) fn is_empty(&self) -> bool {
        self.next == self.oldest
    }

    pub(super) fn free(&self) -> usize {
        self.slots.len() - self.len()
    }

    /// READs in flight.
    pub(super) fn reads(&self) -> usize {
        self.reads
    }

    /// Atomics in flight.
    pub(super) fn atomics(&self) -> usize {
        self.atomics
    }

    /// The number of the request that stands first, or of the next one when none is in flight.
    pub(super) fn oldest_sequence(&self) -> u64 {
        self.oldest
    }

    /// The number that the next request gets.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Enters a request. There must be a free slot.
    pub(super) fn push(&mut self, request: Request) {
        debug_assert!(self.free() > 0);
        let slot = self.slot(self.next);
        self.slots[slot] = request;
        self.next += 1;
        *self.counter(request.opcode) += 1;
    }

    /// The request that stands first.
    pub(super) fn oldest(&self) -> Option<Request> {
        (!self.is_empty()).then(|| self.slots[self.slot(self.oldest)])
    }

    /// Removes the request that stands first.
    pub(super) fn pop(&mut self) -> Option<Request> {
        let request = self.oldest()?;
        self.oldest += 1;
        *self.counter(request.opcode) -= 1;
        Some(request)
    }

    /// Whether `sequence` is in flight.
    pub(super) fn holds(&self, sequence: u64) -> bool {
        (self.oldest..self.next).contains(&sequence)
    }

    /// How many stand before `sequence`, which is in flight.
    pub(super) fn before(&self, sequence: u64) -> usize {
        sequence.saturating_sub(self.oldest) as usize
    }

    fn counter(&mut self, opcode: Opcode) -> &mut usize {
        match opcode {
            Opcode::Read => &mut self.reads,
            Opcode::CompareSwap | Opcode::FetchAdd => &mut self.atomics,
            Opcode::Write => &mut self.writes,
        }
    }

    fn slot(&self, sequence: u64) -> usize {
        (sequence % self.slots.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Clone, Debug)]
    enum Step {
        Push(bool, bool),
        Settle(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<bool>(), any::<bool>()).prop_map(|(signaled, read)| Step::Push(signaled, read)),
            (0usize..12).prop_map(Step::Settle),
        ]
    }

    proptest! {
        /// Against a plain queue: order, free slots, and the count of READs.
        #[test]
        fn it_is_a_queue_with_numbers(depth in 1usize..9, steps in proptest::collection::vec(step(), 0..200)) {
            let mut ledger = InFlight::new(depth);
            let mut model = VecDeque::new();
            let mut id = 0;
            for step in steps {
                match step {
                    Step::Push(signaled, read) => {
                        if ledger.free() == 0 { continue }
                        let opcode = if read { Opcode::Read } else { Opcode::Write };
                        let request = Request { id: WorkId(id), opcode, signaled };
                        model.push_back((ledger.next_sequence(), request));
                        ledger.push(request);
                        id += 1;
                    }
                    Step::Settle(ahead) => {
                        let Some(&(sequence, _)) = model.get(ahead) else { continue };
                        prop_assert!(ledger.holds(sequence));
                        prop_assert_eq!(ledger.before(sequence), ahead);
                        for _ in 0..=ahead {
                            prop_assert_eq!(ledger.pop(), model.pop_front().map(|(_, r)| r));
                        }
                        prop_assert!(!ledger.holds(sequence));
                    }
                }
                prop_assert_eq!(ledger.len(), model.len());
                prop_assert_eq!(ledger.free(), depth - model.len());
                prop_assert_eq!(ledger.reads(), model.iter().filter(|(_, r)| r.opcode == Opcode::Read).count());
            }
        }
    }
}
