//! Peers of the tcp server that mean ill or are broken: their connection ends, everybody else's goes on.

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycoram_fabric::transport::tcp::{TcpServer, TcpServerConfig};
use mycoram_fabric::transport::{
    Armed, ConnectError, DataServer, ErrorKind, Export, Mapping, PostError, QueuePairConfig,
    RemoteSlice, Ticket,
};
use mycoram_fabric::units::{Epoch, RegionId, RemoteAddr, Rkey, TenantId};
use mycoram_fabric::wire::data::{FRAME_BYTES, Frame, FrameKind, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::conformance::client::{Client, admit, read};
use super::conformance::data::pattern;
use super::conformance::victim::ProcessVictim;
use super::conformance::{Fabric, Victim, at};
use super::{Tcp, TcpNode};

/// How long something that must happen may take. Only ever waited out by a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn fabric() -> Tcp {
    Tcp {
        config: TcpServerConfig::default,
    }
}

/// A node with an honest client on it, whose bytes must stay as they are.
struct Scene {
    node: TcpNode,
    ticket: Ticket,
    export: Export,
    bystander: Client,
}

const POOL: usize = 8 << 20;

impl Scene {
    fn new(config: TcpServerConfig) -> Self {
        let node = TcpNode::start(POOL, config);
        let (tenant, ticket) = admit(&node, 1, 1, 1);
        let export = node.server.export(tenant, 0, POOL as u64).expect("inside");
        let (_, honest) = admit(&node, 2, 2, 1);
        let theirs = TenantId::new(2);
        node.server.export(theirs, 0, 4096).expect("inside");
        let bystander = Client::connect(
            &fabric(),
            &fabric().transport(),
            node.server.address(),
            &honest,
            4,
            4096,
        )
        .expect("admitted");
        Self {
            node,
            ticket,
            export,
            bystander,
        }
    }

    fn raw(&self) -> TcpStream {
        let stream = TcpStream::connect(self.node.server.address()).expect("listening");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        stream.set_write_timeout(Some(PATIENCE)).expect("an option");
        stream
    }

    /// A raw connection past a good hello.
    fn greeted(&self) -> TcpStream {
        let mut stream = self.raw();
        stream
            .write_all(&Frame::hello(self.ticket.secret).encode())
            .expect("sent");
        let welcome = next_frame(&mut stream);
        assert_eq!(
            (welcome.kind, welcome.status),
            (FrameKind::Welcome, Status::Done)
        );
        assert_eq!(welcome.epoch, Epoch::new(1));
        stream
    }

    fn request(&self, kind: FrameKind, offset: u64, payload: usize) -> Frame {
        Frame {
            epoch: Epoch::new(1),
            rkey: self.export.rkey,
            payload: payload as u32,
            addr: RemoteAddr::new(self.export.addr.get() + offset),
            ..Frame::new(kind)
        }
    }

    /// The honest client is served as if nothing were.
    fn assert_others_are_served(&mut self) {
        let zero = RemoteSlice {
            addr: RemoteAddr::new(0),
            rkey: Rkey::new(0),
        };
        assert_eq!(self.bystander.read(0, 0, zero), Ok(()));
    }
}

fn next_frame(stream: &mut TcpStream) -> Frame {
    let mut bytes = [0; FRAME_BYTES];
    stream.read_exact(&mut bytes).expect("a frame comes");
    Frame::decode(&bytes).expect("servers send frames")
}

/// The peer ends the connection; what it says before is thrown away.
fn assert_ends(stream: &mut TcpStream) {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == IoErrorKind::ConnectionReset => return,
            Err(error) => panic!("the connection is still up: {error}"),
        }
    }
}

#[test]
fn garbage_instead_of_a_hello_ends_the_connection() {
    let mut scene = Scene::new(TcpServerConfig::default());
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for round in 0..32 {
        let mut bytes = vec![0; 64 + (random.next_u32() % 4096) as usize];
        random.fill_bytes(&mut bytes);
        if round % 2 == 0 {
            // The right magic, then garbage.
            bytes[..4].copy_from_slice(b"MyCd");
        }
        let mut stream = scene.raw();
        let _ = stream.write_all(&bytes);
        assert_ends(&mut stream);
    }
    scene.assert_others_are_served();
    assert_eq!(scene.node.server.connections(), 1);
}

