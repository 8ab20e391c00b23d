//! Attaching to real QEMUs: privileged or not, running or not, and all the ways it is refused.

mod support;

use std::os::fd::AsFd;
use std::time::Instant;

use mycoram_qemu::attach::{AttachError, AttachOptions, TakeOver, attach, take_over};
use mycoram_qemu::memory::{FindMemoryError, MemoryChoice, resident_runs};
use mycoram_qemu::qmp::Qmp;
use support::guest;
use support::qemu::{Qemu, Setup, binaries};
use support::zero_pages::{self, ZeroPages};

#[test]
fn a_paused_qemu_is_attached_and_its_guest_runs_right() {
    for binary in binaries() {
        for unprivileged in [false, true] {
            let setup = Setup {
                unprivileged,
                ..Setup::new(&binary)
            };
            let (mut qemu, mut qmp) = Qemu::start(&setup);
            let start = Instant::now();
            let attached = attach(qemu.pid(), Some(&mut qmp), &AttachOptions::default()).unwrap();
            eprintln!(
                "{} {}: attached in {:?}, main thread stopped {:?}",
                binary.display(),
                qmp.version().unwrap().major,
                start.elapsed(),
                attached.stopped_for
            );
            assert_eq!(attached.bytes, 32 << 20);
            assert_eq!(attached.pipes.len(), 16);
            assert!(
                vm_flags(qemu.pid(), attached.base).contains(" nh"),
                "huge pages are off"
            );
            let faults = ZeroPages::serve(&attached).unwrap();
            qmp.cont().unwrap();
            qemu.assert_good();
            // Every page of the pattern was missing once.
            assert!(faults.served() >= (30 << 20) / 4096, "{}", faults.served());
        }
    }
}

#[test]
fn a_running_qemu_is_attached_and_its_resident_pages_are_found() {
    for binary in binaries() {
        let setup = Setup {
            rounds: 0,
            paused: false,
            ..Setup::new(&binary)
        };
        let (mut qemu, mut qmp) = Qemu::start(&setup);
        qemu.expect_serial(b'.');
        let attached = attach(qemu.pid(), Some(&mut qmp), &AttachOptions::default()).unwrap();
        let _faults = ZeroPages::serve(&attached).unwrap();
        let runs = resident_runs(&attached.memory, attached.file_offset, attached.bytes).unwrap();
        let resident: u64 = runs.iter().map(|(_, bytes)| bytes).sum();
        assert!(resident >= 30 << 20, "{resident}");
        for _ in 0..3 {
            qemu.expect_serial(b'.');
        }
    }
}

#[test]
fn memory_on_a_file_is_found_by_path_size_and_id() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = directory.path().join("ram");
    let object = format!(
        "memory-backend-file,id=far,size=SIZE,share=on,mem-path={}",
        path.display()
    );
    for binary in binaries() {
        let memory = ["-object", &object, "-machine", "memory-backend=far"];
        let setup = Setup {
            memory: &memory,
            ..Setup::new(&binary)
        };
        let (mut qemu, mut qmp) = Qemu::start(&setup);
        for memory in [
            MemoryChoice::Path("/dev/shm/other".into()),
            MemoryChoice::Id("mem".into()),
            MemoryChoice::Bytes(1 << 20),
        ] {
            let options = AttachOptions {
                memory,
                ..AttachOptions::default()
            };
            let refused = attach(qemu.pid(), Some(&mut qmp), &options);
            assert!(
                matches!(
                    refused,
                    Err(AttachError::Memory(FindMemoryError::NoMatch { .. }))
                ),
                "{refused:?}"
            );
        }
        let options = AttachOptions {
            memory: MemoryChoice::Path(path.clone()),
            ..AttachOptions::default()
        };
        let attached = attach(qemu.pid(), Some(&mut qmp), &options).unwrap();
        let _faults = ZeroPages::serve(&attached).unwrap();
        qmp.cont().unwrap();
        qemu.assert_good();
    }
}

