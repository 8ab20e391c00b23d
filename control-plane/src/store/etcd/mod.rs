//! A store in etcd, that several control planes share. One of them leads.
//!
//! ```text
//!   lead      PREFIX/leader is not there -> put it with our lease; its create revision is the guard
//!   commit    if PREFIX/leader has the guard, and PREFIX/state is as we know it:
//!                 put the records, put the next state
//!             else: somebody else leads. Nothing was written
//!   confirm   the same question, nothing written
//! ```
//!
//! A leader that was stopped, cut off or slow, and has been followed since, therefore changes nothing, however
//! late its transactions arrive, and gives no answer out of what it remembers.
//!
//! A batch of more keys or bytes than one transaction may have is first written aside, in parts; it is
//! committed by the transaction that names the parts in the state; then its changes go to the records, by
//! whoever leads. Reading lays the parts over the records, so that it is seen whole or not at all.

mod address;
mod api;
mod connection;
mod lease;
mod members;
mod notes;
mod transaction;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tonic::transport::Channel;

pub use self::address::{EtcdError, EtcdOptions};
use self::api::kv_client::KvClient;
use self::api::{KeyValue, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse};
use self::lease::Lease;
use self::members::{InVain, Members, is_full};
use self::notes::{Change, Keys, State, end_of, overlay, pack, unpack};
use self::transaction::{delete_range, guarded, is_new, put, range, ranges_of, stands};
use super::format::{decode, decode_key, encode, encode_key};
use super::{Lead, Loaded, Probe, ProcessSeen, Revision, Store, StoreError, StoreHealth};
use crate::cluster::Batch;

/// How long a commit goes on while members are away. Longer than an election among them takes.
const WRITE: Duration = Duration::from_secs(4);
/// How long reading does.
const READ: Duration = Duration::from_secs(3);
/// How long one try to lead does.
const LEAD: Duration = Duration::from_secs(2);
/// How long the lease is tried to be given back.
const END: Duration = Duration::from_secs(1);
/// Most changes of a transaction; etcd takes 128 operations.
const MAX_OPS: usize = 96;
/// Most bytes of changes of a transaction; etcd takes requests of 1.5 MiB.
const MAX_TXN_BYTES: usize = 1 << 20;
/// Keys that are read at once.
const PAGE: i64 = 64;
/// Largest answer: a page of the largest records.
const MAX_ANSWER_BYTES: usize = 96 << 20;
/// How often all is read again because what was being read was compacted meanwhile.
const RESTARTS: u32 = 3;

/// See the module.
pub struct EtcdStore {
    shared: Arc<Shared>,
    ttl: Duration,
    lease: Option<Lease>,
    /// The create revision of the leader's key, while it is ours.
    guard: Option<i64>,
    /// As it was last seen.
    state: State,
    /// Commits that were tried.
    attempts: u64,
    /// Last, so that what runs on it is gone by then.
    runtime: Runtime,
}

/// What the store and who looks at it have in common.
struct Shared {
    members: Arc<Members>,
    keys: Keys,
}

/// All there is at one revision of etcd.
#[derive(Default)]
struct Snapshot {
    state: State,
    leader: Option<KeyValue>,
    values: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl EtcdStore {
    /// A hold of the etcd cluster of these members, `http://HOST:PORT` or `https://HOST:PORT`. Nothing is asked
    /// yet: it need not run.
    pub fn open(members: &[String], options: &EtcdOptions) -> Result<Self, EtcdError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("myco-etcd")
            .enable_all()
            .build()
            .map_err(EtcdError::Threads)?;
        let members = {
            let _inside = runtime.enter();
            address::members(members, options)?
        };
        Ok(Self {
            shared: Arc::new(Shared {
                members: Arc::new(members),
                keys: Keys::new(&options.prefix),
            }),
            ttl: options.leader_lease,
            lease: None,
            guard: None,
            state: State::default(),
            attempts: 0,
            runtime,
        })
    }

