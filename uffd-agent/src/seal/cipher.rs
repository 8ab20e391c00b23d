//! One page, sealed and opened: AES-256-GCM under the region's own key. Pure.
//!
//! ```text
//!   nonce            page (4 bytes) | version (8 bytes)        never twice: a version is used once a page
//!   associated data  "MYCOSEAL" | region (8) | page (4) | version (8)
//!   tag              16 bytes, kept on this machine
//! ```

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use mycoram_fabric::units::PageIndex;

/// What proves a page, bytes.
pub(crate) const TAG_BYTES: usize = 16;

const MAGIC: &[u8; 8] = b"MYCOSEAL";
const BOUND_BYTES: usize = 28;

/// See the module.
pub(crate) struct Cipher {
    key: LessSafeKey,
    region: u64,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cipher").finish_non_exhaustive()
    }
}

fn nonce(page: PageIndex, version: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&page.get().to_le_bytes());
    nonce[4..].copy_from_slice(&version.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Cipher {
    /// `None`: the key is not 32 bytes.
    pub(crate) fn under(key: &[u8], region: u64) -> Option<Self> {
        let key = UnboundKey::new(&AES_256_GCM, key).ok()?;
        Some(Self {
            key: LessSafeKey::new(key),
            region,
        })
    }

    fn bound(&self, page: PageIndex, version: u64) -> Aad<[u8; BOUND_BYTES]> {
        let mut bound = [0; BOUND_BYTES];
        bound[..8].copy_from_slice(MAGIC);
        bound[8..16].copy_from_slice(&self.region.to_le_bytes());
        bound[16..20].copy_from_slice(&page.get().to_le_bytes());
        bound[20..].copy_from_slice(&version.to_le_bytes());
        Aad::from(bound)
    }

    /// Seals in place. The caller sees to it that no other content is ever sealed as the same version of the
    /// same page.
    pub(crate) fn seal(
        &self,
        page: PageIndex,
        version: u64,
        bytes: &mut [u8],
    ) -> Option<[u8; TAG_BYTES]> {
        let bound = self.bound(page, version);
        let sealed = self
            .key
            .seal_in_place_separate_tag(nonce(page, version), bound, bytes);
        sealed.ok()?.as_ref().try_into().ok()
    }

    /// Opens in place. False: these bytes were not sealed as this version of this page; they mean nothing then.
    pub(crate) fn open(
        &self,
        page: PageIndex,
        version: u64,
        tag: [u8; TAG_BYTES],
        bytes: &mut [u8],
    ) -> bool {
        let bound = self.bound(page, version);
        self.key
            .open_in_place_separate_tag(nonce(page, version), bound, &tag, bytes)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use mycoram_fabric::units::PAGE_BYTES;
    use proptest::prelude::*;

    use super::*;

    fn cipher() -> Cipher {
        Cipher::under(&[7; 32], 9).expect("32 bytes")
    }

    #[test]
    fn a_key_has_32_bytes() {
        assert!(Cipher::under(&[7; 31], 9).is_none());
    }

    #[test]
    fn equal_pages_look_different_each_time_and_everywhere() {
        let sealed = |page: u32, version: u64| {
            let mut bytes = vec![1; PAGE_BYTES];
            cipher()
                .seal(PageIndex::new(page), version, &mut bytes)
                .expect("sealed");
            bytes
        };
        assert_ne!(sealed(1, 1), sealed(1, 2));
        assert_ne!(sealed(1, 1), sealed(2, 1));
        // Page and version do not run into each other.
        assert_ne!(sealed(1, 0), sealed(0, 1));
        assert_ne!(sealed(1, 0), sealed(0, 1 << 32));
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_and_nothing_else_does(
            page in any::<u32>(), version in any::<u64>(), byte in any::<u8>(),
            at in 0..PAGE_BYTES, bit in 0..8_u8,
            other_page in any::<u32>(), other_version in any::<u64>(), tag_bit in 0..128_usize,
        ) {
            let (cipher, index) = (cipher(), PageIndex::new(page));
            let plain: Vec<u8> = (0..PAGE_BYTES).map(|i| byte.wrapping_add(i as u8)).collect();
            let mut sealed = plain.clone();
            let tag = cipher.seal(index, version, &mut sealed).expect("sealed");
            prop_assert_ne!(&sealed, &plain);
            let opens = |cipher: &Cipher, page, version, tag, bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                cipher.open(PageIndex::new(page), version, tag, &mut bytes).then_some(bytes)
            };
            let opened = opens(&cipher, page, version, tag, &sealed);
            prop_assert_eq!(opened.as_ref(), Some(&plain));
            let mut changed = sealed.clone();
            changed[at] ^= 1 << bit;
            prop_assert_eq!(opens(&cipher, page, version, tag, &changed), None);
            let mut other_tag = tag;
            other_tag[tag_bit / 8] ^= 1 << (tag_bit % 8);
            prop_assert_eq!(opens(&cipher, page, version, other_tag, &sealed), None);
            if other_page != page {
                prop_assert_eq!(opens(&cipher, other_page, version, tag, &sealed), None);
            }
            if other_version != version {
                prop_assert_eq!(opens(&cipher, page, other_version, tag, &sealed), None);
            }
            let elsewhere = Cipher::under(&[7; 32], 10).expect("32 bytes");
            prop_assert_eq!(opens(&elsewhere, page, version, tag, &sealed), None);
            let other_key = Cipher::under(&[8; 32], 9).expect("32 bytes");
            prop_assert_eq!(opens(&other_key, page, version, tag, &sealed), None);
            let mut again = plain.clone();
            prop_assert_eq!(cipher.seal(index, version, &mut again), Some(tag));
            prop_assert_eq!(again, sealed);
        }
    }
}
