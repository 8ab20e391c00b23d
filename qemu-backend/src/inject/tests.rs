//! Injection into real processes: stopped, computing, dying, and with a tracer that dies.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DenialReason, InjectError, Stopped, while_stopped};
use crate::process::{PidFd, tracer_of};

const LIMIT: Duration = Duration::from_secs(10);

/// A process that ends with the test, whatever way the test ends.
struct Target(Child);

impl Target {
    fn spawn(command: &mut Command) -> Self {
        die_with_test(command);
        Self(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }
    fn cat() -> Self {
        let mut cat = Self::spawn(&mut Command::new("cat"));
        cat.assert_echoes();
        cat
    }
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }
    /// The target still does its work.
    fn assert_echoes(&mut self) {
        self.0
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"still here\n")
            .unwrap();
        let mut line = [0; 11];
        self.0
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        assert_eq!(&line, b"still here\n");
    }
    fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    }
    /// Waits until the kernel shows one of `states`.
    fn wait_state(&self, states: &str) {
        for _ in 0..100_000 {
            if states.contains(self.state()) {
                return;
            }
            std::thread::yield_now();
        }
        panic!("the target is in state {}, not {states}", self.state());
    }
    fn blocked_signals(&self) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        status
            .lines()
            .find(|l| l.starts_with("SigBlk"))
            .unwrap()
            .to_owned()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn die_with_test(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches nothing but this process's own setting.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

fn getppid(stopped: &mut Stopped<'_>) -> Result<u64, InjectError> {
    Ok(stopped.call(libc::SYS_getppid, [0; 6])?.unwrap())
}

#[test]
fn calls_are_made_by_the_target() {
    let mut cat = Target::cat();
    let mask = cat.blocked_signals();
    let done = while_stopped(cat.pid(), LIMIT, |stopped| {
        let parent = getppid(stopped)?;
        let bad = stopped.call(libc::SYS_close, [9999, 0, 0, 0, 0, 0])?;
        let scratch = stopped.scratch();
        let pipe = stopped.call(
            libc::SYS_pipe2,
            [scratch, libc::O_CLOEXEC as u64, 0, 0, 0, 0],
        )?;
        let ends: [i32; 2] = stopped.read_scratch()?;
        Ok((parent, bad, pipe, ends))
    })
    .unwrap();
    let (parent, bad, pipe, ends) = done.value;
    assert_eq!(parent, u64::from(std::process::id()));
    assert_eq!(bad, Err(nix::errno::Errno::EBADF));
    assert_eq!(pipe, Ok(0));
    let [_, write_end] = ends;
    PidFd::open(cat.pid()).unwrap().get_fd(write_end).unwrap();
    eprintln!("stopped for {:?}", done.stopped_for);
    cat.assert_echoes();
    assert_eq!(cat.blocked_signals(), mask);
    assert_eq!(tracer_of(cat.pid()).unwrap(), None);
}

#[test]
fn a_computing_target_computes_right() {
    // Floating point in a loop, so that it is stopped in the middle of user code with live vector registers.
    let program = "BEGIN { print \"go\"; fflush(); for (i = 1; i <= 3000000; i++) s += i * 0.5; printf \"%.1f\\n\", s }";
    let mut target = Target::spawn(Command::new("awk").arg(program));
    target
        .0
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 3])
        .unwrap();
    let mut injected = 0;
    for _ in 0..200 {
        match while_stopped(target.pid(), LIMIT, getppid) {
            Ok(done) => {
                assert_eq!(done.value, u64::from(std::process::id()));
                injected += 1;
            }
            Err(InjectError::TargetExited { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(injected > 0);
    let mut text = String::new();
    target
        .0
        .stdout
        .as_mut()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "2250000750000.0\n");
}

#[test]
fn interrupted_calls_are_restarted_as_by_the_kernel() {
    // nanosleep restarts through a restart block, sigsuspend must not return, poll ends by its own time.
    let program = "import select, signal, sys, time\n\
                   print('ready', flush=True)\n\
                   start = time.monotonic()\n\
                   time.sleep(0.3)\n\
                   select.select([], [], [], 0.3)\n\
                   p = select.poll(); p.poll(300)\n\
                   signal.sigtimedwait([signal.SIGUSR2], 0.3)\n\
                   print(time.monotonic() - start >= 1.19, flush=True)\n";
    if Command::new("python3").arg("-c").arg("").status().is_err() {
        return crate::test_support::lacks(
            "python3 is needed for the restart of interrupted calls",
        );
    }
    let mut target = Target::spawn(Command::new("python3").args(["-c", program]));
    let mut out = BufReader::new(target.0.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let mut count = 0;
    while while_stopped(target.pid(), LIMIT, getppid).is_ok() {
        count += 1;
    }
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "True\n", "after {count} injections");
    assert!(target.0.wait().unwrap().success());
}

#[test]
fn a_stopped_process_serves_and_stays_stopped() {
    let mut cat = Target::cat();
    kill(cat.pid(), Signal::SIGSTOP).unwrap();
    cat.wait_state("T");
    let done = while_stopped(cat.pid(), LIMIT, getppid).unwrap();
    assert_eq!(done.value, u64::from(std::process::id()));
    cat.wait_state("T");
    kill(cat.pid(), Signal::SIGCONT).unwrap();
    cat.assert_echoes();
}

#[test]
fn a_stop_signal_in_the_middle_is_not_lost() {
    let mut cat = Target::cat();
    let pid = cat.pid();
    while_stopped(pid, LIMIT, move |stopped| {
        getppid(stopped)?;
        kill(pid, Signal::SIGSTOP).unwrap();
        getppid(stopped)
    })
    .unwrap();
    cat.wait_state("T");
    kill(pid, Signal::SIGCONT).unwrap();
    cat.assert_echoes();
}

#[test]
fn other_signals_arrive_after_the_calls() {
    let program = "trap 'echo caught' USR1; echo ready; while :; do read line; done";
    let mut target = Target::spawn(Command::new("sh").args(["-c", program]));
    let mut out = BufReader::new(target.0.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let pid = target.pid();
    while_stopped(pid, LIMIT, move |stopped| {
        getppid(stopped)?;
        kill(pid, Signal::SIGUSR1).unwrap();
        getppid(stopped)
    })
    .unwrap();
    line.clear();
    // dash looks at its traps when read() comes back.
    target.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "caught\n");
}

#[test]
fn a_target_that_dies_in_the_middle_is_told() {
    let cat = Target::cat();
    let pid = cat.pid();
    let result = while_stopped(pid, LIMIT, move |stopped| {
        getppid(stopped)?;
        kill(pid, Signal::SIGKILL).unwrap();
        getppid(stopped)
    });
    assert!(
        matches!(result, Err(InjectError::TargetExited { .. })),
        "{result:?}"
    );
    // We are its parent: its exit status was left for us.
    let mut cat = cat;
    assert_eq!(cat.0.wait().unwrap().signal(), Some(libc::SIGKILL));
}

#[test]
fn a_process_that_is_gone_is_told() {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let result = while_stopped(Pid::from_raw(child.id() as i32), LIMIT, getppid);
    assert!(
        matches!(result, Err(InjectError::TargetExited { .. })),
        "{result:?}"
    );
}

#[test]
fn failed_work_leaves_the_target_whole() {
    let mut cat = Target::cat();
    let pid = cat.pid();
    let result: Result<_, InjectError> = while_stopped(pid, LIMIT, move |stopped| {
        getppid(stopped)?;
        Err::<(), _>(InjectError::GivenUp)
    });
    assert!(matches!(result, Err(InjectError::GivenUp)));
    assert_eq!(tracer_of(pid).unwrap(), None);
    cat.assert_echoes();
    // A panic in the work is no different: the thread unwinds, and the target is put back.
    let result = while_stopped(pid, LIMIT, |stopped| -> Result<(), InjectError> {
        getppid(stopped)?;
        std::panic::panic_any("on purpose")
    });
    assert!(matches!(result, Err(InjectError::GivenUp)));
    cat.assert_echoes();
}

#[test]
fn a_second_tracer_is_named() {
    let cat = Target::cat();
    let pid = cat.pid();
    let second =
        while_stopped(pid, LIMIT, move |_| Ok(while_stopped(pid, LIMIT, getppid))).unwrap();
    match second.value {
        Err(InjectError::Denied(denial)) => {
            assert!(
                matches!(denial.reason, DenialReason::AlreadyTraced { tracer } if tracer != pid)
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_target_that_cannot_stop_meets_the_deadline() {
    let mut target = Target::spawn(
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "inject::tests::target_in_an_uninterruptible_wait",
                "--ignored",
                "--nocapture",
            ])
            .env("MYCORAM_TEST_WAIT", "1"),
    );
    let mut out = BufReader::new(target.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("waits") {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0);
    }
    let waiting = Pid::from_raw(line.trim().rsplit(' ').next().unwrap().parse().unwrap());
    let limit = Duration::from_millis(50);
    let result = while_stopped(waiting, limit, getppid);
    assert!(
        matches!(result, Err(InjectError::Deadline { .. })),
        "{result:?}"
    );
    // The wait ends: the thread stops for a moment, is let go because nobody waits, and goes on.
    target.0.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    line.clear();
    while !line.contains("went on") {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "the target was lost");
    }
    assert!(target.0.wait().unwrap().success());
}

/// Not a test of its own: a process whose one thread waits as a vfork parent does, which no signal interrupts.
#[test]
#[ignore = "started by a_target_that_cannot_stop_meets_the_deadline"]
fn target_in_an_uninterruptible_wait() {
    if std::env::var_os("MYCORAM_TEST_WAIT").is_none() {
        return;
    }
    extern "C" fn read_a_byte(_: *mut libc::c_void) -> libc::c_int {
        let mut byte = 0_u8;
        // SAFETY: one byte is read into one byte; read is async-signal-safe.
        unsafe { libc::read(0, (&raw mut byte).cast(), 1) as libc::c_int }
    }
    extern "C" fn wait_for_a_child(_: *mut libc::c_void) -> libc::c_int {
        let mut stack = [0_u8; 64 << 10];
        let say = |text: &str| {
            // SAFETY: the bytes are `text`'s own.
            unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
        };
        say(&format!("waits {}\n", std::process::id()));
        // SAFETY: the child gets a copy of this address space and the upper end of a live stack; it only reads and ends.
        let child = unsafe {
            libc::clone(
                read_a_byte,
                stack.as_mut_ptr_range().end.cast(),
                libc::CLONE_VFORK | libc::SIGCHLD,
                std::ptr::null_mut(),
            )
        };
        say("went on\n");
        i32::from(child < 0)
    }
    let mut stack = vec![0_u8; 256 << 10];
    // SAFETY: as above; the child's main thread is the one that waits, and ends without returning into ours.
    let child = unsafe {
        libc::clone(
            wait_for_a_child,
            stack.as_mut_ptr_range().end.cast(),
            libc::SIGCHLD,
            std::ptr::null_mut(),
        )
    };
    let status = nix::sys::wait::waitpid(Pid::from_raw(child), None).unwrap();
    assert_eq!(
        status,
        nix::sys::wait::WaitStatus::Exited(Pid::from_raw(child), 0)
    );
}

// ---- a tracer that is killed: the test runs itself as that tracer ----

const DIE_AT: &str = "MYCORAM_TEST_DIE_AT";
const DIE_TARGET: &str = "MYCORAM_TEST_TARGET";

/// Not a test of its own: [`a_killed_tracer_leaves_the_target_whole`] starts it in a process of its own.
#[test]
#[ignore = "started by a_killed_tracer_leaves_the_target_whole"]
fn tracer_that_is_killed() {
    let (Ok(place), Ok(pid)) = (std::env::var(DIE_AT), std::env::var(DIE_TARGET)) else {
        return;
    };
    let pid = Pid::from_raw(pid.parse().unwrap());
    let die = || {
        kill(Pid::this(), Signal::SIGKILL).unwrap();
        loop {
            std::thread::park();
        }
    };
    let _ = while_stopped(pid, LIMIT, move |stopped| {
        match place.as_str() {
            "stopped" => die(),
            "prepared" => {
                stopped.prepare(libc::SYS_getppid, [0; 6])?;
                die()
            }
            "entered" => {
                stopped.prepare(libc::SYS_getppid, [0; 6])?;
                stopped.enter_call()?;
                die()
            }
            "called" => {
                getppid(stopped)?;
                die()
            }
            "called twice" => {
                getppid(stopped)?;
                getppid(stopped)?;
                die()
            }
            other => panic!("{other}"),
        }
        Ok(())
    });
}

fn run_dying_tracer(place: &str, pid: Pid) {
    let mut tracer = Command::new(std::env::current_exe().unwrap());
    die_with_test(&mut tracer);
    let status = tracer
        .args([
            "--exact",
            "inject::tests::tracer_that_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(DIE_AT, place)
        .env(DIE_TARGET, pid.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(
        status.signal(),
        Some(libc::SIGKILL),
        "the tracer was to be killed at {place}"
    );
}

#[test]
fn a_killed_tracer_leaves_the_target_whole() {
    for place in ["stopped", "prepared", "entered", "called", "called twice"] {
        let mut cat = Target::cat();
        let mask = cat.blocked_signals();
        run_dying_tracer(place, cat.pid());
        cat.assert_echoes();
        assert_eq!(cat.blocked_signals(), mask, "killed when {place}");
        assert_eq!(tracer_of(cat.pid()).unwrap(), None);
    }
}

#[test]
fn a_killed_tracer_leaves_vector_registers_whole() {
    let program = "BEGIN { print \"go\"; fflush(); for (i = 1; i <= 3000000; i++) s += i * 0.5; printf \"%.1f\\n\", s }";
    for place in ["prepared", "called"] {
        let mut target = Target::spawn(Command::new("awk").arg(program));
        target
            .0
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0; 3])
            .unwrap();
        run_dying_tracer(place, target.pid());
        let mut text = String::new();
        target
            .0
            .stdout
            .as_mut()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "2250000750000.0\n", "killed when {place}");
    }
}
