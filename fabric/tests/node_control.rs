//! A memory node's control channel under peers that lie, stall, vanish and come in crowds.

mod cluster;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use cluster::{Cluster, Fabric, TestNode, wait_until};
use mycoram_fabric::node::{Bounds, Drained};
use mycoram_fabric::session::{Dial, Identity, Session, SessionError, TcpChannel, TcpDial};
use mycoram_fabric::transport::{Ticket, TransportKind};
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};
use mycoram_fabric::wire::control::{MAX_BATCH_EXTENTS, MAX_BODY_BYTES, Request, Response, Token};
use mycoram_fabric::wire::{HEADER_BYTES, Header, Magic, Refusal, VERSION};

const MIB: u64 = 1 << 20;

fn identity(region: u64, epoch: u64, owner: u64) -> Identity {
    Identity {
        tenant: TenantId::new(region),
        region: RegionId::new(region),
        epoch: Epoch::new(epoch),
        token: Token([region as u8; 16]),
        owner,
    }
}

fn open(node: &TestNode, identity: Identity, create: bool) -> Result<Session, SessionError> {
    Session::open(TcpDial::default().dial(node.control())?, identity, create)
}

fn raw(node: &TestNode) -> TcpStream {
    let stream = TcpStream::connect(node.control()).expect("listening");
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).expect("a socket");
    stream
}

/// That the node has ended the connection, and said nothing more.
fn is_ended(mut stream: TcpStream) -> bool {
    loop {
        match stream.read(&mut [0; 1]) {
            Ok(read) => return read == 0,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // What it had not read when it closed is answered with a reset.
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn what_is_no_message_ends_its_connection_and_nothing_else() {
    let cluster = Cluster::start(Fabric::Tcp, &[4 * MIB]);
    let node = &cluster.nodes[0];
    let mut session = open(node, identity(1, 1, 1), true).expect("a session");
    let hello = Request::Hello.encode(Epoch::new(0));

    let mut wrong_checksum = hello.clone();
    wrong_checksum[HEADER_BYTES - 1] ^= 1;
    let mut reserved = hello.clone();
    reserved[20] = 1;
    let mut data_magic = hello.clone();
    data_magic[..4].copy_from_slice(&Magic::Data.bytes());
    let mut endless = hello.clone();
    endless[16..20].copy_from_slice(&(MAX_BODY_BYTES + 1).to_le_bytes());
    let unknown = Header::seal(Magic::Control, VERSION, 999, Epoch::new(0), &[]).expect("short");
    let longer = Header::seal(Magic::Control, VERSION, 1, Epoch::new(0), &[0]).expect("short");
    let mut longer = longer.encode(Magic::Control).to_vec();
    longer.push(0);
    let http = b"GET / HTTP/1.1\r\nHost: myco\r\nAccept: */*\r\n\r\n".to_vec();
    let unknown = unknown.encode(Magic::Control).to_vec();
    for garbage in [
        wrong_checksum,
        reserved,
        data_magic,
        endless,
        unknown,
        longer,
        http,
    ] {
        let mut stream = raw(node);
        stream.write_all(&garbage).expect("sent");
        assert!(is_ended(stream), "{garbage:02x?}");
        session.keep_alive().expect("others are served on");
    }
    wait_until("they are gone", || node.status().control_connections == 2);
}

#[test]
fn half_a_message_and_silence_are_ended_after_the_idle_limit() {
    let mut cluster = Cluster::start(Fabric::Tcp, &[MIB]);
    cluster.nodes[0].idle_ms = 200;
    cluster.nodes[0].restart();
    let node = &cluster.nodes[0];
    let silent = raw(node);
    let mut half = raw(node);
    half.write_all(&Request::Hello.encode(Epoch::new(0))[..20])
        .expect("sent");
    assert!(is_ended(silent));
    assert!(is_ended(half));
}

#[test]
fn another_version_is_told_which_one_is_spoken() {
    let cluster = Cluster::start(Fabric::Tcp, &[MIB]);
    let node = &cluster.nodes[0];
    let mut stream = raw(node);
    let newer = Header::seal(Magic::Control, VERSION + 1, 1, Epoch::new(0), &[]).expect("short");
    stream
        .write_all(&newer.encode(Magic::Control))
        .expect("sent");
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head).expect("an answer");
    let header = Header::decode(&head, Magic::Control, VERSION, MAX_BODY_BYTES).expect("ours");
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).expect("a body");
    let refusal = Refusal::Version {
        requested: VERSION + 1,
        node: VERSION,
    };
    assert_eq!(
        Response::decode(&header, &body),
        Ok(Response::Refused(refusal))
    );
    assert!(is_ended(stream));
}

#[test]
fn a_node_of_another_version_is_named_as_such() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("a port");
    let newer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream
            .read_exact(&mut [0; HEADER_BYTES])
            .expect("a request");
        let answer = Header::seal(Magic::Control, VERSION + 1, 0x80ff, Epoch::new(0), &[]);
        let answer = answer.expect("short").encode(Magic::Control);
        stream.write_all(&answer).expect("sent");
    });
    let mut channel = TcpDial::default().dial(address).expect("a channel");
    let refused = channel.hello();
    let theirs = VERSION + 1;
    assert!(
        matches!(refused, Err(SessionError::Version { theirs: t, .. }) if t == theirs),
        "{refused:?}"
    );
    newer.join().expect("no panic");
}

