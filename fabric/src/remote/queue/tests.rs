use proptest::prelude::*;

use super::*;
use crate::pages::FrameIndex;
use crate::transport::Mapping;
use crate::units::{ByteCount, PageIndex, RemoteAddr, Rkey};

const NODES: usize = 3;
const FRAMES: u32 = 64;
const REQUESTS: u32 = 12;
const PAGES: u32 = 90;
const EXTENT_PAGES: u32 = 10;
const DEADLINE_MS: u64 = 100;

/// Extents go round the nodes.
fn homes(copies: usize) -> Arc<Homes> {
    let extents = PAGES / EXTENT_PAGES;
    let locations = (0..extents).flat_map(|extent| {
        (0..copies).map(move |copy| Location {
            node: ((extent as usize + copy) % NODES) as u16,
            addr: RemoteAddr::new(u64::from(extent) << 32),
            rkey: Rkey::new(extent),
        })
    });
    let bytes = ByteCount::new(u64::from(EXTENT_PAGES) * PAGE_BYTES as u64);
    Arc::new(Homes::new(bytes, copies, locations.collect()))
}

fn queue(copies: usize) -> LaneQueue {
    let pages = PageCount::new(PAGES);
    LaneQueue::new(homes(copies), pages, NODES, FRAMES, REQUESTS, DEADLINE_MS)
}

fn memory() -> LocalMemory {
    let frames = Mapping::anonymous(FRAMES as usize * PAGE_BYTES).expect("a few pages");
    LocalMemory::new(Arc::new(frames), 1)
}

fn request(tag: u64, direction: Direction, page: u32, run: u16) -> PageRequest {
    PageRequest {
        tag,
        direction,
        page: PageIndex::new(page),
        run,
        frame: FrameIndex(0),
    }
}

fn chain(queue: &mut LaneQueue, node: u16, room: usize) -> Vec<WorkRequest> {
    let mut chain = Vec::with_capacity(64);
    queue
        .chain(node, room, &memory(), &mut chain)
        .expect("frames inside of the lane");
    chain
}

fn done(queue: &mut LaneQueue) -> Vec<(u64, Result<(), PageError>)> {
    let mut done = Vec::with_capacity(64);
    queue.take_done(&mut done);
    done.into_iter()
        .map(|done| (done.tag, done.result))
        .collect()
}

#[test]
fn a_run_over_a_border_goes_to_both_nodes_and_is_answered_once() {
    let mut queue = queue(1);
    queue
        .queue(request(7, Direction::Read, 8, 5))
        .expect("room");
    let first = chain(&mut queue, 0, 16);
    let second = chain(&mut queue, 1, 16);
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_eq!(first[0].local().len(), 2 * PAGE_BYTES);
    assert_eq!(first[0].remote().addr.get(), 8 * PAGE_BYTES as u64);
    assert_eq!(second[0].local().len(), 3 * PAGE_BYTES);
    assert_eq!(second[0].remote().addr.get(), 1 << 32);
    assert_eq!(
        second[0].local().addr() - first[0].local().addr(),
        2 * PAGE_BYTES as u64
    );
    assert!(!queue.completed(1, second[0].id, Ok(())));
    assert_eq!(done(&mut queue), []);
    assert!(!queue.completed(0, first[0].id, Ok(())));
    assert_eq!(done(&mut queue), [(7, Ok(()))]);
    assert_eq!(queue.take_moved().bytes_read, 5 * PAGE_BYTES as u64);
}

#[test]
fn reads_are_signaled_and_of_writes_one_in_eight_and_the_last() {
    let mut queue = queue(1);
    for tag in 0..11 {
        queue
            .queue(request(tag, Direction::Write, 0, 1))
            .expect("room");
    }
    let writes = chain(&mut queue, 0, 16);
    let signaled: Vec<_> = writes.iter().map(|w| w.signaled).collect();
    assert_eq!(signaled.iter().filter(|s| **s).count(), 2);
    assert!(signaled[7] && signaled[10]);
    // The first eight are settled by the completion of the eighth.
    assert!(!queue.completed(0, writes[7].id, Ok(())));
    assert_eq!(done(&mut queue).len(), 8);
    queue
        .queue(request(20, Direction::Read, 0, 1))
        .expect("room");
    queue
        .queue(request(21, Direction::Read, 0, 1))
        .expect("room");
    assert!(chain(&mut queue, 0, 16).iter().all(|read| read.signaled));
}

