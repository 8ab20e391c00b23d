//! The daemon as it is: real processes that connect, die, are killed, lie.

mod file_remote;
mod roles;

use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use mycoram_agent::daemon::Refusal;
use mycoram_agent::daemon::client::{ConnectError, Connection};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    socket,
};

use file_remote::Trap;
use roles::{PATIENCE, Place, Role};

/// Waits for something that no event tells: the state of another process's files.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn several_programs_have_far_memory_at_once_each_with_its_budget() {
    let place = Place::new();
    let mut daemon = Role::daemon(&place, 16, "same");
    let mut programs: Vec<_> = [1, 2, 4]
        .iter()
        .map(|local: &u64| Role::start(&place, "program", &["16", &local.to_string()]))
        .collect();
    for program in &programs {
        assert_eq!(program.line(), "attached");
    }
    for program in &mut programs {
        program.tell("fill");
        program.tell("verify");
    }
    for program in &programs {
        assert_eq!(program.line(), "filled");
        assert_eq!(program.line(), "verified");
    }
    for (program, local_mib) in programs.iter_mut().zip([1, 2, 4]) {
        program.tell("stats");
        let line = program.line();
        let number = |name: &str| -> u64 {
            let mut words = line.split(' ').skip_while(|word| *word != name);
            words.nth(1).expect("a number").parse().expect("a number")
        };
        assert_eq!(number("budget"), local_mib * 256, "{line}");
        assert!(number("faults") >= 4096, "{line}");
        assert!(number("evictions") > 0, "{line}");
        // The documented slack of a budget is for reserves and batches, not a second budget.
        assert!(number("peak") <= local_mib * 256 + 128, "{line}");
        program.tell("flush");
        assert_eq!(program.line(), "Some(Ok(()))");
        program.tell("end");
        assert_eq!(program.line(), "Some(Ok(()))");
    }
    assert_eq!(place.remote_regions(), 0, "remote memory is freed");
    assert_eq!(place.state_files(), Vec::<String>::new());
    assert!(daemon.stop().success());
}

#[test]
fn a_program_that_is_killed_takes_nothing_with_it() {
    let place = Place::new();
    let _daemon = Role::daemon(&place, 16, "same");
    let mut survivor = Role::start(&place, "program", &["16", "2"]);
    let mut victim = Role::start(&place, "program", &["16", "2"]);
    assert_eq!(survivor.line(), "attached");
    assert_eq!(victim.line(), "attached");
    survivor.tell("work");
    victim.tell("work");
    assert_eq!(victim.line(), "round 1 verified");
    assert_eq!(place.remote_regions(), 2);
    victim.kill();
    eventually("its remote memory is freed", || place.remote_regions() == 1);
    eventually("it is forgotten", || {
        place
            .state_files()
            .iter()
            .all(|file| !file.contains(&format!("client-{}-", victim.pid())))
    });
    for _ in 0..2 {
        assert!(survivor.line().ends_with("verified"));
    }
    // And its budget is there for another one.
    let another = Role::start(&place, "program", &["16", "10"]);
    assert_eq!(another.line(), "attached");
}

#[test]
fn a_daemon_that_is_killed_is_followed_by_another_one() {
    let place = Place::new();
    let mut daemon = Role::daemon(&place, 16, "same");
    let mut program = Role::start(&place, "program", &["16", "2"]);
    assert_eq!(program.line(), "attached");
    program.tell("work");
    assert_eq!(program.line(), "round 1 verified");
    for _ in 0..3 {
        daemon.kill();
        program.await_line("notice Away");
        daemon = Role::daemon(&place, 16, "same");
        program.await_line("notice Back");
        let round = |line: String| {
            let verified = line.ends_with("verified");
            assert!(verified || line.starts_with("notice"), "{line}");
            verified
        };
        let mut rounds = 0;
        while rounds < 2 {
            rounds += u32::from(round(program.line()));
        }
    }
    assert_eq!(place.remote_regions(), 1);
    program.kill();
    eventually("the successor frees what is left", || {
        place.remote_regions() == 0 && place.state_files().is_empty()
    });
}

#[test]
fn a_daemon_that_ends_in_order_leaves_its_programs_waiting() {
    let place = Place::new();
    let mut daemon = Role::daemon(&place, 16, "same");
    let mut program = Role::start(&place, "program", &["16", "2"]);
    assert_eq!(program.line(), "attached");
    program.tell("fill");
    assert_eq!(program.line(), "filled");
    assert!(daemon.stop().success());
    assert_eq!(program.line(), "notice Away");
    program.tell("verify");
    let _daemon = Role::daemon(&place, 16, "same");
    assert_eq!(program.line(), "notice Back");
    assert_eq!(program.line(), "verified");
}

