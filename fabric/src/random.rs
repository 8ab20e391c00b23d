//! Random numbers of the system, for secrets and identities. Never for anything that is simulated.

use std::fs::File;
use std::io::{self, Read};

/// The system's generator.
#[derive(Debug)]
pub struct System {
    source: File,
}

impl System {
    /// Opens it, and sees that it works.
    pub fn open() -> io::Result<Self> {
        let mut source = File::open("/dev/urandom")?;
        source.read_exact(&mut [0; 1])?;
        Ok(Self { source })
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.source
            .read_exact(&mut bytes)
            .expect("/dev/urandom gave bytes when it was opened, and never ends");
        bytes
    }

    /// A random number that is not 0.
    pub fn number(&mut self) -> u64 {
        loop {
            let number = u64::from_le_bytes(self.bytes());
            if number != 0 {
                return number;
            }
        }
    }
}
