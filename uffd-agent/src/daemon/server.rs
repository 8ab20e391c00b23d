//! The daemon: its listener, its clients, and what an earlier daemon has left.
//!
//! ```text
//!   start: lock -> records of the last daemon -+-> process gone: remote memory freed, forgotten
//!                                              +-> taken over through pidfd_getfd
//!                                              +-> not permitted: waits for the program to connect
//!          -> listen
//!   connection -> thread: who, hello, attach or resume -> keeper
//! ```
//!
//! Owns the table of regions. Which pages are where is each region's own matter.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use mycoram_fabric::random;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::config::{AllowedPeers, DaemonConfig, DaemonConfigError};
use super::ledger::Ledger;
use super::record::{self, RecordError};
use super::shared::{Shared, lock};
use super::socket::{SocketError, accept_at, listen_at};
use super::source::RemoteSource;
use super::succession::take_over_all;
use super::visitor::receive_client;
use crate::kernel::UserfaultDevice;
use crate::seal::{self, SealError};

/// Why a daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be.
    #[error("the daemon's configuration cannot be")]
    Config(#[from] DaemonConfigError),
    /// The key file.
    #[error("the daemon cannot seal pages")]
    Seal(#[from] SealError),
    /// There is one already.
    #[error("another daemon has the state directory {path}")]
    Running {
        /// The directory.
        path: PathBuf,
    },
    /// The state directory.
    #[error("the daemon cannot use its state directory")]
    State(#[from] RecordError),
    /// The lock in it.
    #[error("the daemon cannot make its lock {path}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The socket.
    #[error("the daemon cannot listen at {path}")]
    Listen {
        /// The path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: SocketError,
    },
    /// Something that every process has.
    #[error("the daemon cannot be set up")]
    Kernel(#[from] Errno),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random(#[source] std::io::Error),
}

/// Ends a daemon from another thread or a signal handler's thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    closing: Arc<EventFd>,
}

impl Stopper {
    /// [`Daemon::run`] returns soon. Regions are left for the next daemon; their programs wait.
    pub fn stop(&self) {
        // It can only fail when it has rung 2^64 times.
        let _ = self.closing.write(1);
    }
}

/// A daemon that listens.
pub struct Daemon {
    shared: Arc<Shared>,
    listener: OwnedFd,
    _lock: Flock<File>,
}

impl Daemon {
    /// Takes over what an earlier daemon has left, and listens. Blocks while it takes over.
    pub fn start(config: DaemonConfig, source: Arc<dyn RemoteSource>) -> Result<Self, StartError> {
        config.validate()?;
        if let Some(key) = &config.seal_key {
            seal::check_key_file(key)?;
        }
        record::make_dir(&config.state_dir)?;
        let held = lock_state(&config)?;
        let device = config
            .lend_device
            .then(UserfaultDevice::open)
            .and_then(Result::ok);
        let shared = Arc::new(Shared {
            own_uid: nix::unistd::geteuid().as_raw(),
            local: Mutex::new(Ledger::new(
                config.max_local.get(),
                config.max_local_per_user.get(),
            )),
            far: Mutex::new(Ledger::new(
                config.max_far.get(),
                config.max_far_per_user.get(),
            )),
            connections: Mutex::new(Ledger::new(
                config.max_clients as u64,
                config.max_clients_per_user() as u64,
            )),
            regions: Mutex::new(HashMap::new()),
            random: Mutex::new(random::System::open().map_err(StartError::Random)?),
            threads: Mutex::new(Vec::new()),
            closing: Arc::new(EventFd::from_flags(
                EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
            )?),
            source,
            device,
            config,
        });
        take_over_all(&shared)?;
        let listener = listen(&shared.config)?;
        Ok(Self {
            shared,
            listener,
            _lock: held,
        })
    }

    /// The way to end it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper {
            closing: Arc::clone(&self.shared.closing),
        }
    }

    /// Serves until it is stopped.
    pub fn run(self) {
        loop {
            let mut fds = [
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.shared.closing.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the daemon cannot wait for clients any more");
                    break;
                }
            }
            if fds[1].any() == Some(true) {
                break;
            }
            match accept_at(self.listener.as_fd()) {
                Ok(Some(socket)) => receive_client(&self.shared, socket),
                Ok(None) => {}
                // Out of descriptors, say. Those who wait are accepted when some are free again.
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    let _ = poll(
                        &mut [PollFd::new(self.shared.closing.as_fd(), PollFlags::POLLIN)],
                        PollTimeout::from(100_u16),
                    );
                }
            }
        }
        self.stop();
    }

    fn stop(self) {
        // Also when it was not asked for.
        self.stopper().stop();
        // No new connections: who connects now waits for the next daemon.
        let _ = std::fs::remove_file(&self.shared.config.socket);
        drop(self.listener);
        loop {
            let Some(thread) = lock(&self.shared.threads).pop() else {
                break;
            };
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn lock_state(config: &DaemonConfig) -> Result<Flock<File>, StartError> {
    let path = config.state_dir.join("daemon.lock");
    let failed = |source| StartError::Lock {
        path: path.clone(),
        source,
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EAGAIN => StartError::Running {
            path: config.state_dir.clone(),
        },
        other => failed(other.into()),
    })
}

/// Listens at the configured path. What is there is of a daemon that has ended: we have its lock.
fn listen(config: &DaemonConfig) -> Result<OwnedFd, StartError> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let path = &config.socket;
    let failed = |source| StartError::Listen {
        path: path.clone(),
        source,
    };
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        let _ = std::fs::remove_file(path);
    }
    let listener = listen_at(path).map_err(failed)?;
    // Everybody may knock if not only the daemon's user is let in; who it is the kernel says.
    let mode = match config.allow {
        AllowedPeers::SameUser => 0o600,
        AllowedPeers::Users(_) | AllowedPeers::Everybody => 0o666,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|error| {
        failed(SocketError::Kernel(Errno::from_raw(
            error.raw_os_error().unwrap_or(libc::EIO),
        )))
    })?;
    Ok(listener)
}
