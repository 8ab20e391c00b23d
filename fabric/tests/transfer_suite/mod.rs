//! What must hold of parallel transfer to real memory nodes: their queue pairs break, they die, the session
//! is fenced, endpoints come and go.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Cluster, Fabric, transport, wait_until};
use crate::transfer_places::Places;
use mycoram_fabric::session::Identity;
use mycoram_fabric::transfer::{
    Endpoint, NodeAccess, NodeEndpoint, Piece, PieceError, Place, Transfer, TransferConfig, Why,
};
use mycoram_fabric::transport::{Mapping, Transport};
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, RegionId, Rkey, TenantId};
use mycoram_fabric::wire::control::Token;

const MIB: u64 = 1 << 20;
const BYTES: u64 = 4 * MIB;

fn identity(epoch: u64) -> Identity {
    Identity {
        tenant: TenantId::new(4),
        region: RegionId::new(5),
        epoch: Epoch::new(epoch),
        token: Token([6; 16]),
        owner: epoch,
    }
}

fn open(
    cluster: &Cluster,
    node: usize,
    transport: &Arc<dyn Transport>,
    epoch: u64,
) -> Arc<NodeEndpoint> {
    let (entry, access) = (cluster.entry(node), NodeAccess::tcp(identity(epoch)));
    let create = epoch == 1;
    let opened = NodeEndpoint::open(entry, Arc::clone(transport), &access, create);
    Arc::new(opened.expect("alive"))
}

/// A session to all nodes of a cluster, each with one extent of [`BYTES`]; and memory here, full of
/// numbers, and as much that is empty.
struct Session {
    transfer: Transfer,
    transport: Arc<dyn Transport>,
    places: Places,
    memory: Arc<Mapping>,
}

impl Session {
    fn open(fabric: Fabric, cluster: &Cluster, config: TransferConfig) -> Self {
        let transport = transport(fabric);
        let mut transfer = Transfer::open(config).expect("memory");
        let mut ends = Vec::new();
        for node in 0..cluster.nodes.len() {
            let end = open(cluster, node, &transport, 1);
            let extent = [ExtentIndex::new(0)];
            let grants = end.allocate(ByteCount::new(BYTES), &extent).expect("room");
            let index = transfer.add_endpoint(end as Arc<dyn Endpoint>);
            ends.push((index.expect("rails"), grants[0].clone()));
        }
        let memory = Arc::new(Mapping::anonymous(2 * BYTES as usize).expect("memory"));
        memory.copy_in(0, &numbers()).expect("inside");
        let here = transfer.register(Arc::clone(&memory)).expect("registered");
        Self {
            transfer,
            transport,
            places: Places { here, ends },
            memory,
        }
    }

    /// All of one place to another, in pieces of 1 MiB and a bit.
    fn pieces(&self, from: Place, into: Place) -> Vec<Piece> {
        let step = MIB + 4096;
        (0..BYTES.div_ceil(step))
            .map(|nth| Piece {
                tag: nth,
                from: from.behind(nth * step).expect("inside"),
                into: into.behind(nth * step).expect("inside"),
                bytes: step.min(BYTES - nth * step),
            })
            .collect()
    }

    fn moved(&mut self, from: Place, into: Place) {
        let pieces = self.pieces(from, into);
        let left = self.transfer.run(&pieces, |_| {}).expect("pieces");
        assert!(left.is_empty(), "{left:?}");
    }

    /// As [`Self::moved`]; with each quarter that has arrived all queue pairs break, under what is on its way.
    fn moved_through_breaks(&mut self, cluster: &Cluster, from: Place, into: Place) {
        const STEP: u64 = BYTES / 4;
        let pieces = self.pieces(from, into);
        let taken = self.transfer.queue(&pieces).expect("pieces");
        assert_eq!(taken, pieces.len());
        let mut next = self.transfer.progress().bytes_done + STEP;
        wait_until("everything has arrived", || {
            self.transfer.drive();
            if self.transfer.progress().bytes_done >= next {
                next += STEP;
                for node in &cluster.nodes {
                    node.break_data_connections();
                }
            }
            self.transfer.is_idle()
        });
        while let Some(finished) = self.transfer.take_finished() {
            finished.result.expect("arrived");
        }
    }