#[test]
fn a_request_before_the_hello_ends_the_connection() {
    let mut scene = Scene::new(TcpServerConfig::default());
    let mut stream = scene.raw();
    let request = scene.request(FrameKind::Read, 0, 64);
    stream.write_all(&request.encode()).expect("sent");
    assert_ends(&mut stream);
    scene.assert_others_are_served();
}

#[test]
fn another_version_is_told_so() {
    let scene = Scene::new(TcpServerConfig::default());
    for version in [0_u16, 2, 999] {
        let mut stream = scene.raw();
        let mut hello = Frame::hello(scene.ticket.secret).encode();
        hello[4..6].copy_from_slice(&version.to_le_bytes());
        stream.write_all(&hello).expect("sent");
        let welcome = next_frame(&mut stream);
        assert_eq!(welcome.kind, FrameKind::Welcome);
        assert_eq!(welcome.status, Status::Version);
        assert_ends(&mut stream);
    }
}

#[test]
fn a_server_of_another_version_is_noticed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.read_exact(&mut [0; FRAME_BYTES]).expect("a hello");
        let mut welcome = Frame::new(FrameKind::Welcome).encode();
        welcome[4..6].copy_from_slice(&2_u16.to_le_bytes());
        stream.write_all(&welcome).expect("sent");
    });
    let answer = Client::connect(
        &fabric(),
        &fabric().transport(),
        address,
        &Ticket { secret: [1; 16] },
        4,
        4096,
    );
    match answer {
        Err(ConnectError::Protocol { version: 1, .. }) => {}
        Err(other) => panic!("another version was answered with {other:?}"),
        Ok(_) => panic!("another version was connected"),
    }
    server.join().expect("our own thread");
}

#[test]
fn malformed_requests_end_their_connection_only() {
    let mut scene = Scene::new(TcpServerConfig::default());
    let good = scene.request(FrameKind::Read, 0, 64);
    let encoded = |change: &dyn Fn(&mut Frame)| {
        let mut frame = good;
        change(&mut frame);
        frame.encode()
    };
    let mut flipped = good.encode();
    flipped[40] ^= 1;
    let mut reserved = good.encode();
    reserved[20] = 1;
    let malformed: Vec<(&str, [u8; FRAME_BYTES])> = vec![
        ("a second hello", Frame::hello(scene.ticket.secret).encode()),
        ("an answer", encoded(&|f| f.kind = FrameKind::Answer)),
        ("a farewell", Frame::new(FrameKind::Farewell).encode()),
        (
            "a request with a status",
            encoded(&|f| f.status = Status::Access),
        ),
        ("a READ with an operand", encoded(&|f| f.first = 1)),
        ("too long a READ", encoded(&|f| f.payload = (16 << 20) + 1)),
        ("far too long a WRITE", {
            encoded(&|f| (f.kind, f.payload) = (FrameKind::Write, u32::MAX))
        }),
        ("an atomic of 16 bytes", {
            encoded(&|f| (f.kind, f.payload) = (FrameKind::FetchAdd, 16))
        }),
        ("another epoch", encoded(&|f| f.epoch = Epoch::new(2))),
        ("a wrong checksum", flipped),
        ("reserved bits", reserved),
        ("nothing of ours", [0x41; FRAME_BYTES]),
    ];
    for (what, bytes) in malformed {
        let mut stream = scene.greeted();
        // The good one before it is served.
        stream.write_all(&good.encode()).expect("sent");
        assert_eq!(next_frame(&mut stream).payload, 64, "before {what}");
        stream.read_exact(&mut [0; 64]).expect("its payload");
        stream.write_all(&bytes).expect("sent");
        // Nothing behind it is.
        let behind = scene.request(FrameKind::Write, 8192, 8);
        let _ = stream.write_all(&behind.encode());
        let _ = stream.write_all(&[0xff; 8]);
        assert_ends(&mut stream);
    }
    let mut stored = [1; 8];
    scene.node.pool.copy_out(8192, &mut stored).expect("inside");
    assert_eq!(stored, [0; 8]);
    scene.assert_others_are_served();
    assert_eq!(scene.node.server.connections(), 1);
}

