//! What must hold of a replication group over memory nodes: members fail, leave and join, the authority goes
//! away.

use std::sync::Arc;
use std::sync::Mutex;

use crate::cluster::{Cluster, Fabric, transport};
use mycoram_fabric::authority::{
    AuthorityError, Order, Places, RegionAuthority, Sighting, StaleMark,
};
use mycoram_fabric::group::{
    AddMemberError, Member, MemberState, PageFrom, RemoveMemberError, ReplicateError,
    ReplicationGroup,
};
use mycoram_fabric::placement::RegionEntry;
use mycoram_fabric::session::Identity;
use mycoram_fabric::transfer::{
    Endpoint, MemoryIndex, NodeAccess, NodeEndpoint, Piece, Place, Transfer, TransferConfig,
};
use mycoram_fabric::transport::{Mapping, RemoteSlice, Transport};
use mycoram_fabric::units::{
    ByteCount, Epoch, ExtentIndex, PAGE_BYTES, PageIndex, RegionId, TenantId,
};
use mycoram_fabric::wire::control::Token;

const EXTENT: u64 = 256 << 10;
const EXTENTS: u32 = 8;
const BYTES: u64 = EXTENT * EXTENTS as u64;
const PAGES: u32 = (BYTES / PAGE_BYTES as u64) as u32;

/// Writes down what it is told, and can be away.
#[derive(Default)]
struct Clerk {
    away: Mutex<bool>,
    stale: Mutex<Vec<(u32, String)>>,
    copied: Mutex<Vec<(u32, String)>>,
    reported: Mutex<Vec<String>>,
}

impl Clerk {
    fn be_away(&self, away: bool) {
        *self.away.lock().expect("no panic") = away;
    }

    fn answer(&self) -> Result<(), AuthorityError> {
        if *self.away.lock().expect("no panic") {
            let why = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(AuthorityError::Away(why.into()));
        }
        Ok(())
    }

    fn stale_on(&self, node: &str) -> usize {
        let stale = self.stale.lock().expect("no panic");
        stale.iter().filter(|(_, on)| on == node).count()
    }
}

impl RegionAuthority for Clerk {
    fn place(
        &self,
        _region: &RegionEntry,
        _extents: &[ExtentIndex],
        _without: &[String],
    ) -> Result<Places, AuthorityError> {
        Err(AuthorityError::Unknown)
    }
    fn mark_stale(&self, marks: &[StaleMark<'_>]) -> Result<(), AuthorityError> {
        self.answer()?;
        let marks = marks
            .iter()
            .map(|mark| (mark.extent.get(), mark.node.into()));
        self.stale.lock().expect("no panic").extend(marks);
        Ok(())
    }
    fn report(&self, node: &str, _seen: Sighting) {
        self.reported.lock().expect("no panic").push(node.into());
    }
    fn orders(&self) -> Result<Vec<Order>, AuthorityError> {
        Ok(Vec::new())
    }
    fn copied(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        self.answer()?;
        let copied = (extent.get(), node.into());
        self.copied.lock().expect("no panic").push(copied);
        Ok(())
    }
    fn dropped(&self, _extent: ExtentIndex, _node: &str) -> Result<(), AuthorityError> {
        Ok(())
    }
    fn grant(&self, _node: &str) -> Result<Option<Vec<u8>>, AuthorityError> {
        Ok(None)
    }
}

struct Team {
    cluster: Cluster,
    clerk: Arc<Clerk>,
    group: ReplicationGroup,
    ends: Vec<(Arc<NodeEndpoint>, Vec<RemoteSlice>)>,
    transport: Arc<dyn Transport>,
    memory: Arc<Mapping>,
    here: MemoryIndex,
    versions: Vec<u64>,
}

fn contents(page: u32, version: u64) -> Vec<u8> {
    let word = (u64::from(page) << 20 | version).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes().repeat(PAGE_BYTES / 8)
}

fn name(node: usize) -> String {
    format!("n{node}")
}

impl Team {
    /// Nodes with room, none of them in the group yet.
    fn gather(fabric: Fabric, nodes: usize) -> Self {
        let cluster = Cluster::start(fabric, &vec![BYTES; nodes]);
        let transport = transport(fabric);
        let ends = (0..nodes).map(|node| open(&cluster, &transport, node, 1));
        let ends = ends.collect();
        let clerk = Arc::new(Clerk::default());
        let region = RegionEntry {
            id: RegionId::new(8),
            tenant: TenantId::new(9),
            epoch: Epoch::new(1),
            bytes: ByteCount::new(BYTES),
            extent_bytes: ByteCount::new(EXTENT),
            replicas: 2,
        };
        let config = TransferConfig {
            chunk_bytes: ByteCount::new(64 << 10),
            ..TransferConfig::default()
        };
        let authority = Arc::clone(&clerk) as Arc<dyn RegionAuthority>;
        let mut group = ReplicationGroup::open(&region, authority, config).expect("memory");
        let memory = Arc::new(Mapping::anonymous(BYTES as usize).expect("memory"));
        let here = group.register(Arc::clone(&memory)).expect("registered");
        Self {
            cluster,
            clerk,
            group,
            ends,
            transport,
            memory,
            here,
            versions: vec![0; PAGES as usize],
        }
    }