#[test]
fn no_qmp_is_needed_where_there_is_one_memory() {
    for binary in binaries() {
        for unprivileged in [false, true] {
            let setup = Setup {
                unprivileged,
                ..Setup::new(&binary)
            };
            let (mut qemu, mut qmp) = Qemu::start(&setup);
            let attached = attach(qemu.pid(), None, &AttachOptions::default()).unwrap();
            let _faults = ZeroPages::serve(&attached).unwrap();
            qmp.cont().unwrap();
            qemu.assert_good();
        }
    }
}

#[test]
fn private_memory_is_refused_with_what_to_add() {
    for binary in binaries() {
        let none: &[&str] = &[];
        let private: &[&str] = &[
            "-object",
            "memory-backend-memfd,id=mem,size=SIZE,share=off",
            "-machine",
            "memory-backend=mem",
        ];
        for memory in [none, private] {
            let setup = Setup {
                memory,
                ..Setup::new(&binary)
            };
            let (mut qemu, mut qmp) = Qemu::start(&setup);
            for with_qmp in [true, false] {
                let error = attach(
                    qemu.pid(),
                    with_qmp.then_some(&mut qmp),
                    &AttachOptions::default(),
                )
                .unwrap_err();
                assert!(
                    matches!(
                        error,
                        AttachError::Memory(
                            FindMemoryError::NoSharedBackend { .. }
                                | FindMemoryError::Private { .. }
                        )
                    ),
                    "{error:?}"
                );
                assert!(
                    error.to_string().contains("memory-backend-memfd"),
                    "{error}"
                );
            }
            qmp.cont().unwrap();
            qemu.assert_good();
        }
    }
}

#[test]
fn a_file_that_is_no_tmpfs_is_refused() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let object = format!(
        "memory-backend-file,id=mem,size=SIZE,share=on,mem-path={}",
        directory.path().join("ram").display()
    );
    for binary in binaries() {
        let memory = ["-object", &object, "-machine", "memory-backend=mem"];
        let (qemu, mut qmp) = Qemu::start(&Setup {
            memory: &memory,
            ..Setup::new(&binary)
        });
        let error = attach(qemu.pid(), Some(&mut qmp), &AttachOptions::default()).unwrap_err();
        assert!(
            matches!(
                error,
                AttachError::Memory(FindMemoryError::FileSystem { .. })
            ),
            "{error:?}"
        );
    }
}

#[test]
fn a_second_attach_is_refused() {
    for binary in binaries() {
        let (mut qemu, mut qmp) = Qemu::start(&Setup::new(&binary));
        let first = attach(qemu.pid(), Some(&mut qmp), &AttachOptions::default()).unwrap();
        // Two that come at once: the kernel lets one of them register.
        let racing = attach(qemu.pid(), Some(&mut qmp), &AttachOptions::default()).unwrap();
        let _faults = ZeroPages::serve(&first).unwrap();
        assert!(ZeroPages::serve(&racing).is_err());
        drop(racing);
        // One that comes later is told before anything is made in QEMU.
        let error = attach(qemu.pid(), Some(&mut qmp), &AttachOptions::default()).unwrap_err();
        assert!(
            matches!(error, AttachError::AlreadyManaged { .. }),
            "{error:?}"
        );
        qmp.cont().unwrap();
        qemu.assert_good();
    }
}

#[test]
fn what_is_lost_with_an_agent_is_got_back_by_the_numbers() {
    for binary in binaries() {
        for unprivileged in [false, true] {
            let setup = Setup {
                unprivileged,
                ..Setup::new(&binary)
            };
            let (mut qemu, mut qmp) = Qemu::start(&setup);
            let attached = attach(qemu.pid(), Some(&mut qmp), &AttachOptions::default()).unwrap();
            let record = TakeOver::from(&attached);
            // An agent that registered, was killed, and had read the first fault without answering it.
            let userfault = zero_pages::userfault(&attached);
            userfault
                .handshake(mycoram_agent::kernel::FeatureSet::NONE)
                .unwrap();
            userfault
                .register(
                    zero_pages::range(&attached),
                    mycoram_agent::kernel::Watch::Missing,
                )
                .unwrap();
            nix::unistd::write(&attached.pipes[3].write, b"a page that was leaving").unwrap();
            qmp.cont().unwrap();
            let mut fds = [nix::poll::PollFd::new(
                userfault.as_fd(),
                nix::poll::PollFlags::POLLIN,
            )];
            nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE).unwrap();
            let mut reader = mycoram_agent::kernel::EventReader::new(64);
            assert!(reader.read(&userfault, |_| {}).unwrap() > 0);
            drop(userfault);
            drop(attached);

            let again = take_over(&record).unwrap();
            let mut bytes = [0; 64];
            let count = nix::unistd::read(&again.pipes[3].read, &mut bytes).unwrap();
            assert_eq!(&bytes[..count], b"a page that was leaving");
            let _faults = ZeroPages::succeed(&again);
            qemu.assert_good();
            assert!(take_over(&record).is_err());
            assert_eq!(guest::GOOD, 0x21);
        }
    }
}

