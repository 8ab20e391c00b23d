//! Making a cluster's identity: once, all of it.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mycoram_fabric::random;
use mycoram_fabric::wire::grant::{ClusterId, KeyError, SigningKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use super::keys::write_new;
use super::role::Role;

/// How long certificates are good.
const YEARS: i32 = 10;

/// Why a cluster's identity was not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file or directory. What was there before is left as it was.
    #[error("{} cannot be written", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// The system's reason; `AlreadyExists`: there is a cluster already.
        #[source]
        source: io::Error,
    },
    /// The system's random generator.
    #[error("the system gives no random numbers")]
    Random(#[source] io::Error),
    /// The grant-signing key.
    #[error("the key that grants are signed with could not be made")]
    Key(#[from] KeyError),
    /// A certificate.
    #[error("a certificate could not be made")]
    Certificate(#[from] rcgen::Error),
}

/// Makes `directory` with everything in it, see the module. Gives the cluster's identity.
pub fn init_cluster(directory: &Path) -> Result<ClusterId, InitError> {
    let mut random = random::System::open().map_err(InitError::Random)?;
    let cluster = ClusterId(random.bytes());
    let signing = SigningKey::draw(cluster)?;
    let ca_key = KeyPair::generate()?;
    let ca_params = ca_params(cluster)?;
    let ca = ca_params.self_signed(&ca_key)?.pem();

    make_directory(directory)?;
    write(directory, "ca.crt", &ca, false)?;
    write(directory, "ca.key", &ca_key.serialize_pem(), true)?;
    let issuer = Issuer::new(ca_params, ca_key);
    for role in Role::ALL {
        let part = directory.join(role.word());
        make_directory(&part)?;
        let key = KeyPair::generate()?;
        let certificate = role_params(cluster, role)?.signed_by(&key, &issuer)?;
        write(&part, "ca.crt", &ca, false)?;
        write(&part, "tls.crt", &certificate.pem(), false)?;
        write(&part, "tls.key", &key.serialize_pem(), true)?;
        if matches!(role, Role::Control | Role::Node) {
            write(&part, "cluster.pub", &signing.public().to_line(), false)?;
        }
        if role == Role::Control {
            write(&part, "signing.key", &signing.to_line(), true)?;
        }
    }
    Ok(cluster)
}

fn ca_params(cluster: ClusterId) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = name(cluster, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_years(&mut params);
    Ok(params)
}

fn role_params(cluster: ClusterId, role: Role) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![role.name().to_owned()])?;
    params.distinguished_name = name(cluster, role.word());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    set_years(&mut params);
    Ok(params)
}

fn name(cluster: ClusterId, what: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, format!("mycoram {cluster}"));
    name.push(DnType::CommonName, what);
    name
}

/// From the begin of last year on, so that a clock that is somewhat wrong does no harm.
fn set_years(params: &mut CertificateParams) {
    const SECONDS_A_YEAR: u64 = 31_556_952;
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let years = since.map_or(0, |since| since.as_secs() / SECONDS_A_YEAR);
    let year = 1970 + i32::try_from(years).unwrap_or(0);
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + YEARS, 1, 1);
}

fn make_directory(path: &Path) -> Result<(), InitError> {
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|source| InitError::Write {
            path: path.to_owned(),
            source,
        })
}

fn write(directory: &Path, name: &str, text: &str, secret: bool) -> Result<(), InitError> {
    let path = directory.join(name);
    write_new(&path, text, secret).map_err(|source| InitError::Write { path, source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::{Credentials, KeyFileError, read_cluster_key, read_signing_key};
    use super::*;

    #[test]
    fn a_cluster_is_made_once_and_its_secrets_are_its_users_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("c");
        let cluster = init_cluster(&dir).expect("made");
        assert!(matches!(
            init_cluster(&dir),
            Err(InitError::Write { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists
        ));
        let signing = dir.join("control/signing.key");
        let key = read_signing_key(&signing).expect("a key");
        assert_eq!(key.cluster(), cluster);
        let public = read_cluster_key(&dir.join("node/cluster.pub")).expect("a key");
        assert_eq!(public, key.public());
        let mode = |path: &Path| path.metadata().expect("there").mode() & 0o777;
        for secret in [
            "ca.key",
            "control/signing.key",
            "control/tls.key",
            "node/tls.key",
            "agent/tls.key",
            "admin/tls.key",
        ] {
            assert_eq!(mode(&dir.join(secret)), 0o600, "{secret}");
        }
        for role in Role::ALL {
            let whole = Credentials::read(&dir, role).expect("the whole directory");
            let part = Credentials::read(&dir.join(role.word()), role).expect("its part");
            assert_eq!(whole.role(), Some(role));
            assert_eq!(part.role(), Some(role));
        }
        // A key that others can read is no secret.
        let others = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&signing, others).expect("ours");
        assert!(matches!(
            read_signing_key(&signing),
            Err(KeyFileError::Open { mode: 0o644, .. })
        ));
    }
}
