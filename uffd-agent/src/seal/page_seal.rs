//! Sealing a page, for whoever wants to know what it costs.

use mycoram_fabric::units::PageIndex;

use super::cipher::{Cipher, TAG_BYTES};

/// Seals and opens pages as a region does, under a key that lives as long as this.
#[derive(Debug)]
pub struct PageSeal {
    cipher: Cipher,
    version: u64,
}

impl PageSeal {
    /// Under a random key. `None`: the system has no random numbers.
    #[must_use]
    pub fn random() -> Option<Self> {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).ok()?;
        Some(Self {
            cipher: Cipher::under(&key, 0)?,
            version: 0,
        })
    }

    /// Seals a page in place and gives its tag.
    pub fn seal(&mut self, page: PageIndex, bytes: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
        self.version += 1;
        self.cipher.seal(page, self.version, bytes)
    }

    /// Opens, in place, the page that was sealed last. Whether it could be.
    #[must_use]
    pub fn open(&self, page: PageIndex, tag: [u8; TAG_BYTES], bytes: &mut [u8]) -> bool {
        self.cipher.open(page, self.version, tag, bytes)
    }
}
