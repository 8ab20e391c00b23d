//! A memory node that takes only what was granted, under owners that lie, replay and come too late.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mycoram_fabric::node::GrantCheck;
use mycoram_fabric::session::{Dial, Identity, Session, SessionError, TcpDial};
use mycoram_fabric::transport::ErrorKind;
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};
use mycoram_fabric::wire::control::Token;
use mycoram_fabric::wire::grant::{ClusterId, GrantTerms, SignedGrant, SigningKey, TokenDigest};
use mycoram_fabric::wire::{GrantField, Refusal};

use crate::cluster::{self, Cluster, Fabric, TestNode, read_word};

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

/// A node that checks, called `n1`, and the key of its cluster.
fn guarded(fabric: Fabric) -> (Cluster, SigningKey) {
    let key = SigningKey::draw(ClusterId([1; 16])).expect("a key");
    let mut cluster = Cluster::start(fabric, &[4 * MIB]);
    cluster.nodes[0].grants = Some(GrantCheck {
        key: key.public(),
        node: "n1".to_owned(),
    });
    cluster.nodes[0].restart();
    (cluster, key)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_millis()).expect("not that late")
}

fn identity(region: u64, epoch: u64, owner: u64) -> Identity {
    Identity {
        tenant: TenantId::new(region),
        region: RegionId::new(region),
        epoch: Epoch::new(epoch),
        token: Token([region as u8; 16]),
        owner,
    }
}

/// The terms that fit `owner` on the node.
fn terms(key: &SigningKey, owner: &Identity) -> GrantTerms {
    GrantTerms {
        cluster: key.cluster(),
        tenant: owner.tenant,
        region: owner.region,
        epoch: owner.epoch,
        not_after_ms: now_ms() + u64::try_from(HOUR.as_millis()).expect("short"),
        token: TokenDigest::of(&owner.token),
        node: Some("n1".to_owned()),
        incarnation: None,
    }
}

fn granted(key: &SigningKey, owner: &Identity) -> SignedGrant {
    key.sign(&terms(key, owner)).expect("short")
}

fn open(
    node: &TestNode,
    owner: Identity,
    grant: Option<SignedGrant>,
) -> Result<Session, SessionError> {
    let channel = TcpDial::default().dial(node.control())?;
    Session::open_granted(channel, owner, true, grant)
}

fn refused(opened: Result<Session, SessionError>) -> Option<Refusal> {
    opened.err().and_then(|error| error.refusal())
}

pub(crate) fn nobody_opens_without_a_grant_and_a_granted_owner_reads(fabric: Fabric) {
    let (cluster, key) = guarded(fabric);
    let node = &cluster.nodes[0];
    let owner = identity(1, 1, 1);
    assert_eq!(
        refused(open(node, owner, None)),
        Some(Refusal::GrantMissing {})
    );
    let grant = granted(&key, &owner);
    let mut session = open(node, owner, Some(grant)).expect("granted");
    let mine = session
        .allocate(ByteCount::new(MIB), &[ExtentIndex::new(0)])
        .expect("room")[0]
        .clone();
    let ticket = session.ticket(None).expect("room");
    let data = session.welcome().data;
    let transport = cluster::transport(fabric);
    let word = read_word(&*transport, data, &ticket, mine.addr, mine.rkey);
    assert_eq!(word, Ok(()));
    // Another tenant, granted too, reaches nothing of the first by its address and key.
    let thief = identity(2, 1, 2);
    let mut other = open(node, thief, Some(granted(&key, &thief))).expect("granted");
    let ticket = other.ticket(None).expect("room");
    let stolen = read_word(&*transport, data, &ticket, mine.addr, mine.rkey);
    assert_eq!(stolen, Err(ErrorKind::RemoteAccess));
}

pub(crate) fn what_was_forged_is_refused(fabric: Fabric) {
    let (cluster, key) = guarded(fabric);
    let node = &cluster.nodes[0];
    let owner = identity(1, 1, 1);
    // Signed by somebody who calls himself the same cluster.
    let stranger = SigningKey::draw(key.cluster()).expect("a key");
    let mut forgeries = vec![granted(&stranger, &owner)];
    // A good one of a lower epoch, made to look like a higher one, bit by bit.
    let good = granted(&key, &owner);
    for at in (0..good.as_bytes().len()).step_by(7) {
        let mut bytes = good.as_bytes().to_vec();
        bytes[at] ^= 1;
        forgeries.push(SignedGrant::from_bytes(bytes).expect("as long"));
    }
    let mut cut = good.as_bytes().to_vec();
    cut.truncate(70);
    for bytes in [cut, Vec::new(), vec![0xff; 512]] {
        forgeries.push(SignedGrant::from_bytes(bytes).expect("short enough"));
    }
    for forged in forgeries {
        let answer = refused(open(node, owner, Some(forged)));
        assert_eq!(answer, Some(Refusal::GrantForged {}));
    }
    assert_eq!(node.status().regions, 0, "something was let in");
    open(node, owner, Some(good)).expect("the good one still is");
}

