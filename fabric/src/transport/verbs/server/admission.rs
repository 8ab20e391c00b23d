//! Who may connect: tickets with their tenant, region and epoch. Pure.

use crate::transport::{AdmitError, TICKET_BYTES, Ticket};
use crate::units::{Epoch, RegionId, TenantId};

/// What a ticket stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Admission {
    pub(super) tenant: TenantId,
    pub(super) region: RegionId,
    pub(super) epoch: Epoch,
}

/// All tickets that admit somebody, up to a bound.
pub(super) struct Admissions {
    limit: usize,
    tickets: Vec<(Ticket, Admission)>,
}

impl Admissions {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            tickets: Vec::new(),
        }
    }

    /// Admits; a ticket that is known already gets the new meaning.
    pub(super) fn admit(&mut self, ticket: Ticket, admission: Admission) -> Result<(), AdmitError> {
        self.dismiss(&ticket);
        if self.tickets.len() >= self.limit {
            return Err(AdmitError::TooManySessions { limit: self.limit });
        }
        self.tickets.push((ticket, admission));
        Ok(())
    }

    /// What the ticket stands for. Looks at every byte of every ticket, so that the time it takes says
    /// nothing about how much of a guess was right.
    pub(super) fn find(&self, shown: &Ticket) -> Option<Admission> {
        let mut found = None;
        for (ticket, admission) in &self.tickets {
            if same(ticket, shown) {
                found = Some(*admission);
            }
        }
        found
    }

    pub(super) fn dismiss(&mut self, ticket: &Ticket) {
        self.tickets.retain(|(known, _)| !same(known, ticket));
    }

    /// Forgets the tickets of `region` below `current`.
    pub(super) fn fence(&mut self, region: RegionId, current: Epoch) {
        self.tickets
            .retain(|(_, admission)| !is_fenced(admission, region, current));
    }
}

/// Whether an admission falls to a fence.
pub(super) fn is_fenced(admission: &Admission, region: RegionId, current: Epoch) -> bool {
    admission.region == region && admission.epoch < current
}

/// Equal, in a time that does not depend on where they differ.
pub(super) fn same(left: &Ticket, right: &Ticket) -> bool {
    let mut difference = 0;
    for index in 0..TICKET_BYTES {
        difference |= left.secret[index] ^ right.secret[index];
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(byte: u8) -> Ticket {
        Ticket { secret: [byte; 16] }
    }

    fn admission(region: u64, epoch: u64) -> Admission {
        Admission {
            tenant: TenantId::new(1),
            region: RegionId::new(region),
            epoch: Epoch::new(epoch),
        }
    }

    #[test]
    fn a_fence_takes_the_lower_epochs_of_its_region_and_nothing_else() -> Result<(), AdmitError> {
        let mut admissions = Admissions::new(8);
        admissions.admit(ticket(1), admission(7, 1))?;
        admissions.admit(ticket(2), admission(7, 2))?;
        admissions.admit(ticket(3), admission(8, 1))?;
        admissions.fence(RegionId::new(7), Epoch::new(2));
        assert_eq!(admissions.find(&ticket(1)), None);
        assert_eq!(admissions.find(&ticket(2)), Some(admission(7, 2)));
        assert_eq!(admissions.find(&ticket(3)), Some(admission(8, 1)));
        Ok(())
    }

    #[test]
    fn the_bound_holds_and_dismissing_makes_room() -> Result<(), AdmitError> {
        let mut admissions = Admissions::new(1);
        admissions.admit(ticket(1), admission(1, 1))?;
        admissions.admit(ticket(1), admission(1, 2))?;
        assert_eq!(
            admissions.admit(ticket(2), admission(1, 1)),
            Err(AdmitError::TooManySessions { limit: 1 })
        );
        admissions.dismiss(&ticket(1));
        admissions.admit(ticket(2), admission(1, 1))
    }
}
