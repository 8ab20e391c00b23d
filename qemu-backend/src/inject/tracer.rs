//! The thread that traces, and the caller that waits for it with a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::unistd::Pid;

use super::{InjectError, Stopped};
use crate::process::ProcessIdentity;

/// How long to wait for a target to stop: 2 s. A thread stops within 200 us unless it waits for a disk.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(2);

/// What the work gave, and what it cost the target.
#[derive(Debug)]
pub struct Injected<T> {
    /// What the work returned.
    pub value: T,
    /// How long the target's main thread stood still.
    pub stopped_for: Duration,
}

/// Stops the main thread of `pid`, runs `work` with it, restores it and lets it go.
///
/// `work` runs on a thread of its own. If the target does not stop within `limit` (it can be in an
/// uninterruptible wait), the error is returned at once and the target is let go when it does stop.
///
/// A caller that is also the target's parent must not wait for its child meanwhile: `waitpid` takes
/// trace stops whatever its options are. Watch a pidfd instead.
pub fn while_stopped<T, F>(pid: Pid, limit: Duration, work: F) -> Result<Injected<T>, InjectError>
where
    T: Send + 'static,
    F: FnOnce(&mut Stopped<'_>) -> Result<T, InjectError> + Send + 'static,
{
    if cfg!(not(any(target_arch = "x86_64", target_arch = "aarch64"))) {
        return Err(InjectError::UnsupportedArchitecture);
    }
    let abandoned = Arc::new(AtomicBool::new(false));
    let (answer, answered) = mpsc::sync_channel(1);
    let tracer = thread::Builder::new()
        .name("myco-tracer".into())
        .spawn({
            let abandoned = Arc::clone(&abandoned);
            move || {
                let result =
                    trace(pid, &abandoned, work).map_err(|error| of_a_dead_target(pid, error));
                // Nobody receives if the deadline has passed: then the value is dropped here.
                let _ = answer.send(result);
            }
        })
        .map_err(InjectError::Thread)?;

    match answered.recv_timeout(limit) {
        Ok(result) => {
            // It has sent its last word: the join only waits for the thread's exit.
            let _ = tracer.join();
            result
        }
        Err(mpsc::RecvTimeoutError::Timeout) => {
            abandoned.store(true, Ordering::Release);
            Err(InjectError::Deadline { pid, limit })
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(InjectError::GivenUp),
    }
}

fn trace<T>(
    pid: Pid,
    abandoned: &AtomicBool,
    work: impl FnOnce(&mut Stopped<'_>) -> Result<T, InjectError>,
) -> Result<Injected<T>, InjectError> {
    let mut stopped = Stopped::stop(pid, abandoned)?;
    let value = work(&mut stopped)?;
    let stopped_for = stopped.stopped_for();
    stopped.release()?;
    Ok(Injected { value, stopped_for })
}

/// A process that ends makes reads and requests fail in many ways; all of them mean the one thing.
fn of_a_dead_target(pid: Pid, error: InjectError) -> InjectError {
    match ProcessIdentity::of(pid) {
        Ok(identity) if identity.is_alive() => error,
        _ => InjectError::TargetExited { pid },
    }
}