#[test]
fn a_daemon_without_rights_is_given_everything_again_by_its_programs() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test starts a daemon as nobody, for which it must be root"
    );
    let place = Place::new();
    place.give_to_nobody();
    let mut daemon = Role::weak_daemon(&place, 16);
    let mut program = Role::start(&place, "program", &["16", "2"]);
    assert_eq!(program.line(), "attached");
    program.tell("fill");
    assert_eq!(program.line(), "filled");
    daemon.kill();
    assert_eq!(program.line(), "notice Away");
    program.tell("verify");
    let mut daemon = Role::weak_daemon(&place, 16);
    assert_eq!(program.line(), "notice Back");
    assert_eq!(program.line(), "verified");
    // One that ends while it is waited for is forgotten too.
    daemon.kill();
    assert_eq!(program.line(), "notice Away");
    // SAFETY: a plain system call on a child that is not reaped yet.
    unsafe { libc::kill(program.pid(), libc::SIGSTOP) };
    let _daemon = Role::weak_daemon(&place, 16);
    assert_eq!(place.remote_regions(), 1);
    program.kill();
    eventually("its remote memory is freed", || {
        place.remote_regions() == 0 && place.state_files().is_empty()
    });
}

#[test]
fn a_program_that_no_daemon_knows_any_more_gets_a_signal_and_no_zeros() {
    let place = Place::new();
    let mut daemon = Role::daemon(&place, 16, "same");
    let mut program = Role::start(&place, "program", &["16", "2"]);
    assert_eq!(program.line(), "attached");
    program.tell("fill");
    assert_eq!(program.line(), "filled");
    daemon.kill();
    assert_eq!(program.line(), "notice Away");
    std::fs::remove_dir_all(place.path().join("state")).expect("it is there");
    program.tell("verify");
    let _daemon = Role::daemon(&place, 16, "same");
    let status = program.wait();
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    assert!(
        matches!(signal, Some(libc::SIGBUS | libc::SIGSEGV)),
        "{status:?}"
    );
}

/// Of another program nothing is heard meanwhile.
#[test]
fn a_region_whose_thread_panics_is_taken_over_and_others_go_on() {
    let place = Place::new();
    let _daemon = Role::daemon(&place, 16, "same");
    let mut program = Role::start(&place, "program", &["4", "1"]);
    assert_eq!(program.line(), "attached");
    let trap = Trap::of(&place.remote_region());
    let mut other = Role::start(&place, "program", &["4", "1"]);
    assert_eq!(other.line(), "attached");
    for each in [&mut program, &mut other] {
        each.tell("fill");
        assert_eq!(each.line(), "filled");
    }
    // As often as it is borne.
    for times in 1..=3 {
        trap.lay(1);
        program.tell("verify");
        assert_eq!(program.line(), "notice Away");
        assert_eq!(program.line(), "notice Back");
        assert_eq!(program.line(), "verified");
        program.tell("stats");
        let line = program.line();
        assert!(line.ends_with(&format!(" panics {times}")), "{line}");
        other.tell("verify");
        assert_eq!(other.line(), "verified");
    }
    // Once more than that: its pages are gone, but for those that are local.
    trap.lay(1);
    program.tell("verify");
    assert_eq!(program.line(), "notice Away");
    let status = program.wait();
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    assert!(
        matches!(signal, Some(libc::SIGBUS | libc::SIGSEGV)),
        "{status:?}"
    );
    other.tell("verify");
    assert_eq!(other.line(), "verified");
    eventually("its remote memory is freed", || place.remote_regions() == 1);
    other.tell("end");
    assert_eq!(other.line(), "Some(Ok(()))");
    eventually("nothing is left", || place.state_files().is_empty());
}

#[test]
fn what_ended_without_a_daemon_is_cleared_away_by_the_next() {
    let place = Place::new();
    let mut daemon = Role::daemon(&place, 16, "same");
    let mut program = Role::start(&place, "program", &["16", "2"]);
    assert_eq!(program.line(), "attached");
    program.tell("fill");
    assert_eq!(program.line(), "filled");
    daemon.kill();
    program.kill();
    assert_eq!(place.remote_regions(), 1);
    let _daemon = Role::daemon(&place, 16, "same");
    assert_eq!(place.remote_regions(), 0);
    assert_eq!(place.state_files(), Vec::<String>::new());
}

