//! The control channel of a memory node: one request, one answer, in order, over one TCP connection.
//!
//! ```text
//!   Hello      -> Welcome            who are you: incarnation, transport, data address
//!   Open       -> Opened             this connection is now the owner's session of a region
//!   Ticket     -> TicketGiven        the right to connect one queue pair; breaks the one it replaces
//!   Dismiss    -> Dismissed          a queue pair is not needed any more
//!   Allocate   -> Granted            extents by index; asking again gives the same extent again
//!   List       -> Granted            what the region holds here, for an owner that takes over
//!   Free       -> Freed              by index
//!   Release    -> Released           the whole region
//!   KeepAlive  -> Alive              and whether the node is about to leave
//!   Status     -> StatusReport       needs no session
//!   anything   -> Refused            what was asked and what holds; the connection goes on
//! ```
//!
//! The header's epoch is the owner's: the one it asks for in `Open`, the session's afterwards.

use std::net::SocketAddr;

use super::VERSION;
use super::codec::{Malformed, Reader, Wire, put_list, wire_struct};
use super::grant::SignedGrant;
use super::header::{FrameError, HEADER_BYTES, Header, Magic};
use super::refusal::Refusal;
use crate::transport::{Ticket, TransportKind};
use crate::units::{
    ByteCount, Epoch, ExtentIndex, Incarnation, RegionId, RemoteAddr, Rkey, TenantId,
};

/// Most bytes in a body, either way.
pub const MAX_BODY_BYTES: u32 = 32 << 10;
/// Most extents in one message.
pub const MAX_BATCH_EXTENTS: usize = 1024;
/// Bytes of a region's secret.
pub const TOKEN_BYTES: usize = 16;

/// The secret of a region: whoever shows it may take the region over. Drawn by its first owner.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; TOKEN_BYTES]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Compared in a time that does not tell where they differ.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(&other.0).fold(0, |d, (a, b)| d | (a ^ b));
        std::hint::black_box(differing) == 0
    }
}

impl Wire for Token {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Wire::get(from).map(Self)
    }
}

wire_struct! {
    /// Who a memory node is.
    pub struct Welcome {
        /// This life of the node's process. Memory of another life is gone.
        pub incarnation: Incarnation,
        /// Over which transport its memory is reached.
        pub transport: TransportKind,
        /// Where queue pairs connect.
        pub data: SocketAddr,
        /// Bytes that it lends in all.
        pub capacity: ByteCount,
    }
}

wire_struct! {
    /// Makes this connection the owner's session of a region, at the header's epoch.
    pub struct Open {
        /// Whose it is.
        pub tenant: TenantId,
        /// Which region.
        pub region: RegionId,
        /// Its secret; the first owner draws it.
        pub token: Token,
        /// Drawn by each owner process: one that comes again after its connection broke is known by it.
        pub owner: u64,
        /// Whether the region may be new to the node. An owner that takes over says no, and is told
        /// when there is nothing to take over.
        pub create: bool,
        /// What the control plane allows; a node with its cluster's key takes nobody without.
        pub grant: Option<SignedGrant>,
    }
}

wire_struct! {
    /// The session is open.
    pub struct Opened {
        /// Extents that the region has here already.
        pub extents: u32,
        /// Their size; 0 when there are none.
        pub extent_bytes: ByteCount,
    }
}

wire_struct! {
    /// Asks for a queue pair's ticket.
    pub struct TicketRequest {
        /// The ticket of the queue pair that broke. It is dismissed before the answer is sent, so no
        /// write that is still on its way over the old queue pair can land behind one on the new.
        pub replaces: Option<Ticket>,
    }
}

/// Asks for extents. All of them or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocate {
    /// The size of each.
    pub extent_bytes: ByteCount,
    /// Which ones of the region; at most [`MAX_BATCH_EXTENTS`].
    pub indexes: Vec<ExtentIndex>,
}

wire_struct! {
    /// An extent of the region on this node.
    pub struct Grant {
        /// Which one of the region.
        pub index: ExtentIndex,
        /// Where it starts.
        pub addr: RemoteAddr,
        /// With which key.
        pub rkey: Rkey,
    }
}

wire_struct! {
    /// The session lives.
    pub struct Alive {
        /// When the node is being stopped: ms until it ends, with whatever is on it.
        pub drain_ms: Option<u32>,
    }
}

wire_struct! {
    /// What a node says of itself.
    pub struct StatusReport {
        /// This life of its process.
        pub incarnation: Incarnation,
        /// Over which transport its memory is reached.
        pub transport: TransportKind,
        /// Where queue pairs connect.
        pub data: SocketAddr,
        /// ms since it started.
        pub uptime_ms: u64,
        /// Whether it is being stopped.
        pub draining: bool,
        /// Whether its pool is in huge pages.
        pub hugepages: bool,
        /// Bytes that it lends in all.
        pub capacity: ByteCount,
        /// Bytes in extents.
        pub lent: ByteCount,
        /// Bytes that nobody has.
        pub free: ByteCount,
        /// Those of the free bytes that are still to be zeroed before they are lent again.
        pub unzeroed: ByteCount,
        /// Extents.
        pub extents: u64,
        /// Tenants with a region.
        pub tenants: u32,
        /// Regions.
        pub regions: u32,
        /// Regions without an owner now.
        pub orphans: u32,
        /// Open sessions.
        pub sessions: u32,
        /// Control connections, this one included.
        pub control_connections: u32,
        /// Queue pairs.
        pub data_connections: u32,
    }
}

