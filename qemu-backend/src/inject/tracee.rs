//! One stopped thread of another process: the steps of ptrace, each with what it leaves behind.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::text::{Gadgets, find_gadgets};
use super::{InjectError, PtraceDenial, arch};
use crate::process::{Permissions, read_maps};

/// Bytes on the target's stack for what the calls read and write.
pub const SCRATCH_BYTES: usize = 1024;
/// How many stops of other kinds (signals, group-stops) may come before the one we wait for.
pub(super) const MAX_STOPS: usize = 256;
/// All signals that can be blocked.
const ALL_SIGNALS: u64 = u64::MAX;
/// PTRACE_EVENT_STOP, as it stands in bits 16.. of a wait status.
const EVENT_STOP: i32 = 128;
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// The signal and the event of one ptrace stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stop {
    signal: i32,
    event: i32,
}

impl Stop {
    /// A stop because of PTRACE_INTERRUPT or because the whole process is stopped.
    fn is_interrupt(self) -> bool {
        self.event == EVENT_STOP
    }
}

/// A seized thread; dropping it lets the thread go.
struct Seized {
    pid: Pid,
    /// A SIGSTOP came while we were at it: it is sent again behind the detach.
    stop_again: bool,
    /// The thread is in a ptrace stop, so that it can be detached.
    stopped: bool,
    detached: bool,
}

/// A thread that is stopped, and makes calls for us.
///
/// Dropping it restores the thread and lets it go, on every path.
pub struct Stopped<'a> {
    seized: Seized,
    saved: arch::Saved,
    layout: arch::Layout,
    gadgets: Gadgets,
    memory: File,
    abandoned: &'a AtomicBool,
    since: Instant,
    /// Registers or mask differ from what was saved.
    disturbed: bool,
}

impl Seized {
    fn seize(pid: Pid) -> Result<Self, InjectError> {
        // TRACESYSGOOD tells call stops from signals. EXITKILL must never be set: see mod.rs.
        match ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD) {
            Ok(()) => Ok(Self {
                pid,
                stop_again: false,
                stopped: false,
                detached: false,
            }),
            Err(Errno::EPERM) => Err(InjectError::Denied(PtraceDenial::explain(pid))),
            Err(source) => Err(InjectError::ptrace(pid, "SEIZE", source)),
        }
    }

    fn check(&self, request: &'static str, result: nix::Result<()>) -> Result<(), InjectError> {
        result.map_err(|source| InjectError::ptrace(self.pid, request, source))
    }

    fn interrupt(&self) -> Result<(), InjectError> {
        self.check("INTERRUPT", ptrace::interrupt(self.pid))
    }

    /// Lets the thread run on; `signal` is delivered to it, 0 for none.
    fn cont(&mut self, signal: i32) -> Result<(), InjectError> {
        self.stopped = false;
        // SAFETY: PTRACE_CONT takes integers only; real-time signals have no `Signal`, so not through nix.
        let done = unsafe {
            libc::ptrace(
                libc::PTRACE_CONT,
                self.pid.as_raw(),
                0 as libc::c_long,
                libc::c_long::from(signal),
            )
        };
        self.check("CONT", Errno::result(done).map(drop))
    }

    fn run_to_call(&mut self) -> Result<(), InjectError> {
        self.stopped = false;
        self.check("SYSCALL", ptrace::syscall(self.pid, None))
    }

    /// Blocks until the thread stops.
    ///
    /// The end of the process is looked at, but not reaped: that is its parent's, which we may be.
    fn wait(&mut self) -> Result<Stop, InjectError> {
        let pid = self.pid;
        let peek = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL;
        let (code, status) = wait_id(pid, peek)?;
        match code {
            libc::CLD_TRAPPED | libc::CLD_STOPPED => {}
            _ => {
                self.detached = true;
                return Err(InjectError::TargetExited { pid });
            }
        }
        // Taken now: it may have been killed between the two.
        let (code, status) = match wait_id(pid, libc::WSTOPPED | libc::WNOHANG | libc::__WALL)? {
            (0, _) => (code, status),
            taken => taken,
        };
        if code != libc::CLD_TRAPPED {
            return Err(InjectError::UnexpectedStop { pid, status });
        }
        self.stopped = true;
        Ok(Stop {
            signal: status & 0xff,
            event: status >> 8,
        })
    }

    /// Waits for the stop that [`Self::interrupt`] asked for; signals that come first are passed on.
    fn wait_interrupted(&mut self, deliver: bool) -> Result<(), InjectError> {
        for _ in 0..MAX_STOPS {
            let stop = self.wait()?;
            if stop.is_interrupt() {
                return Ok(());
            }
            match stop.signal {
                SYSCALL_STOP => self.cont(0)?,
                signal if deliver => self.cont(signal)?,
                signal => {
                    self.stop_again |= signal == libc::SIGSTOP;
                    self.cont(0)?;
                }
            }
        }
        Err(InjectError::TooManyStops { pid: self.pid })
    }

    /// Waits for the next entry into or exit from a call; only SIGSTOP can come between, as all else is blocked.
    fn wait_call(&mut self) -> Result<(), InjectError> {
        for _ in 0..MAX_STOPS {
            self.run_to_call()?;
            let stop = self.wait()?;
            if stop.signal == SYSCALL_STOP && stop.event == 0 {
                return Ok(());
            }
            self.stop_again |= !stop.is_interrupt() && stop.signal == libc::SIGSTOP;
        }
        Err(InjectError::TooManyStops { pid: self.pid })
    }

    fn detach(&mut self) {
        if self.detached {
            return;
        }
        self.detached = true;
        // Fails only if the target is gone; there is nothing left to do then.
        let _ = ptrace::detach(self.pid, None);
        if self.stop_again {
            let _ = nix::sys::signal::kill(self.pid, Signal::SIGSTOP);
        }
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        if !self.stopped {
            // Only a stopped thread can be detached. If this fails the thread that traces ends
            // next, and the kernel detaches by itself.
            if self.interrupt().is_err() || self.wait_interrupted(true).is_err() {
                return;
            }
        }
        self.detach();
    }
}