#[test]
fn budgets_are_not_promised_twice() {
    let place = Place::new();
    let _daemon = Role::daemon(&place, 16, "same");
    // A user may have three quarters.
    let greedy = Role::start(&place, "program", &["16", "13"]);
    let line = greedy.line();
    assert!(
        line.contains("has 12MiB left of 12MiB (--max-local-per-user)"),
        "{line}"
    );
    let large = Role::start(&place, "program", &["80", "1"]);
    let line = large.line();
    assert!(
        line.contains("has 64MiB left of 64MiB (--max-far-per-user)"),
        "{line}"
    );
    let first = Role::start(&place, "program", &["16", "8"]);
    assert_eq!(first.line(), "attached");
    let second = Role::start(&place, "program", &["16", "8"]);
    let line = second.line();
    assert!(line.contains("has 4MiB left of 12MiB"), "{line}");
    assert_eq!(
        place.remote_regions(),
        1,
        "who is refused has taken nothing"
    );
    let third = Role::start(&place, "program", &["16", "4"]);
    assert_eq!(third.line(), "attached");
}

#[test]
fn a_program_without_rights_is_lent_the_device() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test starts a program as nobody, for which it must be root"
    );
    let place = Place::new();
    let _daemon = Role::daemon(&place, 16, "65534");
    let mut program = Role::start(&place, "nobody", &["16", "2"]);
    assert_eq!(program.line(), "attached");
    program.tell("fill");
    program.tell("verify");
    assert_eq!(program.line(), "filled");
    assert_eq!(program.line(), "verified");
}

#[test]
fn who_is_not_allowed_is_refused() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test starts a program as nobody, for which it must be root"
    );
    let place = Place::new();
    let _daemon = Role::daemon(&place, 16, "1");
    let stranger = Role::start(&place, "nobody", &["16", "2"]);
    let line = stranger.line();
    assert!(line.contains("does not serve user 65534"), "{line}");
}

/// Sends `messages` over a connection of its own, and answers what came back last, if anything.
fn send_raw(path: &Path, messages: &[&[u8]], descriptors: usize) -> Option<Vec<u8>> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    connect(fd.as_raw_fd(), &UnixAddr::new(path).expect("short")).expect("the daemon listens");
    let raw = vec![fd.as_raw_fd(); descriptors];
    for message in messages {
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if descriptors == 0 {
            &rights[..0]
        } else {
            &rights
        };
        let iov = [IoSlice::new(message)];
        // The daemon may have hung up already.
        let _ = sendmsg::<()>(fd.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None);
    }
    let mut last = None;
    let mut bytes = vec![0; 1 << 16];
    loop {
        match recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            // What was sent before the other side hung up is still there behind the reset.
            Err(Errno::ECONNRESET) => {}
            Ok(0) | Err(_) => return last,
            Ok(length) => last = Some(bytes[..length].to_vec()),
        }
    }
}

#[test]
fn garbage_ends_its_own_connection_and_nothing_else() {
    let place = Place::new();
    let _daemon = Role::daemon(&place, 16, "same");
    let mut program = Role::start(&place, "program", &["4", "1"]);
    assert_eq!(program.line(), "attached");
    program.tell("work");
    let long = vec![0xff; 60_000];
    let garbage: [&[u8]; 5] = [b"x", b"MyCa", &[0; 32], &[0xff; 200], &long];
    for message in garbage {
        let answer = send_raw(&place.socket(), &[message], 0).expect("a refusal");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.contains("malformed"), "{answer}");
        // With more descriptors than any message may bring, and with some that nobody asked for.
        send_raw(&place.socket(), &[message], 200);
        send_raw(&place.socket(), &[message], 3);
    }
    // More connections at once than there may be, which say nothing.
    let idle: Vec<_> = (0..20)
        .filter_map(|_| {
            let fd = socket(
                AddressFamily::Unix,
                SockType::SeqPacket,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .expect("a socket");
            connect(
                fd.as_raw_fd(),
                &UnixAddr::new(&place.socket()).expect("short"),
            )
            .ok()?;
            Some(fd)
        })
        .collect();
    let late = Connection::open(&place.socket()).expect_err("there are too many");
    assert!(
        matches!(
            late,
            ConnectError::Refused {
                source: Refusal::TooManyClients {
                    limit: 6,
                    of_user: true
                },
                ..
            }
        ),
        "{late:?}"
    );
    drop(idle);
    for _ in 0..2 {
        assert!(program.line().ends_with("verified"));
    }
    eventually("those who said nothing are forgotten", || {
        Role::start(&place, "program", &["16", "2"]).line() == "attached"
    });
}
