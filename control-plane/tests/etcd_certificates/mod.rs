//! Certificates of an etcd cluster: its authority's, its members', and those of who may speak to it.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

/// An authority and what it has signed.
pub(crate) struct Certificates {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        write(&directory.path().join("ca.crt"), &certificate.pem());
        Self {
            directory,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// A certificate and its key, for who is at these addresses.
    pub(crate) fn sign(&self, name: &str, addresses: &[Ipv4Addr]) -> (PathBuf, PathBuf) {
        let names = addresses.iter().map(Ipv4Addr::to_string);
        let mut params = CertificateParams::new(names.collect::<Vec<_>>()).expect("addresses");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let at = |end: &str| self.directory.path().join(format!("{name}.{end}"));
        let (crt, key_file) = (at("crt"), at("key"));
        write(&crt, &certificate.pem());
        write(&key_file, &key.serialize_pem());
        (crt, key_file)
    }

    /// What members are started with, to take only those who show a certificate of this authority.
    pub(crate) fn of_members(&self, addresses: &[Ipv4Addr]) -> Vec<String> {
        let (crt, key) = self.sign("members", addresses);
        let file = |option: &str, path: &Path| format!("--{option}={}", path.display());
        vec![
            file("cert-file", &crt),
            file("key-file", &key),
            file("trusted-ca-file", &self.ca()),
            "--client-cert-auth".to_owned(),
        ]
    }
}

fn write(path: &Path, text: &str) {
    use std::io::Write;
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .expect("a new file");
    file.write_all(text.as_bytes()).expect("written");
}