    /// Runs to its end.
    fn wait<T>(&mut self, work: impl AsyncFnOnce(&mut Self) -> T) -> T {
        let runtime = self.runtime.handle().clone();
        runtime.block_on(work(self))
    }

    fn deposed(&mut self, leader: Option<&KeyValue>) -> StoreError {
        self.guard = None;
        StoreError::Deposed {
            leader: leader.map(address_of),
        }
    }

    /// The guard under which something may be said or written at that revision.
    fn guard_at(&mut self, at: Revision) -> Result<i64, StoreError> {
        let Some(guard) = self.guard else {
            return Err(self.deposed(None));
        };
        if self.state.revision != at.get() {
            return Err(StoreError::Overtaken {
                expected: at,
                current: Revision(self.state.revision),
            });
        }
        Ok(guard)
    }

    async fn campaign(&mut self, address: &str) -> Result<Lead, InVain> {
        let shared = Arc::clone(&self.shared);
        let keys = &shared.keys;
        let lease = match &self.lease {
            Some(lease) => lease.id(),
            None => {
                let lease = Lease::grant(&shared.members, self.ttl, LEAD).await?;
                let id = lease.id();
                let seen = put(keys.process(id), address.into(), id);
                shared.transact(LEAD, vec![], vec![seen], vec![]).await?;
                self.lease = Some(lease);
                id
            }
        };
        for tried in [false, true] {
            let leader = shared.get(LEAD, keys.leader()).await?;
            match leader {
                // Also of an earlier try whose answer did not arrive.
                Some(leader) if leader.lease == lease => {
                    self.guard = Some(leader.create_revision);
                    return Ok(ours(leader.create_revision));
                }
                Some(leader) => return Ok(Lead::Theirs(address_of(&leader))),
                None if tried => break,
                None => {
                    let ours = put(keys.leader(), address.into(), lease);
                    let free = is_new(keys.leader());
                    shared
                        .transact(LEAD, vec![free], vec![ours], vec![])
                        .await?;
                }
            }
        }
        Ok(Lead::Nobodys)
    }

