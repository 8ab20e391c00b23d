//! Whole VMs: a real QEMU, a real agent, and far memory that is a file. What the guest wrote comes back
//! right, whatever happens to the processes around it.

#[allow(
    dead_code,
    unreachable_pub,
    reason = "the agent's own tests use all of it"
)]
#[path = "../../uffd-agent/tests/support/fake_remote.rs"]
mod fake_remote;
mod support;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fake_remote::FakeRemote;
use mycoram_agent::daemon::{RemoteSource, SourceError};
use mycoram_agent::{Owner, RegionConfig};
use mycoram_fabric::pages::{Direction, RemoteRegion};
use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{ByteCount, Epoch, PAGE_BYTES, RegionId};
use mycoram_qemu::attach::AttachOptions;
use mycoram_qemu::launch::{Backing, Notice, Outcome, RunError, VmAttach, VmRun};
use mycoram_qemu::registry::{Registry, RegistryError, VmState};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use support::guest;
use support::qemu::{Qemu, Setup, binaries};

const RAM: ByteCount = ByteCount::new(32 << 20);
const LOCAL: ByteCount = ByteCount::new(8 << 20);
const DEFAULT_EXTENT: ByteCount = ByteCount::new(16 << 20);

/// Far memory in a file: it is there for a successor, as memory nodes are.
struct FileNodes {
    path: PathBuf,
    released: Arc<AtomicBool>,
    /// A page whose READ panics, under epochs up to this one.
    trap: Option<(u32, Epoch)>,
}

impl FileNodes {
    fn new(directory: &Path) -> Self {
        Self {
            path: directory.join("far"),
            released: Arc::new(AtomicBool::new(false)),
            trap: None,
        }
    }

    fn open(
        &self,
        bytes: ByteCount,
        epoch: Epoch,
    ) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)?;
        file.set_len(bytes.get())?;
        let memory = Mapping::shared(&file, bytes.get() as usize)?;
        let pages = (bytes.get() / PAGE_BYTES as u64) as u32;
        let fake = FakeRemote::over(Arc::new(memory), pages, 2);
        if let Some((page, _)) = self.trap.filter(|(_, until)| epoch <= *until) {
            *fake.store.trap.lock().unwrap() = Some((Direction::Read, page));
        }
        let watched = Watched {
            inner: fake,
            released: Arc::clone(&self.released),
        };
        let owner = Owner {
            region: RegionId::new(7),
            epoch,
            directory: b"a file".to_vec(),
        };
        Ok((Arc::new(watched), owner))
    }
}

impl RemoteSource for FileNodes {
    fn create(
        &self,
        bytes: ByteCount,
        _extent: ByteCount,
    ) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError> {
        self.open(bytes, Epoch::new(1))
    }
    fn reopen(&self, saved: &Owner) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError> {
        assert_eq!(saved.directory, b"a file");
        self.open(RAM, saved.epoch.next().unwrap())
    }
}

/// Tells when the memory was given back.
struct Watched {
    inner: Arc<FakeRemote>,
    released: Arc<AtomicBool>,
}

impl RemoteRegion for Watched {
    fn pages(&self) -> mycoram_fabric::units::PageCount {
        self.inner.pages()
    }
    fn open_lane(
        &self,
        config: &mycoram_fabric::pages::LaneConfig,
    ) -> Result<Box<dyn mycoram_fabric::pages::PageLane>, mycoram_fabric::pages::LaneError> {
        self.inner.open_lane(config)
    }
    fn stats(&self) -> mycoram_fabric::pages::RemoteStats {
        self.inner.stats()
    }
    fn node_name(&self, node: u16) -> String {
        self.inner.node_name(node)
    }
    fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
        self.inner.release();
    }
}

/// What a test leaves nothing of.
struct Place {
    directory: tempfile::TempDir,
    registry: Registry,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let registry = Registry::at(&directory.path().join("run")).unwrap();
        Self {
            directory,
            registry,
        }
    }

    fn region(&self, name: &str) -> RegionConfig {
        RegionConfig {
            state_dir: self.directory.path().join("state"),
            settle_ms: 0,
            ..RegionConfig::new(name.parse().unwrap(), LOCAL)
        }
    }

    fn run(&self, name: &str, binary: &Path, rounds: u32) -> VmRun {
        let image = guest::write_image(self.directory.path(), RAM.get() as u32, rounds);
        let mut arguments: Vec<_> = ["-accel", "tcg"].map(Into::into).into();
        arguments.extend(guest::ARGUMENTS.map(Into::into));
        arguments.push(image.into());
        VmRun {
            qemu: binary.to_owned(),
            arguments,
            memory: RAM,
            backing: Backing::Memfd,
            region: self.region(name),
            extent_bytes: DEFAULT_EXTENT,
            nodes: "a file".into(),
            attach: AttachOptions::default(),
        }
    }

    fn attach(&self, name: &str, pid: Pid) -> VmAttach {
        VmAttach {
            pid,
            qmp: None,
            region: self.region(name),
            extent_bytes: DEFAULT_EXTENT,
            nodes: "a file".into(),
            attach: AttachOptions::default(),
        }
    }
}

