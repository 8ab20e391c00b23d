//! Who is who in a cluster: its certificate authority, the certificates of each role, and the key that
//! grants are signed with. Files in, files out; it keeps nothing.
//!
//! ```text
//!   myco cluster init DIR
//!     ca.crt  ca.key                                      the authority; the key is needed for nothing daily
//!     control/  ca.crt tls.crt tls.key cluster.pub signing.key   the control plane's machines
//!     node/     ca.crt tls.crt tls.key cluster.pub               memory nodes
//!     agent/    ca.crt tls.crt tls.key                           agents and programs
//!     admin/    ca.crt tls.crt tls.key                           people
//! ```
//!
//! A certificate says a role, as the name `<role>.mycoram`; machines and addresses are not in it. Each
//! directory is copied as it is to the machines of its role. Keys are readable by their user only.

mod authority;
mod credentials;
mod keys;
mod role;

pub use authority::{InitError, init_cluster};
pub use credentials::{Credentials, CredentialsError};
pub use keys::{KeyFileError, read_cluster_key, read_signing_key};
pub(crate) use keys::{read_secret, read_text};
pub use role::Role;
