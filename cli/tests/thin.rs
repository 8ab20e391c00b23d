//! Regions whose extents are placed as they are used: programs, memory nodes and a control plane as processes.

mod control_process;

use control_process::{Cluster, wait_until};
use mycoram::FarMemory;

const MIB: usize = 1 << 20;

fn value(place: usize) -> u8 {
    (place / 4096 + place) as u8
}

fn fill(memory: &mut [u8], from: usize, to: usize) {
    for (nth, byte) in memory[from..to].iter_mut().enumerate() {
        *byte = value(from + nth);
    }
}

fn is_whole(memory: &[u8]) -> bool {
    memory
        .iter()
        .enumerate()
        .all(|(place, byte)| *byte == value(place))
}

fn far(cluster: &Cluster, options: &str) -> FarMemory {
    let tls = cluster.tls();
    let uri = format!(
        "{}?tls={}&local=1MiB&{options}",
        cluster.url(),
        tls.display()
    );
    FarMemory::open(&uri).expect("opens")
}

#[test]
fn a_region_larger_than_the_pool_is_used_as_far_as_it_is_written() {
    let mut cluster = Cluster::start();
    let _nodes = ["n1", "n2"].map(|name| cluster.start_node(name));
    wait_until("both are up", || {
        cluster.must(&["cluster", "status"])["nodes_up"] == 2
    });
    let far = far(&cluster, "replicas=2&region=vm&extent=256KiB&ahead=2MiB");
    let mut memory = far.map(512 * MIB).expect("maps");
    let shown = |field: &str| {
        let shown = cluster.must(&["region", "show", "vm"]);
        shown[field].as_u64().expect("a number")
    };
    assert_eq!((shown("extents"), shown("placed_extents")), (2048, 8));
    fill(&mut memory, 0, 8 * MIB);
    memory.flush().expect("on both");
    let placed = shown("placed_extents");
    assert!((32..=48).contains(&placed), "{placed}");
    assert_eq!(shown("live_replicas"), 2 * placed);
    // Far from what was written all is zeros, and that costs nothing but what may be written there.
    assert!(memory[300 * MIB..301 * MIB].iter().all(|byte| *byte == 0));
    // Without a control plane the reserve is used, and what was written comes back.
    cluster.kill_control();
    fill(&mut memory, 8 * MIB, 8 * MIB + 300_000);
    assert!(is_whole(&memory[..8 * MIB + 300_000]));
    cluster.start_control();
    fill(&mut memory, 8 * MIB + 300_000, 16 * MIB);
    memory.flush().expect("there are places again");
    assert!(is_whole(&memory[..16 * MIB]));
    memory.unmap().expect("unmaps");
}

#[test]
fn a_full_pool_refuses_the_lower_class_first_and_nothing_is_lost() {
    let cluster = Cluster::start();
    let _n1 = cluster.start_node("n1");
    wait_until("it is up", || cluster.state("n1").as_deref() == Some("up"));
    // Of 64 MiB a region of the class low may have 75%.
    let low = far(&cluster, "region=low&class=low&extent=1MiB&ahead=4MiB");
    let mut memory = low.map(64 * MIB).expect("maps");
    let (sender, receiver) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        fill(&mut memory, 0, 56 * MIB);
        sender.send(()).expect("heard");
        memory
    });
    let placed = |name: &str| {
        let shown = cluster.must(&["region", "show", name]);
        shown["placed_extents"].as_u64().expect("a number")
    };
    wait_until("it has what it may have", || placed("low") == 48);
    // Others of its class are refused in words, those above it are not.
    let tls = cluster.tls();
    let uri = format!(
        "{}?tls={}&local=1MiB&class=low&extent=1MiB",
        cluster.url(),
        tls.display()
    );
    let error = match FarMemory::open(&uri).expect("opens").map(8 * MIB) {
        Ok(_) => panic!("there is no room for the class low"),
        Err(error) => words(&error),
    };
    assert!(error.contains("free for class Low"), "{error}");
    let high = far(&cluster, "region=high&class=high&extent=1MiB&ahead=1MiB");
    let mut above = high.map(8 * MIB).expect("maps");
    fill(&mut above, 0, 8 * MIB);
    above.flush().expect("there is room for it");
    assert!(is_whole(&above));
    assert!(receiver.try_recv().is_err(), "56 MiB do not fit into 48");
    // One node more, and the first one goes on where it waits.
    let _n2 = cluster.start_node("n2");
    let memory = writer.join().expect("it goes on");
    assert!(is_whole(&memory[..56 * MIB]), "something was lost");
    assert!(placed("low") >= 56);
    assert_eq!(memory.stats().expect("figures").lost_pages, 0);
    above.unmap().expect("unmaps");
    memory.unmap().expect("unmaps");
}

/// An error with all that stands behind it.
fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words += &format!(": {cause}");
        source = cause.source();
    }
    words
}
