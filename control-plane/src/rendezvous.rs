//! Weighted rendezvous hashing. Pure.
//!
//! Each node draws a number for each extent, from nothing but its name, its weight and the extent;
//! the highest draw wins. So the order of the file does not matter, a node that is added takes its
//! share from all others and moves nothing else, and one that goes leaves its extents to all others.
//! The score `-weight / ln(u)` gives each node a share of first places in proportion to its weight.

use mycoram_fabric::units::{ExtentIndex, RegionId};

/// How much of the extents a node is to have, in proportion to others. Default 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Weight(f64);

impl Weight {
    /// As much as any other.
    pub const ONE: Self = Self(1.0);
    /// The most: 1 000 000.
    pub const MAX: f64 = 1e6;

    /// A number above 0, up to [`Self::MAX`].
    #[must_use]
    pub fn new(weight: f64) -> Option<Self> {
        (weight > 0.0 && weight <= Self::MAX).then_some(Self(weight))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

/// What stands for a node in the draws: a hash of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeSeed(u64);

impl NodeSeed {
    /// FNV-1a: the same on every machine and in every version.
    pub(crate) fn of(name: &str) -> Self {
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }
}

/// A node's draw for an extent: the higher, the better.
pub(crate) fn score(node: NodeSeed, weight: Weight, region: RegionId, extent: ExtentIndex) -> f64 {
    let drawn = mix(node.0 ^ mix(region.get() ^ mix(u64::from(extent.get()))));
    // 53 bits, in the middle of their steps: never 0 and never 1.
    let uniform = ((drawn >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -weight.0 / uniform.ln()
}

/// The finalizer of SplitMix64: every bit of the input reaches every bit of the output.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