pub(crate) fn a_grant_is_worth_nothing_to_anybody_else(fabric: Fabric) {
    let (cluster, key) = guarded(fabric);
    let node = &cluster.nodes[0];
    let owner = identity(1, 1, 1);
    let grant = granted(&key, &owner);
    let _session = open(node, owner, Some(grant.clone())).expect("granted");
    let other = |what| Some(Refusal::GrantForOther { what });
    // Overheard and replayed for the thief's own region, tenant, epoch, or without the token.
    let thief = identity(2, 1, 2);
    for (owner, what) in [
        (thief, GrantField::Tenant),
        (
            Identity {
                tenant: owner.tenant,
                ..thief
            },
            GrantField::Region,
        ),
        (
            Identity {
                epoch: Epoch::new(2),
                ..owner
            },
            GrantField::Epoch,
        ),
        (
            Identity {
                token: Token([9; 16]),
                owner: 2,
                ..owner
            },
            GrantField::Owner,
        ),
    ] {
        let answer = refused(open(node, owner, Some(grant.clone())));
        assert_eq!(answer, other(what));
    }
    // Given to the owner for another node, which knows the token, and replays it here.
    let elsewhere = GrantTerms {
        node: Some("n2".to_owned()),
        ..terms(&key, &owner)
    };
    let elsewhere = key.sign(&elsewhere).expect("short");
    assert_eq!(
        refused(open(node, owner, Some(elsewhere))),
        other(GrantField::Node)
    );
    // A whole other cluster, whose control plane happens to have the same key.
    let cluster_2 = GrantTerms {
        cluster: ClusterId([2; 16]),
        ..terms(&key, &owner)
    };
    let cluster_2 = key.sign(&cluster_2).expect("short");
    assert_eq!(
        refused(open(node, owner, Some(cluster_2))),
        other(GrantField::Cluster)
    );
    assert_eq!(node.status().regions, 1, "something was let in");
}

pub(crate) fn a_grant_that_is_over_or_was_overtaken_opens_nothing(fabric: Fabric) {
    let (cluster, key) = guarded(fabric);
    let node = &cluster.nodes[0];
    let first = identity(1, 1, 1);
    let over = GrantTerms {
        not_after_ms: now_ms(),
        ..terms(&key, &first)
    };
    let answer = refused(open(node, first, Some(key.sign(&over).expect("short"))));
    assert!(
        matches!(answer, Some(Refusal::GrantExpired { not_after_ms, now_ms })
            if not_after_ms == over.not_after_ms && now_ms >= not_after_ms),
        "{answer:?}"
    );
    let old = granted(&key, &first);
    let mut fenced = open(node, first, Some(old.clone())).expect("granted");
    let second = identity(1, 2, 2);
    let mut session = open(node, second, Some(granted(&key, &second))).expect("granted");
    // The replay: still signed, still in time, but the region has moved on.
    let too_low = Some(Refusal::EpochTooLow {
        requested: Epoch::new(1),
        current: Epoch::new(2),
    });
    assert_eq!(refused(open(node, first, Some(old))), too_low);
    assert_eq!(
        fenced.ticket(None).err().and_then(|error| error.refusal()),
        too_low
    );
    session
        .keep_alive()
        .expect("the new owner is not disturbed");
}

pub(crate) fn a_grant_for_a_former_life_of_the_node_opens_nothing(fabric: Fabric) {
    let (mut cluster, key) = guarded(fabric);
    let owner = identity(1, 1, 1);
    let life = |node: &TestNode| {
        let mut channel = TcpDial::default().dial(node.control()).expect("alive");
        channel.hello().expect("an answer").incarnation
    };
    let for_life = |incarnation| {
        let terms = GrantTerms {
            incarnation: Some(incarnation),
            ..terms(&key, &owner)
        };
        Some(key.sign(&terms).expect("short"))
    };
    let first = for_life(life(&cluster.nodes[0]));
    drop(open(&cluster.nodes[0], owner, first.clone()).expect("granted"));
    cluster.nodes[0].restart();
    // It has other memory now: who comes with what it was given before is told so.
    let what = GrantField::Incarnation;
    let other = Some(Refusal::GrantForOther { what });
    assert_eq!(refused(open(&cluster.nodes[0], owner, first)), other);
    assert_eq!(cluster.nodes[0].status().regions, 0);
    let second = for_life(life(&cluster.nodes[0]));
    open(&cluster.nodes[0], owner, second).expect("granted");
}

/// One test for each of them.
#[macro_export]
macro_rules! grants_suite {
    ($fabric:expr) => {
        $crate::grants_suite!(@ $fabric,
            nobody_opens_without_a_grant_and_a_granted_owner_reads,
            what_was_forged_is_refused,
            a_grant_is_worth_nothing_to_anybody_else,
            a_grant_that_is_over_or_was_overtaken_opens_nothing,
            a_grant_for_a_former_life_of_the_node_opens_nothing,
        );
    };
    (@ $fabric:expr, $($name:ident,)*) => {$(
        #[test]
        fn $name() {
            $crate::grants_suite::$name($fabric);
        }
    )*};
}