    /// Writes changes and the next state, or says why not.
    async fn write(&mut self, guard: i64, changes: Vec<Change>) -> Result<(), StoreError> {
        if self.state.parts > 0 {
            self.settle(guard).await?;
        }
        self.attempts += 1;
        let mut next = State {
            revision: self.state.revision + 1,
            guard,
            attempt: self.attempts,
            parts: 0,
        };
        if changes.len() <= MAX_OPS && bytes_of(&changes) <= MAX_TXN_BYTES {
            return self.advance(guard, next, operations(&changes)).await;
        }
        let shared = Arc::clone(&self.shared);
        let parts = pack(&changes);
        for (number, part) in (0..).zip(parts) {
            let part = put(shared.keys.part(next, number), part, 0);
            self.write_beside(guard, vec![part]).await?;
            next.parts = number + 1;
        }
        self.advance(guard, next, vec![]).await?;
        // It is committed. What is left is done now, or before the next one.
        if let Err(error) = self.settle(guard).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a large change is committed, and not yet in its place"
            );
        }
        Ok(())
    }

    /// The transaction that commits.
    async fn advance(
        &mut self,
        guard: i64,
        next: State,
        mut operations: Vec<RequestOp>,
    ) -> Result<(), StoreError> {
        operations.push(put(self.shared.keys.state(), next.encode(), 0));
        match self.attempt(WRITE, guard, operations).await {
            Ok(None) => {}
            // It was done when it was first tried, and the answer did not arrive.
            Ok(Some((_, state))) if state == next => {}
            Ok(Some((leader, state))) => return Err(self.refused(guard, leader.as_ref(), state)),
            // The one that first goes beyond the quota is done by etcd, which then answers that it has no room.
            Err(StoreError::Full(_)) if self.is_at(next).await? => {}
            Err(error) => return Err(error),
        }
        self.state = next;
        Ok(())
    }

    /// Whether that state is the one that stands, by a majority of the members.
    async fn is_at(&self, state: State) -> Result<bool, StoreError> {
        let found = self.shared.get(READ, self.shared.keys.state()).await;
        let found = found.map_err(failed)?;
        let found = found.map(|entry| State::decode(&entry.value)).transpose()?;
        Ok(found == Some(state))
    }

    /// Writes without a new state. Also not after another state: one whose answer did not arrive may wait among
    /// etcd's members for long, and is not to undo then what was committed since.
    async fn write_beside(
        &mut self,
        guard: i64,
        operations: Vec<RequestOp>,
    ) -> Result<(), StoreError> {
        match self.attempt(WRITE, guard, operations).await? {
            None => Ok(()),
            Some((leader, state)) => Err(self.refused(guard, leader.as_ref(), state)),
        }
    }

    /// A transaction that etcd does only while `guard` leads and the state is what is known here. `None`: it was
    /// done; else who leads instead, and the state there.
    async fn attempt(
        &self,
        patience: Duration,
        guard: i64,
        operations: Vec<RequestOp>,
    ) -> Result<Option<(Option<KeyValue>, State)>, StoreError> {
        let keys = &self.shared.keys;
        let holds = vec![
            guarded(keys.leader(), guard),
            stands(keys.state(), self.state),
        ];
        let looks = vec![range(keys.leader()), range(keys.state())];
        let answer = self.shared.transact(patience, holds, operations, looks);
        let answer = answer.await.map_err(failed)?;
        match answer.succeeded {
            true => Ok(None),
            false => leader_and_state(answer).map(Some),
        }
    }

    fn refused(&mut self, guard: i64, leader: Option<&KeyValue>, state: State) -> StoreError {
        if leader.is_none_or(|leader| leader.create_revision != guard) {
            return self.deposed(leader);
        }
        StoreError::Overtaken {
            expected: Revision(self.state.revision),
            current: Revision(state.revision),
        }
    }

    /// Brings what is committed in parts to its place.
    async fn settle(&mut self, guard: i64) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let keys = &shared.keys;
        for number in 0..self.state.parts {
            let part = shared.get(READ, keys.part(self.state, number)).await;
            let changes = unpack(&part.map_err(failed)?.unwrap_or_default().value)?;
            let mut rest = operations(&changes);
            while !rest.is_empty() {
                let later = rest.split_off(rest.len().min(MAX_OPS));
                self.write_beside(guard, std::mem::replace(&mut rest, later))
                    .await?;
            }
        }
        let settled = State {
            parts: 0,
            ..self.state
        };
        let over = delete_range(keys.parts(), end_of(&keys.parts()));
        self.advance(guard, settled, vec![over]).await
    }

    async fn read(&mut self) -> Result<Loaded, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut snapshot = shared.snapshot().await?;
        self.state = snapshot.state;
        if let Some(guard) = self.guard {
            let leader = snapshot.leader.take();
            if leader.as_ref().map(|leader| leader.create_revision) != Some(guard) {
                return Err(self.deposed(leader.as_ref()));
            }
            if self.state.parts > 0 {
                self.settle(guard).await?;
            }
        }
        let records = shared.keys.records();
        let mut loaded = Loaded {
            revision: Revision(snapshot.state.revision),
            records: Vec::with_capacity(snapshot.values.len()),
        };
        for (name, value) in &snapshot.values {
            let key = decode_key(name.strip_prefix(&records[..]).unwrap_or_default())?;
            loaded.records.push((key, decode(key, value)?));
        }
        Ok(loaded)
    }

    fn changes(&self, batch: &Batch) -> Vec<Change> {
        let change = |(key, record): &(crate::cluster::Key, Option<crate::cluster::Record>)| {
            let value = record.as_ref().map(|record| encode(*key, record));
            (self.shared.keys.record(&encode_key(*key)), value)
        };
        batch.changes.iter().map(change).collect()
    }
}

