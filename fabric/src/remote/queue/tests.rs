//! The bookkeeping of a lane against links that do as the test says: what is posted, where, and what is answered.

use proptest::prelude::*;

use super::*;
use crate::pages::{FrameIndex, Which};
use crate::remote::homes::{Location, Standing};
use crate::transport::Mapping;
use crate::units::{ByteCount, PageIndex, RemoteAddr, Rkey};

const NODES: usize = 3;
const FRAMES: u32 = 64;
const REQUESTS: u32 = 12;
const PAGES: u32 = 90;
const EXTENT_PAGES: u32 = 10;
const DEADLINE_MS: u64 = 100;

fn replica(extent: u32, node: usize) -> Location {
    Location {
        node: node as u16,
        addr: RemoteAddr::new(u64::from(extent) << 32),
        rkey: Rkey::new(extent),
        standing: Standing::Live,
    }
}

/// Extents go round the nodes.
fn homes(copies: usize) -> Arc<Homes> {
    let extents = PAGES / EXTENT_PAGES;
    let locations = (0..extents).map(|extent| {
        let nodes = (0..copies).map(|copy| (extent as usize + copy) % NODES);
        Some(nodes.map(|node| replica(extent, node)).collect())
    });
    let bytes = ByteCount::new(u64::from(EXTENT_PAGES) * PAGE_BYTES as u64);
    Arc::new(Homes::new(bytes, copies + 1, locations))
}

fn queue(copies: usize) -> LaneQueue {
    let config = QueueConfig {
        pages: PageCount::new(PAGES),
        frames: FRAMES,
        requests: REQUESTS,
        deadline_ms: DEADLINE_MS,
        replicated: copies > 1,
    };
    let mut queue = LaneQueue::new(homes(copies), config);
    (0..NODES).for_each(|_| queue.add_link(LinkState::Up, false));
    queue
}

fn memory() -> LocalMemory {
    let frames = (FRAMES + LANDINGS) as usize * PAGE_BYTES;
    let frames = Mapping::anonymous(frames).expect("a few pages");
    LocalMemory::new(Arc::new(frames), 1)
}

fn request(tag: u64, direction: Direction, page: u32, run: u16) -> PageRequest {
    PageRequest {
        tag,
        direction,
        page: PageIndex::new(page),
        run,
        frame: FrameIndex(0),
        which: Which::Live,
    }
}

fn chain(queue: &mut LaneQueue, node: u16, room: usize) -> Vec<WorkRequest> {
    let mut chain = Vec::with_capacity(64);
    queue
        .chain(node, room, &memory(), &mut chain, 0)
        .expect("frames inside of the lane");
    chain
}

