//! A connection to a daemon, before a mapping is attached.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mycoram_fabric::units::{ByteCount, PageCount};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::attached::{Attached, ProgramNotice};
use crate::daemon::message::{self, Kind, Mapping, MessageError, Refusal, Reply, Request};
use crate::daemon::socket::{Socket, SocketError};
use crate::kernel::{
    OpenUserfaultError, ParkingError, ParkingPipe, TargetAddr, TargetRange, TargetRangeError,
    Userfault, UserfaultDevice,
};
use crate::{MAX_PARKING_PIPES, SLOTS_PER_PIPE};

/// Parking pipes that a mapping gets unless the user's pipes are used up: 16.
pub const DEFAULT_PIPES: usize = 16;
/// Fewest that will do.
const LEAST_PIPES: usize = 2;
/// How long a daemon may take to answer hello or attach. Attaching connects to memory nodes.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no daemon to speak to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error("no daemon can be reached at {path}: is `myco agent serve` running?")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The reason.
        #[source]
        source: SocketError,
    },
    /// It says no.
    #[error("the daemon at {path} refuses")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: Refusal,
    },
    /// It speaks something else.
    #[error("what listens at {path} is no daemon of this version")]
    Message {
        /// The socket.
        path: PathBuf,
        /// The reason.
        #[source]
        source: MessageError,
    },
    /// It answers with something else.
    #[error("the daemon at {path} gives an answer that fits no question")]
    Unexpected {
        /// The socket.
        path: PathBuf,
    },
}

