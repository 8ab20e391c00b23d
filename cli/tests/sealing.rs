//! Sealed pages on real memory nodes: what is in a node's memory, what becomes of it when somebody there changes
//! it or brings an old state back, and that a daemon that is killed is followed by one that opens them.

mod node_memory;
mod node_process;
#[allow(
    unreachable_pub,
    dead_code,
    reason = "it is another crate's test support"
)]
#[path = "../../uffd-agent/tests/support/sigbus.rs"]
mod sigbus;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mycoram::FarMemory;
use mycoram_fabric::units::PAGE_BYTES;
use node_memory::NodeMemory;
use node_process::{MYCO, Node};

/// Four times the local budget.
const BYTES: usize = 4 << 20;
const PAGES: usize = BYTES / PAGE_BYTES;
const OPTIONS: &str = "local=1MiB&extent=1MiB";
/// What a page begins with.
const TEXT: &[u8; 8] = b"in clear";

fn key_file(dir: &Path, mode: u32) -> PathBuf {
    use std::io::{Read, Write};
    let path = dir.join(format!("seal-{mode:o}.key"));
    let mut key = [0; mycoram_agent::seal::KEY_FILE_BYTES];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut key))
        .expect("random numbers");
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .expect("a new file");
    file.write_all(&key).expect("written");
    file.set_permissions(PermissionsExt::from_mode(mode))
        .expect("set");
    path
}

fn uri(nodes: &[&Node], more: &str) -> String {
    let nodes: Vec<String> = nodes
        .iter()
        .map(|node| node.control().to_string())
        .collect();
    format!(
        "myco://{}?{OPTIONS}&replicas={}{more}",
        nodes.join(","),
        nodes.len()
    )
}

fn word(page: usize, round: u64) -> u64 {
    (page as u64) << 32 | round
}

/// Every page: the text, then its number and the round.
fn write_all(memory: &mut [u8], round: u64) {
    for (page, bytes) in memory.chunks_exact_mut(PAGE_BYTES).enumerate() {
        bytes[..8].copy_from_slice(TEXT);
        bytes[8..16].copy_from_slice(&word(page, round).to_le_bytes());
    }
}

fn check_all(memory: &[u8], round: u64) {
    for (page, bytes) in memory.chunks_exact(PAGE_BYTES).enumerate() {
        assert_eq!(&bytes[..8], TEXT, "page {page}");
        assert_eq!(bytes[8..16], word(page, round).to_le_bytes(), "page {page}");
        assert!(bytes[16..].iter().all(|byte| *byte == 0), "page {page}");
    }
}

fn is_in_clear(node: &NodeMemory) -> bool {
    node.all().chunks_exact(8).any(|bytes| bytes == TEXT)
}

/// Nodes whose pools hold a region and little else.
fn nodes<const N: usize>() -> [Node; N] {
    std::array::from_fn(|_| Node::start(&["--capacity", "8MiB"]))
}

#[test]
fn a_node_holds_nothing_in_clear_and_what_it_changes_is_not_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = key_file(dir.path(), 0o600);
    for sealed in [false, true] {
        let nodes: [Node; 2] = nodes();
        let more = match sealed {
            true => format!("&seal_key={}", key.display()),
            false => String::new(),
        };
        let far = FarMemory::open(&uri(&[&nodes[0], &nodes[1]], &more)).expect("opens");
        let mut memory = far.map(BYTES).expect("maps");
        write_all(&mut memory, 1);
        memory.flush().expect("written");
        let held = [0, 1].map(|n: usize| NodeMemory::of(nodes[n].child.id()));
        for node in &held {
            assert_eq!(node.pages().len(), PAGES, "sealed: {sealed}");
            assert_eq!(is_in_clear(node), !sealed, "sealed: {sealed}");
        }
        if !sealed {
            continue;
        }
        let old = held.each_ref().map(NodeMemory::pages);
        write_all(&mut memory, 2);
        memory.flush().expect("written");
        let new = held.each_ref().map(NodeMemory::pages);
        // Each page is wrong at one node and right at the other one, with which of them is the nearer one having
        // no say in it.
        let lies: Vec<(usize, usize)> = (0..PAGES)
            .map(|nth| {
                let page = &new[0][nth].1;
                let liar = usize::from(page[0] & 1);
                let found = new[liar].iter().position(|(_, bytes)| bytes == page);
                (liar, found.expect("the same bytes on both"))
            })
            .collect();
        for (nth, (liar, at)) in lies.iter().enumerate() {
            let (place, page) = &new[*liar][*at];
            let forged = match nth % 3 {
                0 => old[*liar][*at].1.clone(),
                1 => page.iter().map(|byte| byte ^ 0x04).collect(),
                _ => vec![0; PAGE_BYTES],
            };
            assert_ne!(forged, *page);
            held[*liar].put(*place, &forged);
        }
        for _ in 0..2 {
            check_all(&memory, 2);
        }
        let mut healed = 0;
        for (liar, at) in lies {
            let (place, page) = &new[liar][at];
            healed += usize::from(held[liar].page(*place) == *page);
            held[liar].put(*place, page);
        }
        // Three quarters at least were read, and of those about half from the node that lies about them: the
        // first bit of what was sealed is as good as random.
        assert!(healed > PAGES / 4, "{healed} pages were repaired");
        check_all(&memory, 2);
        assert_eq!(memory.stats().expect("figures").lost_pages, 0);
    }
}

