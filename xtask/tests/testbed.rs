//! `cargo xtask testbed` when things go wrong: each ending has its exit code and its sentence, and
//! nothing is left running. Each case boots a guest of its own; a busy machine takes turns.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Guests take turns: two at once on two processors boot slowly enough to look stuck.
static TURN: Mutex<()> = Mutex::new(());
/// A guest is up, or its process gone, well before this.
const LIMIT: Duration = Duration::from_secs(300);

fn command(options: &[&str], words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .args(["testbed", "--inside", "guest"])
        .args(options)
        .arg("--")
        .args(words)
        .stdin(Stdio::null());
    command
}

fn testbed(options: &[&str], words: &[&str]) -> Output {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    command(options, words).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn output_exit_code_and_files_come_back() {
    let script = "echo to-stdout; echo to-stderr >&2; echo content > \"$MYCORAM_TESTBED_OUT/$1\"; cat /sys/class/infiniband/$MYCORAM_RXE_DEV_2/ports/1/state; exit 7";
    let name = format!("returned-{}", std::process::id());
    let output = testbed(&[], &["bash", "-c", script, "-", &name]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert_eq!(text, "to-stdout\n4: ACTIVE\n");
    assert!(
        said(&output).contains("to-stderr")
            && said(&output).contains("the command failed with exit code 7")
    );
    let returned = out_dir().join(name);
    assert_eq!(fs::read_to_string(&returned).unwrap(), "content\n");
    fs::remove_file(returned).unwrap();
}

#[test]
fn a_killed_command_is_128_and_its_signal() {
    let output = testbed(&[], &["bash", "-c", "kill -SEGV $$"]);
    assert_eq!(output.status.code(), Some(128 + 11));
    assert!(
        said(&output).contains("killed by signal 11"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_command_that_is_not_there_is_127() {
    let output = testbed(&[], &["/no/such/program"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(
        said(&output).contains("cannot start /no/such/program"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_hanging_command_is_ended_at_its_limit() {
    let output = testbed(&["--timeout", "2"], &["sleep", "1000"]);
    assert_eq!(output.status.code(), Some(124));
    assert!(
        said(&output).contains("longer than 2 s"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_panic_of_the_guest_is_told_in_its_own_words_and_not_retried() {
    // Into a file of this machine: what was printed just before a panic may not have left the guest.
    let script = "echo once >> \"$MYCORAM_TESTBED_OUT/$1\"; echo c > /proc/sysrq-trigger; sleep 60";
    let name = format!("panicked-{}", std::process::id());
    let output = testbed(&[], &["bash", "-c", script, "-", &name]);
    assert_eq!(output.status.code(), Some(125));
    let runs = out_dir().join(name);
    assert_eq!(fs::read_to_string(&runs).unwrap(), "once\n");
    fs::remove_file(runs).unwrap();
    assert!(
        said(&output).contains("Kernel panic - not syncing: sysrq triggered crash"),
        "{}",
        said(&output)
    );
}

#[test]
fn what_a_kernel_cannot_do_is_refused_before_it_boots() {
    let output = testbed(&["--kernel", "6.1", "--topology", "nodes:2"], &["true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        said(&output).contains("needs rxe inside namespaces, which kernel 6.1 lacks"),
        "{}",
        said(&output)
    );
}

/// A directory with a program in place of the emulator, to put in front of `PATH`.
struct FakeEmulator(PathBuf);

impl FakeEmulator {
    fn new(name: &str, script: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mycoram-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join("qemu-system-x86_64");
        fs::write(&program, format!("#!/bin/bash\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn path(&self) -> String {
        format!("{}:{}", self.0.display(), std::env::var("PATH").unwrap())
    }
}

impl Drop for FakeEmulator {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_boot_that_gets_stuck_is_tried_once_more_and_then_told() {
    let fake = FakeEmulator::new("stuck", "exec sleep 1000");
    let output = command(&["--boot-timeout", "1"], &["true"])
        .env("PATH", fake.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(
        said(&output).matches("trying once more").count(),
        1,
        "{}",
        said(&output)
    );
    assert!(
        said(&output).contains("boot stuck for 1 s"),
        "{}",
        said(&output)
    );
}

#[test]
fn an_emulator_that_refuses_is_quoted_and_not_retried() {
    let fake = FakeEmulator::new("refusing", "echo 'no such machine' >&2; exit 3");
    let output = command(&[], &["true"])
        .env("PATH", fake.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = said(&output);
    assert!(
        said.contains("exit code 3")
            && said.contains("no such machine")
            && !said.contains("once more"),
        "{said}"
    );
}

#[test]
fn the_known_crash_of_emulated_kernels_costs_a_second_boot() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let script = r#"
        if mkdir "$(dirname "$0")/tried" 2>/dev/null; then
            for word in "$@"; do case "$word" in file,id=console,path=*) echo '[ 1.0] Oops: int3: 0000 [#1] SMP' >"${word#*path=}";; esac; done
            exit 0
        fi
        PATH="${PATH#*:}" exec qemu-system-x86_64 "$@""#;
    let fake = FakeEmulator::new("crashing", script);
    let output = command(&[], &["echo", "second"])
        .env("PATH", fake.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "second\n",
        "{}",
        said(&output)
    );
    assert!(
        said(&output).contains("a known fault of emulation; booting once more"),
        "{}",
        said(&output)
    );
}

/// A guest is a host whose kernel has rxe: with the guest's own devices out of the way, the test bed runs
/// there without a guest. What it made is gone afterwards, also when it is interrupted.
#[test]
fn a_host_with_rxe_is_used_and_left_as_it_was() {
    let script = r#"
        set -eu
        rdma link del rxe0; rdma link del rxe1; ip netns del n1; ip link del mycbr
        before=$(ip rule; ip -o link | wc -l; ip netns)
        for topology in pair nodes:2; do
            code=0
            "$1" testbed --topology "$topology" -- bash -c 'echo "$MYCORAM_TESTBED $MYCORAM_TESTBED_TOPOLOGY $MYCORAM_RXE_ADDR_2 $(rdma link | wc -l)"; exit 9' || code=$?
            echo "code $code, devices left $(rdma link | wc -l)"
        done
        "$1" testbed -- sleep 1000 & running=$!
        sleepers() { cat /proc/[0-9]*/comm 2>/dev/null | grep -cx sleep || true; }
        until [ "$(sleepers)" = 1 ]; do :; done
        kill -INT "$running"
        code=0; wait "$running" || code=$?
        echo "code $code, devices left $(rdma link | wc -l), sleepers left $(sleepers)"
        after=$(ip rule; ip -o link | wc -l; ip netns)
        [ "$before" = "$after" ] || echo "was: $before now: $after"
    "#;
    let output = testbed(
        &["--topology", "nodes:1"],
        &["bash", "-c", script, "-", env!("CARGO_BIN_EXE_xtask")],
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = "host pair 10.77.0.2 2\ncode 9, devices left 0\nhost nodes:2 10.77.0.2 3\ncode 9, devices left 0\ncode 130, devices left 0, sleepers left 0\n";
    assert_eq!(text, wanted, "{}", said(&output));
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn neither_interrupt_nor_kill_leaves_a_guest_behind() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)] {
        let mut running = Running(
            command(&[], &["sleep", "1000"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let emulator = await_emulator(&running.0);
        kill(Pid::from_raw(running.0.id().cast_signed()), signal).unwrap();
        assert_eq!(running.0.wait().unwrap().code(), code);
        await_gone(emulator);
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process id of the emulator that `parent` started.
fn await_emulator(parent: &Child) -> u32 {
    let children = PathBuf::from(format!("/proc/{0}/task/{0}/children", parent.id()));
    let deadline = Instant::now() + LIMIT;
    loop {
        let listed = fs::read_to_string(&children).unwrap_or_default();
        let emulator = listed
            .split_whitespace()
            .find(|pid| name_of(pid).starts_with("qemu-system"));
        if let Some(emulator) = emulator {
            return emulator.parse().unwrap();
        }
        assert!(Instant::now() < deadline, "no emulator was started");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn name_of(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

/// A process that nobody has reaped yet holds nothing any more: it counts as gone.
fn await_gone(pid: u32) {
    let status = PathBuf::from(format!("/proc/{pid}/stat"));
    let deadline = Instant::now() + LIMIT;
    while fs::read_to_string(&status)
        .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
    {
        assert!(Instant::now() < deadline, "emulator {pid} still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn out_dir() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), |dir| root.join(dir))
        .join("testbed/out")
}
