//! Thin regions on real nodes: extents are placed ahead of need, whoever comes before waits, and nothing is
//! lost while the authority is away or the pool is full.

mod cluster;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cluster::{Cluster, Fabric, Pages, wait_until};
use mycoram_fabric::authority::{
    AuthorityError, Order, Places, RegionAuthority, Sighting, StaleMark, StaticAuthority,
};
use mycoram_fabric::pages::{Direction, LaneConfig, PageError, PageRequest, RemoteRegion, Which};
use mycoram_fabric::placement::RegionEntry;
use mycoram_fabric::remote::{Ahead, CreateError, Remote};
use mycoram_fabric::units::{ByteCount, ExtentIndex, PAGE_BYTES, PageIndex};

const MIB: u64 = 1 << 20;
/// Pages of an extent.
const EXTENT: u32 = MIB as u32 / PAGE_BYTES as u32;
const AHEAD: Ahead = Ahead {
    low: ByteCount::mib(2),
    high: ByteCount::mib(4),
};

const GIVES: u32 = 0;
const AWAY: u32 = 1;
const FULL: u32 = 2;

/// Gives places, is away, or has none.
struct Moody {
    mood: AtomicU32,
    asked: AtomicU64,
    named: Mutex<Vec<u32>>,
    places: Arc<StaticAuthority>,
}

impl Moody {
    fn of(cluster: &Cluster) -> Arc<Self> {
        Arc::new(Self {
            mood: AtomicU32::new(GIVES),
            asked: AtomicU64::new(0),
            named: Mutex::default(),
            places: cluster.authority(),
        })
    }

