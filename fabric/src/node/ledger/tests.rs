//! What the ledger answers, order by order, and that its bytes add up whatever is asked of it.

use proptest::prelude::*;

use super::*;
use crate::units::{RemoteAddr, Rkey};

const PAGE: u64 = PAGE_BYTES as u64;
const OWNER: u64 = 11;

fn open(region: u64, owner: u64, create: bool) -> Open {
    Open {
        tenant: TenantId::new(1),
        region: RegionId::new(region),
        token: Token([region as u8; 16]),
        owner,
        create,
        grant: None,
    }
}

fn ledger(pages: u64) -> Ledger {
    let bounds = Bounds {
        orphan_ttl_ms: 100,
        ..Bounds::default()
    };
    Ledger::new(ByteCount::new(pages * PAGE), bounds)
}

fn indexes(range: std::ops::Range<u32>) -> Vec<ExtentIndex> {
    range.map(ExtentIndex::new).collect()
}

const ONE_PAGE: ByteCount = ByteCount::new(PAGE);

fn export(at: u64) -> Export {
    Export {
        addr: RemoteAddr::new(at),
        rkey: Rkey::new(1),
        bytes: PAGE,
    }
}

#[test]
fn asking_again_gives_the_same_extents() {
    let mut ledger = ledger(4);
    ledger
        .open(SessionId(1), Epoch::new(1), &open(1, OWNER, true))
        .expect("new");
    let first = ledger
        .allocate(SessionId(1), ONE_PAGE, &indexes(0..2))
        .expect("room");
    let again = ledger
        .allocate(SessionId(1), ONE_PAGE, &indexes(0..3))
        .expect("room");
    assert_eq!(first, again[..2]);
    assert_eq!(ledger.counts().free, PAGE);
}

#[test]
fn full_says_what_was_asked_and_what_there_is_and_gives_nothing() {
    let mut ledger = ledger(3);
    ledger
        .open(SessionId(1), Epoch::new(1), &open(1, OWNER, true))
        .expect("new");
    let two = ByteCount::new(2 * PAGE);
    assert_eq!(
        ledger.allocate(SessionId(1), two, &indexes(0..2)),
        Err(Refusal::Full {
            asked: ByteCount::new(4 * PAGE),
            free: two,
            capacity: ByteCount::new(3 * PAGE),
        })
    );
    assert_eq!(ledger.counts().free, 3 * PAGE);
    assert!(matches!(
        ledger.allocate(SessionId(1), ByteCount::new(!(PAGE - 1)), &indexes(0..1000)),
        Err(Refusal::Full { .. })
    ));
    for bytes in [0, 1, PAGE + 1] {
        let asked = ByteCount::new(bytes);
        assert_eq!(
            ledger.allocate(SessionId(1), asked, &indexes(0..1)),
            Err(Refusal::ExtentSize { asked })
        );
    }
}

/// Exported twice, it would stay within reach by the first key when the second is revoked.
#[test]
fn an_extent_is_not_given_twice_at_once() {
    let mut ledger = ledger(4);
    ledger
        .open(SessionId(1), Epoch::new(1), &open(1, OWNER, true))
        .expect("new");
    let twice = [0, 1, 0].map(ExtentIndex::new);
    let extent = ExtentIndex::new(0);
    assert_eq!(
        ledger.allocate(SessionId(1), ONE_PAGE, &twice),
        Err(Refusal::AskedTwice { extent })
    );
    assert_eq!(ledger.counts().free, 4 * PAGE);
}

#[test]
fn the_number_of_extents_is_bounded() {
    let mut ledger = ledger(8);
    ledger.bounds.extents = 3;
    for (session, region) in [(1, 1), (2, 2)] {
        ledger
            .open(
                SessionId(session),
                Epoch::new(1),
                &open(region, OWNER, true),
            )
            .expect("new");
    }
    ledger
        .allocate(SessionId(1), ONE_PAGE, &indexes(0..2))
        .expect("below the bound");
    assert_eq!(
        ledger.allocate(SessionId(2), ONE_PAGE, &indexes(0..2)),
        Err(Refusal::TooManyExtents { limit: 3 })
    );
    ledger
        .allocate(SessionId(1), ONE_PAGE, &indexes(0..3))
        .expect("at the bound");
}

