//! Faults at addresses where the region has no page.
//!
//! ```text
//!   met once    maybe another worker is about to apply the mremap that brought a page here: woken, it asks again
//!   met again,  and nothing was moved meanwhile: a mapping that has grown behind the region's end: SIGBUS
//! ```
//!
//! Only private memory has them: a file ends where the region does, and the kernel itself says so.

use mycoram_fabric::units::PAGE_BYTES;

use super::super::shared::Shared;
use crate::kernel::{TargetAddr, TargetRange};

#[derive(Clone, Copy, Debug)]
struct Stray {
    addr: TargetAddr,
    tid: i32,
    /// Of the address map, when it was met.
    version: u64,
}

/// Those of one worker. Never grows.
#[derive(Debug)]
pub(super) struct Strays {
    met: Vec<Stray>,
    before: Vec<Stray>,
    most: usize,
}

impl Strays {
    /// For so many events a read.
    pub(super) fn new(most: usize) -> Self {
        Self {
            met: Vec::with_capacity(most),
            before: Vec::with_capacity(most),
            most,
        }
    }

    /// Such a fault was read.
    pub(super) fn met(&mut self, addr: TargetAddr, tid: i32) {
        if self.met.len() < self.most {
            self.met.push(Stray {
                addr,
                tid,
                version: 0,
            });
        }
    }

    /// What was met is woken, or ended.
    pub(super) fn settle(&mut self, shared: &Shared) {
        let version = shared.address.version();
        for at in 0..self.met.len() {
            let stray = Stray {
                version,
                ..self.met[at]
            };
            let Ok(range) = TargetRange::new(stray.addr, PAGE_BYTES as u64) else {
                continue;
            };
            let known = self.before.iter().position(|old| old.addr == stray.addr);
            let again = known.is_some_and(|at| self.before[at].version == version);
            if again && shared.address.page_at(stray.addr).is_none() {
                shared.poison_range(range, Some(stray.tid));
                continue;
            }
            match known {
                Some(at) => self.before[at] = stray,
                None => {
                    if self.before.len() == self.most {
                        self.before.swap_remove(0);
                    }
                    self.before.push(stray);
                }
            }
            shared.wake(range);
        }
        self.met.clear();
    }
}
