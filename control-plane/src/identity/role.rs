//! What a certificate says of its holder.

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

/// A role in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A control plane process.
    Control,
    /// A memory node.
    Node,
    /// An agent, or a program that has one in it.
    Agent,
    /// A person.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Control, Self::Node, Self::Agent, Self::Admin];

    /// The name of its directory.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Node => "node",
            Self::Agent => "agent",
            Self::Admin => "admin",
        }
    }

    /// The name in its certificate.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control.mycoram",
            Self::Node => "node.mycoram",
            Self::Agent => "agent.mycoram",
            Self::Admin => "admin.mycoram",
        }
    }

    /// The role that a certificate says. That it is one of the cluster was checked before.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = ParsedCertificate::try_from(certificate).ok()?;
        Self::ALL.into_iter().find(|role| {
            ServerName::try_from(role.name())
                .is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
        })
    }
}
