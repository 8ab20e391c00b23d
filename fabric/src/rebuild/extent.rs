//! One replica that is being copied: its runs under way, and from where.

use std::collections::BTreeMap;

use crate::authority::Order;
use crate::remote::{CopyRun, CopyStep, ExtentCopy};
use crate::transfer::{EndpointIndex, Piece, Place};
use crate::transport::RemoteSlice;
use crate::units::{PAGE_BYTES, RemoteAddr};

/// A replica: where it starts, and the way there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    pub(super) endpoint: EndpointIndex,
    pub(super) at: RemoteSlice,
}

impl Spot {
    fn place(self, offset: u64) -> Place {
        Place::Remote {
            endpoint: self.endpoint,
            at: RemoteSlice {
                addr: RemoteAddr::new(self.at.addr.get().wrapping_add(offset)),
                rkey: self.at.rkey,
            },
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Copying {
    pub(super) order: Order,
    pub(super) copy: ExtentCopy,
    pub(super) target: Spot,
    extent_bytes: u64,
    under_way: BTreeMap<u64, CopyRun>,
    /// Whose turn it is to be read from.
    turn: usize,
    /// Told to stop: it ends when nothing is under way.
    pub(super) doomed: bool,
}

/// What there is to do for it.
#[derive(Debug)]
pub(super) enum Next {
    /// Hand this in.
    Move(Piece),
    /// Nothing until something is settled, or written, or lanes have heard.
    Wait,
    /// All its pages are right.
    Complete,
}

impl Copying {
    pub(super) fn new(order: Order, copy: ExtentCopy, target: Spot, extent_bytes: u64) -> Self {
        Self {
            order,
            copy,
            target,
            extent_bytes,
            under_way: BTreeMap::new(),
            turn: 0,
            doomed: false,
        }
    }

    pub(super) fn runs(&self) -> usize {
        self.under_way.len()
    }

    /// The next run, from one of `sources` in turn, named `tag`.
    pub(super) fn next(&mut self, sources: &[Spot], most_pages: u16, tag: u64) -> Next {
        if self.doomed || sources.is_empty() {
            return Next::Wait;
        }
        match self.copy.next(most_pages) {
            CopyStep::Wait => Next::Wait,
            CopyStep::Done => Next::Complete,
            CopyStep::Copy(run) => {
                let offset = run.page.offset().get() % self.extent_bytes;
                self.turn = (self.turn + 1) % sources.len();
                self.under_way.insert(tag, run);
                Next::Move(Piece {
                    tag,
                    from: sources[self.turn].place(offset),
                    into: self.target.place(offset),
                    bytes: u64::from(run.run) * PAGE_BYTES as u64,
                })
            }
        }
    }

    /// The run named `tag` is done with. False if it is none of this replica's.
    pub(super) fn settled(&mut self, tag: u64, arrived: bool) -> bool {
        match self.under_way.remove(&tag) {
            Some(run) => {
                self.copy.settled(&run, arrived);
                true
            }
            None => false,
        }
    }
}
