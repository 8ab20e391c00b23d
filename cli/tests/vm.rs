//! `myco vm` as real processes: real memory nodes, real QEMUs, and what dies among them.

#[allow(dead_code, unreachable_pub, reason = "a part of it is needed here")]
#[path = "../../qemu-backend/tests/support/guest.rs"]
mod guest;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const MYCO: &str = env!("CARGO_BIN_EXE_myco");
const RAM_MIB: u32 = 32;
const LOCAL: &str = "8MiB";

/// A process that ends with the test, whatever way the test ends.
struct Part(Child);

impl Part {
    fn start(command: &mut Command) -> Self {
        // SAFETY: prctl is async-signal-safe and concerns this process only.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Self(command.stdin(Stdio::null()).spawn().expect("it starts"))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // A QEMU of its own outlives it, on purpose; here it must not.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid()));
        for task in tasks.into_iter().flatten().flatten() {
            let children =
                std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children
                .split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
            {
                let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A QEMU that was left without its agent, and must not be left without its test.
struct Orphan(Pid);

impl Drop for Orphan {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

/// Two memory nodes, the file that names them, and a place for everything else.
struct Place {
    nodes: Vec<(Part, String)>,
    directory: tempfile::TempDir,
}

impl Place {
    fn new(capacity: &str) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let mut nodes = Vec::new();
        let mut text = String::new();
        for number in 1..=2 {
            let mut node = Part::start(
                Command::new(MYCO)
                    .args([
                        "node",
                        "serve",
                        "--json",
                        "--listen",
                        "127.0.0.1:0",
                        "--capacity",
                        capacity,
                    ])
                    .stdout(Stdio::piped()),
            );
            let mut line = String::new();
            BufReader::new(node.0.stdout.as_mut().expect("piped"))
                .read_line(&mut line)
                .expect("a line");
            let ready: Value = serde_json::from_str(&line).expect("a ready line");
            let control = ready["control"].as_str().expect("an address").to_owned();
            text += &format!(
                "[[node]]\nname = \"node{number}\"\ncontrol = \"{control}\"\ntransport = \"tcp\"\n"
            );
            nodes.push((node, control));
        }
        let text = format!("extent = \"1MiB\"\n{text}");
        std::fs::write(directory.path().join("nodes.toml"), text).expect("a file");
        Self { nodes, directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn far(&self) -> Vec<String> {
        [
            "--local",
            LOCAL,
            "--nodes",
            &self.path("nodes.toml"),
            "--state-dir",
            &self.path("state"),
        ]
        .map(str::to_owned)
        .into()
    }

    /// `myco vm run` of the small guest, with more options and QEMU arguments.
    fn run(&self, name: &str, rounds: u32, options: &[&str], arguments: &[&str]) -> Command {
        let image = guest::write_image(self.directory.path(), RAM_MIB << 20, rounds);
        let mut command = Command::new(MYCO);
        command
            .args([
                "vm",
                "run",
                "--name",
                &unique(name),
                "--memory",
                &format!("{RAM_MIB}MiB"),
            ])
            .args(self.far())
            .args(options)
            .args(["--", "-accel", "tcg"])
            .args(arguments)
            .args(guest::ARGUMENTS)
            .arg(image)
            .stdin(Stdio::null());
        command
    }

    /// The same for ever, with its serial port elsewhere.
    fn run_with_serial(&self, name: &str, serial: &str) -> Command {
        let run = self.run(name, 0, &[], &[]);
        let mut command = Command::new(MYCO);
        command.args(run.get_args().map(|word| {
            if word == "stdio" {
                serial.as_ref()
            } else {
                word
            }
        }));
        command
    }

    fn attach(&self, pid: Pid) -> Command {
        let mut command = Command::new(MYCO);
        command
            .args([
                "vm",
                "attach",
                "--pid",
                &pid.to_string(),
                "--name",
                &unique("adopted"),
            ])
            .args(self.far())
            .stderr(Stdio::piped());
        command
    }

    /// Bytes that the nodes have lent.
    fn lent(&self) -> u64 {
        let lent = |control: &str| {
            let status = json(&["node", "status", "--node", control]);
            let number = |name: &str| {
                status[name]
                    .as_u64()
                    .unwrap_or_else(|| panic!("{name} in {status}"))
            };
            number("capacity_bytes") - number("free_bytes")
        };
        self.nodes.iter().map(|(_, control)| lent(control)).sum()
    }
}

fn unique(name: &str) -> String {
    format!("test-{}-{name}", std::process::id())
}

fn json(args: &[&str]) -> Value {
    let output = Command::new(MYCO)
        .args(args)
        .arg("--json")
        .output()
        .expect("myco runs");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{args:?}: {output:?}"))
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Reads the guest's words until it has said `wanted` this many times.
fn expect(out: &mut ChildStdout, wanted: u8, mut times: usize) {
    let mut byte = [0];
    while times > 0 {
        assert_eq!(
            out.read(&mut byte).expect("the guest's words"),
            1,
            "the VM ended"
        );
        assert_ne!(byte[0], b'X', "the guest found a wrong page");
        times -= usize::from(byte[0] == wanted);
    }
}

fn qemu() -> bool {
    let there = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .is_ok();
    if !there {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "this machine lacks qemu-system-x86_64"
        );
        eprintln!("NOT TESTED: qemu-system-x86_64 is not installed");
    }
    there
}

#[test]
fn a_vm_on_two_nodes_runs_right_and_gives_everything_back() {
    if !qemu() {
        return;
    }
    let place = Place::new("32MiB");
    let report = place.path("report.json");
    let output = place
        .run("whole", 2, &["--report", &report], &[])
        .output()
        .expect("myco runs");
    assert_eq!(
        output.status.code(),
        Some(guest::GOOD),
        "{}",
        words(&output)
    );
    // Its stdout is QEMU's alone.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "R..D");
    assert!(
        words(&output).contains("attached to QEMU"),
        "{}",
        words(&output)
    );
    let report: Value =
        serde_json::from_slice(&std::fs::read(report).expect("a report")).expect("JSON");
    assert!(
        report["attach_ms"].as_f64().is_some_and(|ms| ms > 0.0),
        "{report}"
    );
    assert!(
        report["region"]["transport"]["bytes_read"].as_u64() > Some(0),
        "{report}"
    );
    assert_eq!(report["region"]["lost"], 0);
    assert_eq!(place.lent(), 0);
    let listed = json(&["vm", "list"]).to_string();
    assert!(!listed.contains(&unique("whole")), "{listed}");
}

#[test]
fn an_agent_that_is_killed_is_succeeded_by_attach() {
    if !qemu() {
        return;
    }
    let place = Place::new("32MiB");
    let key = place.path("seal.key");
    std::fs::write(&key, std::array::from_fn::<u8, 32, _>(|n| n as u8)).expect("written");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("set");
    let mut run = place.run("orphan", 0, &["--seal-key", &key], &[]);
    let mut first = Part::start(run.stdout(Stdio::piped()));
    let mut guest = first.0.stdout.take().expect("piped");
    expect(&mut guest, b'.', 1);
    let name = unique("orphan");
    let stats = json(&["vm", "stats", &name]);
    assert_eq!(stats["state"], "running");
    let qemu = Orphan(Pid::from_raw(
        stats["qemu_pid"].as_i64().expect("a pid") as i32
    ));

    let refused = place.attach(qemu.0).output().expect("myco runs");
    assert_eq!(refused.status.code(), Some(8), "{}", words(&refused));
    kill(first.pid(), Signal::SIGKILL).expect("our own child");
    first.0.wait().expect("our own child");
    assert_eq!(json(&["vm", "stats", &name])["state"], "orphaned");

    // Its pages are sealed: nobody goes on without the key, and nothing is lost by trying.
    let refused = place.attach(qemu.0).output().expect("myco runs");
    assert_eq!(refused.status.code(), Some(2), "{}", words(&refused));
    let mut second = Part::start(place.attach(qemu.0).args(["--seal-key", &key]));
    let mut said = BufReader::new(second.0.stderr.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    assert!(line.contains("took QEMU"), "{line}");
    expect(&mut guest, b'.', 2);
    kill(qemu.0, Signal::SIGKILL).expect("QEMU is there");
    assert_eq!(second.0.wait().expect("our own child").code(), Some(0));
    assert_eq!(place.lent(), 0);
}

#[test]
fn a_node_that_dies_takes_its_pages_and_nothing_hangs() {
    if !qemu() {
        return;
    }
    let mut place = Place::new("32MiB");
    let mut vm = Part::start(
        place
            .run("bereft", 0, &[], &[])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let mut guest = vm.0.stdout.take().expect("piped");
    expect(&mut guest, b'.', 1);
    let (node, _) = &mut place.nodes[1];
    node.0.kill().expect("our own child");
    node.0.wait().expect("our own child");
    // This guest has no machine check handler, nor has QEMU's emulator: SIGBUS ends it. It does not hang.
    let status = vm.0.wait().expect("our own child");
    assert_eq!(status.code(), Some(128 + libc::SIGBUS));
    let mut said = String::new();
    vm.0.stderr
        .take()
        .expect("piped")
        .read_to_string(&mut said)
        .expect("text");
    assert!(
        said.contains("pages are lost") && said.contains("node2"),
        "{said}"
    );
}

/// Runs a guest on a terminal of its own, presses `keys` once it runs, and gives the exit code and all that was shown.
fn on_a_terminal(mut command: Command, keys: &[u8]) -> (Option<i32>, String) {
    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    let end = || Stdio::from(terminal.slave.try_clone().expect("a descriptor"));
    command.stdout(end()).stderr(end());
    let input = end();
    // SAFETY: both calls are async-signal-safe; descriptor 0 is the terminal by then.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let mut vm = Part(command.stdin(input).spawn().expect("it starts"));
    drop(command);
    drop(terminal.slave);
    let mut master = std::fs::File::from(terminal.master);
    let mut shown = Vec::new();
    let mut pressed = false;
    let mut chunk = [0; 256];
    // The end of the last process on it ends the terminal, with an error on Linux.
    while let Ok(count @ 1..) = master.read(&mut chunk) {
        shown.extend_from_slice(&chunk[..count]);
        if !pressed && shown.windows(8).any(|w| w == b"attached") && shown.ends_with(b".") {
            master.write_all(keys).expect("keys");
            pressed = true;
        }
    }
    let code = vm.0.wait().expect("our own child").code();
    (code, String::from_utf8_lossy(&shown).into_owned())
}

#[test]
fn the_terminal_is_qemus() {
    if !qemu() {
        return;
    }
    let place = Place::new("32MiB");
    // QEMU's multiplexer takes the terminal raw: the keys are its own.
    let raw = place.run_with_serial("raw", "mon:stdio");
    let (code, shown) = on_a_terminal(raw, b"\x01x");
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("QEMU: Terminated"), "{shown}");
    // A terminal that is not raw sends SIGINT to the whole group: QEMU has it from there, and once.
    let cooked = place.run_with_serial("cooked", "file:/dev/stderr");
    let (code, shown) = on_a_terminal(cooked, b"\x03");
    assert_eq!(code, Some(0), "{shown}");
    assert_eq!(
        shown.matches("terminating on signal 2").count(),
        1,
        "{shown}"
    );
    assert_eq!(place.lent(), 0);
}

#[test]
fn refusals_say_why_and_have_their_codes() {
    if !qemu() {
        return;
    }
    let place = Place::new("8MiB");
    let refused = |command: &mut Command| {
        let output = command.output().expect("myco runs");
        (output.status.code().expect("a code"), words(&output))
    };
    let (code, said) = refused(&mut place.run("full", 1, &[], &[]));
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("node1") && said.contains("no room"), "{said}");

    let (code, said) = refused(&mut place.run("m", 1, &[], &["-m", "1G"]));
    assert_eq!((code, said.contains("--memory")), (2, true), "{said}");
    let (code, said) = refused(&mut place.run("numa", 1, &[], &["-numa", "node"]));
    assert_eq!((code, said.contains("-numa")), (2, true), "{said}");
    let (code, said) = refused(&mut place.attach(Pid::from_raw(i32::MAX)));
    assert_eq!((code, said.contains("no process")), (4, true), "{said}");

    let large = Place::new("32MiB");
    let (code, said) = refused(&mut large.run("missing", 1, &["--qemu", "/nonexistent/qemu"], &[]));
    assert_eq!((code, said.contains("--qemu")), (6, true), "{said}");
    // QEMU's own refusal keeps QEMU's own code, and the nodes get their memory back.
    let (code, said) = refused(&mut large.run("bad", 1, &[], &["-no-such-option"]));
    assert_eq!((code, said.contains("no-such-option")), (1, true), "{said}");
    assert_eq!(large.lent(), 0);

    std::fs::write(
        place.path("nodes.toml"),
        "[[node]]\nname = \"nobody\"\ncontrol = \"127.0.0.1:1\"\ntransport = \"tcp\"\n",
    )
    .expect("a file");
    let (code, said) = refused(&mut place.run("away", 1, &[], &[]));
    assert!(matches!(code, 4 | 5), "{code}: {said}");
    assert!(said.contains("nobody"), "{said}");
    let gone = PathBuf::from(place.path("nodes.toml"));
    std::fs::remove_file(gone).expect("a file");
    let (code, said) = refused(&mut place.run("nowhere", 1, &[], &[]));
    assert_eq!((code, said.contains("nodes.toml")), (3, true), "{said}");
}

#[test]
fn a_qemu_without_shared_memory_is_told_what_to_add() {
    if !qemu() {
        return;
    }
    let place = Place::new("32MiB");
    let qemu = Part::start(
        Command::new("qemu-system-x86_64")
            .args([
                "-S",
                "-nodefaults",
                "-display",
                "none",
                "-m",
                "32M",
                "-accel",
                "tcg",
            ])
            .stdout(Stdio::null()),
    );
    // Its memory is there, or it has none yet: the answer is the same.
    let output = place.attach(qemu.pid()).output().expect("myco runs");
    let said = words(&output);
    assert!(said.contains("-object memory-backend-memfd"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(place.lent(), 0);
}
