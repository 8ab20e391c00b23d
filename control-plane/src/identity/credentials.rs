//! What a process shows to others, and what it asks of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mycoram_fabric::session::TlsDial;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use super::keys::{KeyFileError, read_secret, read_text};
use super::role::Role;

/// Why a process has no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// What is in the files.
    #[error("the certificates in {} cannot be used", directory.display())]
    Unusable {
        /// Where they were read.
        directory: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
    /// The certificate is another role's.
    #[error(
        "the certificate in {} is not for the role \"{}\"",
        directory.display(), wanted.word()
    )]
    OtherRole {
        /// Where it was read.
        directory: PathBuf,
        /// The role that was wanted.
        wanted: Role,
    },
}

/// A certificate, its key, and the authority that others' certificates must come from: the files
/// `ca.crt`, `tls.crt` and `tls.key` of one directory.
#[derive(Clone)]
pub struct Credentials {
    directory: PathBuf,
    ca: String,
    certificate: String,
    key: String,
}

impl Credentials {
    /// Reads those of `role`, out of its own directory or out of the whole one that `myco cluster init` made.
    pub fn read(directory: &Path, role: Role) -> Result<Self, CredentialsError> {
        let part = directory.join(role.word());
        let directory = if part.join("tls.crt").exists() {
            part
        } else {
            directory.to_owned()
        };
        let read = Self {
            ca: read_text(&directory.join("ca.crt"))?,
            certificate: read_text(&directory.join("tls.crt"))?,
            key: read_secret(&directory.join("tls.key"))?,
            directory,
        };
        if read.role() == Some(role) {
            Ok(read)
        } else {
            Err(CredentialsError::OtherRole {
                directory: read.directory,
                wanted: role,
            })
        }
    }

    /// Where they were read.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The role that the certificate says.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).ok()?;
        Role::of(&certificate)
    }

    /// For who is called: asks everybody for a certificate of the cluster.
    #[must_use]
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(Identity::from_pem(&self.certificate, &self.key))
            .client_ca_root(Certificate::from_pem(&self.ca))
    }

    /// For a memory node's control channel: asks everybody for a certificate of the cluster, and sends
    /// nothing unasked.
    pub fn channel_server(&self) -> Result<Arc<ServerConfig>, CredentialsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
                .build()
                .map_err(|error| self.unusable(rustls::Error::General(error.to_string())))?;
        let (chain, key) = self.pair()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(chain, key)
            })
            .map_err(|error| self.unusable(error))?;
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// For who opens control channels of memory nodes.
    pub fn channel_client(&self, deadline: Duration) -> Result<TlsDial, CredentialsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = self.roots()?;
        let (chain, key) = self.pair()?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                builder
                    .with_root_certificates(roots)
                    .with_client_auth_cert(chain, key)
            })
            .map_err(|error| self.unusable(error))?;
        let name = ServerName::try_from(Role::Node.name())
            .map_err(|error| self.unusable(rustls::Error::General(error.to_string())))?;
        Ok(TlsDial {
            tls: Arc::new(config),
            name,
            deadline,
        })
    }

    fn unusable(&self, source: rustls::Error) -> CredentialsError {
        CredentialsError::Unusable {
            directory: self.directory.clone(),
            source,
        }
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, CredentialsError> {
        let mut roots = RootCertStore::empty();
        let wrong = |error: pem::Error| self.unusable(rustls::Error::General(error.to_string()));
        for certificate in CertificateDer::pem_slice_iter(self.ca.as_bytes()) {
            let certificate = certificate.map_err(wrong)?;
            roots
                .add(certificate)
                .map_err(|error| self.unusable(error))?;
        }
        Ok(Arc::new(roots))
    }

    fn pair(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CredentialsError> {
        let wrong = |error: pem::Error| self.unusable(rustls::Error::General(error.to_string()));
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(wrong)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(wrong)?;
        Ok((chain, key))
    }

    /// For who calls the control plane.
    #[must_use]
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .domain_name(Role::Control.name())
            .ca_certificate(Certificate::from_pem(&self.ca))
            .identity(Identity::from_pem(&self.certificate, &self.key))
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}
