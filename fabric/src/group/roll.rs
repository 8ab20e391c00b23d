//! Who is in a group, and who of them counts. Pure.

use super::member::{MemberState, MemberStatus};
use crate::transfer::EndpointIndex;
use crate::transport::RemoteSlice;

/// A member on the roll.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) status: MemberStatus,
    pub(super) endpoint: EndpointIndex,
    pub(super) extents: Vec<RemoteSlice>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roll {
    entries: Vec<Entry>,
}

impl Roll {
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.status.name == name)
    }

    /// A new member; its name and endpoint are new.
    pub(super) fn join(
        &mut self,
        name: String,
        endpoint: EndpointIndex,
        extents: Vec<RemoteSlice>,
    ) {
        self.entries.push(Entry {
            status: MemberStatus {
                name,
                state: MemberState::Joining,
            },
            endpoint,
            extents,
        });
    }

    /// The member has every page. False if it failed meanwhile.
    pub(super) fn filled(&mut self, endpoint: EndpointIndex) -> bool {
        self.change(endpoint, MemberState::Joining, MemberState::Live)
    }

    /// The member missed pages. One that counted stands in the way until that is durable; one that did
    /// not is just gone. True if it is news.
    pub(super) fn failed(&mut self, endpoint: EndpointIndex) -> bool {
        if self.change(endpoint, MemberState::Live, MemberState::Failed) {
            return true;
        }
        let before = self.entries.len();
        self.entries.retain(|entry| {
            entry.endpoint != endpoint || entry.status.state != MemberState::Joining
        });
        self.entries.len() < before
    }

    fn change(&mut self, endpoint: EndpointIndex, from: MemberState, to: MemberState) -> bool {
        for entry in &mut self.entries {
            if entry.endpoint == endpoint && entry.status.state == from {
                entry.status.state = to;
                return true;
            }
        }
        false
    }

    /// It is durable that the members that failed do not count.
    pub(super) fn marked(&mut self) {
        self.entries
            .retain(|entry| entry.status.state != MemberState::Failed);
    }

    pub(super) fn leave(&mut self, endpoint: EndpointIndex) {
        self.entries.retain(|entry| entry.endpoint != endpoint);
    }

    pub(super) fn in_state(&self, state: MemberState) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .filter(move |entry| entry.status.state == state)
    }

    /// Those that take part in a write: all but the failed.
    pub(super) fn writers(&self) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .filter(|entry| entry.status.state != MemberState::Failed)
    }
}
