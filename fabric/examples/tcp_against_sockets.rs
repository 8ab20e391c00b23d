//! The tcp transport against bare sockets, in one run: 4 KiB round trips and 64 KiB at depth 16.
//!
//! `cargo run --release -p mycoram-fabric --example tcp_against_sockets [CLIENT_CPU SERVER_CPU]`
//!
//! Each figure is printed with its ratio to the bare sockets of the same placement and the same way of
//! waiting (asleep or spinning on both ends). Rounds of the two alternate, so that both see the same
//! noise. A tool for the eye: the benches keep the figures.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycoram_fabric::transport::tcp::{TcpServer, TcpServerConfig, TcpTransport};
use mycoram_fabric::transport::{
    DataServer, Mapping, Operation, QueuePair, QueuePairConfig, RemoteSlice, Ticket, Transport,
    WorkId, WorkRequest,
};
use mycoram_fabric::units::{Epoch, RegionId, RemoteAddr, TenantId};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const PAGE: usize = 4096;
const REQUEST: usize = 64;
const ROUNDS: usize = 20;
const TRIPS: usize = 1000;
const PIECE: usize = 64 << 10;
const DEPTH: usize = 16;
const PIECES: usize = 400;

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    let pinned = set
        .set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        eprintln!("cannot run on processor {cpu}: {error}");
    }
}

fn read_exactly(mut stream: &TcpStream, bytes: &mut [u8], spin: bool) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if spin && error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends all, also through a socket that does not block.
fn write_exactly(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A server of bare sockets: for each request, `reply` bytes.
fn bare_pair(server_cpu: usize, reply: usize, spin: bool) -> TcpStream {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        pin(server_cpu);
        let (stream, _) = listener.accept().expect("a client");
        stream.set_nodelay(true).expect("an option");
        stream.set_nonblocking(spin).expect("an option");
        let (mut request, bytes) = ([0; REQUEST], vec![7; reply]);
        while read_exactly(&stream, &mut request, spin).is_ok()
            && write_exactly(&stream, &bytes).is_ok()
        {}
    });
    let stream = TcpStream::connect(address).expect("our own server");
    stream.set_nodelay(true).expect("an option");
    stream.set_nonblocking(spin).expect("an option");
    stream
}

fn bare_trips(stream: &TcpStream, spin: bool, samples: &mut Vec<Duration>) {
    let mut reply = vec![0; PAGE + REQUEST];
    for _ in 0..TRIPS {
        let begun = Instant::now();
        write_exactly(stream, &[1; REQUEST]).expect("sent");
        read_exactly(stream, &mut reply, spin).expect("answered");
        samples.push(begun.elapsed());
    }
}

fn bare_pieces(stream: &TcpStream, bytes: &mut [u8]) -> f64 {
    let begun = Instant::now();
    write_exactly(stream, &[1; REQUEST * DEPTH]).expect("sent");
    for n in 0..PIECES {
        read_exactly(stream, bytes, false).expect("answered");
        if n + DEPTH < PIECES {
            write_exactly(stream, &[1; REQUEST]).expect("sent");
        }
    }
    (PIECES * PIECE) as f64 / begun.elapsed().as_secs_f64() / 1e6
}

struct Ours {
    pair: Box<dyn QueuePair>,
    reads: Vec<WorkRequest>,
    _transport: TcpTransport,
    _server: TcpServer,
}

fn ours(server_cpu: usize, client_cpu: usize, spin_us: u32, len: usize) -> Ours {
    let bytes = DEPTH * PIECE;
    let pool = Arc::new(Mapping::anonymous(bytes).expect("memory"));
    let config = TcpServerConfig {
        threads: 1,
        spin_us,
        ..TcpServerConfig::default()
    };
    // Threads inherit the processor of the one that starts them.
    pin(server_cpu);
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = TcpServer::start(any, pool, config).expect("a server");
    pin(client_cpu);
    let (ticket, tenant) = (Ticket { secret: [1; 16] }, TenantId::new(1));
    server
        .admit(ticket, tenant, RegionId::new(1), Epoch::new(1))
        .expect("a first session");
    let export = server.export(tenant, 0, bytes as u64).expect("the pool");
    let transport = TcpTransport::new().expect("sockets");
    let memory = transport
        .register(Arc::new(Mapping::anonymous(bytes).expect("memory")))
        .expect("registered");
    let config = QueuePairConfig {
        response_timeout_ms: 10_000,
        ..QueuePairConfig::default()
    };
    let pair = transport
        .connect(server.address(), &ticket, &config)
        .expect("our own server");
    let reads = (0..DEPTH)
        .map(|n| WorkRequest {
            id: WorkId(n as u64),
            operation: Operation::Read {
                into: memory.slice(n * PIECE, len).expect("inside"),
                from: RemoteSlice {
                    addr: RemoteAddr::new(export.addr.get() + (n * PIECE) as u64),
                    rkey: export.rkey,
                },
            },
            signaled: true,
        })
        .collect();
    Ours {
        pair,
        reads,
        _transport: transport,
        _server: server,
    }
}

