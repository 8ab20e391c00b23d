//! Why a call came to nothing.

use prost::Message;
use tonic::{Code, Status};

use crate::proto;
use crate::proto::refusal::Kind;

/// Why the control plane did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It cannot be asked. Pages keep flowing; only changes wait.
    #[error(
        "the control plane at {address} is away (asked {tries} times); pages keep flowing, only changes wait"
    )]
    Away {
        /// Where it was asked last.
        address: String,
        /// How often.
        tries: u32,
        /// What was seen the last time.
        #[source]
        source: Box<Status>,
    },
    /// It understood, and does not do it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// What it said makes no sense to this version.
    #[error(
        "the control plane at {address} answers what was not asked: does it have the same version?"
    )]
    Unexpected {
        /// Where it was asked.
        address: String,
    },
}

/// A refusal, in the control plane's words.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Which sort.
    pub code: Code,
    /// What was asked and what holds.
    pub message: String,
    /// What a program can act upon.
    pub kind: Option<Kind>,
}

impl ClientError {
    /// The refusal, if it is one.
    #[must_use]
    pub fn refused(&self) -> Option<&Refused> {
        match self {
            Self::Refused(refused) => Some(refused),
            _ => None,
        }
    }

    /// Whether the control plane could not be asked.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }
}

/// Whether asking again may help.
pub(super) fn is_passing(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => true,
        // A connection that broke under a call, as tonic tells it.
        Code::Unknown | Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

impl From<&Status> for Refused {
    fn from(status: &Status) -> Self {
        let details = proto::Refusal::decode(status.details()).unwrap_or_default();
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            kind: details.kind,
        }
    }
}
