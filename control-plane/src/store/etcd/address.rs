//! Where an etcd cluster is, and how it is spoken to.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::members::Members;
use crate::identity::{KeyFileError, read_secret, read_text};

/// Most members that are asked.
const MAX_MEMBERS: usize = 16;
/// Longest prefix.
const MAX_PREFIX: usize = 128;

/// What a store in etcd is told beside its members.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// Its keys begin with this and `/`. Default `mycoram`. Two clusters that share an etcd must differ in it.
    pub prefix: String,
    /// The authority of its members' certificates, for `https`. Default: none is trusted.
    pub ca: Option<PathBuf>,
    /// The certificate and the key that are shown to it. Default: none.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A leader that cannot be heard for so long is followed by another. Default 3 s; etcd rounds up to whole
    /// seconds and makes 2 s of less. Shorter takes over sooner, and more often without need.
    pub leader_lease: Duration,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            prefix: "mycoram".to_owned(),
            ca: None,
            identity: None,
            leader_lease: Duration::from_secs(3),
        }
    }
}

/// Why an etcd cluster cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// None, or too many.
    #[error("{count} members are named: at least one, at most {MAX_MEMBERS} can be")]
    Count {
        /// How many.
        count: usize,
    },
    /// A prefix that is empty or too long.
    #[error("\"{prefix}\" cannot be the prefix of keys: 1 to {MAX_PREFIX} bytes, no \"/\"")]
    Prefix {
        /// What was given.
        prefix: String,
    },
    /// A URL or the certificates.
    #[error("{url} cannot be used")]
    Member {
        /// Which.
        url: String,
        /// What is wrong.
        #[source]
        source: tonic::transport::Error,
    },
    /// A file of certificates, or of a key that others can read.
    #[error("what is shown to etcd, or trusted, cannot be read")]
    File(#[from] KeyFileError),
    /// Threads or descriptors.
    #[error("the threads that speak to etcd could not be started")]
    Threads(#[source] io::Error),
}

/// The files that were named, as they are.
#[derive(Default)]
pub(super) struct Tls {
    pub(super) ca: Option<String>,
    pub(super) identity: Option<(String, String)>,
}

impl Tls {
    fn read(options: &EtcdOptions) -> Result<Self, EtcdError> {
        Ok(Self {
            ca: options.ca.as_deref().map(read_text).transpose()?,
            identity: match &options.identity {
                Some((certificate, key)) => Some((read_text(certificate)?, read_secret(key)?)),
                None => None,
            },
        })
    }
}

/// Checks what was given, and makes what is spoken through. On a runtime.
pub(super) fn members(urls: &[String], options: &EtcdOptions) -> Result<Members, EtcdError> {
    if urls.is_empty() || urls.len() > MAX_MEMBERS {
        return Err(EtcdError::Count { count: urls.len() });
    }
    let prefix = &options.prefix;
    if prefix.is_empty() || prefix.len() > MAX_PREFIX || prefix.contains('/') {
        return Err(EtcdError::Prefix {
            prefix: prefix.clone(),
        });
    }
    Members::new(urls, &Tls::read(options)?)
}