/// What is asked of a memory node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the module's drawing says what each is for")]
pub enum Request {
    Hello,
    Open(Open),
    Ticket(TicketRequest),
    Dismiss(Ticket),
    Allocate(Allocate),
    List { from: ExtentIndex },
    Free { indexes: Vec<ExtentIndex> },
    Release,
    KeepAlive,
    Status,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the module's drawing says what each is for")]
pub enum Response {
    Welcome(Welcome),
    Opened(Opened),
    TicketGiven(Ticket),
    Dismissed,
    Granted(Vec<Grant>),
    Freed { extents: u32 },
    Released { extents: u32 },
    Alive(Alive),
    StatusReport(StatusReport),
    Refused(Refusal),
}

/// Why what came over a control channel is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Its frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Its body.
    #[error("a control message makes no sense")]
    Body(#[from] Malformed),
}

/// Reads the header of a control frame of this version.
pub fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
    Header::decode(bytes, Magic::Control, VERSION, MAX_BODY_BYTES)
}

fn frame(kind: u16, epoch: Epoch, body: &[u8]) -> Vec<u8> {
    // Every body is bounded by the lists in it, far below 2^32.
    let header = Header::seal(Magic::Control, VERSION, kind, epoch, body)
        .expect("control bodies are bounded by MAX_BODY_BYTES");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&header.encode(Magic::Control));
    bytes.extend_from_slice(body);
    bytes
}

impl Request {
    /// The whole frame, header and body.
    #[must_use]
    pub fn encode(&self, epoch: Epoch) -> Vec<u8> {
        let mut body = Vec::new();
        let kind = match self {
            Self::Hello => 1,
            Self::Open(open) => {
                open.put(&mut body);
                2
            }
            Self::Ticket(ticket) => {
                ticket.put(&mut body);
                3
            }
            Self::Allocate(allocate) => {
                allocate.extent_bytes.put(&mut body);
                put_list(&allocate.indexes, &mut body);
                4
            }
            Self::List { from } => {
                from.put(&mut body);
                5
            }
            Self::Free { indexes } => {
                put_list(indexes, &mut body);
                6
            }
            Self::Release => 7,
            Self::KeepAlive => 8,
            Self::Status => 9,
            Self::Dismiss(ticket) => {
                ticket.put(&mut body);
                10
            }
        };
        frame(kind, epoch, &body)
    }

    /// Reads the message behind `header`.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, ControlError> {
        header.verify(Magic::Control, body)?;
        let mut from = Reader::new(body);
        let limit = MAX_BATCH_EXTENTS as u32;
        let request = match header.kind {
            1 => Self::Hello,
            2 => Self::Open(Wire::get(&mut from)?),
            3 => Self::Ticket(Wire::get(&mut from)?),
            4 => Self::Allocate(Allocate {
                extent_bytes: Wire::get(&mut from)?,
                indexes: from.list(limit)?,
            }),
            5 => Self::List {
                from: Wire::get(&mut from)?,
            },
            6 => Self::Free {
                indexes: from.list(limit)?,
            },
            7 => Self::Release,
            8 => Self::KeepAlive,
            9 => Self::Status,
            10 => Self::Dismiss(Wire::get(&mut from)?),
            other => return Err(unknown("request", other)),
        };
        from.finish()?;
        Ok(request)
    }
}

impl Response {
    /// The whole frame, header and body.
    #[must_use]
    pub fn encode(&self, epoch: Epoch) -> Vec<u8> {
        let mut body = Vec::new();
        let kind = match self {
            Self::Welcome(welcome) => {
                welcome.put(&mut body);
                0x8001
            }
            Self::Opened(opened) => {
                opened.put(&mut body);
                0x8002
            }
            Self::TicketGiven(ticket) => {
                ticket.put(&mut body);
                0x8003
            }
            Self::Granted(grants) => {
                put_list(grants, &mut body);
                0x8004
            }
            Self::Freed { extents } => {
                extents.put(&mut body);
                0x8006
            }
            Self::Released { extents } => {
                extents.put(&mut body);
                0x8007
            }
            Self::Alive(alive) => {
                alive.put(&mut body);
                0x8008
            }
            Self::StatusReport(report) => {
                report.put(&mut body);
                0x8009
            }
            Self::Dismissed => 0x800a,
            Self::Refused(refusal) => {
                refusal.put(&mut body);
                0x80ff
            }
        };
        frame(kind, epoch, &body)
    }

    /// Reads the message behind `header`.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, ControlError> {
        header.verify(Magic::Control, body)?;
        let mut from = Reader::new(body);
        let response = match header.kind {
            0x8001 => Self::Welcome(Wire::get(&mut from)?),
            0x8002 => Self::Opened(Wire::get(&mut from)?),
            0x8003 => Self::TicketGiven(Wire::get(&mut from)?),
            0x8004 => Self::Granted(from.list(MAX_BATCH_EXTENTS as u32)?),
            0x8006 => Self::Freed {
                extents: Wire::get(&mut from)?,
            },
            0x8007 => Self::Released {
                extents: Wire::get(&mut from)?,
            },
            0x8008 => Self::Alive(Wire::get(&mut from)?),
            0x8009 => Self::StatusReport(Wire::get(&mut from)?),
            0x800a => Self::Dismissed,
            0x80ff => Self::Refused(Wire::get(&mut from)?),
            other => return Err(unknown("response", other)),
        };
        from.finish()?;
        Ok(response)
    }
}

fn unknown(what: &'static str, value: u16) -> ControlError {
    ControlError::Body(Malformed::Unknown {
        what,
        value: value.into(),
    })
}

#[cfg(test)]
mod tests;
