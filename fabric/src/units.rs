//! The words of size, place and identity, each a type of its own.
//!
//! An index, a count and a size are different things: `PageIndex` says where, `PageCount` how many,
//! `ByteCount` how large. Arithmetic on them is named and checked; there is no `+`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes in a page. The kernel's own page size on every machine Mycoram supports.
pub const PAGE_BYTES: usize = 4096;
/// `log2(PAGE_BYTES)`.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in an extent where a region's policy says nothing else: 16 MiB.
pub const DEFAULT_EXTENT_BYTES: u64 = 16 << 20;

/// A number that is a type of its own: made by `new`, read by `get`, shown as the format says. Whoever uses it
/// depends on `serde`.
#[macro_export]
macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $format:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            ::serde::Serialize, ::serde::Deserialize,
        )]
        #[serde(transparent)]
        #[repr(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the raw number.
            #[must_use]
            pub const fn new(raw: $inner) -> Self {
                Self(raw)
            }
            /// The raw number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

number!(/** The number of a page inside its region, counted from 0. At most 2^32 pages (16 TiB) a region. */ PageIndex, u32, "page {}");
number!(/** How many pages. */ PageCount, u32, "{} pages");
number!(/** The number of an extent inside its region, counted from 0. */ ExtentIndex, u32, "extent {}");
number!(/** A distance in bytes from the start of a region. */ ByteOffset, u64, "offset {:#x}");
number!(/** The number of a lease; it only grows, and a lower one is refused everywhere. */ Epoch, u64, "epoch {}");
number!(/** Identity of a region, unique in a cluster; random where no control plane gives it. */ RegionId, u64, "region {:016x}");
number!(/** Identity of a tenant: regions of one tenant share a protection domain on a memory node. */ TenantId, u64, "tenant {:016x}");
number!(/** One life of a memory node process: drawn at its start, so that a restart is noticed. */ Incarnation, u64, "incarnation {:016x}");
number!(/** The key with which a peer's registered memory is reached. */ Rkey, u32, "rkey {:#010x}");
number!(/** An address in a peer's registered memory, as the peer counts it. */ RemoteAddr, u64, "remote address {:#x}");

impl PageIndex {
    /// The page that holds the byte at `offset`; `None` past 2^32 pages.
    #[must_use]
    pub fn containing(offset: ByteOffset) -> Option<Self> {
        u32::try_from(offset.0 >> PAGE_SHIFT).ok().map(Self)
    }
    /// Where this page starts in its region.
    #[must_use]
    pub const fn offset(self) -> ByteOffset {
        ByteOffset((self.0 as u64) << PAGE_SHIFT)
    }
    /// The page `count` pages before this one.
    #[must_use]
    pub fn checked_sub(self, count: PageCount) -> Option<Self> {
        self.0.checked_sub(count.0).map(Self)
    }
    /// The page `count` pages behind this one.
    #[must_use]
    pub fn checked_add(self, count: PageCount) -> Option<Self> {
        self.0.checked_add(count.0).map(Self)
    }
    /// The page a signed number of pages away (strides run both ways).
    #[must_use]
    pub fn checked_offset(self, delta: i64) -> Option<Self> {
        i64::from(self.0)
            .checked_add(delta)
            .and_then(|p| u32::try_from(p).ok())
            .map(Self)
    }
    /// Signed distance `self - other` in pages.
    #[must_use]
    pub fn distance_from(self, other: Self) -> i64 {
        i64::from(self.0) - i64::from(other.0)
    }
    /// As an index into a table with an entry a page.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl PageCount {
    /// The fewest pages that hold `bytes`; `None` past 2^32 - 1 pages.
    #[must_use]
    pub fn holding(bytes: ByteCount) -> Option<Self> {
        u32::try_from(bytes.0.div_ceil(PAGE_BYTES as u64))
            .ok()
            .map(Self)
    }
    /// The bytes in this many pages.
    #[must_use]
    pub const fn bytes(self) -> ByteCount {
        ByteCount((self.0 as u64) << PAGE_SHIFT)
    }
    /// As a length of a table with an entry a page.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
    /// All page indexes below this count, in order.
    pub fn indexes(self) -> impl DoubleEndedIterator<Item = PageIndex> {
        (0..self.0).map(PageIndex)
    }
}