#[test]
fn connections_are_bounded_and_the_bound_is_named() {
    let mut cluster = Cluster::start(Fabric::Tcp, &[MIB]);
    cluster.nodes[0].connections = 3;
    cluster.nodes[0].restart();
    let node = &cluster.nodes[0];
    let held: Vec<_> = (0..3)
        .map(|region| open(node, identity(region + 1, 1, 1), true))
        .collect();
    assert!(held.iter().all(Result::is_ok));
    let refused = open(node, identity(9, 1, 1), true).expect_err("one too many");
    assert_eq!(
        refused.refusal(),
        Some(Refusal::TooManyConnections { limit: 3 })
    );
    drop(held);
    wait_until("there is room again", || {
        open(node, identity(9, 1, 1), true).is_ok()
    });
}

#[test]
fn bounds_on_regions_and_tickets_are_named() {
    let bounds = Bounds {
        regions: 2,
        tickets: 2,
        ..Bounds::default()
    };
    let cluster = Cluster::with_bounds(Fabric::Tcp, &[MIB], bounds);
    let node = &cluster.nodes[0];
    let mut first = open(node, identity(1, 1, 1), true).expect("a region");
    let _second = open(node, identity(2, 1, 1), true).expect("a region");
    let refused = open(node, identity(3, 1, 1), true).expect_err("one too many");
    assert_eq!(
        refused.refusal(),
        Some(Refusal::TooManyRegions { limit: 2 })
    );
    let ticket = first.ticket(None).expect("a ticket");
    first.ticket(None).expect("a ticket");
    let refused = first.ticket(None).expect_err("one too many");
    assert_eq!(
        refused.refusal(),
        Some(Refusal::TooManyTickets { limit: 2 })
    );
    first.dismiss(ticket).expect("given back");
    first.ticket(None).expect("room again");
}

#[test]
fn tickets_that_nobody_gave_admit_nobody() {
    let cluster = Cluster::start(Fabric::Tcp, &[MIB]);
    let mut session = open(&cluster.nodes[0], identity(1, 1, 1), true).expect("a session");
    let invented = Ticket { secret: [9; 16] };
    let connected = cluster::transport(Fabric::Tcp).connect(
        session.welcome().data,
        &invented,
        &mycoram_fabric::transport::QueuePairConfig::default(),
    );
    assert!(connected.is_err());
    // One that was replaced admits nobody either.
    let old = session.ticket(None).expect("a ticket");
    let new = session.ticket(Some(old)).expect("another");
    let connect = |ticket: &Ticket| {
        cluster::transport(Fabric::Tcp)
            .connect(
                session.welcome().data,
                ticket,
                &mycoram_fabric::transport::QueuePairConfig::default(),
            )
            .is_ok()
    };
    assert!(!connect(&old));
    assert!(connect(&new));
}