impl<'a> Stopped<'a> {
    /// Stops the main thread of `pid` and prepares its stack.
    ///
    /// `abandoned` is looked at once the thread has stopped: if nobody waits any more, it is let go at once.
    pub(super) fn stop(pid: Pid, abandoned: &'a AtomicBool) -> Result<Self, InjectError> {
        // Searched while the target still runs: its text does not move.
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"));
        let mut seized = Seized::seize(pid)?;
        let memory = match memory {
            Ok(memory) => memory,
            Err(source) => {
                return Err(InjectError::Memory {
                    pid,
                    address: 0,
                    source,
                });
            }
        };
        let gadgets = find_gadgets(pid, &memory)?;

        let since = Instant::now();
        seized.interrupt()?;
        seized.wait_interrupted(true)?;
        if abandoned.load(Ordering::Acquire) {
            return Err(InjectError::Deadline {
                pid,
                limit: since.elapsed(),
            });
        }
        let saved = arch::Saved::read(pid)?;
        let layout = saved.layout().ok_or(InjectError::NoStack {
            pid,
            stack_pointer: saved.stack_pointer(),
            needed: SCRATCH_BYTES as u64,
        })?;
        let stopped = Self {
            seized,
            saved,
            layout,
            gadgets,
            memory,
            abandoned,
            since,
            disturbed: false,
        };
        stopped.check_stack()?;
        // Below the red zone, so nobody's bytes: written before any register points there.
        stopped.write(
            stopped.layout.scratch,
            &stopped.saved.image(&layout, &gadgets),
        )?;
        Ok(stopped)
    }