fn done(queue: &mut LaneQueue) -> Vec<(u64, Result<(), PageError>)> {
    let mut done = Vec::with_capacity(64);
    queue.take_done(&mut done, |_| {});
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
    assert!(!queue.completed(1, second[0].id, Ok(()), 0));
    assert_eq!(done(&mut queue), []);
    assert!(!queue.completed(0, first[0].id, Ok(()), 0));
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
    assert!(!queue.completed(0, writes[7].id, Ok(()), 0));
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
fn behind_a_break_each_write_that_is_answered_counts_until_all_came_through() {
    let mut queue = queue(1);
    let ask = |queue: &mut LaneQueue, tags: std::ops::Range<u64>| {
        for tag in tags {
            let request = request(tag, Direction::Write, tag as u32 % 4, 1);
            queue.queue(request).expect("room");
        }
    };
    ask(&mut queue, 0..10);
    assert_eq!(chain(&mut queue, 0, 16).len(), 10);
    let mut left = 10;
    for answered in [3, 1, 0, 2] {
        queue.away(0);
        assert!(!queue.up(0, 5));
        let writes = chain(&mut queue, 0, 16);
        assert_eq!(writes.len(), left, "what was answered is not done again");
        assert!(writes.iter().all(|write| write.signaled));
        for write in &writes[..answered] {
            assert!(!queue.completed(0, write.id, Ok(()), 0));
        }
        assert_eq!(done(&mut queue).len(), answered);
        left -= answered;
    }
    queue.away(0);
    queue.up(0, 6);
    for write in chain(&mut queue, 0, 16) {
        assert!(!queue.completed(0, write.id, Ok(()), 0));
    }
    assert_eq!(done(&mut queue).len(), left);
    ask(&mut queue, 10..20);
    let writes = chain(&mut queue, 0, 16);
    let signaled = writes.iter().filter(|write| write.signaled);
    assert_eq!(signaled.count(), 2, "the eighth and the last, as before");
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
    assert!(queue.completed(0, posted[1].id, Err(ErrorKind::PeerDisconnected), 0));
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
    assert!(!queue.completed(1, other.last().expect("two").id, Ok(()), 0));
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
    assert!(queue.completed(0, posted[0].id, Err(ErrorKind::RemoteAccess), 0));
    assert!(queue.completed(0, posted[1].id, Err(ErrorKind::Flushed), 0));
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
    assert!(!queue.completed(0, near[1].id, Ok(()), 0));
    assert_eq!(done(&mut queue), [(1, Ok(()))]);
    assert!(!queue.completed(1, far[0].id, Ok(()), 0));
    assert_eq!(done(&mut queue), [(0, Ok(()))]);
}

/// Answers what was posted to either of two nodes, each in its own time; says which it was.
fn answer(queue: &mut LaneQueue, took_us: [u64; 2]) -> Vec<u16> {
    let mut answered = Vec::new();
    for node in [0, 1] {
        for posted in chain(queue, node, 16) {
            let now_us = took_us[usize::from(node)];
            assert!(!queue.completed(node, posted.id, Ok(()), now_us));
            answered.push(node);
        }
    }
    answered
}

#[test]
fn a_node_that_says_nothing_is_not_the_nearest_any_more() {
    let mut queue = queue(2);
    for tag in 0..20 {
        queue
            .queue(request(tag, Direction::Read, 0, 1))
            .expect("room");
        answer(&mut queue, [60, 80]);
        assert_eq!(done(&mut queue), [(tag, Ok(()))]);
    }
    queue
        .queue(request(20, Direction::Read, 0, 1))
        .expect("room");
    assert_eq!(chain(&mut queue, 0, 16).len(), 1, "the nearest");
    assert!(queue.ask_twice(60_000), "it says nothing");
    assert_eq!(answer(&mut queue, [0, 80]), [1]);
    assert_eq!(done(&mut queue), [(20, Ok(()))]);
    for tag in 21..30 {
        queue
            .queue(request(tag, Direction::Read, 0, 1))
            .expect("room");
        assert_eq!(answer(&mut queue, [0, 80]), [1]);
        assert_eq!(done(&mut queue), [(tag, Ok(()))]);
    }
}

#[test]
fn a_completion_of_nothing_takes_the_queue_pair_down() {
    let mut queue = queue(1);
    assert!(queue.completed(0, WorkId(3), Ok(()), 0));
    assert!(queue.completed(0, WorkId(u64::MAX), Ok(()), 0));
    queue
        .queue(request(0, Direction::Read, 0, 1))
        .expect("room");
    let posted = chain(&mut queue, 0, 16);
    assert!(
        queue.completed(1, posted[0].id, Ok(()), 0),
        "of another node"
    );
    assert!(!queue.completed(0, posted[0].id, Ok(()), 0));
    assert!(queue.completed(0, posted[0].id, Ok(()), 0), "a second time");
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
        copies in 1..=3usize, steps in proptest::collection::vec(step(), 0..200),
    ) {
        let mut queue = queue(copies);
        let mut now = 0;
        let mut next_tag = 0;
        let mut open = std::collections::BTreeSet::new();
        // The model of the queue pairs: what each has been given and not yet said to be done.
        let mut wire: Vec<Vec<WorkId>> = vec![Vec::new(); NODES];
        let take = |queue: &mut LaneQueue, open: &mut std::collections::BTreeSet<u64>, most| {
            let mut into = Vec::with_capacity(most);
            queue.take_done(&mut into, |_| {});
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
                        prop_assert!(!queue.completed(node, wire[upto], Ok(()), 0));
                        wire.drain(..=upto);
                    }
                }
                Step::Break { node, kind } => {
                    if queue.state(node) == LinkState::Up {
                        for id in wire[usize::from(node)].drain(..) {
                            prop_assert!(queue.completed(node, id, Err(kind), 0));
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
        // What the lost nodes had does not count any more, where others have it.
        let lost: Vec<bool> = (0..NODES as u16)
            .map(|node| queue.state(node) == LinkState::Lost)
            .collect();
        let extents = (0..PAGES / EXTENT_PAGES).map(|extent| {
            let extent = ExtentIndex::new(extent);
            let (gone, left): (Vec<_>, Vec<_>) = homes(copies)
                .of(extent)
                .partition(|replica| lost[usize::from(replica.node)]);
            (extent, if left.is_empty() { gone } else { left })
        });
        queue.adopt(Arc::new(homes(copies).next(extents, Vec::new())));
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
                prop_assert!(!queue.completed(node, *last, Ok(()), 0));
            }
        }
        take(&mut queue, &mut open, REQUESTS as usize);
        prop_assert!(open.is_empty(), "never answered: {:?}", open);
        prop_assert_eq!(queue.free_slots(), REQUESTS as usize);
        prop_assert!(queue.parts.iter().all(Option::is_none));
        prop_assert_eq!(queue.free_parts.len(), queue.parts.len());
    }
}