#[test]
fn a_quota_bounds_a_tenant_over_all_its_regions() {
    let mut ledger = ledger(8);
    ledger.bounds.tenant_bytes = Some(ByteCount::new(3 * PAGE));
    ledger
        .open(SessionId(1), Epoch::new(1), &open(1, OWNER, true))
        .expect("new");
    ledger
        .open(SessionId(2), Epoch::new(1), &open(2, OWNER, true))
        .expect("new");
    ledger
        .allocate(SessionId(1), ONE_PAGE, &indexes(0..2))
        .expect("below the quota");
    assert_eq!(
        ledger.allocate(SessionId(2), ONE_PAGE, &indexes(0..2)),
        Err(Refusal::Quota {
            asked: ByteCount::new(2 * PAGE),
            held: ByteCount::new(2 * PAGE),
            quota: ByteCount::new(3 * PAGE),
        })
    );
    ledger
        .allocate(SessionId(2), ONE_PAGE, &indexes(0..1))
        .expect("at the quota");
}

#[test]
fn a_higher_epoch_fences_and_a_lower_one_is_told_what_holds() {
    let mut ledger = ledger(4);
    ledger
        .open(SessionId(1), Epoch::new(5), &open(1, OWNER, true))
        .expect("new");
    let placed = ledger
        .allocate(SessionId(1), ONE_PAGE, &indexes(0..2))
        .expect("room");
    let low = Refusal::EpochTooLow {
        requested: Epoch::new(4),
        current: Epoch::new(5),
    };
    assert_eq!(
        ledger.open(SessionId(2), Epoch::new(4), &open(1, 12, false)),
        Err(low)
    );
    assert_eq!(
        ledger.open(SessionId(2), Epoch::new(5), &open(1, 12, false)),
        Err(Refusal::Owned {
            epoch: Epoch::new(5)
        })
    );
    let taken = ledger
        .open(SessionId(2), Epoch::new(6), &open(1, 12, false))
        .expect("higher");
    assert!(taken.fence);
    assert_eq!(taken.opened.extents, 2);
    let fenced = Refusal::EpochTooLow {
        requested: Epoch::new(5),
        current: Epoch::new(6),
    };
    assert_eq!(ledger.check(SessionId(1)), Err(fenced));
    assert_eq!(ledger.free(SessionId(1), &indexes(0..2)), Err(fenced));
    assert_eq!(ledger.release(SessionId(1)), Err(fenced));
    // Its connection going away takes nothing from the new owner.
    ledger.disconnected(0, SessionId(1));
    assert!(ledger.expire(1000).is_empty());
    let again = ledger
        .allocate(SessionId(2), ONE_PAGE, &indexes(0..2))
        .expect("the same");
    assert_eq!(placed, again);
}

#[test]
fn the_same_owner_comes_back_without_a_fence() {
    let mut ledger = ledger(4);
    ledger
        .open(SessionId(1), Epoch::new(5), &open(1, OWNER, true))
        .expect("new");
    let back = ledger
        .open(SessionId(2), Epoch::new(5), &open(1, OWNER, false))
        .expect("same");
    assert!(!back.fence);
    assert_eq!(ledger.check(SessionId(1)), Err(Refusal::NoSession {}));
    ledger.disconnected(0, SessionId(1));
    assert!(
        ledger.expire(1000).is_empty(),
        "the connection that counts is the newer one"
    );
}

#[test]
fn tokens_and_tenants_are_checked_and_nothing_is_taken_over_that_is_not_there() {
    let mut ledger = ledger(4);
    assert_eq!(
        ledger.open(SessionId(1), Epoch::new(1), &open(1, OWNER, false)),
        Err(Refusal::UnknownRegion {})
    );
    ledger
        .open(SessionId(1), Epoch::new(1), &open(1, OWNER, true))
        .expect("new");
    let mut thief = open(1, OWNER, false);
    thief.token = Token([9; 16]);
    assert_eq!(
        ledger.open(SessionId(2), Epoch::new(9), &thief),
        Err(Refusal::WrongToken {})
    );
    let mut stranger = open(1, OWNER, false);
    stranger.tenant = TenantId::new(2);
    assert_eq!(
        ledger.open(SessionId(2), Epoch::new(9), &stranger),
        Err(Refusal::WrongToken {})
    );
    assert_eq!(
        ledger.open(SessionId(1), Epoch::new(1), &open(2, OWNER, true)),
        Err(Refusal::AlreadyOpen {})
    );
    assert_eq!(ledger.check(SessionId(7)), Err(Refusal::NoSession {}));
}