#[test]
fn what_a_broken_queue_pair_had_is_done_again_in_order() {
    let mut queue = queue(1);
    for tag in 0..3 {
        queue
            .queue(request(tag, Direction::Write, tag as u32, 1))
            .expect("room");
    }
    let posted = chain(&mut queue, 0, 2);
    assert!(queue.completed(0, posted[1].id, Err(ErrorKind::PeerDisconnected)));
    queue.away(0);
    assert_eq!(done(&mut queue), []);
    queue.up(0, 5);
    let again = chain(&mut queue, 0, 16);
    let offsets: Vec<_> = again
        .iter()
        .map(|w| w.remote().addr.get() / PAGE_BYTES as u64)
        .collect();
    assert_eq!(offsets, [0, 1, 2]);
    // Within the deadline again, behind it no more.
    queue.away(0);
    queue.up(0, 104);
    assert_eq!(done(&mut queue), []);
    assert_eq!(chain(&mut queue, 0, 16).len(), 3);
    queue.away(0);
    queue.up(0, 105);
    let lost = Err(PageError::Lost { node: 0 });
    let mut answers = done(&mut queue);
    answers.sort_by_key(|(tag, _)| *tag);
    assert_eq!(answers[..2], [(0, lost), (1, lost)]);
}

#[test]
fn a_lost_node_takes_its_own_pages_only() {
    let mut queue = queue(1);
    queue
        .queue(request(0, Direction::Read, 0, 1))
        .expect("room");
    queue
        .queue(request(1, Direction::Read, 10, 1))
        .expect("room");
    queue
        .queue(request(2, Direction::Read, 9, 2))
        .expect("room");
    queue.lost(0);
    assert_eq!(done(&mut queue), [(0, Err(PageError::Lost { node: 0 }))]);
    let other = chain(&mut queue, 1, 16);
    assert!(!queue.completed(1, other.last().expect("two").id, Ok(())));
    assert_eq!(
        done(&mut queue),
        [(1, Ok(())), (2, Err(PageError::Lost { node: 0 }))]
    );
    queue
        .queue(request(3, Direction::Write, 3, 1))
        .expect("room");
    assert_eq!(done(&mut queue), [(3, Err(PageError::Lost { node: 0 }))]);
}

#[test]
fn access_that_is_refused_is_not_tried_again() {
    let mut queue = queue(1);
    queue
        .queue(request(0, Direction::Read, 0, 1))
        .expect("room");
    queue
        .queue(request(1, Direction::Read, 1, 1))
        .expect("room");
    let posted = chain(&mut queue, 0, 16);
    assert!(queue.completed(0, posted[0].id, Err(ErrorKind::RemoteAccess)));
    assert!(queue.completed(0, posted[1].id, Err(ErrorKind::Flushed)));
    queue.away(0);
    queue.up(0, 0);
    assert_eq!(done(&mut queue), [(0, Err(PageError::Lost { node: 0 }))]);
    assert_eq!(chain(&mut queue, 0, 16).len(), 1);
}

#[test]
fn after_a_fence_everything_is_fenced_once_it_is_quiet() {
    let mut queue = queue(1);
    queue
        .queue(request(0, Direction::Write, 0, 1))
        .expect("room");
    let posted = chain(&mut queue, 0, 16);
    assert_eq!(posted.len(), 1);
    queue
        .queue(request(1, Direction::Write, 10, 1))
        .expect("room");
    queue.fence();
    let fenced = Err(PageError::Fenced);
    // What is posted may still touch its frame.
    assert_eq!(done(&mut queue), [(1, fenced)]);
    queue.lost_by_fence(0);
    assert_eq!(done(&mut queue), [(0, fenced)]);
    queue
        .queue(request(2, Direction::Read, 10, 1))
        .expect("room");
    assert_eq!(done(&mut queue), [(2, fenced)]);
}

#[test]
fn a_write_goes_to_every_copy_and_a_read_to_one() {
    let mut queue = queue(2);
    queue
        .queue(request(0, Direction::Write, 0, 1))
        .expect("room");
    queue
        .queue(request(1, Direction::Read, 0, 1))
        .expect("room");
    let (near, far) = (chain(&mut queue, 0, 16), chain(&mut queue, 1, 16));
    assert_eq!((near.len(), far.len()), (2, 1));
    assert!(!queue.completed(0, near[1].id, Ok(())));
    assert_eq!(done(&mut queue), [(1, Ok(()))]);
    assert!(!queue.completed(1, far[0].id, Ok(())));
    assert_eq!(done(&mut queue), [(0, Ok(()))]);
}

#[test]
fn a_completion_of_nothing_takes_the_queue_pair_down() {
    let mut queue = queue(1);
    assert!(queue.completed(0, WorkId(3), Ok(())));
    assert!(queue.completed(0, WorkId(u64::MAX), Ok(())));
    queue
        .queue(request(0, Direction::Read, 0, 1))
        .expect("room");
    let posted = chain(&mut queue, 0, 16);
    assert!(queue.completed(1, posted[0].id, Ok(())), "of another node");
    assert!(!queue.completed(0, posted[0].id, Ok(())));
    assert!(queue.completed(0, posted[0].id, Ok(())), "a second time");
}

#[test]
#[should_panic(expected = "outside of its region or lane")]
fn a_page_outside_of_the_region_is_not_survived() {
    let _ = queue(1).queue(request(0, Direction::Read, PAGES - 1, 2));
}