#[test]
fn an_old_state_of_the_only_replica_is_an_error_and_never_a_page() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = key_file(dir.path(), 0o400);
    let [node] = nodes();
    let uri = uri(&[&node], &format!("&seal_key={}", key.display()));
    let mut memory = FarMemory::open(&uri)
        .expect("opens")
        .map(BYTES)
        .expect("maps");
    write_all(&mut memory, 1);
    memory.flush().expect("written");
    let held = NodeMemory::of(node.child.id());
    let old = held.pages();
    write_all(&mut memory, 2);
    memory.flush().expect("written");
    for (place, page) in &old {
        held.put(*place, page);
    }
    let (mut right, mut refused) = (0_usize, 0_usize);
    for page in 0..PAGES {
        let at = memory.as_ptr().wrapping_add(page * PAGE_BYTES + 8);
        match sigbus::read(at.cast()) {
            Some(found) => {
                assert_eq!(found, word(page, 2), "page {page}");
                right += 1;
            }
            None => refused += 1,
        }
    }
    // Only what was here all the time can be had.
    assert!(
        right <= PAGES / 2 && refused >= PAGES / 2,
        "{right} {refused}"
    );
    assert!(memory.stats().expect("figures").lost_pages >= refused as u64);
}

/// A daemon that runs until it is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(dir: &Path, key: &Path) -> Self {
        let path = |name: &str| dir.join(name).display().to_string();
        let mut child = Command::new(MYCO)
            .args(["agent", "serve", "--json", "--max-local", "16MiB"])
            .args(["--nodes", &path("nodes.toml")])
            .args(["--socket", &path("agent.sock")])
            .args(["--state-dir", &path("state")])
            .arg("--seal-key")
            .arg(key)
            .stdout(Stdio::piped())
            .spawn()
            .expect("myco starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped"))
            .read_line(&mut line)
            .expect("a line");
        let daemon = Self(child);
        assert!(line.contains("myco.agent-ready"), "{line:?}");
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_daemon_seals_for_its_programs_and_so_does_the_next_one() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let key = key_file(dir.path(), 0o600);
    // Through a daemon an extent is 16 MiB.
    let node = Node::start(&["--capacity", "16MiB"]);
    let file = format!(
        "extent = \"1MiB\"\n[[node]]\nname = \"n\"\ncontrol = \"{}\"\ntransport = \"tcp\"\n",
        node.control()
    );
    std::fs::write(dir.path().join("nodes.toml"), file).expect("written");
    let open = key_file(dir.path(), 0o640);
    let refused = Command::new(MYCO)
        .args(["agent", "serve", "--max-local", "16MiB", "--nodes"])
        .arg(dir.path().join("nodes.toml"))
        .arg("--socket")
        .arg(dir.path().join("other.sock"))
        .arg("--state-dir")
        .arg(dir.path().join("other"))
        .arg("--seal-key")
        .arg(&open)
        .output()
        .expect("myco runs");
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{words}");
    assert!(words.contains("mode 640"), "{words}");

    let daemon = Daemon::start(dir.path(), &key);
    let socket = dir.path().join("agent.sock");
    let uri = format!("myco+agent://{}?local=1MiB", socket.display());
    let mut memory = FarMemory::open(&uri)
        .expect("opens")
        .map(BYTES)
        .expect("maps");
    write_all(&mut memory, 1);
    memory.flush().expect("written");
    let held = NodeMemory::of(node.child.id());
    assert_eq!(held.pages().len(), PAGES);
    assert!(!is_in_clear(&held));
    drop(daemon); // kill -9
    let _next = Daemon::start(dir.path(), &key);
    check_all(&memory, 1);
    write_all(&mut memory, 2);
    check_all(&memory, 2);
    assert!(!is_in_clear(&held));
}
