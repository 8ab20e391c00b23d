//! What goes over the one wire between the test bed and the guest's process 1.
//!
//! ```text
//!   host ── Setup ──────────────►  guest: makes the topology
//!   host ◄─ Booted, Ready(env) ──  or Failed
//!   host ── Run(job) ───────────►
//!   host ◄─ Stdout*, Stderr* ────
//!   host ◄─ Ended(exit|signal) ──  then the next Run
//! ```
//!
//! A frame is a kind byte, a length (u32, little endian) and the payload. One stream for both outputs
//! and the ending keeps their order: when `Ended` is read, no output is missing.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Largest payload; output is cut into pieces of at most this.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// What a guest is told first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) topology: crate::Topology,
}

/// One command, as the guest is told to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRequest {
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) environment: Vec<(String, String)>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ending {
    /// Exit code.
    Exited(i32),
    /// Killed by this signal number.
    Signalled(i32),
    /// It never started: the error number.
    NotStarted(i32),
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Booted,
    Setup(Setup),
    Ready(Vec<(String, String)>),
    Failed(Box<str>),
    Run(RunRequest),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Ended(Ending),
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended or broke.
    #[error("the control stream to the guest broke")]
    Io(#[from] io::Error),
    /// An unknown kind byte.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// A length over the bound.
    #[error("a frame of {0} bytes is over the bound")]
    TooLong(usize),
    /// A payload that does not decode.
    #[error("a frame's payload does not decode")]
    Payload(#[from] serde_json::Error),
}

impl Frame {
    /// Writes this frame and flushes.
    pub(crate) fn write_to(&self, out: &mut impl Write) -> Result<(), FrameError> {
        let (kind, payload): (u8, Vec<u8>) = match self {
            Self::Booted => (1, Vec::new()),
            Self::Setup(setup) => (2, serde_json::to_vec(setup)?),
            Self::Ready(environment) => (3, serde_json::to_vec(environment)?),
            Self::Failed(said) => (4, said.as_bytes().to_vec()),
            Self::Run(request) => (5, serde_json::to_vec(request)?),
            Self::Stdout(bytes) => (6, bytes.clone()),
            Self::Stderr(bytes) => (7, bytes.clone()),
            Self::Ended(ending) => (8, serde_json::to_vec(ending)?),
        };
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= PAYLOAD_BYTES_MAX);
        let length = length.ok_or(FrameError::TooLong(payload.len()))?;
        let mut bytes = Vec::with_capacity(payload.len() + 5);
        bytes.push(kind);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&payload);
        out.write_all(&bytes)?;
        out.flush()?;
        Ok(())
    }

    /// Takes one frame off the front of `pending`, if it is all there.
    pub(crate) fn take_from(pending: &mut Vec<u8>) -> Result<Option<Self>, FrameError> {
        let Some(header) = pending.first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if pending.len() < 5 + length {
            return Ok(None);
        }
        let frame = Self::read_from(&mut &pending[..5 + length])?;
        pending.drain(..5 + length);
        Ok(Some(frame))
    }

    /// Reads one frame.
    pub(crate) fn read_from(input: &mut impl Read) -> Result<Self, FrameError> {
        let mut header = [0u8; 5];
        input.read_exact(&mut header)?;
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let mut payload = vec![0u8; length];
        input.read_exact(&mut payload)?;
        Ok(match header[0] {
            1 => Self::Booted,
            2 => Self::Setup(serde_json::from_slice(&payload)?),
            3 => Self::Ready(serde_json::from_slice(&payload)?),
            4 => Self::Failed(String::from_utf8_lossy(&payload).into()),
            5 => Self::Run(serde_json::from_slice(&payload)?),
            6 => Self::Stdout(payload),
            7 => Self::Stderr(payload),
            8 => Self::Ended(serde_json::from_slice(&payload)?),
            kind => return Err(FrameError::Kind(kind)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let frames = [
            Frame::Booted,
            Frame::Setup(Setup {
                topology: crate::Topology::Nodes(3),
            }),
            Frame::Ready(vec![("A".to_owned(), "b".to_owned())]),
            Frame::Failed("no".into()),
            Frame::Run(RunRequest {
                program: "x".to_owned(),
                arguments: vec!["y".to_owned()],
                working_dir: "/".to_owned(),
                environment: Vec::new(),
            }),
            Frame::Stdout(vec![0, 255, 10]),
            Frame::Stderr(Vec::new()),
            Frame::Ended(Ending::Signalled(9)),
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            frame.write_to(&mut wire).unwrap();
        }
        let mut input = wire.as_slice();
        for frame in &frames {
            assert_eq!(&Frame::read_from(&mut input).unwrap(), frame);
        }
        assert!(matches!(
            Frame::read_from(&mut input),
            Err(FrameError::Io(_))
        ));
    }

    #[test]
    fn a_frame_in_pieces_is_waited_for() {
        let mut wire = Vec::new();
        Frame::Stdout(b"abc".to_vec()).write_to(&mut wire).unwrap();
        let last = wire.pop().unwrap();
        assert_eq!(Frame::take_from(&mut wire).unwrap(), None);
        wire.push(last);
        wire.push(9);
        assert_eq!(
            Frame::take_from(&mut wire).unwrap(),
            Some(Frame::Stdout(b"abc".to_vec()))
        );
        assert_eq!(wire, [9]);
    }

    #[test]
    fn refuses_what_no_guest_sends() {
        assert!(matches!(
            Frame::read_from(&mut [9u8, 0, 0, 0, 0].as_slice()),
            Err(FrameError::Kind(9))
        ));
        assert!(matches!(
            Frame::read_from(&mut [6u8, 0, 0, 0, 255].as_slice()),
            Err(FrameError::TooLong(_))
        ));
        assert!(matches!(
            Frame::read_from(&mut [8u8, 1, 0, 0, 0, b'{'].as_slice()),
            Err(FrameError::Payload(_))
        ));
        assert!(
            Frame::Stdout(vec![0; PAYLOAD_BYTES_MAX + 1])
                .write_to(&mut Vec::new())
                .is_err()
        );
    }
}
