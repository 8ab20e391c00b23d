//! The signed grant: what the control plane allows an owner, checked by a memory node without asking
//! anybody.
//!
//! ```text
//!   control plane                       owner                        memory node
//!   SigningKey::sign(GrantTerms) -----> SignedGrant --Open{grant}--> ClusterKey::verify
//!                                       (opaque bytes)               Gate: is it for exactly this?
//!
//!   | version | cluster | tenant | region | epoch | not after | token digest | node | life | signature |
//!   | u16     | 16      | u64    | u64    | u64   | u64 ms    | 32           | text | u64  | 64        |
//! ```
//!
//! Ed25519 over all that stands in front of the signature, behind a prefix that no other use of the
//! key has. The digest of the region's token is in it: who overhears a grant, or is given one for
//! another region, lacks the token and opens nothing. Keys are files of one line each.
//!
//! This module reads, writes, signs and checks bytes; it has no clock and opens no file.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::codec::{Malformed, Reader, Wire, put_text};
use super::control::Token;
use crate::units::{Epoch, Incarnation, RegionId, TenantId};

/// The version of the layout.
const GRANT_VERSION: u16 = 2;
/// What the signature covers in front of the terms.
const PREFIX: &[u8] = b"mycoram grant\0";
/// Bytes of a signature.
const SIGNATURE_BYTES: usize = 64;
/// Bytes of a public key.
const PUBLIC_KEY_BYTES: usize = 32;
/// Bytes of a cluster's identity.
pub const CLUSTER_ID_BYTES: usize = 16;
/// Bytes of a token's digest.
pub const DIGEST_BYTES: usize = 32;
/// Most bytes of a node's name in a grant.
pub const MAX_NODE_NAME_BYTES: u32 = 255;
/// Most bytes of a grant.
pub const MAX_GRANT_BYTES: u32 = 512;

const PUBLIC_LINE: &str = "myco-cluster-key-v1";
const SECRET_LINE: &str = "myco-signing-key-v1";

/// Which cluster: drawn when the cluster is made. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId(pub [u8; CLUSTER_ID_BYTES]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl std::str::FromStr for ClusterId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = from_hex(text).ok_or(KeyError::Malformed)?;
        bytes.try_into().map(Self).map_err(|_| KeyError::Malformed)
    }
}

/// The SHA-256 of a region's token: it tells who knows the token, and does not tell the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenDigest(pub [u8; DIGEST_BYTES]);

impl TokenDigest {
    /// That of `token`.
    #[must_use]
    pub fn of(token: &Token) -> Self {
        let mut bytes = [0; DIGEST_BYTES];
        bytes.copy_from_slice(digest(&SHA256, &token.0).as_ref());
        Self(bytes)
    }
}

/// What is granted: to open this region, at this epoch, on this node, by who knows this token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantTerms {
    /// The cluster whose key signs.
    pub cluster: ClusterId,
    /// Whose region.
    pub tenant: TenantId,
    /// Which region.
    pub region: RegionId,
    /// At which epoch, exactly.
    pub epoch: Epoch,
    /// ms since 1970 (UTC) from which on it is worth nothing. A session that is open stays open.
    pub not_after_ms: u64,
    /// Of the region's secret.
    pub token: TokenDigest,
    /// The name of the one node it is for; `None`: any of the cluster.
    pub node: Option<String>,
    /// The life of the node's process that it is for: another one has other memory. `None`: any.
    pub incarnation: Option<Incarnation>,
}

impl GrantTerms {
    fn put(&self, out: &mut Vec<u8>) {
        GRANT_VERSION.put(out);
        self.cluster.0.put(out);
        self.tenant.put(out);
        self.region.put(out);
        self.epoch.put(out);
        self.not_after_ms.put(out);
        self.token.0.put(out);
        put_text(self.node.as_deref().unwrap_or_default(), out);
        self.incarnation.unwrap_or_default().put(out);
    }

    fn get(bytes: &[u8]) -> Result<Self, GrantError> {
        let mut from = Reader::new(bytes);
        let version = u16::get(&mut from)?;
        if version != GRANT_VERSION {
            return Err(GrantError::Version { version });
        }
        let terms = Self {
            cluster: ClusterId(Wire::get(&mut from)?),
            tenant: Wire::get(&mut from)?,
            region: Wire::get(&mut from)?,
            epoch: Wire::get(&mut from)?,
            not_after_ms: Wire::get(&mut from)?,
            token: TokenDigest(Wire::get(&mut from)?),
            node: Some(from.text(MAX_NODE_NAME_BYTES)?).filter(|name| !name.is_empty()),
            // Drawn at random, it is not 0.
            incarnation: Some(<Incarnation as Wire>::get(&mut from)?)
                .filter(|life| life.get() != 0),
        };
        from.finish()?;
        Ok(terms)
    }
}

