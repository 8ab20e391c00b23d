//! Promises, and who is refused first.

use mycoram_fabric::units::{ByteCount, ExtentIndex};

use super::rig::{EXTENT, Rig, TENANT};
use crate::cluster::*;

fn extents(count: u64) -> ByteCount {
    ByteCount::new(EXTENT.get() * count)
}

fn reserve(id: u64, bytes: ByteCount) -> Reserve {
    Reserve {
        id: ReservationId::new(id),
        tenant: TENANT,
        bytes,
        class: PriorityClass::Normal,
    }
}

/// Places one extent after the other until it is refused.
fn fill(rig: &mut Rig, id: u64, class: PriorityClass, on: Option<u64>) -> u32 {
    let mut create = Rig::create(id, 1_000, 1);
    create.class = class;
    create.reservation = on.map(ReservationId::new);
    rig.must(&create);
    let owned = rig.acquire(create.id, 1, false);
    for extent in 0.. {
        let place = Place {
            region: owned.region,
            epoch: owned.epoch,
            round: 0,
            without: Vec::new(),
            extents: vec![ExtentIndex::new(extent)],
        };
        if let Err(refusal) = rig.run(&place) {
            assert!(
                matches!(
                    refusal,
                    RegionRefusal::Pressure(_) | RegionRefusal::Full { .. }
                ),
                "{refusal}"
            );
            return extent;
        }
    }
    0
}

#[test]
fn the_lower_class_is_refused_first() {
    let mut rig = Rig::with_nodes(4, 100);
    assert_eq!(fill(&mut rig, 1, PriorityClass::Low, None), 300);
    assert_eq!(fill(&mut rig, 2, PriorityClass::Normal, None), 40);
    assert_eq!(fill(&mut rig, 3, PriorityClass::High, None), 40);
}

#[test]
fn what_is_promised_is_kept_from_others_and_can_be_released() {
    let mut rig = Rig::with_nodes(4, 100);
    rig.must(&reserve(1, extents(140)));
    rig.must(&reserve(1, extents(140)));
    assert_eq!(
        rig.run(&reserve(1, extents(141))),
        Err(ReservationRefusal::Taken(ReservationId::new(1)))
    );
    assert_eq!(fill(&mut rig, 1, PriorityClass::Normal, None), 200);
    assert!(matches!(
        rig.run(&reserve(2, extents(1))),
        Err(ReservationRefusal::Pressure(_))
    ));
    rig.restart();
    // Counted on it, 140 are there; then it is over.
    assert_eq!(fill(&mut rig, 2, PriorityClass::Normal, Some(1)), 140);
    let release = Unreserve {
        id: ReservationId::new(1),
        tenant: TENANT,
    };
    assert!(matches!(
        rig.run(&release),
        Err(ReservationRefusal::InUse { regions: 1, .. })
    ));
}

#[test]
fn a_released_promise_is_free_again() {
    let mut rig = Rig::with_nodes(4, 100);
    rig.must(&reserve(1, extents(340)));
    assert_eq!(fill(&mut rig, 1, PriorityClass::Normal, None), 0);
    let release = Unreserve {
        id: ReservationId::new(1),
        tenant: TENANT,
    };
    rig.must(&release);
    assert_eq!(
        rig.run(&release),
        Err(ReservationRefusal::Unknown(release.id))
    );
    assert_eq!(fill(&mut rig, 2, PriorityClass::Normal, None), 340);
}