#[test]
fn a_vm_with_a_quarter_of_its_ram_runs_right_and_leaves_nothing() {
    for binary in binaries() {
        let place = Place::new();
        let nodes = FileNodes::new(place.directory.path());
        let mut attached = None;
        let ran = place
            .run("small", &binary, 4)
            .run(&place.registry, &nodes, &mut |notice| {
                if let Notice::Attached {
                    attach, stopped, ..
                } = notice
                {
                    attached = Some((attach, stopped));
                    let (record, state) = place.registry.find(&"small".parse().unwrap()).unwrap();
                    assert_eq!(state, VmState::Running);
                    assert!(record.qmp.unwrap().exists());
                    // The name is taken for as long as it runs.
                    let second =
                        place
                            .run("small", &binary, 1)
                            .run(&place.registry, &nodes, &mut |_| {});
                    assert!(matches!(
                        second,
                        Err(RunError::Registry(RegistryError::InUse))
                    ));
                }
            })
            .unwrap();
        assert_eq!(ran.outcome.exit_code(), guest::GOOD as u8);
        let figures = ran.figures.unwrap();
        let region = figures.region.unwrap();
        eprintln!(
            "attached in {:?}, faults {}, evictions {}, p50 {} us",
            attached.unwrap(),
            region.faults,
            region.evictions,
            region.fault_p50_us
        );
        assert!(region.evictions > 4096, "{region:?}");
        assert!(region.transport.bytes_written > 0 && region.transport.bytes_read > 0);
        assert_eq!(region.lost, 0);
        assert!(nodes.released.load(Ordering::SeqCst));
        let left: Vec<_> = std::fs::read_dir(place.directory.path().join("run/vms"))
            .unwrap()
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_vm_whose_agent_has_a_bug_goes_on_until_it_has_it_again_and_again() {
    const MIDDLE: u32 = (RAM.get() / 2 / PAGE_BYTES as u64) as u32;
    let binary = binaries().swap_remove(0);
    for (epochs, comes_through) in [(2, true), (u64::MAX, false)] {
        let place = Place::new();
        let mut nodes = FileNodes::new(place.directory.path());
        nodes.trap = Some((MIDDLE, Epoch::new(epochs)));
        let (mut failed, mut gone_on) = (0, 0);
        let ran = place
            .run("bug", &binary, 3)
            .run(&place.registry, &nodes, &mut |notice| match notice {
                Notice::Failed(panic) => {
                    assert_eq!(panic.thread, "myco-fault-0");
                    failed += 1;
                }
                Notice::GoesOn => gone_on += 1,
                _ => {}
            });
        match ran {
            Ok(ran) if comes_through => {
                assert_eq!(ran.outcome.exit_code(), guest::GOOD as u8);
                let region = ran.figures.unwrap().region.unwrap();
                assert_eq!((region.thread_panics, region.lost), (2, 0));
                assert_eq!((failed, gone_on), (2, 2));
            }
            Err(RunError::Failed(_)) if !comes_through => assert_eq!((failed, gone_on), (4, 3)),
            other => panic!("{other:?}"),
        }
        assert!(nodes.released.load(Ordering::SeqCst));
        assert!(place.registry.list().unwrap().vms.is_empty());
    }
}

#[test]
fn a_qemu_that_cannot_start_gives_its_code_and_the_memory_back() {
    for binary in binaries() {
        let place = Place::new();
        let nodes = FileNodes::new(place.directory.path());
        let mut run = place.run("broken", &binary, 1);
        run.arguments
            .extend(["-drive", "file=/nonexistent"].map(Into::into));
        let ran = run.run(&place.registry, &nodes, &mut |_| {}).unwrap();
        assert_eq!(ran.outcome.exit_code(), 1);
        assert!(ran.figures.is_none());
        assert!(nodes.released.load(Ordering::SeqCst));

        let mut run = place.run("broken", Path::new("/nonexistent/qemu"), 1);
        run.memory = RAM;
        assert!(matches!(
            run.run(&place.registry, &nodes, &mut |_| {}),
            Err(RunError::Spawn(_))
        ));
    }
}

#[test]
fn a_running_qemu_is_adopted_and_held_to_its_budget() {
    for binary in binaries() {
        let place = Place::new();
        let nodes = FileNodes::new(place.directory.path());
        let setup = Setup {
            rounds: 0,
            paused: false,
            ..Setup::new(&binary)
        };
        let (mut qemu, mut qmp) = Qemu::start(&setup);
        qemu.expect_serial(b'.');
        let attach = place.attach("adopted", qemu.pid());
        let (begin, begun) = std::sync::mpsc::channel();
        let registry = place.registry.clone();
        // Rounds until the kernel too counts no more than the budget, and the end.
        let watcher = std::thread::spawn(move || {
            begun.recv().unwrap();
            loop {
                qemu.expect_serial(b'.');
                let found = registry.find_pid(qemu.pid().as_raw()).unwrap();
                let resident = found.and_then(|(record, _)| record.resident_bytes());
                if resident.is_some_and(|bytes| bytes <= LOCAL.get()) {
                    break;
                }
            }
            qmp.quit().unwrap();
            qemu.wait().code()
        });
        let mut tell = |_| begin.send(()).unwrap();
        let ran = attach.run(&place.registry, &nodes, &mut tell).unwrap();
        assert_eq!(ran.outcome, Outcome::Ended(None));
        assert_eq!(watcher.join().unwrap(), Some(0));
        let region = ran.figures.unwrap().region.unwrap();
        assert!(
            region.evictions >= (RAM.get() - LOCAL.get() - (4 << 20)) / 4096,
            "{region:?}"
        );
        assert!(nodes.released.load(Ordering::SeqCst));
    }
}

// ---- agents in processes of their own, so that they can be killed and signalled ----

const ACT: &str = "MYCORAM_TEST_ACT";
const PLACE: &str = "MYCORAM_TEST_PLACE";
const TARGET: &str = "MYCORAM_TEST_TARGET";
const BINARY: &str = "MYCORAM_TEST_BINARY";

/// Not a test of its own: `vm run` or `vm attach` in a process that ends with the VM's exit code.
#[test]
#[ignore = "started by the tests about processes"]
fn vm_process() {
    let Ok(act) = std::env::var(ACT) else { return };
    let directory = PathBuf::from(std::env::var(PLACE).unwrap());
    let registry = Registry::at(&directory.join("run")).unwrap();
    let nodes = FileNodes::new(&directory);
    let place = Place {
        directory: tempfile::tempdir().unwrap(),
        registry: registry.clone(),
    };
    let region = RegionConfig {
        state_dir: directory.join("state"),
        ..place.region("vm")
    };
    let mut say = |notice| println!("notice {notice:?}");
    let ran = if act == "run" {
        let binary = PathBuf::from(std::env::var(BINARY).unwrap());
        VmRun {
            region,
            ..place.run("vm", &binary, 0)
        }
        .run(&registry, &nodes, &mut say)
    } else {
        let pid = Pid::from_raw(std::env::var(TARGET).unwrap().parse().unwrap());
        VmAttach {
            region,
            ..place.attach("vm", pid)
        }
        .run(&registry, &nodes, &mut say)
    };
    let code = match ran {
        Ok(ran) => {
            println!("outcome {:?}", ran.outcome);
            ran.outcome.exit_code()
        }
        Err(error) => {
            println!("error {error}");
            99
        }
    };
    drop(place);
    std::process::exit(i32::from(code));
}

struct VmProcess {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl VmProcess {
    fn start(act: &str, place: &Place, binary: &Path, target: Option<Pid>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "vm_process", "--ignored", "--nocapture"])
            .env(ACT, act)
            .env(PLACE, place.directory.path())
            .env(BINARY, binary)
            .env(
                TARGET,
                target.map(|pid| pid.to_string()).unwrap_or_default(),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // The test harness has threads before the VM does: all of them leave these signals to it.
        let mut ours = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            ours.add(signal);
        }
        // SAFETY: both calls are async-signal-safe and concern this process only.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                ours.thread_block()?;
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Reads until `wanted` was said.
    fn expect(&mut self, wanted: &str) -> String {
        let mut seen = Vec::new();
        loop {
            let mut chunk = Vec::new();
            assert_ne!(
                self.out.read_until(b'\n', &mut chunk).unwrap(),
                0,
                "{wanted} was not said, but {}",
                String::from_utf8_lossy(&seen)
            );
            seen.extend_from_slice(&chunk);
            let line = String::from_utf8_lossy(&chunk).into_owned();
            if line.contains(wanted) {
                return line;
            }
        }
    }

    /// Reads until the guest has finished this many more rounds.
    fn expect_rounds(&mut self, rounds: usize) {
        let mut seen = 0;
        while seen < rounds {
            let bytes = self.out.fill_buf().unwrap();
            assert!(!bytes.is_empty(), "the VM ended");
            let good = bytes.iter().filter(|&&b| b == b'.').count();
            assert!(!bytes.contains(&b'X'), "the guest found a wrong page");
            let count = bytes.len();
            self.out.consume(count);
            seen += good;
        }
    }
}

impl Drop for VmProcess {
    fn drop(&mut self) {
        // A QEMU of its own outlives it, on purpose; here it must not.
        support::kill_children(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A QEMU that was left without its agent, and must not be left without its test.
struct Orphan(Pid);

impl Drop for Orphan {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

#[test]
fn an_agent_that_is_killed_is_succeeded_and_no_write_is_lost() {
    for binary in binaries() {
        let place = Place::new();
        let mut first = VmProcess::start("run", &place, &binary, None);
        first.expect("Attached");
        let (record, _) = place.registry.find(&"vm".parse().unwrap()).unwrap();
        let qemu = Orphan(Pid::from_raw(record.target.process.pid));
        first.expect_rounds(2);
        // While it lives nobody else gets the VM.
        let mut second = VmProcess::start("attach", &place, &binary, Some(qemu.0));
        second.expect("already has an agent");
        kill(first.pid(), Signal::SIGKILL).unwrap();
        assert_eq!(first.child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(
            place.registry.find(&"vm".parse().unwrap()).unwrap().1,
            VmState::Orphaned
        );

        for _ in 0..2 {
            let mut successor = VmProcess::start("attach", &place, &binary, Some(qemu.0));
            successor.expect("TakenOver");
            // The guest goes on; its words still come out of the first one's pipe.
            first.expect_rounds(2);
            kill(successor.pid(), Signal::SIGKILL).unwrap();
            successor.child.wait().unwrap();
        }
        let mut last = VmProcess::start("attach", &place, &binary, Some(qemu.0));
        last.expect("TakenOver");
        first.expect_rounds(1);
        kill(qemu.0, Signal::SIGKILL).unwrap();
        last.expect("Ended");
        assert!(place.registry.list().unwrap().vms.is_empty());
    }
}

#[test]
fn signals_reach_qemu_and_its_end_ends_us() {
    for binary in binaries() {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let place = Place::new();
            let mut vm = VmProcess::start("run", &place, &binary, None);
            vm.expect("Attached");
            vm.expect_rounds(1);
            kill(vm.pid(), signal).unwrap();
            // QEMU ends orderly on each of them.
            assert_eq!(vm.child.wait().unwrap().code(), Some(0), "{signal}");
        }
        let place = Place::new();
        let mut vm = VmProcess::start("run", &place, &binary, None);
        vm.expect("Attached");
        let (record, _) = place.registry.find(&"vm".parse().unwrap()).unwrap();
        kill(Pid::from_raw(record.target.process.pid), Signal::SIGKILL).unwrap();
        assert_eq!(vm.child.wait().unwrap().code(), Some(137));
    }
}

#[test]
fn an_adopted_qemu_is_let_go_with_all_its_memory() {
    for binary in binaries() {
        let place = Place::new();
        let setup = Setup {
            rounds: 0,
            ram_mib: 32,
            paused: false,
            ..Setup::new(&binary)
        };
        let (mut qemu, _qmp) = Qemu::start(&setup);
        qemu.expect_serial(b'.');
        let mut agent = VmProcess::start("attach", &place, &binary, Some(qemu.pid()));
        agent.expect("Attached");
        qemu.expect_serial(b'.');
        kill(agent.pid(), Signal::SIGTERM).unwrap();
        agent.expect("outcome Detached");
        assert_eq!(agent.child.wait().unwrap().code(), Some(0));
        assert!(place.registry.list().unwrap().vms.is_empty());
        // It goes on alone, and nothing it wrote is missing.
        for _ in 0..3 {
            qemu.expect_serial(b'.');
        }
        // And can be adopted again.
        let mut again = VmProcess::start("attach", &place, &binary, Some(qemu.pid()));
        again.expect("Attached");
        qemu.expect_serial(b'.');
    }
}
