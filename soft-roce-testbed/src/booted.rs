//! A place that is up: runs jobs one after the other and tells how each ended.
//!
//! ```text
//!   Booted ──owns──> Vessel: a QEMU, or the `inside` process on this host
//!      │ poll: control socket | signals | deadline
//!      ├─ Stdout/Stderr frame ──> caller's sink, at once
//!      ├─ Ended ──> Outcome
//!      └─ stream ends, deadline, Ctrl-C ──> the vessel is ended; what broke is read from the console
//! ```
//!
//! A command is never run twice: only a boot is retried, by [`crate::Testbed::boot`].

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::console::Diagnosis;
use crate::frames::{Ending, Frame, FrameError, RunRequest, Setup};
use crate::interrupts::Interrupts;
use crate::job::{Job, Outcome, OutputSink, RunError};
use crate::topology::Topology;

/// How long a vessel may take to undo its topology and end by itself.
const GOODBYE_LIMIT: Duration = Duration::from_secs(20);

/// The process that is the test bed, and the files that go with it.
pub(crate) struct Vessel {
    pub(crate) child: Child,
    pub(crate) control: UnixStream,
    pub(crate) console_log: PathBuf,
    /// Removed when the vessel is gone.
    pub(crate) run_dir: PathBuf,
    /// A guest can simply be killed; on the host `inside` must take its devices away first.
    pub(crate) ends_by_kill: bool,
}

impl Vessel {
    fn read_console(&self) -> Diagnosis {
        Diagnosis::of(&String::from_utf8_lossy(
            &fs::read(&self.console_log).unwrap_or_default(),
        ))
    }

    fn end(&mut self) -> Option<ExitStatus> {
        // Both ends of a broken socket: nothing to do about it, the child is ended below anyway.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        if !self.ends_by_kill {
            let deadline = Instant::now() + GOODBYE_LIMIT;
            while Instant::now() < deadline {
                match self.child.try_wait() {
                    Ok(Some(status)) => return Some(status),
                    // No descriptor of the child is at hand to wait on with a limit.
                    Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                    Err(_) => break,
                }
            }
        }
        // Fails only if it has ended already.
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

impl Drop for Vessel {
    fn drop(&mut self) {
        self.end();
        let _ = fs::remove_dir_all(&self.run_dir);
    }
}

/// What the poll loop met.
enum Event {
    Frame(Frame),
    StreamEnded,
    Deadline,
    Interrupted(i32),
}

/// A test bed that is up.
pub struct Booted {
    vessel: Vessel,
    pending: Vec<u8>,
    interrupts: Interrupts,
    environment: Vec<(String, String)>,
    gone: bool,
}

/// Why a vessel did not come up; the caller decides about a retry.
#[derive(Debug)]
pub(crate) enum NotUp {
    /// No sign of life in time.
    Stuck(Diagnosis),
    /// The vessel ended.
    Ended(Diagnosis, Option<ExitStatus>),
    /// The inside could not make the topology.
    Refused(Box<str>),
    Interrupted(i32),
    Frame(FrameError),
}

impl Booted {
    /// Waits for the vessel's sign of life and has it make the topology.
    pub(crate) fn greet(
        vessel: Vessel,
        topology: Topology,
        limit: Duration,
    ) -> Result<Self, NotUp> {
        let interrupts =
            Interrupts::hold().map_err(|errno| NotUp::Frame(io::Error::from(errno).into()))?;
        let mut booted = Self {
            vessel,
            pending: Vec::new(),
            interrupts,
            environment: Vec::new(),
            gone: false,
        };
        let deadline = Instant::now() + limit;
        loop {
            match booted.next_event(deadline).map_err(NotUp::Frame)? {
                Event::Frame(Frame::Booted) => {
                    Frame::Setup(Setup { topology })
                        .write_to(&mut booted.vessel.control)
                        .map_err(NotUp::Frame)?;
                }
                Event::Frame(Frame::Ready(environment)) => {
                    booted.environment = environment;
                    return Ok(booted);
                }
                Event::Frame(Frame::Failed(said)) => return Err(NotUp::Refused(said)),
                Event::Frame(_) => return Err(NotUp::Refused("a frame out of turn".into())),
                Event::StreamEnded => {
                    let status = booted.vessel.end();
                    return Err(NotUp::Ended(booted.vessel.read_console(), status));
                }
                Event::Deadline => return Err(NotUp::Stuck(booted.vessel.read_console())),
                Event::Interrupted(signal) => return Err(NotUp::Interrupted(signal)),
            }
        }
    }