impl Shared {
    async fn transact(
        &self,
        patience: Duration,
        compare: Vec<api::Compare>,
        success: Vec<RequestOp>,
        failure: Vec<RequestOp>,
    ) -> Result<TxnResponse, InVain> {
        let request = TxnRequest {
            compare,
            success,
            failure,
        };
        self.members
            .ask(patience, |channel| {
                let request = request.clone();
                async move { Ok(client(channel).txn(request).await?.into_inner()) }
            })
            .await
    }

    async fn range(
        &self,
        patience: Duration,
        request: RangeRequest,
    ) -> Result<RangeResponse, InVain> {
        self.members
            .ask(patience, |channel| {
                let request = request.clone();
                async move { Ok(client(channel).range(request).await?.into_inner()) }
            })
            .await
    }

    async fn get(&self, patience: Duration, key: Vec<u8>) -> Result<Option<KeyValue>, InVain> {
        let request = RangeRequest {
            key,
            ..RangeRequest::default()
        };
        let found = self.range(patience, request).await?;
        Ok(found.kvs.into_iter().next())
    }

    /// All there is.
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let mut tried = 0;
        loop {
            tried += 1;
            match self.snapshot_once().await {
                // Compacted.
                Err(Unread::Asked(failed)) if tried < RESTARTS && is_compacted(&failed) => {}
                Err(Unread::Asked(in_vain)) => return Err(failed(in_vain)),
                Err(Unread::Wrong(error)) => return Err(error),
                Ok(snapshot) => return Ok(snapshot),
            }
        }
    }

    async fn snapshot_once(&self) -> Result<Snapshot, Unread> {
        let keys = &self.keys;
        let mut snapshot = Snapshot::default();
        let mut parts = BTreeMap::new();
        let mut request = RangeRequest {
            key: keys.all(),
            range_end: end_of(&keys.all()),
            limit: PAGE,
            revision: 0,
        };
        let (leader, state) = (keys.leader(), keys.state());
        let (records, in_parts) = (keys.records(), keys.parts());
        loop {
            let page = self.range(READ, request.clone()).await?;
            request.revision = page.header.map_or(0, |header| header.revision);
            let Some(last) = page.kvs.last() else {
                break;
            };
            // The next one that there can be.
            request.key = [&last.key[..], &[0]].concat();
            for entry in page.kvs {
                if entry.key == leader {
                    snapshot.leader = Some(entry);
                } else if entry.key == state {
                    snapshot.state = State::decode(&entry.value)?;
                } else if entry.key.starts_with(&records) {
                    snapshot.values.insert(entry.key, entry.value);
                } else if entry.key.starts_with(&in_parts) {
                    parts.insert(entry.key, entry.value);
                }
            }
            if !page.more {
                break;
            }
        }
        for number in 0..snapshot.state.parts {
            let part = parts.get(&keys.part(snapshot.state, number));
            overlay(
                &mut snapshot.values,
                unpack(part.map_or(&[], Vec::as_slice))?,
            );
        }
        Ok(snapshot)
    }
}

/// Why there is no snapshot.
enum Unread {
    Asked(InVain),
    Wrong(StoreError),
}

impl From<InVain> for Unread {
    fn from(in_vain: InVain) -> Self {
        Self::Asked(in_vain)
    }
}

impl From<super::FormatError> for Unread {
    fn from(error: super::FormatError) -> Self {
        Self::Wrong(error.into())
    }
}

impl Store for EtcdStore {
    fn is_shared(&self) -> bool {
        true
    }