    /// The target.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.seized.pid
    }

    /// How long the thread has been stopped.
    #[must_use]
    pub fn stopped_for(&self) -> std::time::Duration {
        self.since.elapsed()
    }

    /// Where [`SCRATCH_BYTES`] bytes for arguments lie, in the target.
    #[must_use]
    pub fn scratch(&self) -> u64 {
        self.layout.scratch
    }

    /// Copies bytes into the scratch space, from its start.
    pub fn write_scratch(&self, bytes: &[u8]) -> Result<(), InjectError> {
        let bytes = &bytes[..bytes.len().min(SCRATCH_BYTES)];
        self.write(self.layout.scratch, bytes)
    }

    /// Copies words of 32 bits out of the scratch space, from its start.
    pub fn read_scratch<const N: usize>(&self) -> Result<[i32; N], InjectError> {
        const { assert!(N * size_of::<i32>() <= SCRATCH_BYTES) };
        let mut bytes = [0; SCRATCH_BYTES];
        let bytes = &mut bytes[..N * size_of::<i32>()];
        self.memory
            .read_exact_at(bytes, self.layout.scratch)
            .map_err(|source| InjectError::Memory {
                pid: self.seized.pid,
                address: self.layout.scratch,
                source,
            })?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(size_of::<i32>())) {
            *word = i32::from_ne_bytes(bytes.try_into().unwrap_or_default());
        }
        Ok(words)
    }

    /// Lets the thread make one system call. The outer error is ours, the inner one the call's own answer.
    pub fn call(
        &mut self,
        number: i64,
        arguments: [u64; 6],
    ) -> Result<Result<u64, Errno>, InjectError> {
        if self.abandoned.load(Ordering::Acquire) {
            return Err(InjectError::Deadline {
                pid: self.seized.pid,
                limit: self.stopped_for(),
            });
        }
        self.prepare(number, arguments)?;
        self.enter_call()?;
        self.finish()
    }

    /// Everything up to the point where the thread would make the call.
    pub(super) fn prepare(&mut self, number: i64, arguments: [u64; 6]) -> Result<(), InjectError> {
        self.disturbed = true;
        self.saved.prepare_call(
            self.seized.pid,
            &self.layout,
            &self.gadgets,
            number,
            arguments,
        )?;
        // Behind the registers: if we die between the two, the frame gives the thread its mask back.
        set_signal_mask(self.seized.pid, ALL_SIGNALS)
    }

    /// From there to the stop at the call's entry.
    pub(super) fn enter_call(&mut self) -> Result<(), InjectError> {
        self.seized.wait_call()
    }

    /// From the entry stop through the call to its answer.
    fn finish(&mut self) -> Result<Result<u64, Errno>, InjectError> {
        self.seized.wait_call()?;
        let result = arch::call_result(self.seized.pid)?;
        Ok(match result {
            -4095..=-1 => Err(Errno::from_raw(-result as i32)),
            value => Ok(value as u64),
        })
    }

    /// Puts the thread back where it was and lets it go.
    pub(super) fn release(mut self) -> Result<(), InjectError> {
        self.restore()
    }

    fn restore(&mut self) -> Result<(), InjectError> {
        if self.seized.detached || !self.disturbed {
            self.seized.detach();
            return Ok(());
        }
        self.disturbed = false;
        // A call that was interrupted is restarted by the kernel on its way out of a signal stop
        // only, and we stand in a call stop: so one more interrupt.
        self.seized.interrupt()?;
        if self.seized.stopped {
            self.seized.cont(0)?;
        }
        self.seized.wait_interrupted(false)?;
        // The mask first: until the registers are back the frame would restore both.
        set_signal_mask(self.seized.pid, self.saved.signal_mask())?;
        self.saved.restore_registers(self.seized.pid)?;
        self.seized.detach();
        Ok(())
    }

    fn check_stack(&self) -> Result<(), InjectError> {
        let pid = self.seized.pid;
        let (low, high) = (self.layout.scratch, self.layout.end);
        let fits = read_maps(pid)?.iter().any(|m| {
            m.start <= low
                && high <= m.end
                && matches!(
                    m.permissions,
                    Permissions {
                        read: true,
                        write: true,
                        ..
                    }
                )
        });
        if fits {
            Ok(())
        } else {
            Err(InjectError::NoStack {
                pid,
                stack_pointer: self.saved.stack_pointer(),
                needed: high - low,
            })
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), InjectError> {
        self.memory
            .write_all_at(bytes, address)
            .map_err(|source| InjectError::Memory {
                pid: self.seized.pid,
                address,
                source,
            })
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        // On an error path: the target matters more than a second error.
        let _ = self.restore();
    }
}

/// waitid for one process: (si_code, si_status); (0, 0) if WNOHANG found nothing.
fn wait_id(pid: Pid, options: libc::c_int) -> Result<(i32, i32), InjectError> {
    loop {
        // SAFETY: siginfo_t is plain data; all zero is a value of it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` lives through the call and has the type that waitid writes.
        let done = unsafe {
            libc::waitid(
                libc::P_PID,
                pid.as_raw() as libc::id_t,
                &raw mut info,
                options,
            )
        };
        match Errno::result(done) {
            // SAFETY: waitid succeeded, so the fields of the SIGCHLD variant are the ones in use.
            Ok(_) => return Ok((info.si_code, unsafe { info.si_status() })),
            Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Err(InjectError::TargetExited { pid }),
            Err(source) => return Err(InjectError::Wait { pid, source }),
        }
    }
}

/// A register set of a stopped thread, as long as the kernel makes it.
pub(super) fn get_register_set(
    pid: Pid,
    set: libc::c_int,
    max_bytes: usize,
) -> Result<Vec<u8>, InjectError> {
    let mut bytes = vec![0_u8; max_bytes];
    let mut window = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the iovec describes `bytes`, which outlives the call; the kernel writes no more than iov_len.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            pid.as_raw(),
            libc::c_long::from(set),
            &raw mut window,
        )
    };
    Errno::result(done).map_err(|source| InjectError::ptrace(pid, "GETREGSET", source))?;
    bytes.truncate(window.iov_len);
    Ok(bytes)
}

/// The signals that a stopped thread has blocked.
pub(super) fn get_signal_mask(pid: Pid) -> Result<u64, InjectError> {
    let mut mask = 0_u64;
    // SAFETY: the kernel writes the 8 bytes that are announced in the third argument.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_GETSIGMASK,
            pid.as_raw(),
            size_of::<u64>(),
            &raw mut mask,
        )
    };
    Errno::result(done).map_err(|source| InjectError::ptrace(pid, "GETSIGMASK", source))?;
    Ok(mask)
}

fn set_signal_mask(pid: Pid, mask: u64) -> Result<(), InjectError> {
    // SAFETY: the kernel reads the 8 bytes that are announced in the third argument.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_SETSIGMASK,
            pid.as_raw(),
            size_of::<u64>(),
            &raw const mask,
        )
    };
    Errno::result(done)
        .map(drop)
        .map_err(|source| InjectError::ptrace(pid, "SETSIGMASK", source))
}