/// Why a mapping is not served.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No userfaultfd.
    #[error("the program gets no userfaultfd, and the daemon lends none")]
    Userfault(#[from] OpenUserfaultError),
    /// No pipes.
    #[error("the program gets no parking pipes: raise fs.pipe-user-pages-soft or `ulimit -n`")]
    Pipes(#[from] ParkingError),
    /// Not whole pages.
    #[error("this mapping cannot be served")]
    Range(#[from] TargetRangeError),
    /// The daemon does not.
    #[error("the daemon does not serve the mapping")]
    Daemon(#[from] ConnectError),
    /// No thread, no descriptors.
    #[error("the program lacks something to keep the connection")]
    Thread(#[source] std::io::Error),
    /// No eventfd.
    #[error("the program lacks a descriptor to keep the connection")]
    Descriptor(#[from] Errno),
}

/// What is to be served. The memory must be a memfd whose size is sealed
/// ([`crate::kernel::MemoryFile::create`] makes one), mapped shared.
#[derive(Debug)]
pub struct AttachRequest {
    /// The memfd: kept open until the end.
    pub memory: OwnedFd,
    /// Where the mapping starts in this process.
    pub base: u64,
    /// How long it is.
    pub bytes: ByteCount,
    /// Where it starts in the memfd.
    pub file_offset: u64,
    /// Bytes that may be resident.
    pub local_budget: ByteCount,
    /// Unit of placement.
    pub extent_bytes: ByteCount,
    /// Threads in the daemon that serve its faults; 0: the daemon chooses.
    pub fault_workers: u8,
}

/// What must stay open for as long as the mapping is served, by whichever daemon.
pub(super) struct Held {
    pub(super) userfault: Userfault,
    pub(super) memory: OwnedFd,
    pub(super) pipes: Vec<ParkingPipe>,
}

impl Held {
    /// As they travel.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.userfault.as_fd(), self.memory.as_fd()];
        for pipe in &self.pipes {
            all.extend([pipe.out_end(), pipe.into_end()]);
        }
        all
    }
}

/// A daemon that has said welcome.
#[derive(Debug)]
pub struct Connection {
    path: PathBuf,
    socket: Socket,
    device: Option<UserfaultDevice>,
    free: ByteCount,
    /// Never readable: a connection that is being made is not given up early.
    patience: EventFd,
}

impl Connection {
    /// Connects and says hello. Blocks until the daemon answers, at most half a minute.
    pub fn open(path: &Path) -> Result<Self, ConnectError> {
        let lend_device = matches!(
            Userfault::new_in_this_process(),
            Err(OpenUserfaultError::NotPermitted { .. })
        );
        Self::greet(path, lend_device)
    }

    pub(super) fn greet(path: &Path, lend_device: bool) -> Result<Self, ConnectError> {
        let failed = |source| ConnectError::Socket {
            path: path.to_owned(),
            source,
        };
        let patience = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| failed(SocketError::Kernel(errno)))?;
        let mut connection = Self {
            path: path.to_owned(),
            socket: Socket::connect(path).map_err(failed)?,
            device: None,
            free: ByteCount::new(0),
            patience,
        };
        let hello = Request::Hello { lend_device };
        match connection.ask(&hello, &[])? {
            (Reply::Welcome { free, device }, mut descriptors) => {
                connection.free = free;
                connection.device = descriptors
                    .pop()
                    .filter(|_| device)
                    .map(UserfaultDevice::from_received);
                Ok(connection)
            }
            _ => Err(connection.unexpected()),
        }
    }

    /// Bytes of local memory that the daemon had not promised to anybody when it said welcome.
    #[must_use]
    pub fn free(&self) -> ByteCount {
        self.free
    }

    pub(super) fn unexpected(&self) -> ConnectError {
        ConnectError::Unexpected {
            path: self.path.clone(),
        }
    }

    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }

    /// Asks, and waits for the answer. A refusal is an error.
    pub(super) fn ask(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), ConnectError> {
        let path = || self.path.clone();
        let socket_failed = |source| ConnectError::Socket {
            path: path(),
            source,
        };
        let message_failed = |source| ConnectError::Message {
            path: path(),
            source,
        };
        let bytes = message::encode(Kind::Request, request).map_err(message_failed)?;
        let sent = self.socket.send(&bytes, descriptors);
        // A daemon that refuses right away has closed its end, and its reason is there to be read.
        self.socket
            .wait(ANSWER_PATIENCE, self.patience.as_fd())
            .map_err(socket_failed)?;
        let received = match self.socket.receive() {
            // A reset stands in front of what was sent before it.
            Err(SocketError::Closed) => self.socket.receive(),
            other => other,
        };
        let packet = match (received, sent) {
            (Ok(packet), _) => packet,
            (Err(_), Err(source)) | (Err(source), Ok(())) => return Err(socket_failed(source)),
        };
        match message::decode(Kind::Reply, &packet.bytes).map_err(message_failed)? {
            Reply::Refused(source) => Err(ConnectError::Refused {
                path: path(),
                source,
            }),
            reply => Ok((reply, packet.descriptors)),
        }
    }

    /// A userfaultfd of this process: its own, where it may have one, else through the daemon's device.
    fn userfault(&self) -> Result<Userfault, OpenUserfaultError> {
        match &self.device {
            Some(device) => Userfault::new_from_device(device),
            None => Userfault::new_in_this_process(),
        }
    }

    /// Has a mapping served. `notices` is called, on a thread of its own, with what happens to it. From
    /// now on pages of the mapping may leave at any time.
    pub fn attach(
        self,
        request: AttachRequest,
        notices: impl Fn(ProgramNotice) + Send + 'static,
    ) -> Result<Attached, AttachError> {
        let range = TargetRange::new(TargetAddr::new(request.base), request.bytes.get())?;
        let held = Held {
            userfault: self.userfault()?,
            memory: request.memory,
            pipes: parking_pipes()?,
        };
        let mapping = Mapping {
            base: request.base,
            bytes: request.bytes,
            file_offset: request.file_offset,
            held_uffd: held.userfault.as_fd().as_raw_fd(),
            held_memory: held.memory.as_raw_fd(),
            held_pipes: held
                .pipes
                .iter()
                .map(|pipe| (pipe.out_end().as_raw_fd(), pipe.into_end().as_raw_fd()))
                .collect(),
        };
        let attach = Request::Attach {
            mapping: mapping.clone(),
            local_budget: request.local_budget,
            extent_bytes: request.extent_bytes,
            fault_workers: request.fault_workers,
        };
        match self.ask(&attach, &held.descriptors())? {
            (Reply::Attached { name, token }, _) => {
                let path = self.path.clone();
                let resume = Request::Resume {
                    mapping,
                    name: name.clone(),
                    token,
                };
                Attached::start(path, self.socket, held, range, name, resume, notices)
            }
            _ => Err(self.unexpected().into()),
        }
    }
}

/// As many as usual, or as many as this user may still have.
fn parking_pipes() -> Result<Vec<ParkingPipe>, ParkingError> {
    const { assert!(DEFAULT_PIPES <= MAX_PARKING_PIPES) };
    let mut pipes = Vec::with_capacity(DEFAULT_PIPES);
    while pipes.len() < DEFAULT_PIPES {
        match ParkingPipe::new(PageCount::new(u32::from(SLOTS_PER_PIPE))) {
            Ok(pipe) => pipes.push(pipe),
            Err(_) if pipes.len() >= LEAST_PIPES => break,
            Err(error) => return Err(error),
        }
    }
    Ok(pipes)
}
