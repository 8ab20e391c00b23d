//! The inside of the test bed: process 1 of the guest, or a child process where the host is the place.
//!
//! Makes the topology, runs one command at a time, sends output and ending as frames. It ends when the
//! control stream does: on the host it then takes its devices away, in the guest it powers off.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::device::{gid_index, port_is_active};
use crate::frames::{Ending, Frame, FrameError, RunRequest};
use crate::machine::CONTROL_PORT;
use crate::topology::{Step, Topology};

/// A device is active within milliseconds; emulated and under load, within seconds.
const GID_LIMIT: Duration = Duration::from_secs(20);
/// Output left behind by a background process of the command is not waited for longer.
const OUTPUT_TAIL_LIMIT: Duration = Duration::from_secs(2);
/// Sysfs has no event for a new GID.
const GID_POLL: Duration = Duration::from_millis(10);
/// Size of the pieces output is sent in.
const PIECE_BYTES: usize = 64 << 10;

/// Where this inside runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// As process 1 of a guest.
    Guest,
    /// As a process of the host, with the control stream on this descriptor.
    Host {
        /// Inherited descriptor number.
        control_fd: i32,
    },
}

/// Why the inside gave up. Nobody but the console log reads it.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// The guest has no control port.
    #[error("no virtio port is named {CONTROL_PORT}")]
    NoPort,
    /// A file or mount.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The control stream.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream began with something else than a setup.
    #[error("the first frame is not a setup")]
    Protocol,
}

type SharedControl = Arc<Mutex<File>>;

/// Runs the inside until its control stream ends.
pub fn serve(setting: Setting) -> Result<(), InsideError> {
    let mut control = match setting {
        Setting::Guest => {
            prepare_guest()?;
            open_port()?
        }
        // SAFETY: the parent passed exactly this descriptor for this purpose and nothing else owns it.
        Setting::Host { control_fd } => File::from(unsafe { OwnedFd::from_raw_fd(control_fd) }),
    };
    Frame::Booted.write_to(&mut control)?;
    let Frame::Setup(setup) = Frame::read_from(&mut control)? else {
        return Err(InsideError::Protocol);
    };
    let made = make(setup.topology);
    let answer = match &made {
        Ok(()) => Frame::Ready(setup.topology.environment()),
        Err(said) => Frame::Failed(said.clone()),
    };
    let served = answer
        .write_to(&mut control)
        .map_err(InsideError::from)
        .and_then(|()| serve_commands(control, setting));
    match setting {
        Setting::Guest => power_off(),
        Setting::Host { .. } => undo(setup.topology),
    }
    served
}

/// Reads commands on one thread, so that the end of the stream also ends a command that runs.
fn serve_commands(control: File, setting: Setting) -> Result<(), InsideError> {
    let mut reader = control.try_clone().map_err(|source| InsideError::File {
        path: "control".into(),
        source,
    })?;
    let writer: SharedControl = Arc::new(Mutex::new(control));
    let running = Arc::new(AtomicI32::new(0));
    let closing = Arc::new(AtomicBool::new(false));
    let (requests, inbox) = sync_channel::<RunRequest>(1);
    let (reader_running, reader_closing) = (Arc::clone(&running), Arc::clone(&closing));
    std::thread::spawn(move || {
        while let Ok(Frame::Run(request)) = Frame::read_from(&mut reader) {
            if requests.send(request).is_err() {
                break;
            }
        }
        reader_closing.store(true, Ordering::SeqCst);
        end_group(reader_running.load(Ordering::SeqCst));
    });
    answer_commands(&inbox, &writer, &running, &closing, setting)
}

fn answer_commands(
    inbox: &Receiver<RunRequest>,
    writer: &SharedControl,
    running: &AtomicI32,
    closing: &AtomicBool,
    setting: Setting,
) -> Result<(), InsideError> {
    while let Ok(request) = inbox.recv() {
        let ending = match start(&request) {
            Ok(mut child) => {
                let group = child.id().cast_signed();
                running.store(group, Ordering::SeqCst);
                if closing.load(Ordering::SeqCst) {
                    end_group(group);
                }
                let tails = [
                    child
                        .stdout
                        .take()
                        .map(|pipe| pass_on(pipe, Arc::clone(writer), Frame::Stdout)),
                    child
                        .stderr
                        .take()
                        .map(|pipe| pass_on(pipe, Arc::clone(writer), Frame::Stderr)),
                ];
                let ending = wait_for(&mut child, setting);
                running.store(0, Ordering::SeqCst);
                end_group(group);
                await_tails(tails.into_iter().flatten());
                ending
            }
            Err(error) => Ending::NotStarted(error.raw_os_error().unwrap_or(libc::EINVAL)),
        };
        nix::unistd::sync();
        send(writer, &Frame::Ended(ending))?;
    }
    Ok(())
}