/// How the owner waits for a completion.
#[derive(Clone, Copy, PartialEq)]
enum Waiting {
    Spin,
    Wait,
    Readiness,
}

fn our_trips(ours: &mut Ours, waiting: Waiting, samples: &mut Vec<Duration>) {
    let mut done = Vec::with_capacity(1);
    for _ in 0..TRIPS {
        let begun = Instant::now();
        ours.pair.post(&ours.reads[..1]).expect("posted");
        while ours.pair.poll(&mut done) == 0 {
            match waiting {
                Waiting::Spin => std::hint::spin_loop(),
                Waiting::Wait => {
                    ours.pair.wait(Duration::from_secs(1));
                }
                Waiting::Readiness => {
                    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
                    if ours.pair.arm() == mycoram_fabric::transport::Armed::Waiting {
                        let fd = ours.pair.readiness().expect("a descriptor");
                        let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::MAX);
                    }
                }
            }
        }
        assert!(done[0].result.is_ok());
        done.clear();
        samples.push(begun.elapsed());
    }
}

fn our_pieces(ours: &mut Ours, waiting: Waiting) -> f64 {
    let begun = Instant::now();
    let mut done = Vec::with_capacity(DEPTH);
    ours.pair.post(&ours.reads).expect("posted");
    let (mut posted, mut completed) = (DEPTH, 0);
    while completed < PIECES {
        if ours.pair.poll(&mut done) == 0 {
            if waiting == Waiting::Wait {
                ours.pair.wait(Duration::from_secs(1));
            }
            continue;
        }
        for completion in done.drain(..) {
            assert!(completion.result.is_ok());
            completed += 1;
            if posted < PIECES {
                let next = completion.id.0 as usize;
                ours.pair.post(&ours.reads[next..=next]).expect("posted");
                posted += 1;
            }
        }
    }
    (PIECES * PIECE) as f64 / begun.elapsed().as_secs_f64() / 1e6
}

fn p50(samples: &mut [Duration]) -> f64 {
    samples.sort_unstable();
    samples[samples.len() / 2].as_secs_f64() * 1e6
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|text| text.parse().expect("a processor"));
    let client_cpu: usize = arguments.next().unwrap_or(0);
    let server_cpu: usize = arguments.next().unwrap_or(1);
    println!("client on processor {client_cpu}, server on processor {server_cpu}");
    pin(client_cpu);
    for (name, waiting, spin) in [
        ("asleep, wait()", Waiting::Wait, false),
        ("asleep, readiness()", Waiting::Readiness, false),
        ("spinning", Waiting::Spin, true),
    ] {
        if spin && client_cpu == server_cpu {
            continue;
        }
        let bare = bare_pair(server_cpu, PAGE + REQUEST, spin);
        let mut ours = ours(server_cpu, client_cpu, if spin { 1000 } else { 0 }, PAGE);
        let (mut theirs, mut mine) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bare_trips(&bare, spin, &mut theirs);
            our_trips(&mut ours, waiting, &mut mine);
        }
        let (bare, ours) = (p50(&mut theirs), p50(&mut mine));
        println!(
            "4 KiB READ, {name}: {ours:.1} us; bare {bare:.1} us; ratio {:.2}",
            ours / bare
        );
    }
    for (name, waiting) in [("asleep", Waiting::Wait), ("spinning", Waiting::Spin)] {
        let spin = waiting == Waiting::Spin;
        if spin && client_cpu == server_cpu {
            continue;
        }
        let bare = bare_pair(server_cpu, PIECE, false);
        let mut ours = ours(server_cpu, client_cpu, if spin { 1000 } else { 0 }, PIECE);
        let (mut theirs, mut mine, mut bytes) = (Vec::new(), Vec::new(), vec![0; PIECE]);
        for _ in 0..ROUNDS {
            theirs.push(bare_pieces(&bare, &mut bytes));
            mine.push(our_pieces(&mut ours, waiting));
        }
        let (bare, ours) = (median(&mut theirs), median(&mut mine));
        println!(
            "64 KiB READs at depth 16, {name}: {ours:.0} MB/s; bare asleep {bare:.0} MB/s; ratio {:.2}",
            ours / bare
        );
    }
}
