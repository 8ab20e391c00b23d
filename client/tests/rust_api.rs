//! The Rust interface against real memory nodes.

mod support;

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use mycoram::{Advice, FarMemory, MapError, OpenError, Status};
use support::{Node, start, uri};

#[test]
fn a_mapping_is_a_slice_and_gives_its_room_back() {
    let node = Node::start("64MiB");
    let far = FarMemory::open(&uri(&[&node], "local=4MiB&extent=1MiB")).expect("opens");
    let mut memory = far.map(32 << 20).expect("maps");
    assert_eq!(node.free(), 32 << 20);
    for (place, byte) in memory.iter_mut().enumerate() {
        *byte = (place / 4096 + place) as u8;
    }
    memory.advise(.., Advice::Sequential).expect("advises");
    let whole = memory
        .iter()
        .enumerate()
        .all(|(place, byte)| *byte == (place / 4096 + place) as u8);
    assert!(whole);
    let stats = memory.stats().expect("counts");
    assert_eq!(stats.mapped_bytes, 32 << 20);
    assert!(stats.resident_bytes <= 5 << 20, "{stats:?}");
    assert!(stats.evicted_pages > 0 && stats.bytes_read > 0, "{stats:?}");
    drop(far);
    assert_eq!(memory[1], 1);
    memory.unmap().expect("unmaps");
    assert_eq!(node.free(), 64 << 20);
}

#[test]
fn a_configuration_file_opens_as_a_uri_does() {
    let node = Node::start("64MiB");
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    write!(
        file,
        "local = '4MiB'\nextent = '1MiB'\nnodes = ['{}']\n",
        node.control
    )
    .expect("writes");
    let path = file.path().to_str().expect("plain text");
    let mut memory = FarMemory::open(path).expect("opens").map(1).expect("maps");
    assert_eq!(memory.size(), 4096);
    memory[4095] = 5;
    assert_eq!(memory[4095], 5);
}

#[test]
fn an_unreachable_node_is_named() {
    let error = FarMemory::open("myco://127.0.0.1:1?local=8MiB").expect_err("nobody listens");
    assert_eq!(error.status(), Status::Unreachable);
    assert!(
        in_words(&error).contains("127.0.0.1:1"),
        "{}",
        in_words(&error)
    );
    let error =
        FarMemory::open("myco://no-such-host.invalid:7700?local=8MiB").expect_err("no host");
    assert!(matches!(error, OpenError::Resolve(_)), "{error:?}");
}

#[test]
fn what_is_no_memory_node_is_found_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let _ = stream.write_all(&[b'x'; 4096]);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let error = FarMemory::open(&format!("myco://{address}?local=8MiB")).expect_err("not a node");
    assert!(
        matches!(error.status(), Status::Refused | Status::Unreachable),
        "{}",
        in_words(&error)
    );
    peer.join().expect("the peer ends");
}

#[test]
fn full_nodes_say_what_they_have_and_keep_nothing() {
    let nodes = [Node::start("16MiB"), Node::start("32MiB")];
    let far =
        FarMemory::open(&uri(&[&nodes[0], &nodes[1]], "local=8MiB&extent=1MiB")).expect("opens");
    let error = far.map(64 << 20).expect_err("48 MiB are there");
    assert_eq!(error.status(), Status::NoSpace, "{}", in_words(&error));
    assert_eq!(nodes[0].free() + nodes[1].free(), 48 << 20);
    let memory = far.map(48 << 20).expect("all of it");
    assert_eq!(memory.size(), 48 << 20);
}

#[test]
fn impossible_sizes_are_refused() {
    let node = Node::start("64MiB");
    let far = FarMemory::open(&uri(&[&node], "local=8MiB")).expect("opens");
    assert!(matches!(far.map(0), Err(MapError::Empty)));
    assert!(matches!(
        far.map(usize::MAX),
        Err(MapError::TooLarge { .. })
    ));
    assert!(matches!(far.map(1 << 50), Err(MapError::TooLarge { .. })));
    assert_eq!(
        far.map(1 << 43).expect_err("8 TiB").status(),
        Status::NoSpace
    );
    assert_eq!(node.free(), 64 << 20);
}

#[test]
fn a_data_set_four_times_the_budget_is_sorted() {
    let nodes = [Node::start("64MiB"), Node::start("64MiB")];
    let program = std::env::current_exe()
        .expect("a path")
        .ancestors()
        .nth(2)
        .expect("cargo's layout")
        .join("examples/sort");
    let place = uri(&[&nodes[0], &nodes[1]], "local=8MiB&extent=1MiB");
    let ended = start(Command::new(program).arg(place)).finish().pass();
    assert!(
        ended
            .output
            .ends_with("pass: in order, and every key is there"),
        "{}",
        ended.output
    );
}

/// Room comes back from a program that ended without a word, however it ended.
#[test]
fn a_program_that_ends_leaves_nothing_on_the_nodes() {
    let node = Node::start_with("64MiB", &["--orphan-ttl", "1s"]);
    let place = uri(&[&node], "local=8MiB&extent=1MiB");
    let mut running = start(Command::new(support::c_program("waits")).arg(&place));
    running.await_line("mapped");
    assert!(node.free() < 64 << 20);
    let killed = running.pid();
    drop(running); // kill -9
    await_free(&node, 64 << 20);
    let mut running = start(Command::new(support::c_program("waits")).arg(&place));
    running.await_line("mapped");
    running.go_on(); // it returns from main
    running.finish().pass();
    await_free(&node, 64 << 20);
    let state = format!("/dev/shm/mycoram-program-{}", nix::unistd::geteuid());
    let left: Vec<_> = std::fs::read_dir(&state)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| {
            name.to_string_lossy()
                .contains(&format!("program-{killed}-"))
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // Other programs have it only while they attach.
    let begun = Instant::now();
    while std::path::Path::new(&state).exists() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{state} is left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn await_free(node: &Node, bytes: u64) {
    let begun = Instant::now();
    while node.free() < bytes {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{} bytes are free",
            node.free()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}