/// Two replicas of each extent on nodes 0 and 1 for the first one, and so on.
fn read_one(queue: &mut LaneQueue, tag: u64) -> (u16, WorkRequest) {
    queue
        .queue(request(tag, Direction::Read, 0, 1))
        .expect("room");
    for node in 0..NODES as u16 {
        if let Some(posted) = chain(queue, node, 16).pop() {
            return (node, posted);
        }
    }
    panic!("nobody was asked")
}

#[test]
fn a_read_goes_on_to_another_replica_when_its_queue_pair_breaks() {
    let mut queue = queue(2);
    let (first, posted) = read_one(&mut queue, 1);
    assert!(queue.completed(first, posted.id, Err(ErrorKind::PeerDisconnected), 0));
    queue.away(first);
    assert!(
        !queue.quiet(first, 0),
        "one failure is no reason to give it up"
    );
    let other = 1 - first;
    let again = chain(&mut queue, other, 16);
    assert_eq!(again.len(), 1);
    assert!(!queue.completed(other, again[0].id, Ok(()), 0));
    let mut into = Vec::with_capacity(1);
    queue.take_done(&mut into, |_| {});
    assert_eq!((into[0].result, into[0].node), (Ok(()), Some(other)));
    assert_eq!(queue.take_moved().failovers, 1);
    // The next one does not try the broken one first.
    let (next, _) = read_one(&mut queue, 2);
    assert_eq!(next, other);
}

#[test]
fn a_slow_read_is_asked_for_twice_and_the_loser_touches_no_frame_of_the_owner() {
    let mut queue = queue(2);
    let (first, posted) = read_one(&mut queue, 1);
    let frames_end = u64::from(FRAMES) * PAGE_BYTES as u64;
    let look_us = queue.look_us().expect("it is watched");
    assert!(!queue.ask_twice(look_us - 1));
    assert!(queue.ask_twice(look_us));
    let other = 1 - first;
    let second = chain(&mut queue, other, 16);
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].local().addr(), posted.local().addr());
    assert!(!queue.completed(other, second[0].id, Ok(()), look_us));
    let mut into = Vec::with_capacity(1);
    let mut copied = Vec::new();
    queue.take_done(&mut into, |fill| match fill {
        Fill::Copy { from, to } => copied.push((from as u64, to)),
        Fill::Zero { .. } => panic!("its extent is placed"),
    });
    assert_eq!(into[0].node, Some(other));
    assert_eq!(copied.len(), 1);
    assert!(copied[0].0 >= frames_end && copied[0].1 == 0);
    // The loser comes late, or never: its landing is not given to anybody meanwhile.
    assert_eq!(queue.free_landings.len(), LANDINGS as usize - 1);
    assert!(!queue.completed(first, posted.id, Ok(()), look_us));
    assert!(!queue.has_done());
    assert_eq!(queue.free_landings.len(), LANDINGS as usize);
    assert_eq!(queue.take_moved().hedges_won, 1);
}

#[test]
fn a_read_that_is_stuck_is_asked_for_twice_even_when_that_is_too_often() {
    let mut queue = queue(2);
    while queue.tail.take() {}
    let (first, _) = read_one(&mut queue, 1);
    let mut looks = 0;
    let now_us = loop {
        let look_us = queue
            .look_us()
            .expect("it is watched until it is asked for");
        looks += 1;
        if queue.ask_twice(look_us) {
            break look_us;
        }
        assert!(looks < 100, "it is never asked for");
    };
    assert!(looks > 1, "others were to pay for it first");
    let second = chain(&mut queue, 1 - first, 16);
    assert_eq!(second.len(), 1);
    assert!(!queue.completed(1 - first, second[0].id, Ok(()), now_us));
    assert_eq!(done(&mut queue), [(1, Ok(()))]);
}