fn start(request: &RunRequest) -> io::Result<Child> {
    Command::new(&request.program)
        .args(&request.arguments)
        .current_dir(&request.working_dir)
        .env_clear()
        .envs(
            request
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

/// Waits for the command; process 1 also reaps what was left to it meanwhile.
fn wait_for(child: &mut Child, setting: Setting) -> Ending {
    if let Setting::Host { .. } = setting {
        return child
            .wait()
            .map_or(Ending::NotStarted(libc::ECHILD), ending_of);
    }
    let wanted = Pid::from_raw(child.id().cast_signed());
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == wanted => return Ending::Exited(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == wanted => {
                return Ending::Signalled(signal as i32);
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Ending::NotStarted(errno as i32),
        }
    }
}

fn ending_of(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Exited(code),
        (None, Some(signal)) => Ending::Signalled(signal),
        (None, None) => Ending::NotStarted(libc::ECHILD),
    }
}

/// Copies a pipe into frames until it ends.
fn pass_on(
    mut pipe: impl Read + Send + 'static,
    writer: SharedControl,
    frame: fn(Vec<u8>) -> Frame,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut piece = vec![0u8; PIECE_BYTES];
        loop {
            match pipe.read(&mut piece) {
                Ok(0) => return,
                Ok(length) => {
                    if send(&writer, &frame(piece[..length].to_vec())).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })
}

/// A daemon that holds the pipes open must not keep the ending back.
fn await_tails(tails: impl Iterator<Item = JoinHandle<()>>) {
    let deadline = Instant::now() + OUTPUT_TAIL_LIMIT;
    for tail in tails {
        while !tail.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn send(writer: &SharedControl, frame: &Frame) -> Result<(), FrameError> {
    let mut file = writer
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    frame.write_to(&mut *file)
}

fn end_group(group: i32) {
    if group > 0 {
        // ESRCH: everything in it has ended, which is what is wanted.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// Makes the topology; the sentence says which step failed.
fn make(topology: Topology) -> Result<(), Box<str>> {
    topology.steps().iter().try_for_each(|step| match step {
        Step::Run(words) => run(words),
        Step::Write { path, value } => fs::write(path, value)
            .map_err(|error| format!("write {value} to {path}: {error}").into()),
        Step::AwaitGid { device, address } => await_gid(device, *address),
    })
}

fn undo(topology: Topology) {
    for step in topology.undo() {
        if let Step::Run(words) = step {
            // Each may fail where its object was never made; the next one is tried all the same.
            let _ = run(&words);
        }
    }
}

fn run(words: &[String]) -> Result<(), Box<str>> {
    let Some((program, arguments)) = words.split_first() else {
        return Ok(());
    };
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "{}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into()),
        Err(error) => Err(format!("{}: {error}", words.join(" ")).into()),
    }
}

fn await_gid(device: &str, address: Ipv4Addr) -> Result<(), Box<str>> {
    let deadline = Instant::now() + GID_LIMIT;
    while !(gid_index(device, address).is_some() && port_is_active(device)) {
        if Instant::now() > deadline {
            return Err(format!(
                "device {device} has no active port with a GID for {address} after {} s",
                GID_LIMIT.as_secs()
            )
            .into());
        }
        std::thread::sleep(GID_POLL);
    }
    Ok(())
}

/// What a process 1 owes the programs it runs.
fn prepare_guest() -> Result<(), InsideError> {
    // Without a PATH of its own, process 1 finds neither ip nor rdma.
    // SAFETY: no other thread exists yet in this process.
    unsafe {
        std::env::set_var(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
    };
    for resource in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK] {
        let limit = if resource == Resource::RLIMIT_NOFILE {
            1 << 20
        } else {
            libc::RLIM_INFINITY
        };
        // A lower limit is a nuisance, not a reason to have no test bed.
        let _ = setrlimit(resource, limit, limit);
    }
    let _ = nix::unistd::sethostname("testbed");
    let cgroup = Path::new("/sys/fs/cgroup");
    let mounted = nix::mount::mount(
        Some("cgroup2"),
        cgroup,
        Some("cgroup2"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    );
    mounted.map_err(|errno| InsideError::File {
        path: cgroup.to_owned(),
        source: errno.into(),
    })?;
    let _ = run(&[
        "ip".to_owned(),
        "link".to_owned(),
        "set".to_owned(),
        "lo".to_owned(),
        "up".to_owned(),
    ]);
    Ok(())
}

fn open_port() -> Result<File, InsideError> {
    let class = Path::new("/sys/class/virtio-ports");
    let entries = fs::read_dir(class).map_err(|source| InsideError::File {
        path: class.to_owned(),
        source,
    })?;
    let port = entries
        .filter_map(Result::ok)
        .find(|entry| {
            fs::read_to_string(entry.path().join("name"))
                .is_ok_and(|name| name.trim() == CONTROL_PORT)
        })
        .ok_or(InsideError::NoPort)?;
    let path = Path::new("/dev").join(port.file_name());
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|source| InsideError::File { path, source })
}

fn power_off() {
    nix::unistd::sync();
    // Whoever held the other end has gone, or is about to kill this guest.
    let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
}