    /// Whether the second half of our memory is as the first.
    fn came_back(&self) -> bool {
        let mut found = vec![0; BYTES as usize];
        self.memory
            .copy_out(BYTES as usize, &mut found)
            .expect("inside");
        found == numbers()
    }
}

fn numbers() -> Vec<u8> {
    let word = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..BYTES / 8).flat_map(word).collect()
}

pub(crate) fn everything_arrives_over_all_rails_of_all_endpoints(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[BYTES, BYTES, BYTES]);
    let mut session = Session::open(fabric, &cluster, TransferConfig::default());
    session.moved(session.places.local(0), session.places.remote(0, 0));
    session.moved(session.places.remote(0, 0), session.places.remote(1, 0));
    session.moved(session.places.remote(1, 0), session.places.remote(2, 0));
    session.moved(session.places.remote(2, 0), session.places.local(BYTES));
    assert!(session.came_back());
    let progress = session.transfer.progress();
    assert_eq!(
        (progress.bytes_done, progress.bytes_queued),
        (4 * BYTES, 4 * BYTES)
    );
    assert_eq!(
        (progress.pieces_left(), progress.pieces_not_arrived),
        (0, 0)
    );
    assert_eq!(progress.rails.len(), 6);
    for rail in &progress.rails {
        assert!(
            rail.bytes >= BYTES / 2,
            "an idle rail: {:?}",
            progress.rails
        );
        assert_eq!((rail.in_flight, rail.breaks), (0, 0));
    }
}

pub(crate) fn queue_pairs_that_break_are_replaced_and_nothing_is_missed(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[BYTES, BYTES]);
    let config = TransferConfig {
        // Many tries: it is not for them to end it.
        tries: 1000,
        chunk_bytes: ByteCount::new(64 << 10),
        ..TransferConfig::default()
    };
    let mut session = Session::open(fabric, &cluster, config);
    session.moved_through_breaks(
        &cluster,
        session.places.local(0),
        session.places.remote(0, 0),
    );
    session.moved_through_breaks(
        &cluster,
        session.places.remote(0, 0),
        session.places.remote(1, 0),
    );
    session.moved_through_breaks(
        &cluster,
        session.places.remote(1, 0),
        session.places.local(BYTES),
    );
    assert!(session.came_back());
    let progress = session.transfer.progress();
    let breaks: u32 = progress.rails.iter().map(|rail| rail.breaks).sum();
    assert!(breaks >= 8, "{breaks} of {:?}", progress.rails);
}

pub(crate) fn what_a_dead_node_leaves_is_handed_in_again_for_another(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[BYTES, BYTES]);
    let config = TransferConfig {
        rate: Some(ByteCount::mib(16)),
        chunk_bytes: ByteCount::new(64 << 10),
        ..TransferConfig::default()
    };
    let mut session = Session::open(fabric, &cluster, config);
    let pieces = session.pieces(session.places.local(0), session.places.remote(0, 0));
    assert_eq!(
        session.transfer.queue(&pieces).expect("pieces"),
        pieces.len()
    );
    while session.transfer.progress().bytes_done < BYTES / 2 {
        session.transfer.drive();
        session.transfer.wait(Duration::from_millis(100));
    }
    cluster.nodes[0].kill();
    session.transfer.set_rate(None);
    let left = session.transfer.run(&[], |_| {}).expect("none");
    assert!(!left.is_empty());
    assert!(left.iter().all(|not| not.why == Why::Lost));
    assert!(!session.transfer.has_endpoint(session.places.ends[0].0));
    let rest: u64 = left.iter().map(|not| not.rest.bytes).sum();
    // What was on the way may have arrived behind something that did not.
    assert!(rest <= BYTES / 2 + MIB + MIB / 2, "{rest} bytes are left");
    // The same bytes, to the node that lives; and a piece for the dead one is refused at once.
    let again: Vec<_> = left
        .iter()
        .map(|not| {
            let Place::Local { offset, .. } = not.rest.from else {
                panic!("{not:?}");
            };
            Piece {
                into: session.places.remote(1, offset),
                ..not.rest
            }
        })
        .chain([left[0].rest])
        .collect();
    let left = session.transfer.run(&again, |_| {}).expect("pieces");
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].endpoint, session.places.ends[0].0);
}

