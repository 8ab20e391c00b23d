//! One connection to a memory node: a request out, its answer back, within a deadline.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Stream};

use crate::units::Epoch;
use crate::wire::control::{ControlError, Request, Response, StatusReport, Welcome, decode_header};
use crate::wire::{FrameError, HEADER_BYTES, Refusal};

/// How many times the deadline a call may take that has the node register or give up memory.
const LONG_CALL: u32 = 10;

/// Why a memory node did not do what it was asked, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection came to be.
    #[error("memory node {node} cannot be reached: is it running and listening there?")]
    Unreachable {
        /// Its control address.
        node: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or the answer did not come in time.
    #[error("the connection to memory node {node} broke")]
    Broke {
        /// Its control address.
        node: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The two did not agree on certificates: one has none, or they are of different clusters.
    #[error("memory node {node} and this program do not take each other's certificates")]
    Tls {
        /// Its control address.
        node: SocketAddr,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// What came back is no message.
    #[error("what {node} answers is not Mycoram's control protocol: is the address right?")]
    Protocol {
        /// Its control address.
        node: SocketAddr,
        /// What is wrong with it.
        #[source]
        source: ControlError,
    },
    /// It speaks another version.
    #[error(
        "memory node {node} speaks version {theirs} of the control protocol, this program version {ours}"
    )]
    Version {
        /// Its control address.
        node: SocketAddr,
        /// This program's.
        ours: u16,
        /// The node's.
        theirs: u16,
    },
    /// An answer, but not to what was asked.
    #[error("memory node {node} answered something that was not asked")]
    Unexpected {
        /// Its control address.
        node: SocketAddr,
    },
    /// The node understood, and does not do it.
    #[error("memory node {node} refused")]
    Refused {
        /// Its control address.
        node: SocketAddr,
        /// Why.
        #[source]
        refusal: Refusal,
    },
}

impl SessionError {
    /// The refusal, if it is one.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }

    /// Whether it says that no process listens at the node's address any more: its memory is gone.
    #[must_use]
    pub fn says_dead(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// A control connection to a memory node, whatever carries it.
pub trait Channel: Send {
    /// The node's control address.
    fn node(&self) -> SocketAddr;

    /// Asks and waits for the answer. A refusal is an error. After any other error the channel is broken.
    fn call(&mut self, epoch: Epoch, request: &Request) -> Result<Response, SessionError>;

    /// A descriptor that becomes readable when the connection ends; nothing else comes unasked.
    fn ending(&self) -> Option<BorrowedFd<'_>>;

    /// Asks who the node is. A data address without a host is that of the control channel's host.
    fn hello(&mut self) -> Result<Welcome, SessionError> {
        match self.call(Epoch::new(0), &Request::Hello)? {
            Response::Welcome(mut welcome) => {
                if welcome.data.ip().is_unspecified() {
                    welcome.data.set_ip(self.node().ip());
                }
                Ok(welcome)
            }
            _ => Err(SessionError::Unexpected { node: self.node() }),
        }
    }

    /// Asks how the node is.
    fn status(&mut self) -> Result<StatusReport, SessionError> {
        match self.call(Epoch::new(0), &Request::Status)? {
            Response::StatusReport(report) => Ok(report),
            _ => Err(SessionError::Unexpected { node: self.node() }),
        }
    }
}

/// Makes channels: over TCP, or in a simulation.
pub trait Dial: Send + Sync {
    /// Connects to a node's control address.
    fn dial(&self, node: SocketAddr) -> Result<Box<dyn Channel>, SessionError>;
}

/// Dials over TCP, without encryption.
#[derive(Clone, Copy, Debug)]
pub struct TcpDial {
    /// How long connecting, and then each call, may take; ten times as long where the node registers or
    /// gives up memory. Default 5 s. Shorter gives up on a node that is doing that for somebody else.
    pub deadline: Duration,
}

impl Default for TcpDial {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
        }
    }
}

impl Dial for TcpDial {
    fn dial(&self, node: SocketAddr) -> Result<Box<dyn Channel>, SessionError> {
        Ok(Box::new(TcpChannel::connect(node, self.deadline)?))
    }
}