/// Why bytes are not a grant of this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// Longer than any grant.
    #[error("a grant of {bytes} bytes is announced, at most {MAX_GRANT_BYTES} are taken")]
    TooLong {
        /// Announced.
        bytes: usize,
    },
    /// Of another layout.
    #[error("the grant has layout version {version}, this program knows version {GRANT_VERSION}")]
    Version {
        /// What came.
        version: u16,
    },
    /// Its fields.
    #[error("the grant makes no sense")]
    Body(#[from] Malformed),
    /// The signature is not one of this cluster's key.
    #[error("the grant was not signed with the cluster's key")]
    Forged,
}

/// A grant as it travels: opaque to everybody but a [`ClusterKey`].
#[derive(Clone, PartialEq, Eq)]
pub struct SignedGrant {
    bytes: Box<[u8]>,
}

impl SignedGrant {
    /// Takes bytes that came from elsewhere; only their number is looked at.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GrantError> {
        if bytes.len() > MAX_GRANT_BYTES as usize {
            return Err(GrantError::TooLong { bytes: bytes.len() });
        }
        Ok(Self {
            bytes: bytes.into_boxed_slice(),
        })
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for SignedGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedGrant({} bytes)", self.bytes.len())
    }
}

impl Wire for SignedGrant {
    fn put(&self, out: &mut Vec<u8>) {
        // At most MAX_GRANT_BYTES: the only constructors see to it.
        (self.bytes.len() as u16).put(out);
        out.extend_from_slice(&self.bytes);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = u16::get(from)?;
        if u32::from(count) > MAX_GRANT_BYTES {
            return Err(Malformed::TooMany {
                count: count.into(),
                limit: MAX_GRANT_BYTES,
            });
        }
        let bytes = from.bytes(count.into())?.into();
        Ok(Self { bytes })
    }
}

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the line that it should be.
    #[error("this is not a key of the expected kind: one line, `<kind> <cluster> <key>`")]
    Malformed,
    /// The key itself.
    #[error("the key was rejected: the file is damaged")]
    Rejected,
    /// The system's random generator.
    #[error("no key could be drawn")]
    Draw,
}

/// The public half: what memory nodes check grants with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterKey {
    cluster: ClusterId,
    public: [u8; PUBLIC_KEY_BYTES],
}

impl ClusterKey {
    /// Which cluster's.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The terms of `grant`, if this cluster's control plane signed them.
    pub fn verify(&self, grant: &SignedGrant) -> Result<GrantTerms, GrantError> {
        let split = grant.bytes.len().checked_sub(SIGNATURE_BYTES);
        let (terms, signature) = grant
            .bytes
            .split_at(split.ok_or(GrantError::Body(Malformed::Short))?);
        UnparsedPublicKey::new(&ED25519, self.public)
            .verify(&[PREFIX, terms].concat(), signature)
            .map_err(|_| GrantError::Forged)?;
        GrantTerms::get(terms)
    }

    /// The line of its file.
    #[must_use]
    pub fn to_line(&self) -> String {
        format!("{PUBLIC_LINE} {} {}\n", self.cluster, to_hex(&self.public))
    }

    /// Reads the line of its file.
    pub fn from_line(text: &str) -> Result<Self, KeyError> {
        let (cluster, key) = read_line(text, PUBLIC_LINE)?;
        let public = key.try_into().map_err(|_| KeyError::Malformed)?;
        Ok(Self { cluster, public })
    }
}

