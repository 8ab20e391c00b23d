//! Where the control plane keeps what it knows, as it is written on a command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::store::{RedbStore, Store, StoreError};

/// `redb:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAddress {
    /// A file of this machine, of one process at a time.
    Redb(PathBuf),
}

/// A text is no address of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no store: give redb:PATH")]
pub struct StoreAddressError {
    text: String,
}

impl FromStr for StoreAddress {
    type Err = StoreAddressError;

    fn from_str(text: &str) -> Result<Self, StoreAddressError> {
        match text.split_once(':') {
            Some(("redb", path)) if !path.is_empty() => Ok(Self::Redb(path.into())),
            _ => Err(StoreAddressError {
                text: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redb(path) => write!(f, "redb:{}", path.display()),
        }
    }
}

impl StoreAddress {
    /// Opens it; a new one is made where there is none.
    pub fn open(&self) -> Result<Box<dyn Store>, StoreError> {
        match self {
            Self::Redb(path) => Ok(Box::new(RedbStore::open(path)?)),
        }
    }
}
