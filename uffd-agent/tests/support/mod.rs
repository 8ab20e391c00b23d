//! What the tests of a running agent share: a remote region in memory that fails on order, and a target that
//! is this very process.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

pub mod fake_remote;
pub mod local_target;
pub mod losses;
pub mod sigbus;

/// A key file as `RegionConfig::seal_key` wants it, made once in a directory.
pub fn key_file(dir: &std::path::Path) -> std::path::PathBuf {
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join("seal.key");
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    if let Ok(mut file) = made {
        let mut key = [0; mycoram_agent::seal::KEY_FILE_BYTES];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut key))
            .and_then(|()| file.write_all(&key))
            .expect("a key");
    }
    path
}

/// A seeded generator: the failing seed is all that is needed to run a test again.
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