/// The secret half: the control plane's alone.
pub struct SigningKey {
    cluster: ClusterId,
    pkcs8: Vec<u8>,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// A new key, of a cluster that is called `cluster`.
    pub fn draw(cluster: ClusterId) -> Result<Self, KeyError> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new())
            .map_err(|_| KeyError::Draw)?;
        Self::from_pkcs8(cluster, pkcs8.as_ref().to_vec())
    }

    fn from_pkcs8(cluster: ClusterId, pkcs8: Vec<u8>) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| KeyError::Rejected)?;
        Ok(Self {
            cluster,
            pkcs8,
            pair,
        })
    }

    /// Which cluster's.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> ClusterKey {
        let mut public = [0; PUBLIC_KEY_BYTES];
        public.copy_from_slice(self.pair.public_key().as_ref());
        ClusterKey {
            cluster: self.cluster,
            public,
        }
    }

    /// Signs. The name of the node has at most [`MAX_NODE_NAME_BYTES`].
    pub fn sign(&self, terms: &GrantTerms) -> Result<SignedGrant, GrantError> {
        let mut signed = PREFIX.to_vec();
        terms.put(&mut signed);
        let signature = self.pair.sign(&signed);
        let mut bytes = signed.split_off(PREFIX.len());
        bytes.extend_from_slice(signature.as_ref());
        SignedGrant::from_bytes(bytes)
    }

    /// The line of its file: keep it where only the control plane reads.
    #[must_use]
    pub fn to_line(&self) -> String {
        format!("{SECRET_LINE} {} {}\n", self.cluster, to_hex(&self.pkcs8))
    }

    /// Reads the line of its file.
    pub fn from_line(text: &str) -> Result<Self, KeyError> {
        let (cluster, pkcs8) = read_line(text, SECRET_LINE)?;
        Self::from_pkcs8(cluster, pkcs8)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.cluster)
    }
}

fn read_line(text: &str, kind: &str) -> Result<(ClusterId, Vec<u8>), KeyError> {
    let mut words = text.split_ascii_whitespace();
    let (found, cluster, key) = (words.next(), words.next(), words.next());
    if found != Some(kind) || words.next().is_some() {
        return Err(KeyError::Malformed);
    }
    let cluster = cluster.ok_or(KeyError::Malformed)?.parse()?;
    let key = key.and_then(from_hex).ok_or(KeyError::Malformed)?;
    Ok((cluster, key))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(cluster: u8) -> SigningKey {
        SigningKey::draw(ClusterId([cluster; 16])).expect("a key")
    }

    fn terms(node: Option<String>, epoch: u64) -> GrantTerms {
        GrantTerms {
            cluster: ClusterId([7; 16]),
            tenant: TenantId::new(1),
            region: RegionId::new(2),
            epoch: Epoch::new(epoch),
            not_after_ms: 1_900_000_000_000,
            token: TokenDigest::of(&Token([3; 16])),
            node,
            incarnation: Some(Incarnation::new(epoch)).filter(|life| life.get() != 0),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_grant_is_read_as_it_was_signed(epoch: u64, node in proptest::option::of("[a-z0-9.-]{1,255}")) {
            let key = key(7);
            let terms = terms(node, epoch);
            let grant = key.sign(&terms).expect("short");
            let mut sent = Vec::new();
            grant.put(&mut sent);
            let got = SignedGrant::get(&mut Reader::new(&sent)).expect("its own bytes");
            prop_assert_eq!(key.public().verify(&got), Ok(terms));
        }

        #[test]
        fn a_flipped_bit_anywhere_is_a_forgery(at: prop::sample::Index, bit in 0..8u8) {
            let key = key(7);
            let grant = key.sign(&terms(Some("n1".into()), 9)).expect("short");
            let mut bytes = grant.as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let forged = SignedGrant::from_bytes(bytes).expect("as long");
            prop_assert_eq!(key.public().verify(&forged), Err(GrantError::Forged));
        }

        #[test]
        fn any_bytes_are_refused_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(grant) = SignedGrant::from_bytes(bytes) {
                prop_assert!(key(7).public().verify(&grant).is_err());
            }
        }
    }

    #[test]
    fn another_clusters_key_signs_nothing_here() {
        let grant = key(7).sign(&terms(None, 1)).expect("short");
        assert_eq!(key(7).public().verify(&grant), Err(GrantError::Forged));
    }

    #[test]
    fn keys_are_read_as_they_were_written() {
        let secret = key(9);
        let read = SigningKey::from_line(&secret.to_line()).expect("its own line");
        assert_eq!(read.public(), secret.public());
        let public = ClusterKey::from_line(&secret.public().to_line()).expect("its own line");
        assert_eq!(public, secret.public());
        assert_eq!(
            ClusterKey::from_line(&secret.to_line()).err(),
            Some(KeyError::Malformed)
        );
        assert_eq!(ClusterKey::from_line("").err(), Some(KeyError::Malformed));
        assert!(!format!("{secret:?}").contains(&to_hex(&secret.pkcs8)));
    }
}