    fn lead(&mut self, address: &str) -> Result<Lead, StoreError> {
        if self.lease.as_ref().is_some_and(Lease::has_ended) {
            self.lease = None;
            self.guard = None;
        }
        if let Some(guard) = self.guard {
            return Ok(ours(guard));
        }
        self.wait(async |store| store.campaign(address).await)
            .map_err(failed)
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.wait(async |store| store.read().await)
    }

    fn commit(&mut self, at: Revision, batch: &Batch) -> Result<Revision, StoreError> {
        let guard = self.guard_at(at)?;
        let changes = self.changes(batch);
        self.wait(async |store| store.write(guard, changes).await)?;
        Ok(Revision(self.state.revision))
    }

    fn confirm(&mut self, at: Revision) -> Result<(), StoreError> {
        let guard = self.guard_at(at)?;
        self.wait(async |store| {
            // Without a range etcd would answer out of one member's memory, which may be old.
            let keys = &store.shared.keys;
            let looks = vec![range(keys.leader()), range(keys.state())];
            match store.attempt(READ, guard, looks).await? {
                None => Ok(()),
                Some((leader, state)) => Err(store.refused(guard, leader.as_ref(), state)),
            }
        })
    }

    fn probe(&self) -> Arc<dyn Probe> {
        Arc::clone(&self.shared) as Arc<dyn Probe>
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        // If it cannot be told now, the lease runs out.
        let _ = self.runtime.block_on(lease.revoke(&shared.members, END));
    }
}

#[tonic::async_trait]
impl Probe for Shared {
    async fn health(&self) -> StoreHealth {
        let members = self.members.health().await;
        let writable = members.iter().any(|member| member.leads);
        let mut processes = Vec::new();
        let listed = RangeRequest {
            key: self.keys.processes(),
            range_end: end_of(&self.keys.processes()),
            limit: PAGE,
            revision: 0,
        };
        if writable
            && let Ok(listed) = self.range(LEAD, listed).await
            && let Ok(leader) = self.get(LEAD, self.keys.leader()).await
        {
            let lease = leader.map_or(0, |leader| leader.lease);
            processes.extend(listed.kvs.iter().map(|entry| ProcessSeen {
                address: address_of(entry),
                leads: entry.lease == lease,
            }));
        }
        StoreHealth {
            kind: "etcd",
            writable,
            members,
            processes,
        }
    }
}

fn client(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// Revisions of etcd grow, and none is negative.
fn ours(guard: i64) -> Lead {
    Lead::Ours {
        guard: guard.unsigned_abs(),
    }
}

fn address_of(entry: &KeyValue) -> String {
    String::from_utf8_lossy(&entry.value).into_owned()
}

fn operations(changes: &[Change]) -> Vec<RequestOp> {
    let operation = |(key, value): &Change| match value {
        Some(value) => put(key.clone(), value.clone(), 0),
        None => delete_range(key.clone(), Vec::new()),
    };
    changes.iter().map(operation).collect()
}

fn bytes_of(changes: &[Change]) -> usize {
    let bytes = |(key, value): &Change| key.len() + value.as_ref().map_or(0, Vec::len);
    changes.iter().map(bytes).sum()
}

/// What two ranges, of the leader's key and of the state, found.
fn leader_and_state(answer: TxnResponse) -> Result<(Option<KeyValue>, State), StoreError> {
    let mut found = ranges_of(answer).into_iter();
    let (leader, state) = (found.next().flatten(), found.next().flatten());
    let state = state.map(|entry| State::decode(&entry.value)).transpose()?;
    Ok((leader, state.unwrap_or_default()))
}

fn is_compacted(in_vain: &InVain) -> bool {
    in_vain.status.code() == tonic::Code::OutOfRange
}

fn failed(in_vain: InVain) -> StoreError {
    if is_full(&in_vain.status) && !in_vain.maybe_done {
        StoreError::Full(Box::new(in_vain.status))
    } else {
        StoreError::Failed(Box::new(in_vain.status))
    }
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore")
            .field("guard", &self.guard)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
