//! Files of keys: written so that others cannot read them, and refused where others can.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mycoram_fabric::wire::grant::{ClusterKey, KeyError, SigningKey};

/// Most bytes of a key's or a certificate's file.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// Mode bits of group and others.
const OTHERS: u32 = 0o077;

/// Why a key could not be had from its file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file.
    #[error("the file {} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A secret that is none.
    #[error("the key {} can be read by others (mode {mode:03o}): `chmod 600` it", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// What is in it.
    #[error("{} holds no such key", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: KeyError,
    },
}

/// The key that memory nodes check grants with.
pub fn read_cluster_key(path: &Path) -> Result<ClusterKey, KeyFileError> {
    ClusterKey::from_line(&read_text(path)?).map_err(|source| KeyFileError::Key {
        path: path.to_owned(),
        source,
    })
}

/// The key that grants are signed with.
pub fn read_signing_key(path: &Path) -> Result<SigningKey, KeyFileError> {
    SigningKey::from_line(&read_secret(path)?).map_err(|source| KeyFileError::Key {
        path: path.to_owned(),
        source,
    })
}

/// A short file.
pub(crate) fn read_text(path: &Path) -> Result<String, KeyFileError> {
    let read = || {
        if path.metadata()?.len() > MAX_FILE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        std::fs::read_to_string(path)
    };
    read().map_err(|source| KeyFileError::Read {
        path: path.to_owned(),
        source,
    })
}

/// A short file that nobody else may read.
pub(crate) fn read_secret(path: &Path) -> Result<String, KeyFileError> {
    let text = read_text(path)?;
    let metadata = path.metadata().map_err(|source| KeyFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(KeyFileError::Open {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(text)
}

/// Writes a new file: readable by its user only if it is secret. A file that is there is left as it is.
pub(super) fn write_new(path: &Path, text: &str, secret: bool) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(if secret { 0o600 } else { 0o644 })
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
