//! Where a region's extents live, as bytes that its owner keeps: with them a successor takes over.
//!
//! They hold the region's secret. Whoever can read them can take the region over, so they are kept
//! where only the owner reads. Addresses and keys are not in them: those are asked of the nodes.

use std::net::SocketAddr;

use crate::placement::{FailureDomain, MAX_REPLICAS, NodeEntry, RegionEntry};
use crate::transport::TransportKind;
use crate::units::{ByteCount, ExtentIndex, Incarnation};
use crate::wire::control::Token;
use crate::wire::{
    FrameError, HEADER_BYTES, Header, Magic, Malformed, Reader, Wire, put_list, put_text,
};

/// Version of the directory's layout.
const VERSION: u16 = 3;
/// What the frame calls it.
const KIND: u16 = 1;
/// Most bytes of a directory: 16 TiB in the default extents, with room to spare.
const MAX_BYTES: u32 = 16 << 20;
/// Most memory nodes of a region; their indexes are 16 bits wide.
pub(super) const MAX_NODES: usize = 1024;
/// Most extents of a region: a page each in the largest region would be more, which nobody wants.
pub(super) const MAX_EXTENTS: u32 = 4 << 20;
/// Most bytes of a node's name.
const MAX_NAME_BYTES: u32 = 255;

/// A memory node that holds extents of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeRecord {
    pub(super) entry: NodeEntry,
    /// The life of it that holds them.
    pub(super) incarnation: Incarnation,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) region: RegionEntry,
    pub(super) token: Token,
    pub(super) nodes: Vec<NodeRecord>,
    /// The replicas of each extent, in the order in which they came to be. None: it is not placed yet, or it
    /// is lost.
    pub(super) homes: Vec<Vec<Home>>,
    /// Extents of which pages were written, and of which no replica is left; in order.
    pub(super) lost: Vec<ExtentIndex>,
}

/// What a replica is worth, as a successor has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// It has every page as it was last written.
    Live,
    /// It was being copied: worth nothing to a successor.
    Copying,
    /// It missed a write: worth nothing until it is dropped.
    Stale,
}

/// One replica of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    /// Index into [`Directory::nodes`].
    pub(super) node: u16,
    pub(super) worth: Worth,
}

/// Most replicas of an extent in a directory, whatever they are worth.
pub(super) const MAX_HOMES: usize = 16;