    fn add(&mut self, node: usize) -> Result<(), AddMemberError> {
        let (endpoint, extents) = &self.ends[node];
        let member = Member {
            name: name(node),
            endpoint: Arc::clone(endpoint) as Arc<dyn Endpoint>,
            extents: extents.clone(),
        };
        self.group.add(member, |_| {})
    }

    fn write(&mut self, step: usize) -> Result<(usize, Vec<String>), ReplicateError> {
        let mut list = Vec::new();
        for page in (0..PAGES).step_by(step) {
            self.versions[page as usize] += 1;
            let offset = u64::from(page) * PAGE_BYTES as u64;
            let bytes = contents(page, self.versions[page as usize]);
            self.memory
                .copy_in(offset as usize, &bytes)
                .expect("inside");
            let page = PageIndex::new(page);
            list.push(PageFrom { page, offset });
        }
        let replicated = self.group.replicate(self.here, &list)?;
        Ok((replicated.members, replicated.failed))
    }

    fn live(&self) -> Vec<String> {
        let members = self.group.members().into_iter();
        let live = members.filter(|member| member.state == MemberState::Live);
        live.map(|member| member.name).collect()
    }

    /// Every live member has every page as it was last replicated.
    fn check(&self) {
        for (node, (endpoint, extents)) in self.ends.iter().enumerate() {
            if !self.live().contains(&name(node)) {
                continue;
            }
            let mut transfer = Transfer::open(TransferConfig::default()).expect("memory");
            let endpoint = transfer
                .add_endpoint(Arc::clone(endpoint) as Arc<dyn Endpoint>)
                .expect("rails");
            let memory = Arc::new(Mapping::anonymous(BYTES as usize).expect("memory"));
            let memory_index = transfer.register(Arc::clone(&memory)).expect("registered");
            let pieces: Vec<_> = (0..)
                .zip(extents)
                .map(|(nth, at)| Piece {
                    tag: nth,
                    from: Place::Remote { endpoint, at: *at },
                    into: Place::Local {
                        memory: memory_index,
                        offset: nth * EXTENT,
                    },
                    bytes: EXTENT,
                })
                .collect();
            let left = transfer.run(&pieces, |_| {}).expect("pieces");
            assert!(left.is_empty(), "{left:?}");
            let mut found = vec![0; PAGE_BYTES];
            for (page, version) in (0..).zip(&self.versions) {
                memory
                    .copy_out(page as usize * PAGE_BYTES, &mut found)
                    .expect("inside");
                let expected = match version {
                    0 => vec![0; PAGE_BYTES],
                    version => contents(page, *version),
                };
                assert!(found == expected, "page {page} of n{node}");
            }
        }
    }
}

fn open(
    cluster: &Cluster,
    transport: &Arc<dyn Transport>,
    node: usize,
    epoch: u64,
) -> (Arc<NodeEndpoint>, Vec<RemoteSlice>) {
    let identity = Identity {
        tenant: TenantId::new(9),
        region: RegionId::new(8),
        epoch: Epoch::new(epoch),
        token: Token([1; 16]),
        owner: epoch,
    };
    let (access, transport) = (NodeAccess::tcp(identity), Arc::clone(transport));
    let end = NodeEndpoint::open(cluster.entry(node), transport, &access, true).expect("alive");
    let indexes: Vec<_> = (0..EXTENTS).map(ExtentIndex::new).collect();
    let grants = end
        .allocate(ByteCount::new(EXTENT), &indexes)
        .expect("room");
    let slices = grants.iter().map(|grant| RemoteSlice {
        addr: grant.addr,
        rkey: grant.rkey,
    });
    let slices = slices.collect();
    (Arc::new(end), slices)
}

pub(crate) fn pages_are_on_all_members_also_on_those_that_came_later(fabric: Fabric) {
    let mut team = Team::gather(fabric, 3);
    assert!(matches!(team.write(1), Err(ReplicateError::NoMember)));
    team.versions.fill(0);
    team.add(0).expect("the first");
    team.add(1).expect("the second");
    assert_eq!(team.write(1).expect("two nodes"), (2, vec![]));
    team.add(2).expect("the third");
    assert_eq!(team.write(3).expect("three nodes"), (3, vec![]));
    assert_eq!(team.live(), ["n0", "n1", "n2"]);
    team.check();
    let copied = team.clerk.copied.lock().expect("no panic").len();
    assert_eq!(copied, 3 * EXTENTS as usize);
    assert!(matches!(team.add(2), Err(AddMemberError::Known)));
}

pub(crate) fn a_member_that_dies_is_durably_stale_before_pages_count(fabric: Fabric) {
    let mut team = Team::gather(fabric, 3);
    for node in 0..2 {
        team.add(node).expect("alive");
    }
    team.write(1).expect("two nodes");
    team.cluster.nodes[0].kill();
    team.clerk.be_away(true);
    assert!(matches!(team.write(2), Err(ReplicateError::NotDurable(_))));
    assert!(matches!(team.write(2), Err(ReplicateError::NotDurable(_))));
    assert!(matches!(
        team.add(2),
        Err(AddMemberError::Fill(ReplicateError::NotDurable(_)))
    ));
    assert_eq!(team.clerk.stale_on("n0"), 0);
    team.clerk.be_away(false);
    assert_eq!(team.write(2).expect("one node"), (1, vec!["n0".into()]));
    assert_eq!(team.clerk.stale_on("n0"), EXTENTS as usize);
    assert_eq!(*team.clerk.reported.lock().expect("no panic"), ["n0"]);
    team.add(2).expect("alive");
    assert_eq!(team.write(5).expect("two nodes"), (2, vec![]));
    assert_eq!(team.live(), ["n1", "n2"]);
    team.check();
}

pub(crate) fn when_the_last_member_dies_nothing_counts_and_no_empty_member_takes_its_place(
    fabric: Fabric,
) {
    let mut team = Team::gather(fabric, 2);
    team.add(0).expect("alive");
    team.write(1).expect("a node");
    team.cluster.nodes[0].kill();
    assert!(matches!(team.write(1), Err(ReplicateError::NoMember)));
    assert!(matches!(
        team.add(1),
        Err(AddMemberError::Fill(ReplicateError::NoMember))
    ));
    assert_eq!(team.live(), Vec::<String>::new());
}

pub(crate) fn a_member_is_taken_out_only_when_that_is_durable(fabric: Fabric) {
    let mut team = Team::gather(fabric, 2);
    for node in 0..2 {
        team.add(node).expect("alive");
    }
    team.write(1).expect("two nodes");
    team.clerk.be_away(true);
    assert!(matches!(
        team.group.remove("n1"),
        Err(RemoveMemberError::NotDurable(_))
    ));
    assert_eq!(team.write(2).expect("two nodes"), (2, vec![]));
    team.clerk.be_away(false);
    team.group.remove("n1").expect("durable");
    assert!(matches!(
        team.group.remove("n1"),
        Err(RemoveMemberError::Unknown)
    ));
    assert_eq!(team.write(4).expect("one node"), (1, vec![]));
    team.check();
    // And comes back, filled anew.
    team.add(1).expect("alive");
    team.check();
}

pub(crate) fn a_member_whose_connections_break_stays(fabric: Fabric) {
    let mut team = Team::gather(fabric, 2);
    for node in 0..2 {
        team.add(node).expect("alive");
    }
    for round in 1..6 {
        for node in &team.cluster.nodes {
            node.break_data_connections();
        }
        assert_eq!(team.write(round).expect("two nodes"), (2, vec![]));
    }
    team.check();
}

pub(crate) fn an_owner_that_was_succeeded_replicates_nothing(fabric: Fabric) {
    let mut team = Team::gather(fabric, 2);
    for node in 0..2 {
        team.add(node).expect("alive");
    }
    team.write(1).expect("two nodes");
    for node in 0..2 {
        let _successor = open(&team.cluster, &team.transport, node, 2);
    }
    assert!(matches!(team.write(1), Err(ReplicateError::Fenced)));
    assert!(matches!(team.write(1), Err(ReplicateError::Fenced)));
    assert_eq!(
        team.clerk.stale_on("n0"),
        0,
        "it has nothing to say any more"
    );
}

pub(crate) fn lists_that_make_no_sense_are_refused(fabric: Fabric) {
    let mut team = Team::gather(fabric, 1);
    team.add(0).expect("alive");
    let page = |page, offset| PageFrom {
        page: PageIndex::new(page),
        offset,
    };
    let twice = team
        .group
        .replicate(team.here, &[page(3, 0), page(3, 4096)]);
    assert!(matches!(twice, Err(ReplicateError::Twice(_))));
    let outside = team.group.replicate(team.here, &[page(PAGES, 0)]);
    assert!(matches!(outside, Err(ReplicateError::OutsideRegion(_))));
    let nowhere = team.group.replicate(team.here, &[page(0, BYTES)]);
    assert!(matches!(nowhere, Err(ReplicateError::Piece(_))));
}

/// The tests of this file over one fabric.
#[macro_export]
macro_rules! group_suite {
    ($fabric:expr) => {
        $crate::group_suite!(@each $fabric;
            pages_are_on_all_members_also_on_those_that_came_later
            a_member_that_dies_is_durably_stale_before_pages_count
            when_the_last_member_dies_nothing_counts_and_no_empty_member_takes_its_place
            a_member_is_taken_out_only_when_that_is_durable
            a_member_whose_connections_break_stays
            an_owner_that_was_succeeded_replicates_nothing
            lists_that_make_no_sense_are_refused
        );
    };
    (@each $fabric:expr; $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                group_suite::$check($fabric);
            }
        )*
    };
}
