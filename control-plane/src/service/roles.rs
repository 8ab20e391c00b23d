//! Who may call what.

use tonic::{Request, Status};

use crate::identity::Role;

/// Whether certificates are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// Each caller has one of the cluster.
    Certificates,
    /// Whoever comes may call everything: `--insecure`.
    Nobody,
}

impl Guard {
    /// Whether the caller of `request` has one of `roles`. An admin has all of them.
    pub(super) fn check<T>(self, request: &Request<T>, roles: &[Role]) -> Result<(), Status> {
        if self == Self::Nobody {
            return Ok(());
        }
        let certificates = request.peer_certs();
        let first = certificates.as_ref().and_then(|list| list.first());
        match first.and_then(Role::of) {
            Some(role) if role == Role::Admin || roles.contains(&role) => Ok(()),
            Some(role) => Err(Status::permission_denied(format!(
                "a certificate of the role \"{}\" does not allow this",
                role.word()
            ))),
            None => Err(Status::permission_denied(
                "the certificate names no role of this cluster",
            )),
        }
    }
}