#[test]
fn an_unaligned_atomic_is_refused_by_the_server_too() {
    let scene = Scene::new(TcpServerConfig::default());
    let mut stream = scene.greeted();
    let mut frame = scene.request(FrameKind::FetchAdd, 4, 8);
    frame.first = 1;
    stream.write_all(&frame.encode()).expect("sent");
    assert_eq!(next_frame(&mut stream).status, Status::Access);
    assert_ends(&mut stream);
}

#[test]
fn truncated_frames_harm_nobody() {
    let mut scene = Scene::new(TcpServerConfig::default());
    let write = scene.request(FrameKind::Write, 0, 100_000).encode();
    let mut whole = write.to_vec();
    whole.extend_from_slice(&[0; 1000]);
    for len in [1, 7, 63, 64, 65, 1000] {
        let mut stream = scene.greeted();
        stream.write_all(&whole[..len]).expect("sent");
        stream.shutdown(Shutdown::Write).expect("our own socket");
        assert_ends(&mut stream);
        let mut stream = scene.raw();
        let hello = Frame::hello(scene.ticket.secret).encode();
        stream.write_all(&hello[..len.min(63)]).expect("sent");
        drop(stream);
    }
    scene.assert_others_are_served();
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let scene = Scene::new(TcpServerConfig::default());
    scene
        .node
        .pool
        .copy_in(100, &pattern(1, 50))
        .expect("inside");
    let mut stream = scene.raw();
    stream.set_nodelay(true).expect("an option");
    let mut bytes = Frame::hello(scene.ticket.secret).encode().to_vec();
    bytes.extend(scene.request(FrameKind::Write, 0, 20).encode());
    bytes.extend(pattern(2, 20));
    bytes.extend(scene.request(FrameKind::Read, 100, 50).encode());
    for byte in bytes {
        stream.write_all(&[byte]).expect("sent");
    }
    assert_eq!(next_frame(&mut stream).kind, FrameKind::Welcome);
    let written = next_frame(&mut stream);
    assert_eq!((written.status, written.addr.get()), (Status::Done, 0));
    let answer = next_frame(&mut stream);
    assert_eq!((answer.payload, answer.addr.get()), (50, 1));
    let mut payload = [0; 50];
    stream.read_exact(&mut payload).expect("its payload");
    assert_eq!(payload.as_slice(), pattern(1, 50));
    let mut stored = [0; 20];
    scene.node.pool.copy_out(0, &mut stored).expect("inside");
    assert_eq!(stored.as_slice(), pattern(2, 20));
}

