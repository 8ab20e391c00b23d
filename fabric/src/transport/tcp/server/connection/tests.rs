//! When a connection answers. What it answers is the conformance suite's.

use std::net::TcpListener;

use super::*;
use crate::transport::{Ticket, TransportKind};
use crate::units::{Epoch, RegionId, RemoteAddr, TenantId};

/// Long enough to be received straight into the pool.
const LONG: usize = DIRECT_WRITE_BYTES + 1;

/// A connection past its hello, and nobody at the other end.
struct Scene {
    pool: Mapping,
    access: Access,
    census: Census,
    rkey: Rkey,
    connection: Connection,
}

impl Scene {
    fn new() -> Self {
        let pool = Mapping::anonymous(1 << 20).expect("memory");
        let access = Access::new(pool.len() as u64, 1);
        let (tenant, ticket) = (TenantId::new(1), Ticket { secret: [3; 16] });
        access
            .admit(ticket, tenant, RegionId::new(1), Epoch::new(1))
            .expect("the first");
        let bytes = pool.len() as u64;
        let export = access
            .export(TransportKind::Tcp, tenant, 0, bytes, || Ok(7))
            .expect("inside");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let stream = TcpStream::connect(address).expect("listening");
        let census = Census::default();
        let mut scene = Self {
            connection: Connection::new(stream, Instant::now(), &census),
            pool,
            access,
            census,
            rkey: export.rkey,
        };
        scene.hear(&Frame::hello(ticket.secret).encode(), false);
        assert_eq!(scene.answers(), Some(1), "the welcome");
        scene
    }

    fn header(&self, kind: FrameKind, payload: usize) -> [u8; FRAME_BYTES] {
        self.header_at(kind, 0, payload)
    }

    fn header_at(&self, kind: FrameKind, at: u64, payload: usize) -> [u8; FRAME_BYTES] {
        Frame {
            epoch: Epoch::new(1),
            rkey: self.rkey,
            payload: payload as u32,
            addr: RemoteAddr::new(at),
            ..Frame::new(kind)
        }
        .encode()
    }

    /// One receive brings these bytes; `more` are in the socket.
    fn hear(&mut self, bytes: &[u8], more: bool) {
        let connection = &mut self.connection;
        assert!(connection.fill_receive(&self.pool), "it wants to hear");
        connection.receive.message.scatter(bytes);
        connection.received(bytes.len());
        connection.more = more;
        connection.serve(&Surroundings {
            pool: &self.pool,
            access: &self.access,
            census: &self.census,
            max_session_connections: 1,
        });
    }

    /// The rest of a WRITE, and the header of the next.
    fn hear_the_rest_and_the_next(&mut self, more: bool) {
        let mut bytes = vec![1; LONG];
        bytes.extend(self.header(FrameKind::Write, LONG));
        self.hear(&bytes, more);
    }

    /// Sends what the connection wants to send now: so many answers. `None`: it does not.
    fn answers(&mut self) -> Option<usize> {
        let connection = &mut self.connection;
        connection.fill_send().then(|| {
            let bytes = connection.send.message.bytes();
            let before = connection.answers.len();
            connection.sent(bytes);
            before - connection.answers.len()
        })
    }
}

#[test]
fn writes_are_answered_together_while_more_of_them_come() {
    let mut scene = Scene::new();
    let first = scene.header(FrameKind::Write, LONG);
    scene.hear(&first, true);
    for _ in 0..3 {
        for _ in 1..ANSWERS_AT_ONCE {
            scene.hear_the_rest_and_the_next(true);
            assert_eq!(scene.answers(), None);
        }
        scene.hear_the_rest_and_the_next(true);
        assert_eq!(scene.answers(), Some(ANSWERS_AT_ONCE));
    }
}

#[test]
fn a_socket_that_is_empty_lets_no_answer_wait() {
    let mut scene = Scene::new();
    let first = scene.header(FrameKind::Write, LONG);
    scene.hear(&first, true);
    scene.hear_the_rest_and_the_next(true);
    scene.hear_the_rest_and_the_next(true);
    assert_eq!(scene.answers(), None);
    // A part of the next one, and then nothing for who knows how long.
    scene.hear(&[1; LONG / 2], false);
    assert_eq!(scene.answers(), Some(2));
    assert_eq!(scene.answers(), None);
}

#[test]
fn a_read_is_answered_at_once_and_what_was_before_it() {
    let mut scene = Scene::new();
    let first = scene.header(FrameKind::Write, LONG);
    scene.hear(&first, true);
    scene.hear_the_rest_and_the_next(true);
    let mut bytes = vec![1; LONG];
    bytes.extend(scene.header(FrameKind::Read, 4096));
    scene.hear(&bytes, true);
    assert_eq!(scene.answers(), Some(3));
    // Also with a WRITE behind it that has begun to come in.
    let mut bytes = scene.header(FrameKind::Read, 4096).to_vec();
    bytes.extend(scene.header_at(FrameKind::Write, 4096, LONG));
    scene.hear(&bytes, true);
    assert_eq!(scene.answers(), Some(1));
}

#[test]
fn what_is_owed_at_the_end_does_not_wait_for_more() {
    let mut scene = Scene::new();
    let first = scene.header(FrameKind::Write, LONG);
    scene.hear(&first, true);
    scene.hear_the_rest_and_the_next(true);
    assert_eq!(scene.answers(), None);
    scene.connection.enter(Phase::Draining, &scene.census);
    assert_eq!(scene.answers(), Some(1));
}