#[test]
fn an_orphan_is_kept_for_its_time_and_then_freed() {
    let mut ledger = ledger(4);
    ledger
        .open(SessionId(1), Epoch::new(1), &open(1, OWNER, true))
        .expect("new");
    ledger
        .allocate(SessionId(1), ONE_PAGE, &indexes(0..3))
        .expect("room");
    ledger.exported(SessionId(1), ExtentIndex::new(1), export(4096));
    ledger.disconnected(50, SessionId(1));
    assert_eq!(ledger.counts().orphans, 1);
    assert!(ledger.expire(149).is_empty());
    let mut expired = ledger.expire(150);
    let (id, gone) = expired.pop().expect("one region");
    assert_eq!((id, gone.freed.len()), (RegionId::new(1), 3));
    assert_eq!(gone.freed[1].export, Some(export(4096)));
    assert_eq!(ledger.counts().free, PAGE, "not before it is given back");
    for freed in gone.freed {
        ledger.give_back(freed.run);
    }
    assert_eq!(ledger.counts().free, 4 * PAGE);
    assert_eq!(ledger.counts().unzeroed, 3 * PAGE);
}

#[test]
fn draining_lets_owners_go_on_and_nobody_in() {
    let mut ledger = ledger(4);
    ledger
        .open(SessionId(1), Epoch::new(1), &open(1, OWNER, true))
        .expect("new");
    ledger
        .allocate(SessionId(1), ONE_PAGE, &indexes(0..1))
        .expect("room");
    ledger.drain();
    let draining = Err(Refusal::Draining {});
    assert_eq!(
        ledger
            .open(SessionId(2), Epoch::new(1), &open(2, OWNER, true))
            .map(|_| ()),
        draining
    );
    assert_eq!(
        ledger
            .open(SessionId(2), Epoch::new(2), &open(1, 12, false))
            .map(|_| ()),
        draining
    );
    assert_eq!(
        ledger
            .allocate(SessionId(1), ONE_PAGE, &indexes(0..2))
            .map(|_| ()),
        draining
    );
    ledger
        .allocate(SessionId(1), ONE_PAGE, &indexes(0..1))
        .expect("what it has");
    ledger
        .open(SessionId(3), Epoch::new(1), &open(1, OWNER, false))
        .expect("an owner comes back");
    ledger.release(SessionId(3)).expect("an owner leaves");
}

#[test]
fn tickets_are_bounded_and_replaced() {
    let mut ledger = ledger(1);
    ledger.bounds.tickets = 2;
    ledger
        .open(SessionId(1), Epoch::new(1), &open(1, OWNER, true))
        .expect("new");
    let ticket = |n| Ticket { secret: [n; 16] };
    ledger.ticket(SessionId(1), ticket(1), None).expect("first");
    ledger
        .ticket(SessionId(1), ticket(2), None)
        .expect("second");
    assert_eq!(
        ledger.ticket(SessionId(1), ticket(3), None),
        Err(Refusal::TooManyTickets { limit: 2 })
    );
    ledger
        .ticket(SessionId(1), ticket(3), Some(&ticket(1)))
        .expect("in the place of another");
    assert!(!ledger.has_ticket(SessionId(1), &ticket(1)));
    assert!(ledger.has_ticket(SessionId(1), &ticket(3)));
    let gone = ledger.release(SessionId(1)).expect("owned");
    assert_eq!(gone.tickets, [ticket(2), ticket(3)]);
}

#[derive(Clone, Debug)]
enum Step {
    Open {
        session: u64,
        region: u64,
        epoch: u64,
        owner: u64,
    },
    Allocate {
        session: u64,
        from: u32,
        count: u32,
    },
    Free {
        session: u64,
        from: u32,
        count: u32,
    },
    Release {
        session: u64,
    },
    Disconnect {
        session: u64,
    },
    Expire,
    ZeroIdle,
}

fn step() -> impl Strategy<Value = Step> {
    let session = 0..4u64;
    prop_oneof![
        3 => (session.clone(), 0..3u64, 1..4u64, 0..2u64)
            .prop_map(|(session, region, epoch, owner)| Step::Open { session, region, epoch, owner }),
        4 => (session.clone(), 0..4u32, 1..4u32)
            .prop_map(|(session, from, count)| Step::Allocate { session, from, count }),
        2 => (session.clone(), 0..4u32, 1..4u32)
            .prop_map(|(session, from, count)| Step::Free { session, from, count }),
        1 => session.clone().prop_map(|session| Step::Release { session }),
        2 => session.prop_map(|session| Step::Disconnect { session }),
        1 => Just(Step::Expire),
        1 => Just(Step::ZeroIdle),
    ]
}