/// Why bytes are not a region's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// Fewer bytes than there must be, or more.
    #[error("the directory is cut short, or something follows it")]
    Length,
    /// Header or checksum.
    #[error("the directory is damaged, or not one")]
    Frame(#[from] FrameError),
    /// The body.
    #[error("the directory makes no sense")]
    Body(#[from] Malformed),
    /// It names nodes or extents that there are not.
    #[error("the directory contradicts itself")]
    Inconsistent,
}

impl Directory {
    /// As bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(256 + 2 * self.homes.len());
        self.region.id.put(&mut body);
        self.region.tenant.put(&mut body);
        self.region.bytes.put(&mut body);
        self.region.extent_bytes.put(&mut body);
        self.region.replicas.put(&mut body);
        self.token.put(&mut body);
        put_list(&self.nodes, &mut body);
        put_list(&self.homes, &mut body);
        put_list(&self.lost, &mut body);
        let header = Header::seal(Magic::Directory, VERSION, KIND, self.region.epoch, &body)
            .expect("a directory is bounded by MAX_NODES and MAX_EXTENTS");
        let mut bytes = header.encode(Magic::Directory).to_vec();
        bytes.append(&mut body);
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DirectoryError> {
        let (head, body) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(DirectoryError::Length)?;
        let header = Header::decode(head, Magic::Directory, VERSION, MAX_BYTES)?;
        if header.length as usize != body.len() {
            return Err(DirectoryError::Length);
        }
        header.verify(Magic::Directory, body)?;
        let mut from = Reader::new(body);
        let directory = Self {
            region: RegionEntry {
                id: Wire::get(&mut from)?,
                tenant: Wire::get(&mut from)?,
                epoch: header.epoch,
                bytes: Wire::get(&mut from)?,
                extent_bytes: Wire::get(&mut from)?,
                replicas: Wire::get(&mut from)?,
            },
            token: Wire::get(&mut from)?,
            nodes: from.list(MAX_NODES as u32)?,
            homes: from.list(MAX_EXTENTS)?,
            lost: from.list(MAX_EXTENTS)?,
        };
        from.finish()?;
        let extents = extent_count(&directory.region).ok_or(DirectoryError::Inconsistent)?;
        let known = |homes: &Vec<Home>| {
            homes.iter().enumerate().all(|(nth, home)| {
                usize::from(home.node) < directory.nodes.len()
                    && homes[..nth].iter().all(|other| other.node != home.node)
            })
        };
        if !(1..=MAX_REPLICAS).contains(&directory.region.replicas)
            || directory.homes.len() != extents as usize
            || !directory.homes.iter().all(known)
            || !directory.lost.is_sorted_by(|a, b| a < b)
            || directory.lost.iter().any(|lost| lost.get() >= extents)
        {
            return Err(DirectoryError::Inconsistent);
        }
        Ok(directory)
    }
}

impl Directory {
    /// Whether an extent lives anywhere, or did.
    pub(super) fn is_placed(&self, extent: ExtentIndex) -> bool {
        !self.homes[extent.get() as usize].is_empty() || self.lost.binary_search(&extent).is_ok()
    }

    /// Leaves out nodes that hold nothing, and one life of a node that is named twice.
    pub(super) fn compact(&mut self) {
        let mut renumbered: Vec<Option<u16>> = vec![None; self.nodes.len()];
        let mut kept: Vec<NodeRecord> = Vec::new();
        for home in self.homes.iter_mut().flatten() {
            let number = &mut renumbered[usize::from(home.node)];
            let node = &self.nodes[usize::from(home.node)];
            home.node = *number.get_or_insert_with(|| {
                let same = kept.iter().position(|other| {
                    other.entry.name == node.entry.name && other.incarnation == node.incarnation
                });
                // There are at most MAX_NODES.
                same.unwrap_or_else(|| {
                    kept.push(node.clone());
                    kept.len() - 1
                }) as u16
            });
        }
        self.nodes = kept;
    }
}

/// How many extents a region has; `None` when its sizes make no sense.
pub(super) fn extent_count(region: &RegionEntry) -> Option<u32> {
    let (bytes, extent) = (region.bytes, region.extent_bytes);
    if bytes.get() == 0
        || extent.get() == 0
        || !bytes.is_page_aligned()
        || !extent.is_page_aligned()
    {
        return None;
    }
    // The last page of a region must have an index.
    crate::units::PageCount::holding(bytes)?;
    u32::try_from(bytes.get().div_ceil(extent.get()))
        .ok()
        .filter(|count| *count <= MAX_EXTENTS)
}

impl Wire for NodeRecord {
    fn put(&self, out: &mut Vec<u8>) {
        put_text(&self.entry.name, out);
        self.entry.control.put(out);
        self.entry.transport.put(out);
        let domain = &self.entry.domain;
        for name in [&domain.region, &domain.zone, &domain.rack, &domain.host] {
            put_text(name, out);
        }
        self.incarnation.put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            entry: NodeEntry {
                name: from.text(MAX_NAME_BYTES)?,
                control: SocketAddr::get(from)?,
                transport: TransportKind::get(from)?,
                domain: FailureDomain {
                    region: from.text(MAX_NAME_BYTES)?,
                    zone: from.text(MAX_NAME_BYTES)?,
                    rack: from.text(MAX_NAME_BYTES)?,
                    host: from.text(MAX_NAME_BYTES)?,
                },
            },
            incarnation: Wire::get(from)?,
        })
    }
}

impl Wire for Home {
    fn put(&self, out: &mut Vec<u8>) {
        self.node.put(out);
        let worth: u8 = match self.worth {
            Worth::Live => 0,
            Worth::Copying => 1,
            Worth::Stale => 2,
        };
        worth.put(out);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            node: Wire::get(from)?,
            worth: match u8::get(from)? {
                0 => Worth::Live,
                1 => Worth::Copying,
                2 => Worth::Stale,
                value => {
                    return Err(Malformed::Unknown {
                        what: "worth of a replica",
                        value: u64::from(value),
                    });
                }
            },
        })
    }
}

impl Wire for Vec<Home> {
    fn put(&self, out: &mut Vec<u8>) {
        // At most MAX_HOMES.
        (self.len() as u8).put(out);
        self.iter().for_each(|home| home.put(out));
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = u8::get(from)?;
        if usize::from(count) > MAX_HOMES {
            return Err(Malformed::TooMany {
                count: count.into(),
                limit: MAX_HOMES as u32,
            });
        }
        (0..count).map(|_| Home::get(from)).collect()
    }
}