#[derive(Clone, Debug)]
enum Step {
    Queue {
        write: bool,
        page: u32,
        run: u16,
    },
    Chain {
        node: u16,
        room: usize,
        taken: bool,
    },
    Complete {
        node: u16,
        upto: prop::sample::Index,
    },
    Break {
        node: u16,
        kind: ErrorKind,
    },
    Up {
        node: u16,
    },
    Lose {
        node: u16,
    },
    Fence,
    Take {
        most: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NODES as u16;
    let kind = prop_oneof![
        4 => Just(ErrorKind::PeerDisconnected),
        2 => Just(ErrorKind::Flushed),
        1 => Just(ErrorKind::RemoteAccess),
        1 => Just(ErrorKind::Protocol),
    ];
    prop_oneof![
        60 => (any::<bool>(), 0..PAGES, 1..=MAX_RUN_PAGES).prop_map(|(write, page, run)| Step::Queue {
            write,
            page,
            run: run.min((PAGES - page) as u16),
        }),
        60 => (node.clone(), 0..8usize, prop::bool::weighted(0.9))
            .prop_map(|(node, room, taken)| Step::Chain { node, room, taken }),
        60 => (node.clone(), any::<prop::sample::Index>())
            .prop_map(|(node, upto)| Step::Complete { node, upto }),
        20 => (node.clone(), kind).prop_map(|(node, kind)| Step::Break { node, kind }),
        20 => node.clone().prop_map(|node| Step::Up { node }),
        3 => node.prop_map(|node| Step::Lose { node }),
        1 => Just(Step::Fence),
        40 => (1..8usize).prop_map(|most| Step::Take { most }),
    ]
}

proptest! {
    /// Whatever happens to the links, every request is answered exactly once, and only a request whose
    /// parts were all carried out, or whose queue pairs are gone, is.
    #[test]
    fn every_request_is_answered_exactly_once(
        copies in 1..3usize, steps in proptest::collection::vec(step(), 0..200),
    ) {
        let mut queue = queue(copies);
        let mut now = 0;
        let mut next_tag = 0;
        let mut open = std::collections::BTreeSet::new();
        // The model of the queue pairs: what each has been given and not yet said to be done.
        let mut wire: Vec<Vec<WorkId>> = vec![Vec::new(); NODES];
        let take = |queue: &mut LaneQueue, open: &mut std::collections::BTreeSet<u64>, most| {
            let mut into = Vec::with_capacity(most);
            queue.take_done(&mut into);
            for answer in into {
                assert!(open.remove(&answer.tag), "answered twice, or never asked");
            }
        };
        for step in steps {
            now += 7;
            match step {
                Step::Queue { write, page, run } => {
                    let direction = if write { Direction::Write } else { Direction::Read };
                    let room = queue.free_slots();
                    let queued = queue.queue(request(next_tag, direction, page, run));
                    prop_assert_eq!(queued.is_ok(), room > 0);
                    if queued.is_ok() {
                        open.insert(next_tag);
                        next_tag += 1;
                    }
                }
                Step::Chain { node, room, taken } => {
                    if queue.state(node) == LinkState::Up {
                        let posted = chain(&mut queue, node, room);
                        prop_assert!(posted.last().is_none_or(|last| last.signaled));
                        if taken {
                            wire[usize::from(node)].extend(posted.iter().map(|work| work.id));
                        } else {
                            queue.not_taken(node, posted.len());
                        }
                    }
                }
                Step::Complete { node, upto } => {
                    let wire = &mut wire[usize::from(node)];
                    if queue.state(node) == LinkState::Up && !wire.is_empty() {
                        let upto = upto.index(wire.len());
                        prop_assert!(!queue.completed(node, wire[upto], Ok(())));
                        wire.drain(..=upto);
                    }
                }
                Step::Break { node, kind } => {
                    if queue.state(node) == LinkState::Up {
                        for id in wire[usize::from(node)].drain(..) {
                            prop_assert!(queue.completed(node, id, Err(kind)));
                        }
                        queue.away(node);
                    }
                }
                Step::Up { node } => {
                    if queue.state(node) == LinkState::Away {
                        queue.up(node, now);
                    }
                }
                Step::Lose { node } => {
                    if queue.state(node) == LinkState::Away {
                        queue.lost(node);
                    }
                }
                Step::Fence => queue.fence(),
                Step::Take { most } => take(&mut queue, &mut open, most),
            }
        }
        // In the end every node is either up and done, or lost.
        for node in 0..NODES as u16 {
            if queue.state(node) == LinkState::Away {
                queue.up(node, now);
            }
            while queue.state(node) == LinkState::Up && queue.has_waiting(node) {
                let posted = chain(&mut queue, node, 64);
                wire[usize::from(node)].extend(posted.iter().map(|work| work.id));
            }
            if let Some(last) = wire[usize::from(node)].last() {
                prop_assert!(!queue.completed(node, *last, Ok(())));
            }
        }
        take(&mut queue, &mut open, REQUESTS as usize);
        prop_assert!(open.is_empty(), "never answered: {:?}", open);
        prop_assert_eq!(queue.free_slots(), REQUESTS as usize);
        prop_assert!(queue.parts.iter().all(Option::is_none));
        prop_assert_eq!(queue.free_parts.len(), queue.parts.len());
    }
}
