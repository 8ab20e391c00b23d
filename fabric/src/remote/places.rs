//! Placing extents of a region that is in use: the placer's work, in the background.
//!
//! ```text
//!   thin: these are to be placed --> authority: where? --> each node: memory for them
//!        ^                               ^                    |      |
//!        |                               '- without this one -' full, absent
//!        |                                                           |
//!        '-- away, no room: later --            directory: kept --> published: writes that were held go on
//! ```
//!
//! An extent counts as placed when all its nodes have memory for it and the owner's directory says so. What
//! was allotted and does not come to that is given back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::changes::{Added, ChangeError};
use super::create::extents_at_a_time;
use super::directory::{Home, Worth};
use super::homes::{Location, Standing as Worthy};
use super::link::{Cause, NodeLink, Trouble};
use super::region::Shared;
use super::thin::Standing;
use crate::authority::AuthorityError;
use crate::units::ExtentIndex;
use crate::wire::Refusal;

/// Memory that nodes have for extents which are being placed.
type Allotted = BTreeMap<(ExtentIndex, u16), (Arc<NodeLink>, Location)>;

impl Shared {
    /// Places what is to be placed now. False: something is left, and is to be tried again.
    pub(super) fn place_more(&self) -> bool {
        let Some(thin) = &self.thin else { return true };
        let mut asking = thin.ask();
        loop {
            if self.is_over() {
                return true;
            }
            let batch = thin.next(&asking);
            if batch.is_empty() {
                thin.stands(&mut asking, Standing::Fine);
                return true;
            }
            let error = match self.place(&batch) {
                Ok(()) => {
                    thin.placed(&mut asking, &batch);
                    continue;
                }
                Err(error) => error,
            };
            let needed = thin.are_needed(&batch);
            let standing = match &error {
                ChangeError::NotOwner => return true,
                ChangeError::Authority(AuthorityError::EpochTooLow { .. }) => {
                    self.fence();
                    return true;
                }
                ChangeError::Authority(AuthorityError::Away(_)) | ChangeError::Directory(_) => {
                    thin.away.fetch_add(1, Ordering::Relaxed);
                    Standing::Away
                }
                _ if thin.too_many(&mut asking, &batch) => continue,
                _ => {
                    thin.refused.fetch_add(1, Ordering::Relaxed);
                    if needed {
                        Standing::Full
                    } else {
                        // Only the reserve is not what it should be.
                        Standing::Fine
                    }
                }
            };
            if thin.stands(&mut asking, standing) && needed {
                tracing::warn!(
                    region = %self.region.id,
                    extent = batch[0].get(),
                    error = &error as &dyn std::error::Error,
                    "extents of the region cannot be placed now; writes to them wait, all others go on"
                );
            }
            thin.again();
            return false;
        }
    }

    /// Places these, all or none.
    fn place(&self, batch: &[ExtentIndex]) -> Result<(), ChangeError> {
        let mut allotted = Allotted::new();
        let mut without: Vec<String> = Vec::new();
        // Ends: each round finds one more node that takes no part, until there are too few.
        let placed = loop {
            match self.try_place(batch, &without, &mut allotted) {
                Ok(placed) => break Ok(placed),
                Err(NotPlaced::Without(node)) => without.push(node),
                Err(NotPlaced::Failed(error)) => break Err(error),
            }
        };
        if let Ok(used) = &placed {
            allotted.retain(|key, _| !used.contains(key));
        }
        let mut unused: BTreeMap<u16, (Arc<NodeLink>, Vec<ExtentIndex>)> = BTreeMap::new();
        for ((extent, node), (link, _)) in allotted {
            let of_node = unused.entry(node).or_insert_with(|| (link, Vec::new()));
            of_node.1.push(extent);
        }
        for (link, extents) in unused.values() {
            link.free(extents);
        }
        placed.map(|_| ())
    }