pub(crate) fn a_wrong_key_fails_its_own_piece_only(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[BYTES]);
    let mut session = Session::open(fabric, &cluster, TransferConfig::default());
    let mut pieces = session.pieces(session.places.local(0), session.places.remote(0, 0));
    if let Place::Remote { at, .. } = &mut pieces[3].into {
        at.rkey = Rkey::new(at.rkey.get() ^ 0x55);
    }
    let left = session.transfer.run(&pieces, |_| {}).expect("pieces");
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(matches!(left[0].why, Why::Refused(_)));
    assert_eq!(left[0].rest, pieces[3]);
    let right = Piece {
        into: session.places.remote(0, 3 * (MIB + 4096)),
        ..pieces[3]
    };
    assert!(
        session
            .transfer
            .run(&[right], |_| {})
            .expect("a piece")
            .is_empty()
    );
    session.moved(session.places.remote(0, 0), session.places.local(BYTES));
    assert!(session.came_back());
}

pub(crate) fn a_session_whose_owner_was_succeeded_is_fenced(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[BYTES]);
    let mut session = Session::open(fabric, &cluster, TransferConfig::default());
    session.moved(session.places.local(0), session.places.remote(0, 0));
    let _successor = open(&cluster, 0, &session.transport, 2);
    let pieces = session.pieces(session.places.local(BYTES), session.places.remote(0, 0));
    let left = session.transfer.run(&pieces, |_| {}).expect("pieces");
    assert_eq!(left.len(), pieces.len());
    assert!(left.iter().all(|not| not.why == Why::Fenced), "{left:?}");
    let whole = left.iter().filter(|not| pieces.contains(&not.rest));
    assert_eq!(whole.count(), pieces.len());
}

pub(crate) fn endpoints_come_and_go_and_bounds_are_kept(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[BYTES, BYTES]);
    let config = TransferConfig {
        pieces: 3,
        ..TransferConfig::default()
    };
    let mut session = Session::open(fabric, &cluster, config);
    let pieces = session.pieces(session.places.local(0), session.places.remote(0, 0));
    assert_eq!(session.transfer.queue(&pieces).expect("pieces"), 3);
    assert_eq!(
        session.transfer.queue(&pieces).expect("pieces"),
        0,
        "no room"
    );
    session.transfer.remove_endpoint(session.places.ends[0].0);
    let left = session.transfer.run(&[], |_| {}).expect("none");
    assert_eq!(left.len(), 3);
    assert!(left.iter().all(|not| not.why == Why::Removed));
    let unknown = session.transfer.queue(&pieces);
    assert_eq!(unknown, Err(PieceError::UnknownEndpoint { tag: 0 }));
    // It is forgotten: its session has ended, and its queue pairs with it.
    wait_until("the node has no queue pairs", || {
        cluster.nodes[0].status().data_connections == 0
    });
    // The region is still there, and can be an endpoint again.
    let end = open(&cluster, 0, &session.transport, 1);
    let index = session.transfer.add_endpoint(end as Arc<dyn Endpoint>);
    session.places.ends[0].0 = index.expect("rails");
    session.moved(session.places.local(0), session.places.remote(0, 0));
    session.moved(session.places.remote(0, 0), session.places.local(BYTES));
    assert!(session.came_back());
    for (piece, error) in [
        (
            Piece {
                into: session.places.local(0),
                ..pieces[0]
            },
            PieceError::BothLocal { tag: 0 },
        ),
        (
            Piece {
                from: session.places.local(2 * BYTES - 1),
                into: session.places.remote(0, 0),
                ..pieces[0]
            },
            PieceError::OutOfBounds { tag: 0 },
        ),
    ] {
        assert_eq!(session.transfer.queue(&[piece]), Err(error));
    }
}

/// The tests of this file over one fabric.
#[macro_export]
macro_rules! transfer_suite {
    ($fabric:expr) => {
        $crate::transfer_suite!(@each $fabric;
            everything_arrives_over_all_rails_of_all_endpoints
            queue_pairs_that_break_are_replaced_and_nothing_is_missed
            what_a_dead_node_leaves_is_handed_in_again_for_another
            a_wrong_key_fails_its_own_piece_only
            a_session_whose_owner_was_succeeded_is_fenced
            endpoints_come_and_go_and_bounds_are_kept
        );
    };
    (@each $fabric:expr; $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                transfer_suite::$check($fabric);
            }
        )*
    };
}