proptest! {
    /// Whatever comes: no byte has two holders, none gets lost, and none is lent before it was zeroed.
    #[test]
    fn bytes_have_one_holder_and_come_back_zeroed(steps in proptest::collection::vec(step(), 0..80)) {
        const PAGES: u64 = 9;
        let mut ledger = ledger(PAGES);
        // The model: who wrote to a page since it was zeroed.
        let mut dirty = [false; PAGES as usize];
        let mut now = 0;
        for step in steps {
            now += 40;
            match step {
                Step::Open { session, region, epoch, owner } => {
                    let _ = ledger.open(SessionId(session), Epoch::new(epoch), &open(region, owner, true));
                }
                Step::Allocate { session, from, count } => {
                    let session = SessionId(session);
                    if let Ok(placed) = ledger.allocate(session, ONE_PAGE, &indexes(from..from + count)) {
                        for extent in placed.iter().filter(|extent| extent.export.is_none()) {
                            while let Some(run) = ledger.take_unzeroed(extent.run) {
                                dirty[(run.offset / PAGE) as usize] = false;
                            }
                            let page = (extent.run.offset / PAGE) as usize;
                            prop_assert!(!dirty[page], "lent before it was zeroed");
                            dirty[page] = true;
                            ledger.exported(session, extent.index, export(extent.run.offset));
                        }
                    }
                }
                Step::Free { session, from, count } => {
                    if let Ok(freed) = ledger.free(SessionId(session), &indexes(from..from + count)) {
                        freed.into_iter().for_each(|freed| ledger.give_back(freed.run));
                    }
                }
                Step::Release { session } => {
                    if let Ok(gone) = ledger.release(SessionId(session)) {
                        gone.freed.into_iter().for_each(|freed| ledger.give_back(freed.run));
                    }
                }
                Step::Disconnect { session } => ledger.disconnected(now, SessionId(session)),
                Step::Expire => {
                    for (_, gone) in ledger.expire(now) {
                        gone.freed.into_iter().for_each(|freed| ledger.give_back(freed.run));
                    }
                }
                Step::ZeroIdle => {
                    if let Some(run) = ledger.take_idle_unzeroed(2 * PAGE) {
                        for page in run.offset / PAGE..(run.offset + run.bytes) / PAGE {
                            dirty[page as usize] = false;
                        }
                    }
                }
            }
            let mut holders = [0; PAGES as usize];
            for region in ledger.regions.values() {
                for held in region.extents.values() {
                    holders[(held.run.offset / PAGE) as usize] += 1;
                    prop_assert!(!ledger.free.touches(held.run), "lent and free");
                }
            }
            prop_assert!(holders.iter().all(|count| *count <= 1), "two holders");
            let counts = ledger.counts();
            prop_assert_eq!(counts.free + counts.extents * PAGE, PAGES * PAGE);
            prop_assert!(counts.unzeroed <= counts.free);
        }
    }
}

#[test]
fn a_fence_from_above_holds_also_where_the_region_is_not() {
    let mut ledger = ledger(8);
    let owner = open(1, OWNER, true);
    ledger
        .open(SessionId(1), Epoch::new(1), &owner)
        .expect("new");
    assert!(ledger.fence_below(0, RegionId::new(1), Epoch::new(3)));
    assert!(!ledger.fence_below(0, RegionId::new(1), Epoch::new(2)));
    let too_low = |current| Refusal::EpochTooLow {
        requested: Epoch::new(1),
        current: Epoch::new(current),
    };
    assert_eq!(ledger.check(SessionId(1)), Err(too_low(3)));
    // The epoch of the fence is the next owner's, whoever that is.
    ledger
        .open(SessionId(2), Epoch::new(3), &open(1, OWNER + 1, false))
        .expect("the new owner");
    assert_eq!(
        ledger.open(SessionId(3), Epoch::new(3), &open(1, OWNER + 2, false)),
        Err(Refusal::Owned {
            epoch: Epoch::new(3)
        })
    );
    // Not here yet, and here no more.
    assert!(!ledger.fence_below(0, RegionId::new(2), Epoch::new(7)));
    assert_eq!(
        ledger.open(SessionId(4), Epoch::new(1), &open(2, OWNER, true)),
        Err(too_low(7))
    );
    ledger.release(SessionId(2)).expect("owned");
    assert_eq!(
        ledger.open(SessionId(5), Epoch::new(1), &owner),
        Err(too_low(3))
    );
    ledger.end(RegionId::new(1));
    assert_eq!(
        ledger.open(SessionId(6), Epoch::new(9), &owner),
        Err(Refusal::UnknownRegion {})
    );
}
