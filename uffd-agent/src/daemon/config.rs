//! What a daemon is told.

use std::path::PathBuf;

use mycoram_fabric::units::ByteCount;

use crate::DEFAULT_STATE_DIR;

/// Who may connect. The kernel says who it is (SO_PEERCRED); the socket's mode follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedPeers {
    /// Root and the user that the daemon runs as. The default.
    SameUser,
    /// These users too.
    Users(Vec<u32>),
    /// Everybody on the machine.
    Everybody,
}

impl AllowedPeers {
    /// Is `uid` among them? `own` is the daemon's.
    #[must_use]
    pub fn allows(&self, uid: u32, own: u32) -> bool {
        let always = uid == 0 || uid == own;
        match self {
            Self::SameUser => always,
            Self::Users(users) => always || users.contains(&uid),
            Self::Everybody => true,
        }
    }
}

/// A daemon's configuration.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// The socket. Made anew at the start; the directory must exist.
    pub socket: PathBuf,
    /// Where page tables and records live: a tmpfs directory of the daemon's own, made when missing, with
    /// mode 0700. Records and directories in it are secrets of its clients.
    pub state_dir: PathBuf,
    /// Bytes that all clients together may have resident.
    pub max_local: ByteCount,
    /// Bytes that the clients of one user together may have resident. Default: half of `max_local`, so
    /// that no user can take all.
    pub max_local_per_user: ByteCount,
    /// Bytes that all clients together may have on memory nodes. Default: no bound but the nodes' own.
    /// A page costs this machine 16 bytes, resident or not.
    pub max_far: ByteCount,
    /// Bytes that the clients of one user together may have on memory nodes. Default: no bound.
    pub max_far_per_user: ByteCount,
    /// Most connections, attached or not. Default 64; a user may have three quarters of them. Each costs a
    /// thread, each region two or more.
    pub max_clients: usize,
    /// Who may connect.
    pub allow: AllowedPeers,
    /// Whether a client that may not make a userfaultfd itself is lent the daemon's /dev/userfaultfd.
    /// Default yes: without, clients need CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1. A process with
    /// a userfaultfd can make the kernel wait in the middle of a system call: allow those you trust.
    pub lend_device: bool,
    /// The key file that every client's pages are sealed with; each region has a key of its own from it. Default:
    /// none, pages leave as they are. A daemon that inherits sealed regions needs the same file.
    pub seal_key: Option<PathBuf>,
}

/// Why a configuration cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DaemonConfigError {
    /// A user's share above all there is, or nothing to share.
    #[error("a user's share of {per_user} must be at least 1MiB and at most the whole of {total}")]
    Share {
        /// Of one user.
        per_user: ByteCount,
        /// Of all.
        total: ByteCount,
    },
    /// None at all, or more than can be served.
    #[error("the number of clients must be 1 to {most}, and is {asked}")]
    Clients {
        /// Asked for.
        asked: usize,
        /// Bound.
        most: usize,
    },
}

/// Most connections that can be asked for: 1024.
const MOST_CLIENTS: usize = 1024;
/// Smallest share of a user that makes sense.
const LEAST_SHARE: ByteCount = ByteCount::mib(1);

impl DaemonConfig {
    /// The defaults, at this socket and with this much memory for all.
    #[must_use]
    pub fn new(socket: PathBuf, max_local: ByteCount) -> Self {
        Self {
            socket,
            state_dir: PathBuf::from(DEFAULT_STATE_DIR).join("daemon"),
            max_local,
            max_local_per_user: ByteCount::new(max_local.get() / 2),
            max_far: ByteCount::new(u64::MAX),
            max_far_per_user: ByteCount::new(u64::MAX),
            max_clients: 64,
            allow: AllowedPeers::SameUser,
            lend_device: true,
            seal_key: None,
        }
    }

    /// How many connections one user may have.
    pub(super) fn max_clients_per_user(&self) -> usize {
        (self.max_clients * 3 / 4).max(1)
    }

    /// Checks what no single field can say.
    pub fn validate(&self) -> Result<(), DaemonConfigError> {
        let (per_user, total) = (self.max_local_per_user, self.max_local);
        if per_user < LEAST_SHARE || per_user > total {
            return Err(DaemonConfigError::Share { per_user, total });
        }
        if !(1..=MOST_CLIENTS).contains(&self.max_clients) {
            return Err(DaemonConfigError::Clients {
                asked: self.max_clients,
                most: MOST_CLIENTS,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_connect() {
        let users = AllowedPeers::Users(vec![7]);
        for (peers, uid, allowed) in [
            (&AllowedPeers::SameUser, 1000, true),
            (&AllowedPeers::SameUser, 0, true),
            (&AllowedPeers::SameUser, 7, false),
            (&users, 7, true),
            (&users, 1000, true),
            (&users, 8, false),
            (&AllowedPeers::Everybody, 8, true),
        ] {
            assert_eq!(peers.allows(uid, 1000), allowed, "{peers:?} {uid}");
        }
    }

    #[test]
    fn impossible_shares_do_not_validate() {
        let mut config = DaemonConfig::new("/tmp/socket".into(), ByteCount::mib(64));
        assert_eq!(config.validate(), Ok(()));
        config.max_local_per_user = ByteCount::mib(65);
        assert!(matches!(
            config.validate(),
            Err(DaemonConfigError::Share { .. })
        ));
        config.max_local_per_user = ByteCount::mib(64);
        config.max_clients = 0;
        assert!(matches!(
            config.validate(),
            Err(DaemonConfigError::Clients { .. })
        ));
    }
}