#[test]
fn a_qemu_without_room_for_descriptors_is_left_as_it_was() {
    for binary in binaries() {
        let (mut qemu, mut qmp) = Qemu::start(&Setup::new(&binary));
        let before = std::fs::read_dir(format!("/proc/{}/fd", qemu.pid()))
            .unwrap()
            .count();
        let limit = libc::rlimit64 {
            rlim_cur: before as u64 + 6,
            rlim_max: 4096,
        };
        // SAFETY: prlimit64 reads `limit`, which outlives the call.
        let done = unsafe {
            libc::prlimit64(
                qemu.pid().as_raw(),
                libc::RLIMIT_NOFILE,
                &raw const limit,
                std::ptr::null_mut(),
            )
        };
        assert_eq!(done, 0);
        let error = attach(qemu.pid(), Some(&mut qmp), &AttachOptions::default()).unwrap_err();
        assert!(
            matches!(error, AttachError::NoRoom { wanted: 33, .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("RLIMIT_NOFILE"));
        assert_eq!(
            std::fs::read_dir(format!("/proc/{}/fd", qemu.pid()))
                .unwrap()
                .count(),
            before
        );
        qmp.cont().unwrap();
        qemu.assert_good();
    }
}

#[test]
fn a_qemu_that_ends_meanwhile_is_told() {
    for binary in binaries() {
        let (mut qemu, mut qmp) = Qemu::start(&Setup::new(&binary));
        qmp.quit().unwrap();
        qemu.wait();
        let error = attach(qemu.pid(), None, &AttachOptions::default()).unwrap_err();
        assert!(matches!(error, AttachError::Process(_)), "{error:?}");
    }
}

#[test]
fn descriptors_are_handed_over_in_sets_too() {
    for binary in binaries() {
        let (qemu, mut qmp) = Qemu::start(&Setup::new(&binary));
        let file = std::fs::File::open("/dev/null").unwrap();
        let added = qmp.add_fd(file.as_fd()).unwrap();
        let link = std::fs::read_link(format!("/proc/{}/fd/{}", qemu.pid(), added.fd)).unwrap();
        assert_eq!(link.to_str(), Some("/dev/null"));
        qmp.remove_fd(added).unwrap();
        qmp.cont().unwrap();
        assert!(
            qmp.wait_event("RESUME", std::time::Duration::from_secs(5))
                .unwrap()
                .is_some()
        );
    }
}

const AGENT_OF: &str = "MYCORAM_TEST_AGENT_OF";
const AGENT_QMP: &str = "MYCORAM_TEST_AGENT_QMP";

/// Not a test of its own: an agent in a process of its own, which is killed in the middle of a fault.
#[test]
#[ignore = "started by an_agent_that_is_killed_is_succeeded"]
fn agent_that_is_killed() {
    let (Ok(pid), Ok(socket)) = (std::env::var(AGENT_OF), std::env::var(AGENT_QMP)) else {
        return;
    };
    let limit = std::time::Duration::from_secs(10);
    let mut qmp = Qmp::connect(std::path::Path::new(&socket), limit).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    let attached = attach(pid, Some(&mut qmp), &AttachOptions::default()).unwrap();
    println!(
        "record {}",
        serde_json::to_string(&TakeOver::from(&attached)).unwrap()
    );
    zero_pages::serve_until_killed(&attached, 1000, || qmp.cont().unwrap());
}

#[test]
fn an_agent_that_is_killed_is_succeeded() {
    use std::os::unix::process::ExitStatusExt;
    for binary in binaries() {
        let (mut qemu, qmp) = Qemu::start(&Setup::new(&binary));
        drop(qmp);
        let agent = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "agent_that_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(AGENT_OF, qemu.pid().to_string())
            .env(AGENT_QMP, qemu.directory.path().join("qmp"))
            .output()
            .unwrap();
        let said = String::from_utf8(agent.stdout).unwrap();
        assert_eq!(agent.status.signal(), Some(libc::SIGKILL), "{said}");
        let record = said
            .lines()
            .find_map(|l| l.split_once("record "))
            .unwrap()
            .1;
        let record: TakeOver = serde_json::from_str(record).unwrap();
        let attached = take_over(&record).unwrap();
        let _faults = ZeroPages::succeed(&attached);
        qemu.assert_good();
    }
}

/// The flags of the mapping at `base`, as the kernel shows them.
fn vm_flags(pid: nix::unistd::Pid, base: u64) -> String {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (_, rest) = smaps.split_once(&format!("{base:x}-")).unwrap();
    rest.lines()
        .find(|l| l.starts_with("VmFlags:"))
        .unwrap()
        .to_owned()
}

/// Not a test of its own: somebody without rights attaches to a QEMU of root's, or to one of his own.
#[test]
#[ignore = "started by the tests about permissions"]
fn stranger_that_attaches() {
    let Ok(pid) = std::env::var(AGENT_OF) else {
        return;
    };
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    match attach(pid, None, &AttachOptions::default()) {
        Ok(_) => println!("answer attached"),
        Err(error) => println!("answer {error}"),
    }
}

/// What attaching to `pid` gives to the user nobody.
fn attach_as_nobody(pid: nix::unistd::Pid) -> String {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    // A copy that nobody may run, whatever the modes on the way to the checkout are.
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("stranger");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let stranger = std::process::Command::new(&program)
        .args([
            "--exact",
            "stranger_that_attaches",
            "--ignored",
            "--nocapture",
        ])
        .env(AGENT_OF, pid.to_string())
        .uid(support::qemu::NOBODY)
        .gid(support::qemu::NOBODY)
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8(stranger.stdout).unwrap();
    let (_, answer) = said
        .lines()
        .find_map(|l| l.split_once("answer "))
        .unwrap_or_else(|| panic!("{said}"));
    answer.to_owned()
}

#[test]
fn a_qemu_of_another_user_is_refused_with_the_capability() {
    if !nix::unistd::geteuid().is_root() {
        return support::lacks("only root can become another user");
    }
    for binary in binaries() {
        let (mut qemu, mut qmp) = Qemu::start(&Setup::new(&binary));
        let answer = attach_as_nobody(qemu.pid());
        assert!(
            answer.contains("CAP_SYS_PTRACE") && answer.contains("user 0"),
            "{answer}"
        );
        qmp.cont().unwrap();
        qemu.assert_good();
    }
}

#[test]
fn an_agent_and_a_qemu_without_rights_are_told_the_sysctl() {
    if !nix::unistd::geteuid().is_root() {
        return support::lacks("only root can become another user");
    }
    let is = |path, value: &str| std::fs::read_to_string(path).is_ok_and(|v| v.trim() == value);
    let scope = "/proc/sys/kernel/yama/ptrace_scope";
    for binary in binaries() {
        let setup = Setup {
            unprivileged: true,
            ..Setup::new(&binary)
        };
        let (mut qemu, mut qmp) = Qemu::start(&setup);
        let answer = attach_as_nobody(qemu.pid());
        if !std::path::Path::new(scope).exists() || is(scope, "0") {
            if is("/proc/sys/vm/unprivileged_userfaultfd", "1") {
                assert_eq!(answer, "attached");
            } else {
                assert!(answer.contains("vm.unprivileged_userfaultfd"), "{answer}");
                assert!(answer.contains("/dev/userfaultfd"), "{answer}");
            }
        } else {
            assert!(answer.contains("kernel.yama.ptrace_scope"), "{answer}");
        }
        // Nothing was left behind: it runs as if nothing had been.
        qmp.cont().unwrap();
        qemu.assert_good();
    }
}
