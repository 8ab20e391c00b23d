//! The compute side: registering memory, and the handshake that makes a queue pair.
//!
//! ```text
//!   connect ---- hello { ticket } ---->  node
//!           <--- welcome { epoch } -----        or welcome { refused }, or another version's header
//! ```

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queue_pair::TcpQueuePair;
use super::ring::RingError;
use super::socket;
use crate::transport::registry::{Registry, RegistryView};
use crate::transport::{
    ConnectError, LocalMemory, MAX_QUEUE_DEPTH, Mapping, QueuePair, QueuePairConfig, RegisterError,
    Ticket, Transport, TransportKind,
};
use crate::units::Epoch;
use crate::wire::data::{DATA_VERSION, FRAME_BYTES, Frame, FrameKind, MalformedFrame, Status};

/// The kernel gives a connection up no sooner than this. The deadline of a queue pair is looked at by
/// its owner; the kernel's also runs while the owner is busy elsewhere and takes no answers, when a peer
/// that waits for it looks dead.
const MIN_USER_TIMEOUT: Duration = Duration::from_secs(5);

/// The tcp transport's compute side.
#[derive(Debug, Default)]
pub struct TcpTransport {
    registry: Arc<Registry>,
}

impl TcpTransport {
    /// With nothing registered yet. The compute side uses plain sockets, so nothing is missing on any
    /// machine; the result is there as it is with the other providers, which may lack a device.
    pub fn new() -> Result<Self, RingError> {
        Ok(Self::default())
    }
}

/// What a handshake can end with, besides success.
enum HandshakeError {
    Refused,
    Protocol,
    Io(io::Error),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Shows the ticket and takes the welcome, all before `deadline`.
fn shake_hands(
    mut stream: &TcpStream,
    ticket: &Ticket,
    deadline: Instant,
) -> Result<Epoch, HandshakeError> {
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    stream.write_all(&Frame::hello(ticket.secret).encode())?;
    let mut bytes = [0; FRAME_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The ring waits for the socket by itself, without these.
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    match Frame::decode(&bytes) {
        Ok(frame) if frame.kind == FrameKind::Welcome => match frame.status {
            Status::Done => Ok(frame.epoch),
            Status::Refused | Status::Fenced => Err(HandshakeError::Refused),
            Status::Version | Status::Access => Err(HandshakeError::Protocol),
        },
        Ok(_) | Err(MalformedFrame::Header(_) | _) => Err(HandshakeError::Protocol),
    }
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

impl Transport for TcpTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Tcp
    }

    fn register(&self, memory: Arc<Mapping>) -> Result<LocalMemory, RegisterError> {
        Ok(self.registry.register(memory))
    }

    fn connect(
        &self,
        peer: SocketAddr,
        ticket: &Ticket,
        config: &QueuePairConfig,
    ) -> Result<Box<dyn QueuePair>, ConnectError> {
        let transport = TransportKind::Tcp;
        let local = |source| ConnectError::Local { transport, source };
        let unreachable = |source| ConnectError::Unreachable {
            peer,
            transport,
            source,
        };
        if config.depth == 0 || config.depth > MAX_QUEUE_DEPTH {
            return Err(local(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        let timeout = Duration::from_millis(config.connect_timeout_ms.max(1).into());
        let deadline = Instant::now() + timeout;
        let stream = TcpStream::connect_timeout(&peer, timeout).map_err(unreachable)?;
        let response = Duration::from_millis(config.response_timeout_ms.max(1).into());
        socket::set_options(&stream, response.max(MIN_USER_TIMEOUT)).map_err(local)?;
        let epoch = shake_hands(&stream, ticket, deadline).map_err(|error| match error {
            HandshakeError::Refused => ConnectError::Refused { peer },
            HandshakeError::Protocol => ConnectError::Protocol {
                peer,
                version: DATA_VERSION,
            },
            HandshakeError::Io(source) => unreachable(source),
        })?;
        let view = RegistryView::new(Arc::clone(&self.registry));
        let pair = TcpQueuePair::new(stream, peer, epoch, view, config).map_err(local)?;
        Ok(Box::new(pair))
    }
}
