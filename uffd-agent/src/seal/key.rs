//! The key file, and the key that a region gets from it.
//!
//! ```text
//!   key file: 32 random bytes, nobody else may read it
//!      | HKDF-SHA256, salt: 32 random bytes of each region, kept in its state file
//!      +--> the region's key        (a salt is never used for a second region, so no two share a key)
//!      '--> a proof, kept beside the salt: a successor with another key file is told so
//! ```

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use mycoram_fabric::units::RegionId;
use serde::{Deserialize, Serialize};

use super::cipher::Cipher;

/// How long a key file is.
pub const KEY_FILE_BYTES: usize = 32;

const SALT_BYTES: usize = 32;
const PROOF_BYTES: usize = 16;
const KEY_USE: &[u8] = b"mycoram page seal 1";
const PROOF_USE: &[u8] = b"mycoram seal proof 1";

/// Why pages cannot be sealed, or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file cannot be read.
    #[error("the key file {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// Not a file, or of another length.
    #[error(
        "{path} is no key: a key file has {KEY_FILE_BYTES} random bytes; make one with `(umask 077; head -c {KEY_FILE_BYTES} /dev/urandom > {path})`"
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Others could have read it.
    #[error(
        "the key file {path} has mode {mode:03o} and belongs to user {owner}: it must belong to user {wanted} or root, and be mode 600 or 400"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        wanted: u32,
    },
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// A sealed region, and no key was named.
    #[error("the region's pages are sealed: name the key file that it was started with")]
    KeyMissing,
    /// A sealed region, and this is not its key.
    #[error("{path} is not the key that the region's pages were sealed with")]
    OtherKey {
        /// The file.
        path: PathBuf,
    },
}

/// What a successor needs besides the key file. No secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealHeader {
    salt: [u8; SALT_BYTES],
    proof: [u8; PROOF_BYTES],
}

/// So many bytes out of a derivation.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

fn derive<const N: usize>(from: &Prk, uses: &[&[u8]]) -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    from.expand(uses, Bytes(N))
        .and_then(|derived| derived.fill(&mut bytes))
        // Never: it is a matter of lengths, which are constants.
        .map_err(|_| SealError::Random)?;
    Ok(bytes)
}

/// The content of a key file that nobody else can read.
fn read(path: &Path) -> Result<[u8; KEY_FILE_BYTES], SealError> {
    let failed = |source| SealError::Read {
        path: path.to_owned(),
        source,
    };
    let no_key = || SealError::NoKey {
        path: path.to_owned(),
    };
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() || about.len() != KEY_FILE_BYTES as u64 {
        return Err(no_key());
    }
    let (mode, owner) = (about.mode() & 0o7777, about.uid());
    let wanted = nix::unistd::geteuid().as_raw();
    if mode & 0o7077 != 0 || (owner != wanted && owner != 0) {
        return Err(SealError::Open {
            path: path.to_owned(),
            mode,
            owner,
            wanted,
        });
    }
    let mut key = [0; KEY_FILE_BYTES];
    file.read_exact(&mut key).map_err(failed)?;
    // All equal: a file that was never filled.
    if key.iter().all(|byte| *byte == key[0]) {
        return Err(no_key());
    }
    Ok(key)
}

/// Whether pages can be sealed with the key in this file: before anything is begun with it.
pub fn check_key_file(path: &Path) -> Result<(), SealError> {
    read(path).map(|mut key| key.fill(0))
}

fn of_region(
    path: &Path,
    region: RegionId,
    salt: &[u8; SALT_BYTES],
) -> Result<(Cipher, [u8; PROOF_BYTES]), SealError> {
    let mut secret = read(path)?;
    let from = Salt::new(HKDF_SHA256, salt).extract(&secret);
    secret.fill(0);
    let id = region.get().to_le_bytes();
    let mut key: [u8; 32] = derive(&from, &[KEY_USE, &id])?;
    let proof = derive(&from, &[PROOF_USE, &id])?;
    let cipher = Cipher::under(&key, region.get()).ok_or(SealError::Random);
    key.fill(0);
    Ok((cipher?, proof))
}

/// For a region that starts, whose key nobody had before.
pub(crate) fn begin(path: &Path, region: RegionId) -> Result<(SealHeader, Cipher), SealError> {
    let mut salt = [0; SALT_BYTES];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| SealError::Random)?;
    let (cipher, proof) = of_region(path, region, &salt)?;
    Ok((SealHeader { salt, proof }, cipher))
}

/// For a region whose agent has died.
pub(crate) fn go_on(
    path: &Path,
    region: RegionId,
    header: &SealHeader,
) -> Result<Cipher, SealError> {
    let (cipher, proof) = of_region(path, region, &header.salt)?;
    if proof != header.proof {
        return Err(SealError::OtherKey {
            path: path.to_owned(),
        });
    }
    Ok(cipher)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use mycoram_fabric::units::{PAGE_BYTES, PageIndex};

    use super::*;

    fn key_file(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, bytes).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        path
    }

    fn random() -> [u8; KEY_FILE_BYTES] {
        let mut bytes = [0; KEY_FILE_BYTES];
        aws_lc_rs::rand::fill(&mut bytes).expect("random numbers");
        bytes
    }

    #[test]
    fn a_file_that_others_may_read_or_that_is_no_key_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = random();
        let refused = |name: &str, bytes: &[u8], mode| {
            let path = key_file(dir.path(), name, bytes, mode);
            begin(&path, RegionId::new(1)).expect_err(name)
        };
        for mode in [0o640, 0o604, 0o610, 0o666] {
            let error = refused("open", &key, mode);
            assert!(matches!(error, SealError::Open { .. }), "{error}");
        }
        for bytes in [&key[..31], &[][..], &[0; 32][..], &[9; 33][..]] {
            let error = refused("short", bytes, 0o600);
            assert!(matches!(error, SealError::NoKey { .. }), "{error}");
        }
        let missing = begin(&dir.path().join("none"), RegionId::new(1)).expect_err("missing");
        assert!(matches!(missing, SealError::Read { .. }), "{missing}");
        let directory = begin(dir.path(), RegionId::new(1)).expect_err("a directory");
        assert!(matches!(directory, SealError::NoKey { .. }), "{directory}");
        for mode in [0o600, 0o400] {
            let path = key_file(dir.path(), "right", &key, 0o600);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            assert!(begin(&path, RegionId::new(1)).is_ok());
        }
    }

    #[test]
    fn a_successor_opens_with_the_same_file_only_and_no_two_regions_share_a_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = key_file(dir.path(), "key", &random(), 0o600);
        let other = key_file(dir.path(), "other", &random(), 0o600);
        let region = RegionId::new(5);
        let page = PageIndex::new(3);
        let (header, cipher) = begin(&path, region).expect("begun");
        let mut bytes = vec![1; PAGE_BYTES];
        let tag = cipher.seal(page, 1, &mut bytes).expect("sealed");
        let opens = |cipher: &Cipher| cipher.open(page, 1, tag, &mut bytes.clone());
        assert!(opens(&go_on(&path, region, &header).expect("the same")));
        let error = go_on(&other, region, &header).expect_err("another key");
        assert!(matches!(error, SealError::OtherKey { .. }), "{error}");
        // The same region again, and the same file: a new salt.
        let (again, cipher) = begin(&path, region).expect("begun");
        assert_ne!(header, again);
        assert!(!opens(&cipher));
    }
}