    fn is(&self, mood: u32) {
        self.mood.store(mood, Ordering::SeqCst);
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl RegionAuthority for Moody {
    fn place(
        &self,
        region: &RegionEntry,
        extents: &[ExtentIndex],
        without: &[String],
    ) -> Result<Places, AuthorityError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.mood.load(Ordering::SeqCst) {
            AWAY => Err(AuthorityError::Away("it is away".into())),
            FULL => Err(AuthorityError::Full("class low is refused first".into())),
            _ => {
                let mut named = self.named.lock().expect("no panic");
                named.extend(extents.iter().map(|extent| extent.get()));
                self.places.place(region, extents, without)
            }
        }
    }
    fn mark_stale(&self, _marks: &[StaleMark<'_>]) -> Result<(), AuthorityError> {
        Ok(())
    }
    fn report(&self, _node: &str, _seen: Sighting) {}
    fn orders(&self) -> Result<Vec<Order>, AuthorityError> {
        Ok(Vec::new())
    }
    fn gives_orders(&self) -> bool {
        false
    }
    fn copied(&self, _extent: ExtentIndex, _node: &str) -> Result<(), AuthorityError> {
        Ok(())
    }
    fn dropped(&self, _extent: ExtentIndex, _node: &str) -> Result<(), AuthorityError> {
        Ok(())
    }
    fn grant(&self, _node: &str) -> Result<Option<Vec<u8>>, AuthorityError> {
        Ok(None)
    }
}

fn create(cluster: &Cluster, authority: &Arc<Moody>, mib: u64, replicas: u8) -> Arc<Remote> {
    let authority = Arc::clone(authority) as Arc<dyn RegionAuthority>;
    let made = cluster.create_thin(authority, mib * MIB, MIB, replicas, AHEAD);
    made.expect("room for what is placed ahead")
}

fn placed(remote: &Remote) -> u64 {
    remote.stats().extents_placed
}

#[test]
fn a_region_costs_what_is_written_and_a_little_ahead() {
    let cluster = Cluster::start(Fabric::Tcp, &[16 * MIB, 16 * MIB]);
    let authority = Moody::of(&cluster);
    // Larger than all nodes together.
    let remote = create(&cluster, &authority, 256, 2);
    assert_eq!((placed(&remote), remote.stats().extents), (4, 256));
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    let asked = authority.asked();
    // What nobody has written is zeros, and nobody is asked, also over the border of what is placed.
    for first in [0, 4 * EXTENT - 8, 100 * EXTENT, 256 * EXTENT - 16] {
        pages.read_back(first, 16).expect("zeros");
    }
    assert_eq!((placed(&remote), authority.asked()), (4, asked));
    // In turn: the reserve is filled up before it is used up.
    for extent in 0..4 {
        assert!(remote.is_placed(PageIndex::new(extent * EXTENT)));
        pages.write(extent * EXTENT, 16).expect("placed");
    }
    wait_until("the reserve is filled up", || placed(&remote) >= 6);
    assert_eq!(remote.stats().writes_unplaced, 0);
    // Out of turn: it is placed as soon as a page of it is expected.
    let far = 200 * EXTENT;
    assert!(!remote.is_placed(PageIndex::new(far)));
    remote.expect(PageIndex::new(far + 5));
    wait_until("it is placed", || remote.is_placed(PageIndex::new(far)));
    // And as late as it is written.
    pages.write(150 * EXTENT - 8, 16).expect("placed by then");
    for first in [0, far, 3 * EXTENT, 150 * EXTENT - 8] {
        pages.read_back(first, 16).expect("as it was written");
    }
    let named = authority.named.lock().expect("no panic").clone();
    for extent in [149, 150, 200] {
        assert!(named.contains(&extent), "{named:?}");
    }
    let held: u64 = (0..2)
        .map(|node| cluster.nodes[node].status().extents)
        .sum();
    assert_eq!(
        held,
        2 * placed(&remote),
        "something lies on a node for nothing"
    );
    assert!(placed(&remote) < 24, "{named:?}");

    // A successor knows what is placed and what is not.
    let directory = remote.directory();
    let successor = cluster.reopen(&directory).expect("taken over");
    assert!(placed(&successor) >= placed(&remote));
    let mut after = Pages::open(&*successor, &LaneConfig::default());
    after.adopt(&pages);
    for first in [0, far, 150 * EXTENT - 8, 100 * EXTENT] {
        after.read_back(first, 16).expect("as it was written");
    }
    after.write(100 * EXTENT, 16).expect("placed by then");
    after
        .read_back(100 * EXTENT, 16)
        .expect("as it was written");
    drop((pages, after, remote));
    successor.release();
    for node in &cluster.nodes {
        assert_eq!(node.status().free.get(), 16 * MIB);
    }
}

#[test]
fn while_the_authority_is_away_the_reserve_is_used_and_then_writes_wait_and_reads_go_on() {
    let cluster = Cluster::start(Fabric::Tcp, &[16 * MIB, 16 * MIB]);
    let authority = Moody::of(&cluster);
    let remote = create(&cluster, &authority, 64, 2);
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    let mut waiting = remote.open_lane(&LaneConfig::default()).expect("a lane");
    authority.is(AWAY);
    for extent in 0..4 {
        pages.write(extent * EXTENT, 16).expect("the reserve");
    }
    let new = vec![7; PAGE_BYTES];
    waiting.frames().copy_in(0, &new).expect("a frame");
    waiting
        .queue(PageRequest {
            tag: 1,
            direction: Direction::Write,
            page: PageIndex::new(40 * EXTENT),
            run: 1,
            frame: mycoram_fabric::pages::FrameIndex(0),
            which: Which::Live,
        })
        .expect("room");
    waiting.ring();
    wait_until("it is said that it waits", || {
        let stats = remote.stats();
        stats.writes_unplaced == 1 && stats.places_away > 1
    });
    assert!(remote.has_room(), "nobody has said no");
    // All others go on, by this lane too.
    let mut done = Vec::with_capacity(8);
    for extent in 0..4 {
        pages.read_back(extent * EXTENT, 16).expect("read");
        pages.write(extent * EXTENT + 20, 16).expect("written");
    }
    pages.read_back(50 * EXTENT, 16).expect("zeros");
    assert_eq!(waiting.poll(&mut done), 0, "it is nowhere yet");
    authority.is(GIVES);
    wait_until("it is written", || waiting.poll(&mut done) == 1);
    assert_eq!(done[0].result, Ok(()));
    assert_eq!(remote.stats().writes_unplaced, 0);
    let raw = pages.read_raw(40 * EXTENT, 1).expect("read");
    assert_eq!(raw, new);
    remote.release();
}

#[test]
fn a_full_pool_is_said_and_nothing_is_lost() {
    let cluster = Cluster::start(Fabric::Tcp, &[8 * MIB]);
    let authority = Moody::of(&cluster);
    let remote = create(&cluster, &authority, 64, 1);
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    // The node is full before the authority thinks so: there is no other.
    for extent in 0..8 {
        pages.write(extent * EXTENT, 16).expect("room");
    }
    wait_until("all is used", || placed(&remote) == 8);
    pages.start(Direction::Write, 20 * EXTENT, 1);
    wait_until("it is said", || !remote.has_room());
    let stats = remote.stats();
    assert_eq!(stats.writes_unplaced, 1);
    assert!(stats.places_refused > 0, "{stats:?}");
    // Who does not want to wait is told, and has lost nothing.
    pages.give_up_unplaced();
    let answers = pages.finish();
    assert_eq!(answers[0].1, Err(PageError::Unplaced));
    for extent in 0..8 {
        pages.read_back(extent * EXTENT, 16).expect("read");
    }
    pages.read_back(20 * EXTENT, 1).expect("still zeros");
    // A new region is refused in words.
    authority.is(FULL);
    let again = Arc::clone(&authority) as Arc<dyn RegionAuthority>;
    let refused = cluster.create_thin(again, 4 * MIB, MIB, 1, AHEAD);
    let Err(CreateError::Authority(AuthorityError::Full(why))) = refused else {
        panic!("{:?}", refused.map(|_| ()));
    };
    assert!(why.to_string().contains("class low"), "{why}");
    remote.release();
}

#[test]
fn a_write_that_waits_for_room_goes_on_when_there_is_some() {
    let cluster = Cluster::start(Fabric::Tcp, &[8 * MIB]);
    let other = cluster.create(4 * MIB, MIB).expect("room");
    let authority = Moody::of(&cluster);
    // Half of what is to be placed ahead has room, and that is enough to begin with.
    let blocked = cluster.create(2 * MIB, MIB).expect("room");
    let remote = create(&cluster, &authority, 64, 1);
    assert_eq!(placed(&remote), 2);
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    pages.write(0, 16).expect("placed");
    pages.start(Direction::Write, 20 * EXTENT, 16);
    wait_until("it is said", || !remote.has_room());
    other.release();
    let answers = pages.finish();
    assert_eq!(answers[0].1, Ok(()));
    wait_until("there is room", || remote.has_room());
    blocked.release();
    remote.release();
}
