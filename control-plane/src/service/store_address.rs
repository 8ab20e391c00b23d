//! Where the control plane keeps what it knows, as it is written on a command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::store::{EtcdOptions, EtcdStore, RedbStore, Store, StoreError};

/// `redb:PATH`, or `etcd:URL[,URL...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAddress {
    /// A file of this machine, of one process at a time.
    Redb(PathBuf),
    /// An etcd cluster, that several processes share: URLs of its members.
    Etcd(Vec<String>),
}

/// A text is no address of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no store: give redb:PATH, or etcd:URL,URL...")]
pub struct StoreAddressError {
    text: String,
}

impl FromStr for StoreAddress {
    type Err = StoreAddressError;

    fn from_str(text: &str) -> Result<Self, StoreAddressError> {
        let wrong = || StoreAddressError {
            text: text.to_owned(),
        };
        match text.split_once(':') {
            Some(("redb", path)) if !path.is_empty() => Ok(Self::Redb(path.into())),
            Some(("etcd", urls)) => {
                let urls = urls.split(',').map(|url| member(url).ok_or_else(wrong));
                Ok(Self::Etcd(urls.collect::<Result<_, _>>()?))
            }
            _ => Err(wrong()),
        }
    }
}

/// `http://HOST:PORT` or `https://HOST:PORT`; `HOST:PORT` is the former.
fn member(text: &str) -> Option<String> {
    let (scheme, place) = text.split_once("://").unwrap_or(("http", text));
    let (host, port) = place.strip_suffix('/').unwrap_or(place).rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let known = ["http", "https"].contains(&scheme) && !host.is_empty() && !host.contains('/');
    known.then(|| format!("{scheme}://{host}:{port}"))
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redb(path) => write!(f, "redb:{}", path.display()),
            Self::Etcd(urls) => write!(f, "etcd:{}", urls.join(",")),
        }
    }
}

impl StoreAddress {
    /// Opens it; a new one is made where there is none. `options` are for etcd, which need not run yet.
    pub fn open(&self, options: &EtcdOptions) -> Result<Box<dyn Store>, StoreError> {
        match self {
            Self::Redb(path) => Ok(Box::new(RedbStore::open(path)?)),
            Self::Etcd(urls) => {
                let opened = EtcdStore::open(urls, options);
                let opened = opened.map_err(|error| StoreError::Failed(Box::new(error)))?;
                Ok(Box::new(opened))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_read_as_they_are_written() {
        for (text, written) in [
            ("redb:/var/lib/x", "redb:/var/lib/x"),
            ("etcd:a:1,https://b:2/", "etcd:http://a:1,https://b:2"),
            ("etcd:http://[::1]:2379", "etcd:http://[::1]:2379"),
        ] {
            let store: StoreAddress = text.parse().expect("a store");
            assert_eq!(store.to_string(), written);
        }
        for text in [
            "redb:",
            "etcd:",
            "etcd:a",
            "etcd:a:1,",
            "etcd:ftp://a:1",
            "etcd:http://a:1/x",
            "file:x",
        ] {
            assert!(text.parse::<StoreAddress>().is_err(), "{text}");
        }
    }
}
