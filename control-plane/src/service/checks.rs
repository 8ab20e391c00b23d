//! Checks of regions' replicas that are going on: what was ordered, and what owners have said of it. Kept in
//! memory only: a check that is forgotten is begun again by whoever wants it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mycoram_fabric::check::MAX_NAMED;
use mycoram_fabric::units::RegionId;

use crate::proto;

/// Most checks that are remembered; the one that was silent longest makes room.
const MOST: usize = 1024;

/// One region's newest check.
#[derive(Debug)]
struct Check {
    number: u64,
    repair: bool,
    report: Option<proto::CheckReport>,
    heard: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Checks {
    open: Mutex<BTreeMap<RegionId, Check>>,
    next: Mutex<u64>,
}

impl Checks {
    /// Numbers begin at `first`, so that those of an earlier life of the service mean nothing.
    pub(super) fn new(first: u64) -> Self {
        Self {
            open: Mutex::default(),
            next: Mutex::new(first.max(1)),
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<RegionId, Check>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one, in place of an earlier one of the region. Answers its number.
    pub(super) fn begin(&self, region: RegionId, repair: bool, now: Instant) -> u64 {
        let number = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let number = *next;
            *next = next.wrapping_add(1).max(1);
            number
        };
        let mut open = self.open();
        if open.len() >= MOST && !open.contains_key(&region) {
            let quietest = open.iter().min_by_key(|(_, check)| check.heard);
            if let Some(quietest) = quietest.map(|(region, _)| *region) {
                open.remove(&quietest);
            }
        }
        let check = Check {
            number,
            repair,
            report: None,
            heard: now,
        };
        open.insert(region, check);
        number
    }

    /// What the region's owner is to do.
    pub(super) fn wanted(&self, region: RegionId) -> Option<proto::CheckOrder> {
        let open = self.open();
        let check = open.get(&region)?;
        let is_over = check.report.as_ref().is_some_and(|report| report.over);
        (!is_over).then_some(proto::CheckOrder {
            check: check.number,
            repair: check.repair,
        })
    }

    /// The owner says how far it is. What is said of another check is void.
    pub(super) fn told(&self, region: RegionId, mut report: proto::CheckReport, now: Instant) {
        report.named.truncate(MAX_NAMED);
        if let Some(check) = self.open().get_mut(&region)
            && check.number == report.check
        {
            check.report = Some(report);
            check.heard = now;
        }
    }

    /// How far it is; `None`: it is not known, or not any more.
    pub(super) fn look(
        &self,
        region: RegionId,
        number: u64,
        now: Instant,
    ) -> Option<proto::VerifyRegionReply> {
        let open = self.open();
        let check = open.get(&region).filter(|check| check.number == number)?;
        let silent = now.saturating_duration_since(check.heard).as_millis();
        Some(proto::VerifyRegionReply {
            check: number,
            report: check.report.clone(),
            silent_ms: u64::try_from(silent).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report(check: u64, over: bool) -> proto::CheckReport {
        proto::CheckReport {
            check,
            over,
            ..proto::CheckReport::default()
        }
    }

    #[test]
    fn an_order_is_told_until_its_own_end_is_reported() {
        let (checks, now, region) = (Checks::new(5), Instant::now(), RegionId::new(1));
        assert_eq!(checks.wanted(region), None);
        let first = checks.begin(region, false, now);
        assert_eq!(checks.wanted(region).map(|order| order.check), Some(first));
        let second = checks.begin(region, true, now);
        assert_ne!(first, second);
        checks.told(region, report(first, true), now);
        assert_eq!(
            checks.wanted(region),
            Some(proto::CheckOrder {
                check: second,
                repair: true
            })
        );
        assert_eq!(checks.look(region, first, now), None);
        checks.told(region, report(second, false), now);
        assert!(checks.wanted(region).is_some());
        checks.told(region, report(second, true), now);
        assert_eq!(checks.wanted(region), None);
        let later = now + Duration::from_secs(2);
        let seen = checks.look(region, second, later).expect("known");
        assert_eq!(
            (seen.silent_ms, seen.report),
            (2000, Some(report(second, true)))
        );
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (checks, now) = (Checks::new(1), Instant::now());
        let later = now + Duration::from_secs(1);
        let numbers: Vec<u64> = (0..=MOST as u64)
            .map(|n| checks.begin(RegionId::new(n), false, if n == 7 { now } else { later }))
            .collect();
        assert_eq!(checks.look(RegionId::new(7), numbers[7], later), None);
        assert!(checks.look(RegionId::new(8), numbers[8], later).is_some());
        assert_eq!(checks.open().len(), MOST);
    }
}