impl Directory {
    /// For errors before anything was asked of a node.
    pub(super) fn check_sizes(region: &RegionEntry) -> Result<u32, SizeError> {
        extent_count(region).ok_or(SizeError {
            bytes: region.bytes,
            extent_bytes: region.extent_bytes,
        })
    }
}

/// Sizes that no region has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a region of {bytes} in extents of {extent_bytes} cannot be: both are whole pages, not 0, and there \
     are at most 2^32 pages in {MAX_EXTENTS} extents"
)]
pub struct SizeError {
    /// The region's size.
    pub bytes: ByteCount,
    /// Its extents'.
    pub extent_bytes: ByteCount,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, RegionId, TenantId};
    use proptest::prelude::*;

    fn directory(extents: u64, copies: u8) -> Directory {
        let node = |n: u16| NodeRecord {
            entry: NodeEntry {
                name: format!("n{n}"),
                control: SocketAddr::from(([10, 0, 0, 1], 7000 + n)),
                transport: TransportKind::Tcp,
                domain: FailureDomain {
                    zone: format!("z{n}"),
                    ..FailureDomain::default()
                },
            },
            incarnation: Incarnation::new(u64::from(n) + 1),
        };
        Directory {
            region: RegionEntry {
                id: RegionId::new(1),
                tenant: TenantId::new(2),
                epoch: Epoch::new(3),
                bytes: ByteCount::mib(extents),
                extent_bytes: ByteCount::mib(1),
                replicas: copies,
            },
            token: Token([4; 16]),
            nodes: (0..3).map(node).collect(),
            homes: (0..extents)
                .map(|extent| {
                    let home = |copy| Home {
                        node: ((extent + u64::from(copy)) % 3) as u16,
                        worth: [Worth::Live, Worth::Copying, Worth::Stale][usize::from(copy)],
                    };
                    (0..copies).map(home).collect()
                })
                .collect(),
            lost: Vec::new(),
        }
    }

    #[test]
    fn a_directory_is_read_as_it_was_written() {
        for (extents, copies) in [(1, 1), (64, 1), (5, 3)] {
            let written = directory(extents, copies);
            assert_eq!(Directory::decode(&written.encode()), Ok(written));
        }
    }

    #[test]
    fn an_extent_is_placed_lost_or_neither() {
        let mut thin = directory(3, 1);
        thin.homes[1].clear();
        thin.homes[2].clear();
        thin.lost = vec![ExtentIndex::new(2)];
        let read = Directory::decode(&thin.encode()).expect("as it was written");
        let placed = (0..3).map(|extent| read.is_placed(ExtentIndex::new(extent)));
        assert_eq!(placed.collect::<Vec<_>>(), [true, false, true]);
    }

    #[test]
    fn nodes_that_hold_nothing_are_left_out_and_one_life_is_one_node() {
        let mut crowded = directory(2, 1);
        let again = crowded.nodes[1].clone();
        crowded.nodes.push(again);
        // n0 and n2 hold nothing; the first extent is on n1, the second on the same life of n1.
        crowded.homes[0][0].node = 3;
        crowded.homes[1][0].node = 1;
        crowded.compact();
        assert_eq!(crowded.nodes.len(), 1);
        assert_eq!(crowded.nodes[0].entry.name, "n1");
        assert!(crowded.homes.iter().flatten().all(|home| home.node == 0));
    }

    #[test]
    fn one_that_contradicts_itself_is_refused() {
        let mut missing = directory(4, 1);
        missing.homes.pop();
        let mut unknown = directory(4, 1);
        unknown.homes[2][0].node = 3;
        let mut twice = directory(4, 2);
        twice.homes[1][1].node = twice.homes[1][0].node;
        let mut none = directory(4, 1);
        none.region.replicas = 0;
        let mut sizes = directory(4, 1);
        sizes.region.extent_bytes = ByteCount::new(5);
        let mut lost = directory(4, 1);
        lost.lost = vec![ExtentIndex::new(4)];
        for wrong in [missing, unknown, twice, none, sizes, lost] {
            assert_eq!(
                Directory::decode(&wrong.encode()),
                Err(DirectoryError::Inconsistent)
            );
        }
    }

    proptest! {
        #[test]
        fn damage_is_noticed(at: prop::sample::Index, bit in 0..8u8, cut: prop::sample::Index) {
            let bytes = directory(9, 1).encode();
            let mut damaged = bytes.clone();
            damaged[at.index(bytes.len())] ^= 1 << bit;
            prop_assert!(Directory::decode(&damaged).is_err());
            prop_assert!(Directory::decode(&bytes[..cut.index(bytes.len())]).is_err());
        }
    }
}