#[test]
fn many_extents_are_listed_in_batches_and_freed() {
    let pages = MAX_BATCH_EXTENTS as u32 + 100;
    let cluster = Cluster::start(Fabric::Tcp, &[u64::from(pages) * 4096]);
    let node = &cluster.nodes[0];
    let mut session = open(node, identity(1, 1, 1), true).expect("a session");
    let indexes: Vec<_> = (0..pages).map(ExtentIndex::new).collect();
    for batch in indexes.chunks(MAX_BATCH_EXTENTS) {
        session.allocate(ByteCount::new(4096), batch).expect("room");
    }
    let refused = session.allocate(ByteCount::new(4096), &[ExtentIndex::new(pages)]);
    let full = Refusal::Full {
        asked: ByteCount::new(4096),
        free: ByteCount::new(0),
        capacity: ByteCount::new(u64::from(pages) * 4096),
    };
    assert_eq!(refused.expect_err("full").refusal(), Some(full));
    let listed = session.list().expect("a list");
    assert_eq!(listed.len(), indexes.len());
    assert!(
        listed
            .iter()
            .map(|grant| grant.index)
            .eq(indexes.iter().copied())
    );
    assert_eq!(session.free(&indexes).expect("freed"), pages);
    assert_eq!(session.list().expect("a list"), []);
}

#[test]
fn what_needs_a_session_is_refused_without_one() {
    let cluster = Cluster::start(Fabric::Tcp, &[MIB]);
    let mut channel = TcpDial::default()
        .dial(cluster.nodes[0].control())
        .expect("a channel");
    for request in [
        Request::KeepAlive,
        Request::Release,
        Request::Free { indexes: vec![] },
        Request::List {
            from: ExtentIndex::new(0),
        },
    ] {
        let refused = channel
            .call(Epoch::new(1), &request)
            .expect_err("no session");
        assert_eq!(
            refused.refusal(),
            Some(Refusal::NoSession {}),
            "{request:?}"
        );
    }
    // The connection goes on: a refusal is not the end of it.
    assert_eq!(
        channel.hello().expect("an answer").transport,
        TransportKind::Tcp
    );
}

#[test]
fn draining_tells_owners_and_ends_when_they_have_left() {
    let mut cluster = Cluster::start(Fabric::Tcp, &[2 * MIB]);
    let control = cluster.nodes[0].control();
    let mut session = open(&cluster.nodes[0], identity(1, 1, 1), true).expect("a session");
    let node = cluster.nodes[0].take();
    let drain = std::thread::spawn(move || node.drain(Duration::from_secs(60)));
    wait_until("the owner is told", || {
        session
            .keep_alive()
            .expect("served until it leaves")
            .drain_ms
            .is_some()
    });
    let newcomer = Session::open(
        TcpDial::default().dial(control).expect("still listening"),
        identity(2, 1, 2),
        true,
    );
    assert_eq!(
        newcomer.expect_err("draining").refusal(),
        Some(Refusal::Draining {})
    );
    session.release().expect("released");
    assert_eq!(drain.join().expect("no panic"), Drained::Empty);
    assert!(
        TcpChannel::connect(control, Duration::from_secs(5)).is_err(),
        "nobody listens"
    );
}

#[test]
fn draining_ends_when_its_time_is_up() {
    let mut cluster = Cluster::start(Fabric::Tcp, &[2 * MIB]);
    let mut session = open(&cluster.nodes[0], identity(1, 1, 1), true).expect("a session");
    let node = cluster.nodes[0].take();
    assert_eq!(node.drain(Duration::from_millis(100)), Drained::TimeUp);
    session.keep_alive().expect_err("it is gone");
}