#[test]
fn of_a_pair_that_both_fail_the_request_goes_on() {
    let mut queue = queue(2);
    let (first, posted) = read_one(&mut queue, 1);
    let look_us = queue.look_us().expect("it is watched");
    assert!(queue.ask_twice(look_us));
    let other = 1 - first;
    let second = chain(&mut queue, other, 16);
    for (node, id) in [(first, posted.id), (other, second[0].id)] {
        assert!(queue.completed(node, id, Err(ErrorKind::PeerUnreachable), look_us));
        queue.away(node);
        queue.quiet(node, 1);
    }
    assert_eq!(done(&mut queue), []);
    queue.up(first, 2);
    let again = chain(&mut queue, first, 16);
    assert_eq!(again.len(), 1);
    assert!(!queue.completed(first, again[0].id, Ok(()), look_us));
    assert_eq!(done(&mut queue), [(1, Ok(()))]);
}

#[test]
fn a_write_to_a_lost_node_is_held_until_its_replica_counts_no_more() {
    let mut queue = queue(2);
    queue
        .queue(request(1, Direction::Write, 0, 1))
        .expect("room");
    let (near, far) = (chain(&mut queue, 0, 16), chain(&mut queue, 1, 16));
    assert!(!queue.completed(0, near[0].id, Ok(()), 0));
    assert!(queue.completed(1, far[0].id, Err(ErrorKind::PeerDisconnected), 0));
    queue.away(1);
    queue.quiet(1, 0);
    queue.lost(1);
    // One that comes now waits as well.
    queue
        .queue(request(2, Direction::Write, 1, 1))
        .expect("room");
    let near = chain(&mut queue, 0, 16);
    assert!(!queue.completed(0, near[0].id, Ok(()), 0));
    assert_eq!(done(&mut queue), []);
    let extent = ExtentIndex::new(0);
    let homes = homes(2);
    let left = homes.of(extent).filter(|replica| replica.node != 1);
    let left: Vec<_> = left.collect();
    queue.adopt(Arc::new(
        homes.next([(extent, left)].into_iter(), Vec::new()),
    ));
    assert_eq!(done(&mut queue), [(1, Ok(())), (2, Ok(()))]);
    assert_eq!(queue.oldest_version(), 1);
    // With the last one the rest is lost, and nothing waits for a mark that will not come.
    queue
        .queue(request(3, Direction::Write, 2, 1))
        .expect("room");
    queue.away(0);
    queue.quiet(0, 0);
    queue.lost(0);
    assert_eq!(done(&mut queue), [(3, Err(PageError::Lost { node: 0 }))]);
}

#[test]
fn a_replica_that_is_being_copied_is_written_and_followed_and_not_read() {
    let mut queue = queue(1);
    let extent = ExtentIndex::new(0);
    let copying = Location {
        standing: Standing::Copying,
        ..replica(0, 2)
    };
    let both = vec![replica(0, 0), copying];
    let tracker = Arc::new(crate::remote::copy::CopyTracker::new(2, EXTENT_PAGES));
    let trackers = vec![(extent, Arc::clone(&tracker))];
    queue
        .queue(request(1, Direction::Write, 0, 1))
        .expect("room");
    let homes = homes(1).next([(extent, both)].into_iter(), trackers);
    queue.adopt(Arc::new(homes));
    assert_eq!(queue.oldest_version(), 0, "a write does not know of it");
    let early = chain(&mut queue, 0, 16);
    assert!(!queue.completed(0, early[0].id, Ok(()), 0));
    assert_eq!(queue.oldest_version(), 1);
    queue
        .queue(request(2, Direction::Write, 3, 2))
        .expect("room");
    assert_eq!((tracker.quiet(2), tracker.quiet(3)), (Some(0), None));
    let (live, new) = (chain(&mut queue, 0, 16), chain(&mut queue, 2, 16));
    assert!(!queue.completed(0, live[0].id, Ok(()), 0));
    assert_eq!(tracker.quiet(4), None);
    assert!(!queue.completed(2, new[0].id, Ok(()), 0));
    assert_eq!((tracker.quiet(3), tracker.quiet(4)), (Some(1), Some(1)));
    queue
        .queue(request(3, Direction::Read, 3, 2))
        .expect("room");
    assert_eq!(chain(&mut queue, 2, 16).len(), 0);
    assert_eq!(done(&mut queue), [(1, Ok(())), (2, Ok(()))]);
}

/// As [`homes`], and only these extents are placed.
fn thin(copies: usize, placed: &[u32]) -> Homes {
    let all = homes(copies);
    let extents = (0..PAGES / EXTENT_PAGES).map(|extent| {
        let replicas = || all.of(ExtentIndex::new(extent)).collect();
        placed.contains(&extent).then(replicas)
    });
    let bytes = ByteCount::new(u64::from(EXTENT_PAGES) * PAGE_BYTES as u64);
    Homes::new(bytes, copies + 1, extents)
}