/// Dials over TCP, inside of mutual TLS.
#[derive(Clone, Debug)]
pub struct TlsDial {
    /// Which certificates are shown and taken.
    pub tls: Arc<ClientConfig>,
    /// The name that a memory node's certificate has.
    pub name: ServerName<'static>,
    /// As [`TcpDial::deadline`].
    pub deadline: Duration,
}

impl Dial for TlsDial {
    fn dial(&self, node: SocketAddr) -> Result<Box<dyn Channel>, SessionError> {
        let mut channel = TcpChannel::connect(node, self.deadline)?;
        channel.encrypt(Arc::clone(&self.tls), self.name.clone())?;
        Ok(Box::new(channel))
    }
}

/// A control connection over TCP, plain or inside of TLS.
#[derive(Debug)]
pub struct TcpChannel {
    node: SocketAddr,
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    deadline: Duration,
    broken: bool,
}

impl TcpChannel {
    /// Connects; deadlines are those of [`TcpDial`].
    pub fn connect(node: SocketAddr, deadline: Duration) -> Result<Self, SessionError> {
        let connect = || {
            let stream = TcpStream::connect_timeout(&node, deadline)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        Ok(Self {
            node,
            stream: connect().map_err(|source| SessionError::Unreachable { node, source })?,
            tls: None,
            deadline,
            broken: false,
        })
    }

    /// Shakes hands; from then on everything is encrypted.
    fn encrypt(
        &mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<(), SessionError> {
        let node = self.node;
        let handshake = |stream: &mut TcpStream, deadline| {
            let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
            stream.set_write_timeout(Some(deadline))?;
            stream.set_read_timeout(Some(deadline))?;
            while tls.is_handshaking() {
                tls.complete_io(stream)?;
            }
            Ok(tls)
        };
        let tls = handshake(&mut self.stream, self.deadline)
            .map_err(|source| SessionError::Tls { node, source })?;
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => self.stream.write_all(bytes),
            Some(tls) => {
                let mut stream = Stream::new(&mut **tls, &mut self.stream);
                stream.write_all(bytes)?;
                stream.flush()
            }
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.stream.read(into),
            Some(tls) => Stream::new(&mut **tls, &mut self.stream).read(into),
        }
    }

    fn exchange(&mut self, epoch: Epoch, request: &Request) -> Result<Response, Failed> {
        let deadline = match request {
            Request::Allocate(_) | Request::Free { .. } | Request::Release => {
                self.deadline * LONG_CALL
            }
            _ => self.deadline,
        };
        let until = Instant::now() + deadline;
        self.stream.set_write_timeout(Some(deadline))?;
        self.write_all(&request.encode(epoch))?;
        let mut head = [0; HEADER_BYTES];
        self.read_exact(&mut head, until)?;
        let header = decode_header(&head).map_err(ControlError::Frame)?;
        let mut body = vec![0; header.length as usize];
        self.read_exact(&mut body, until)?;
        Ok(Response::decode(&header, &body)?)
    }

    /// As `Read::read_exact`, but the deadline is for all of it.
    fn read_exact(&mut self, mut into: &mut [u8], until: Instant) -> io::Result<()> {
        while !into.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.read(into) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => into = &mut into[read..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

enum Failed {
    Io(io::Error),
    Protocol(ControlError),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ControlError> for Failed {
    fn from(error: ControlError) -> Self {
        Self::Protocol(error)
    }
}

impl Channel for TcpChannel {
    fn node(&self) -> SocketAddr {
        self.node
    }

    fn call(&mut self, epoch: Epoch, request: &Request) -> Result<Response, SessionError> {
        let node = self.node;
        if self.broken {
            let source = io::ErrorKind::NotConnected.into();
            return Err(SessionError::Broke { node, source });
        }
        match self.exchange(epoch, request) {
            Ok(Response::Refused(refusal)) => Err(SessionError::Refused { node, refusal }),
            Ok(response) => Ok(response),
            Err(failed) => {
                self.broken = true;
                Err(match failed {
                    Failed::Io(source) => SessionError::Broke { node, source },
                    Failed::Protocol(ControlError::Frame(FrameError::Version { ours, theirs })) => {
                        SessionError::Version { node, ours, theirs }
                    }
                    Failed::Protocol(source) => SessionError::Protocol { node, source },
                })
            }
        }
    }

    fn ending(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stream.as_fd())
    }
}