    /// The variables every job gets besides its own: addresses, devices, namespaces.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    pub(crate) fn add_environment(&mut self, name: &str, value: String) {
        self.environment.push((name.to_owned(), value));
    }

    /// The log of the guest's console.
    pub fn console_log(&self) -> &Path {
        &self.vessel.console_log
    }

    /// Runs one command to its end, passing its output to `sink` as it comes. On any error but
    /// [`RunError::Start`] the guest is gone and further jobs are refused.
    pub fn run(&mut self, job: &Job, sink: &mut dyn OutputSink) -> Result<Outcome, RunError> {
        if self.gone {
            return Err(RunError::Gone);
        }
        let outcome = self.run_to_end(job, sink);
        if !matches!(outcome, Ok(_) | Err(RunError::Start { .. })) {
            self.gone = true;
            self.vessel.end();
        }
        outcome
    }

    fn run_to_end(&mut self, job: &Job, sink: &mut dyn OutputSink) -> Result<Outcome, RunError> {
        let deadline = Instant::now() + job.limit;
        let request = RunRequest {
            program: job.program.clone(),
            arguments: job.arguments.clone(),
            working_dir: job.working_dir.to_string_lossy().into_owned(),
            environment: job
                .environment
                .iter()
                .chain(&self.environment)
                .cloned()
                .collect(),
        };
        Frame::Run(request).write_to(&mut self.vessel.control)?;
        loop {
            match self.next_event(deadline)? {
                Event::Frame(Frame::Stdout(bytes)) => {
                    sink.stdout(&bytes).map_err(RunError::Output)?
                }
                Event::Frame(Frame::Stderr(bytes)) => {
                    sink.stderr(&bytes).map_err(RunError::Output)?
                }
                Event::Frame(Frame::Ended(Ending::Exited(code))) => {
                    return Ok(Outcome::Exited(code));
                }
                Event::Frame(Frame::Ended(Ending::Signalled(signal))) => {
                    return Ok(Outcome::Signalled(signal));
                }
                Event::Frame(Frame::Ended(Ending::NotStarted(errno))) => {
                    return Err(RunError::Start {
                        program: job.program.as_str().into(),
                        source: io::Error::from_raw_os_error(errno),
                    });
                }
                Event::Frame(_) => return Err(RunError::Protocol),
                Event::StreamEnded => {
                    self.vessel.end();
                    return Err(RunError::Broke {
                        diagnosis: self.vessel.read_console(),
                        console: self.vessel.console_log.clone(),
                    });
                }
                Event::Deadline => {
                    return Err(RunError::Timeout {
                        limit: job.limit,
                        diagnosis: self.vessel.read_console(),
                        console: self.vessel.console_log.clone(),
                    });
                }
                Event::Interrupted(signal) => return Err(RunError::Interrupted { signal }),
            }
        }
    }

    /// The next thing that happens, at the latest at `deadline`.
    fn next_event(&mut self, deadline: Instant) -> Result<Event, FrameError> {
        loop {
            if let Some(frame) = Frame::take_from(&mut self.pending)? {
                return Ok(Event::Frame(frame));
            }
            if let Some(signal) = self.interrupts.take().map_err(io::Error::from)? {
                return Ok(Event::Interrupted(signal));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Event::Deadline);
            }
            let timeout = PollTimeout::try_from(left.as_millis().clamp(1, i32::MAX as u128))
                .unwrap_or(PollTimeout::MAX);
            let readable = {
                let mut polled = [
                    PollFd::new(self.vessel.control.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.interrupts.as_fd(), PollFlags::POLLIN),
                ];
                match poll(&mut polled, timeout) {
                    Ok(_) => {}
                    Err(Errno::EINTR) => continue,
                    Err(errno) => return Err(io::Error::from(errno).into()),
                }
                polled[0].any().unwrap_or(false)
            };
            if readable {
                let mut piece = [0u8; 64 << 10];
                match self.vessel.control.read(&mut piece) {
                    Ok(0) => return Ok(Event::StreamEnded),
                    Ok(length) => self.pending.extend_from_slice(&piece[..length]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                        return Ok(Event::StreamEnded);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

/// Says how a vessel's process ended, for error texts.
pub(crate) fn ending_of(status: Option<ExitStatus>) -> Box<str> {
    match status {
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}").into(),
            (None, Some(signal)) => format!("signal {signal}").into(),
            (None, None) => "unknown status".into(),
        },
        None => "unknown status".into(),
    }
}