#[test]
fn what_is_not_placed_is_read_as_zeros_and_its_writes_wait_for_a_place() {
    let mut queue = queue(2);
    queue.adopt(Arc::new(thin(2, &[0])));
    // Two pages of the first extent, three of the second.
    let run = |tag, direction| request(tag, direction, 8, 5);
    queue.queue(run(1, Direction::Read)).expect("room");
    assert_eq!(done(&mut queue), [], "the first extent is asked for");
    let (near, far) = (chain(&mut queue, 0, 16), chain(&mut queue, 1, 16));
    let (node, part) = match (near.first(), far.first()) {
        (Some(part), None) => (0, part),
        (None, Some(part)) => (1, part),
        other => panic!("one replica is read: {other:?}"),
    };
    assert_eq!(part.local().len(), 2 * PAGE_BYTES);
    assert!(!queue.completed(node, part.id, Ok(()), 0));
    let (mut into, mut zeros) = (Vec::with_capacity(1), Vec::new());
    queue.take_done(&mut into, |fill| zeros.push(fill));
    let zero = |page: usize| Fill::Zero {
        at: page * PAGE_BYTES,
    };
    assert_eq!(zeros, [zero(2), zero(3), zero(4)]);
    assert_eq!(into[0].result, Ok(()));

    queue.queue(run(2, Direction::Write)).expect("room");
    assert_eq!(queue.held(), 1);
    for node in 0..2 {
        let first = chain(&mut queue, node, 16);
        assert!(!queue.completed(node, first[0].id, Ok(()), 0));
    }
    assert_eq!(done(&mut queue), [], "a part of it has no place");
    let placed = thin(2, &[0]).next(
        [(ExtentIndex::new(1), vec![replica(1, 1), replica(1, 2)])].into_iter(),
        Vec::new(),
    );
    queue.adopt(Arc::new(placed));
    assert_eq!(queue.held(), 0);
    for node in 1..3 {
        let second = chain(&mut queue, node, 16);
        assert_eq!(second[0].local().len(), 3 * PAGE_BYTES);
        assert!(!queue.completed(node, second[0].id, Ok(()), 0));
    }
    assert_eq!(done(&mut queue), [(2, Ok(()))]);

    // An owner that is fenced waits for nothing.
    queue
        .queue(request(3, Direction::Write, 60, 1))
        .expect("room");
    assert_eq!(done(&mut queue), []);
    queue.fence();
    assert_eq!(done(&mut queue), [(3, Err(PageError::Fenced))]);
    assert_eq!(queue.free_slots(), REQUESTS as usize);
}

#[test]
fn a_replica_in_the_same_zone_is_read_however_quick_another_one_is() {
    let config = |queue: &LaneQueue| queue.config;
    for near in [0_u16, 1] {
        let plain = queue(2);
        let mut queue = LaneQueue::new(homes(2), config(&plain));
        (0..NODES).for_each(|node| queue.add_link(LinkState::Up, node == usize::from(near)));
        // The one far away answers in a moment; in extent 0 both have a replica.
        let us = |node: u16| if node == near { 900 } else { 60 };
        queue.measured(0, us(0));
        queue.measured(1, us(1));
        for tag in 0..20 {
            queue
                .queue(request(tag, Direction::Read, 0, 1))
                .expect("room");
            assert_eq!(answer(&mut queue, [us(0), us(1)]), [near]);
            assert_eq!(done(&mut queue), [(tag, Ok(()))]);
        }
        // When it is lost, or says nothing, the other one is as good.
        queue.away(near);
        queue
            .queue(request(20, Direction::Read, 0, 1))
            .expect("room");
        assert_eq!(answer(&mut queue, [us(0), us(1)]), [1 - near]);
    }
}

#[test]
fn the_second_read_goes_out_sooner_where_reads_are_quick() {
    let after = |us: u64| {
        let mut queue = queue(2);
        (0..500).for_each(|_| queue.measured(0, us));
        let (_, _) = read_one(&mut queue, 1);
        let look_us = queue.look_us().expect("it is watched");
        assert!(queue.ask_twice(look_us), "it is asked for then");
        look_us
    };
    let (quick, slow) = (after(100), after(20_000));
    assert!(quick < 1000, "{quick} us");
    assert!((20_000..30_000).contains(&slow), "{slow} us");
}