#[test]
fn whoever_does_not_say_hello_is_cut_off() {
    let mut scene = Scene::new(TcpServerConfig {
        hello_timeout_ms: 1000,
        ..TcpServerConfig::default()
    });
    let hello = Frame::hello(scene.ticket.secret).encode();
    let mut silent = scene.raw();
    let mut dripping = scene.raw();
    assert_ends(&mut silent);
    // A byte now and then does not help either.
    for byte in hello.iter().cycle() {
        if dripping.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    scene.assert_others_are_served();
}

#[test]
fn a_flood_of_connections_is_bounded() {
    const MOST: usize = 16;
    let mut scene = Scene::new(TcpServerConfig {
        max_greeting: MOST,
        hello_timeout_ms: 600_000,
        ..TcpServerConfig::default()
    });
    let mut flood: Vec<_> = (0..300).map(|_| scene.raw()).collect();
    // Those who have a ticket still get in, and are served.
    let address = scene.node.server.address();
    let (fabric, ticket) = (fabric(), scene.ticket);
    let mut late = Client::connect(&fabric, &fabric.transport(), address, &ticket, 4, 4096)
        .expect("admitted in the middle of a flood");
    assert_eq!(late.read(0, 64, at(&scene.export, 0)), Ok(()));
    scene.assert_others_are_served();
    // All but the newest few have been sent away: a read ends at once, or would wait.
    let begun = Instant::now();
    loop {
        flood.retain_mut(|stream| {
            stream.set_nonblocking(true).expect("an option");
            matches!(stream.read(&mut [0]), Err(error) if error.kind() == IoErrorKind::WouldBlock)
        });
        if flood.len() <= MOST {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{} are still up", flood.len());
        std::thread::yield_now();
    }
}

#[test]
fn connections_are_bounded_in_all_and_by_session() {
    let fabric = fabric();
    let scene = Scene::new(TcpServerConfig {
        max_connections: 5,
        max_session_connections: 3,
        ..TcpServerConfig::default()
    });
    let address = scene.node.server.address();
    let transport = fabric.transport();
    let connect = |ticket: &Ticket| Client::connect(&fabric, &transport, address, ticket, 4, 4096);
    let mut clients: Vec<_> = (0..3)
        .map(|_| connect(&scene.ticket).expect("admitted"))
        .collect();
    assert!(matches!(
        connect(&scene.ticket),
        Err(ConnectError::Refused { .. })
    ));
    // The bystander is the fourth; one more fits, and then none.
    let (_, third) = admit(&scene.node, 3, 3, 1);
    let (_, fourth) = admit(&scene.node, 4, 4, 1);
    // The refused one may still be saying goodbye.
    let begun = Instant::now();
    clients.push(loop {
        match connect(&third) {
            Ok(client) => break client,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    });
    assert!(matches!(
        connect(&fourth),
        Err(ConnectError::Unreachable { .. })
    ));
    clients.pop();
    let begun = Instant::now();
    while let Err(error) = connect(&fourth) {
        assert!(begun.elapsed() < PATIENCE, "{error}");
    }
}

#[test]
fn a_peer_that_reads_nothing_holds_up_only_itself() {
    let mut scene = Scene::new(TcpServerConfig {
        peer_timeout_ms: 500,
        ..TcpServerConfig::default()
    });
    let mut stream = scene.greeted();
    stream.set_nonblocking(true).expect("an option");
    let request = scene.request(FrameKind::Read, 0, 1 << 20).encode();
    let many = request.repeat(1024);
    // As much as the sockets take: more than a thousand READs of 1 MiB, and nothing is read.
    let begun = Instant::now();
    let mut sent = 0;
    while let Ok(n) = stream.write(&many) {
        sent += n;
        assert!(begun.elapsed() < PATIENCE, "{sent} bytes, and still more");
    }
    for _ in 0..100 {
        scene.assert_others_are_served();
    }
    // Who takes nothing for so long is taken for dead.
    while scene.node.server.connections() > 1 {
        assert!(begun.elapsed() < PATIENCE, "still connected");
        scene.assert_others_are_served();
    }
}

#[test]
fn ten_thousand_requests_before_the_first_answer_is_read() {
    const MANY: u64 = 10_000;
    let scene = Scene::new(TcpServerConfig::default());
    scene
        .node
        .pool
        .copy_in(0, &pattern(9, 4096))
        .expect("inside");
    let stream = scene.greeted();
    let mut sending = stream.try_clone().expect("a descriptor");
    let read = scene.request(FrameKind::Read, 0, 4096).encode();
    // Each WRITE changes what the READ before it has asked for.
    let write = scene.request(FrameKind::Write, 0, 8).encode();
    let sender = std::thread::spawn(move || {
        for n in 0..MANY {
            sending.write_all(&read).expect("taken");
            sending.write_all(&write).expect("taken");
            sending.write_all(&n.to_le_bytes()).expect("taken");
        }
    });
    let mut stream = stream;
    let mut expected = pattern(9, 4096);
    for n in 0..MANY {
        let answer = next_frame(&mut stream);
        assert_eq!((answer.addr.get(), answer.payload), (2 * n, 4096));
        let mut bytes = vec![0; 4096];
        stream.read_exact(&mut bytes).expect("its payload");
        assert!(bytes == expected, "READ {n} sees the WRITEs before it only");
        assert_eq!(next_frame(&mut stream).addr.get(), 2 * n + 1);
        expected[..8].copy_from_slice(&n.to_le_bytes());
    }
    sender.join().expect("our own thread");
}

#[test]
fn writes_are_answered_though_the_one_behind_them_never_ends() {
    const BYTES: usize = 64 << 10;
    let scene = Scene::new(TcpServerConfig::default());
    for whole in 1..=20 {
        let mut stream = scene.greeted();
        let mut bytes = Vec::new();
        for _ in 0..=whole {
            bytes.extend(scene.request(FrameKind::Write, 0, BYTES).encode());
            bytes.resize(bytes.len() + BYTES, whole as u8);
        }
        // In one go, so that the next one is there when the one before it is done.
        stream
            .write_all(&bytes[..bytes.len() - BYTES / 2])
            .expect("taken");
        for n in 0..whole {
            assert_eq!(next_frame(&mut stream).addr.get(), n);
        }
    }
}

/// Stops in the middle of a WRITE, with the rest of its payload in hand.
fn half_a_write(scene: &Scene) -> TcpStream {
    const BYTES: usize = 1 << 20;
    let mut stream = scene.greeted();
    let header = scene.request(FrameKind::Write, 0, BYTES).encode();
    stream.write_all(&header).expect("sent");
    stream.write_all(&[0xab; BYTES / 2]).expect("sent");
    let begun = Instant::now();
    let mut byte = [0];
    while byte != [0xab] {
        assert!(begun.elapsed() < PATIENCE, "the payload does not arrive");
        scene
            .node
            .pool
            .copy_out(BYTES / 2 - 1, &mut byte)
            .expect("inside");
    }
    stream
}

fn assert_the_rest_goes_nowhere(scene: &Scene, mut stream: TcpStream) {
    const BYTES: usize = 1 << 20;
    scene.node.pool.copy_in(0, &[0; BYTES]).expect("inside");
    let _ = stream.write_all(&[0xab; BYTES / 2]);
    assert_ends(&mut stream);
    let mut stored = vec![1; BYTES];
    scene.node.pool.copy_out(0, &mut stored).expect("inside");
    assert!(stored.iter().all(|b| *b == 0), "memory was written to late");
}

#[test]
fn half_a_write_ends_when_its_key_is_revoked() {
    let mut scene = Scene::new(TcpServerConfig::default());
    let stream = half_a_write(&scene);
    let tenant = TenantId::new(1);
    assert!(scene.node.server.revoke(tenant, scene.export.rkey));
    assert_the_rest_goes_nowhere(&scene, stream);
    scene.assert_others_are_served();
}

#[test]
fn half_a_write_ends_when_its_session_is_fenced() {
    let mut scene = Scene::new(TcpServerConfig::default());
    let stream = half_a_write(&scene);
    scene.node.server.fence(RegionId::new(1), Epoch::new(2));
    assert_the_rest_goes_nowhere(&scene, stream);
    scene.assert_others_are_served();
}

#[test]
fn a_fenced_owner_is_told_so() {
    let fabric = fabric();
    let (node, export, mut client) = Client::with_node(&fabric, 8192, 4, 4096);
    assert_eq!(client.read(0, 64, at(&export, 0)), Ok(()));
    node.server.fence(RegionId::new(1), Epoch::new(2));
    client.complete_until_broken();
    let broken = client.pair.broken().expect("broken");
    assert_eq!(broken.kind, ErrorKind::Fenced);
}

/// Returns when all of its threads have stopped, not when they have been told to.
fn stop(victim: &ProcessVictim) {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let process = Pid::from_raw(victim.id() as i32);
    kill(process, Signal::SIGSTOP).expect("our own child");
    let status = waitpid(process, Some(WaitPidFlag::WUNTRACED)).expect("our own child");
    assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
}

#[test]
fn a_stopped_process_is_unreachable_until_it_goes_on() {
    let fabric = fabric();
    let victim = fabric.start_victim(8192);
    let facts = victim.facts();
    let config = QueuePairConfig {
        response_timeout_ms: 2000,
        ..fabric.config(4)
    };
    let transport = fabric.transport();
    let mut client = Client::connect(&fabric, &transport, facts.address, &facts.ticket, 4, 4096)
        .expect("admitted");
    client.pair = transport
        .connect(facts.address, &facts.ticket, &config)
        .expect("admitted");
    assert_eq!(client.read(0, 64, at(&facts.export, 0)), Ok(()));
    stop(&victim);
    assert_eq!(
        client.read(0, 64, at(&facts.export, 0)),
        Err(ErrorKind::PeerUnreachable)
    );
    let process = Pid::from_raw(victim.id() as i32);
    kill(process, Signal::SIGCONT).expect("our own child");
    client.pair = transport
        .connect(facts.address, &facts.ticket, &config)
        .expect("admitted again");
    assert_eq!(client.read(0, 64, at(&facts.export, 0)), Ok(()));
}

#[test]
fn a_readiness_waiter_hears_of_silence() {
    let fabric = fabric();
    let victim = fabric.start_victim(8192);
    let facts = victim.facts();
    let transport = fabric.transport();
    let mut client = Client::connect(&fabric, &transport, facts.address, &facts.ticket, 4, 4096)
        .expect("admitted");
    let config = QueuePairConfig {
        response_timeout_ms: 100,
        ..fabric.config(4)
    };
    client.pair = transport
        .connect(facts.address, &facts.ticket, &config)
        .expect("admitted");
    stop(&victim);
    let into = client.slice(0, 64);
    client
        .pair
        .post(&[read(1, into, at(&facts.export, 0))])
        .expect("room");
    let mut completions = Vec::with_capacity(1);
    let begun = Instant::now();
    while client.pair.poll(&mut completions) == 0 {
        assert!(begun.elapsed() < PATIENCE, "nobody woke us");
        if client.pair.arm() == Armed::Waiting {
            use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
            let fd = client.pair.readiness().expect("a descriptor");
            poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::MAX).expect("polls");
        }
    }
    assert_eq!(
        completions[0].result.map_err(|error| error.kind),
        Err(ErrorKind::PeerUnreachable)
    );
}

#[test]
fn a_queue_pair_may_change_threads_with_work_in_flight() {
    let fabric = fabric();
    let (node, export, mut client) = Client::with_node(&fabric, 1 << 20, 64, 1 << 20);
    node.pool.copy_in(0, &pattern(4, 1 << 20)).expect("inside");
    for round in 0..20 {
        let chain: Vec<_> = (0..16)
            .map(|n| {
                let slice = client.slice(n as usize * 65_536, 65_536);
                read(n, slice, at(&export, n * 65_536))
            })
            .collect();
        client.pair.post(&chain).expect("room");
        client = std::thread::spawn(move || {
            assert!(client.complete(16).iter().all(|c| c.result.is_ok()));
            client
        })
        .join()
        .expect("our own thread");
        assert!(
            client.bytes(0, 1 << 20) == pattern(4, 1 << 20),
            "round {round}"
        );
    }
}

#[test]
fn memory_of_another_transport_is_not_taken() {
    let fabric = fabric();
    let (_node, export, mut client) = Client::with_node(&fabric, 8192, 4, 4096);
    let elsewhere = fabric
        .transport()
        .register(Arc::new(Mapping::anonymous(4096).expect("memory")))
        .expect("registered");
    let slice = elsewhere.slice(0, 64).expect("inside");
    let answer = client.pair.post(&[read(5, slice, at(&export, 0))]);
    assert!(
        matches!(answer, Err(PostError::Invalid { .. })),
        "{answer:?}"
    );
}

#[test]
fn a_port_can_be_served_again_at_once() {
    let first = TcpNode::start(8192, TcpServerConfig::default());
    let address = first.server.address();
    drop(first);
    let pool = Arc::new(Mapping::anonymous(8192).expect("memory"));
    let begun = Instant::now();
    while let Err(error) = TcpServer::start(address, Arc::clone(&pool), TcpServerConfig::default())
    {
        assert!(begun.elapsed() < PATIENCE, "{error}");
    }
}