impl ByteOffset {
    /// `self + bytes`, or `None` on overflow.
    #[must_use]
    pub fn checked_add(self, bytes: ByteCount) -> Option<Self> {
        self.0.checked_add(bytes.0).map(Self)
    }
}

impl RemoteAddr {
    /// `self + bytes`, or `None` on overflow.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl Epoch {
    /// The next lease's number; `None` after 2^64 - 1.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

/// A size in bytes. Read from and written as `512MiB`, `4KiB`, `10GiB` or a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteCount(u64);

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// Nothing, or no digits in front of the unit.
    #[error("a size is a whole number with a unit, such as 512MiB or 4GiB")]
    NoNumber,
    /// Not one of B, K, KiB, M, MiB, G, GiB, T, TiB.
    #[error("a size ends in B, KiB, MiB, GiB or TiB (K, M, G and T mean the same powers of 1024)")]
    UnknownUnit,
    /// More than 2^64 - 1 bytes.
    #[error("this size is larger than any machine's address space")]
    TooLarge,
}

impl ByteCount {
    /// Wraps a number of bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }
    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
    /// `mib * 2^20` bytes.
    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }
    /// Whole pages only?
    #[must_use]
    pub const fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_BYTES as u64)
    }
    /// As an index type, on the 64-bit machines Mycoram supports.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for ByteCount {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(ParseSizeError::NoNumber);
        }
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(ParseSizeError::UnknownUnit),
        };
        let number: u64 = number.parse().map_err(|_| ParseSizeError::TooLarge)?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or(ParseSizeError::TooLarge)
    }
}

impl Serialize for ByteCount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteCount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteCount;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text such as \"512MiB\"")
            }
            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteCount, E> {
                Ok(ByteCount(bytes))
            }
            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteCount, E> {
                u64::try_from(bytes)
                    .map(ByteCount)
                    .map_err(|_| E::custom("a size is not negative"))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteCount, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteCount, ByteOffset, PageCount, PageIndex, ParseSizeError};

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for bytes in [0, 1, 4095, 4096, 1 << 20, 3 << 20, 5 << 30, (1 << 40) + 1] {
            let size = ByteCount::new(bytes);
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        assert_eq!("2g".parse(), Ok(ByteCount::new(2 << 30)));
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        assert_eq!("".parse::<ByteCount>(), Err(ParseSizeError::NoNumber));
        assert_eq!("-1MiB".parse::<ByteCount>(), Err(ParseSizeError::NoNumber));
        assert_eq!(
            "1.5GiB".parse::<ByteCount>(),
            Err(ParseSizeError::UnknownUnit)
        );
        assert_eq!(
            "10MB".parse::<ByteCount>(),
            Err(ParseSizeError::UnknownUnit)
        );
        assert_eq!(
            "99999999999999999999".parse::<ByteCount>(),
            Err(ParseSizeError::TooLarge)
        );
        assert_eq!(
            "99999999TiB".parse::<ByteCount>(),
            Err(ParseSizeError::TooLarge)
        );
    }

    #[test]
    fn pages_and_bytes_convert_both_ways() {
        assert_eq!(
            PageIndex::containing(ByteOffset::new(8191)),
            Some(PageIndex::new(1))
        );
        assert_eq!(PageIndex::new(2).offset(), ByteOffset::new(8192));
        assert_eq!(
            PageCount::holding(ByteCount::new(4097)),
            Some(PageCount::new(2))
        );
        assert_eq!(PageIndex::containing(ByteOffset::new(u64::MAX)), None);
        assert_eq!(PageIndex::new(3).checked_offset(-4), None);
    }
}
