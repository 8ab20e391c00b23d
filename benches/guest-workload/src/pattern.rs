//! What a page holds: 512 words that follow from the seed, the page's number and its generation, so
//! that a page of the wrong place, the wrong time, or only half of one is noticed.

use crate::memory::PAGE_BYTES;

/// A well-mixed function of one number (the finaliser of splitmix64).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn base(seed: u64, page: u64, generation: u64) -> u64 {
    mix(seed ^ mix(page ^ mix(generation)))
}

/// Writes the contents of `page` at `generation`.
pub(crate) fn write(bytes: &mut [u8; PAGE_BYTES], seed: u64, page: u64, generation: u64) {
    let base = base(seed, page, generation);
    for (word, chunk) in (0u64..).zip(bytes.chunks_exact_mut(8)) {
        chunk.copy_from_slice(
            &base
                .wrapping_add(word.wrapping_mul(0x2545_f491_4f6c_dd1d))
                .to_le_bytes(),
        );
    }
}

/// Whether the bytes are what [`write()`] wrote.
pub(crate) fn is(bytes: &[u8; PAGE_BYTES], seed: u64, page: u64, generation: u64) -> bool {
    let base = base(seed, page, generation);
    (0u64..).zip(bytes.chunks_exact(8)).all(|(word, chunk)| {
        chunk
            == base
                .wrapping_add(word.wrapping_mul(0x2545_f491_4f6c_dd1d))
                .to_le_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::{is, write};
    use crate::memory::PAGE_BYTES;

    #[test]
    fn another_place_another_time_and_one_wrong_bit_are_noticed() {
        let mut bytes = [0; PAGE_BYTES];
        write(&mut bytes, 1, 2, 3);
        assert!(is(&bytes, 1, 2, 3));
        assert!(!is(&bytes, 1, 3, 3) && !is(&bytes, 1, 2, 2) && !is(&bytes, 2, 2, 3));
        bytes[4095] ^= 1;
        assert!(!is(&bytes, 1, 2, 3));
        assert!(!is(&[0; PAGE_BYTES], 1, 2, 3));
    }
}