    fn try_place(
        &self,
        batch: &[ExtentIndex],
        without: &[String],
        allotted: &mut Allotted,
    ) -> Result<Vec<(ExtentIndex, u16)>, NotPlaced> {
        let places = self.authority.place(&self.region, batch, without);
        let places = places.map_err(ChangeError::from)?;
        let most = usize::from(self.region.replicas);
        let sound = |homes: &Vec<u16>| {
            let known = homes.iter().all(|n| usize::from(*n) < places.nodes.len());
            let twice = (1..homes.len()).any(|nth| homes[..nth].contains(&homes[nth]));
            (1..=most).contains(&homes.len()) && known && !twice
        };
        if places.homes.len() != batch.len() || !places.homes.iter().all(sound) {
            return Err(ChangeError::Places.into());
        }
        let mut wanted: BTreeMap<u16, Vec<ExtentIndex>> = BTreeMap::new();
        for (extent, homes) in batch.iter().zip(&places.homes) {
            for node in homes {
                wanted.entry(*node).or_default().push(*extent);
            }
        }
        let mut used = Vec::new();
        for (node, extents) in wanted {
            let entry = &places.nodes[usize::from(node)];
            let absent = || NotPlaced::Without(entry.name.clone());
            let link = match self.link_to(entry) {
                Ok(link) => link,
                Err(ChangeError::Node(error)) => {
                    tracing::debug!(
                        node = %entry.name,
                        error = &error as &dyn std::error::Error,
                        "a memory node takes no part in the region now"
                    );
                    return Err(absent());
                }
                Err(error) => return Err(error.into()),
            };
            let life = places.lives.get(usize::from(node));
            if life.is_some_and(|life| *life != link.record.incarnation) {
                // The authority counts on memory that is no more, or has not heard yet of what is new.
                return Err(absent());
            }
            let missing: Vec<_> = extents
                .iter()
                .copied()
                .filter(|extent| !allotted.contains_key(&(*extent, link.index)))
                .collect();
            self.allot(&link, &missing, allotted)
                .map_err(|failed| failed.unwrap_or_else(absent))?;
            used.extend(extents.iter().map(|extent| (*extent, link.index)));
        }
        self.count_placed(batch, &used, allotted)?;
        Ok(used)
    }

    /// Memory on one node. `Err(None)`: it has none, or takes no part now.
    fn allot(
        &self,
        link: &Arc<NodeLink>,
        missing: &[ExtentIndex],
        allotted: &mut Allotted,
    ) -> Result<(), Option<NotPlaced>> {
        let extent_bytes = self.region.extent_bytes;
        for some in missing.chunks(extents_at_a_time(extent_bytes)) {
            let grants = link.allocate(extent_bytes, some);
            for grant in grants.map_err(|trouble| judge(link, trouble))? {
                let location = Location {
                    addr: grant.addr,
                    rkey: grant.rkey,
                    node: link.index,
                    standing: Worthy::Live,
                };
                let key = (grant.index, link.index);
                allotted.insert(key, (Arc::clone(link), location));
            }
        }
        Ok(())
    }

    /// Durably, and for all lanes to see.
    fn count_placed(
        &self,
        batch: &[ExtentIndex],
        used: &[(ExtentIndex, u16)],
        allotted: &Allotted,
    ) -> Result<(), NotPlaced> {
        let mut changes = self.changes();
        if self.is_over() {
            return Err(ChangeError::NotOwner.into());
        }
        for key in used {
            let (link, _) = &allotted[key];
            if link.is_lost() {
                return Err(NotPlaced::Without(link.record.entry.name.clone()));
            }
        }
        let mut directory = self.directory().clone();
        for (extent, node) in used {
            directory.homes[extent.get() as usize].push(Home {
                node: *node,
                worth: Worth::Live,
            });
        }
        changes.keep(&directory)?;
        *self.directory() = directory;
        let added = used.iter().map(|key| Added {
            extent: key.0,
            location: allotted[key].1,
            tracker: None,
        });
        let added: Vec<_> = added.collect();
        self.publish(batch.iter().copied(), &added, |_| {});
        Ok(())
    }
}

/// `None`: the node is to be left out.
fn judge(link: &NodeLink, trouble: Trouble) -> Option<NotPlaced> {
    match trouble {
        Trouble::Fenced => {
            link.fence();
            Some(ChangeError::NotOwner.into())
        }
        Trouble::Again(Cause::Grant(error)) => Some(ChangeError::from(error).into()),
        Trouble::Again(Cause::Session(error)) if !is_absent(error.refusal()) => {
            Some(ChangeError::Node(error).into())
        }
        Trouble::Again(_) | Trouble::Dead(_) => None,
    }
}

/// Whether who refuses like this is to be left out, as who does not answer.
fn is_absent(refusal: Option<Refusal>) -> bool {
    matches!(
        refusal,
        None | Some(
            Refusal::Full { .. }
                | Refusal::Quota { .. }
                | Refusal::Draining {}
                | Refusal::TooManyRegions { .. }
                | Refusal::TooManyExtents { .. }
                | Refusal::TooManyConnections { .. }
        )
    )
}

/// Why a batch was not placed.
enum NotPlaced {
    /// This node, by name, has no room or is absent: ask again, without it.
    Without(String),
    Failed(ChangeError),
}

impl From<ChangeError> for NotPlaced {
    fn from(error: ChangeError) -> Self {
        Self::Failed(error)
    }
}
