//! What transactions are made of.

use super::api::compare::{CompareResult, CompareTarget, TargetUnion};
use super::api::request_op::Request;
use super::api::response_op::Response;
use super::api::{
    Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp, TxnResponse,
};
use super::notes::State;

/// The key came to be at this revision of etcd, and was there ever since.
pub(super) fn guarded(key: Vec<u8>, create_revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key,
        target_union: Some(TargetUnion::CreateRevision(create_revision)),
    }
}

/// The key is not there.
pub(super) fn is_new(key: Vec<u8>) -> Compare {
    guarded(key, 0)
}

/// The state is this one; the one of a store that is empty is not there.
pub(super) fn stands(key: Vec<u8>, state: State) -> Compare {
    if state == State::default() {
        return is_new(key);
    }
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Value.into(),
        key,
        target_union: Some(TargetUnion::Value(state.encode())),
    }
}

/// Puts a key; with a lease other than 0 it goes with that.
pub(super) fn put(key: Vec<u8>, value: Vec<u8>, lease: i64) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestPut(PutRequest { key, value, lease })),
    }
}

/// Removes all keys up to `end`; one key if that is empty.
pub(super) fn delete_range(key: Vec<u8>, end: Vec<u8>) -> RequestOp {
    let range_end = end;
    RequestOp {
        request: Some(Request::RequestDeleteRange(DeleteRangeRequest {
            key,
            range_end,
        })),
    }
}

/// Looks at one key.
pub(super) fn range(key: Vec<u8>) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestRange(RangeRequest {
            key,
            ..RangeRequest::default()
        })),
    }
}

/// What each of an answer's looks found.
pub(super) fn ranges_of(answer: TxnResponse) -> Vec<Option<KeyValue>> {
    let found = answer
        .responses
        .into_iter()
        .filter_map(|op| match op.response {
            Some(Response::ResponseRange(range)) => Some(range.kvs.into_iter().next()),
            _ => None,
        });
    found.collect()
}
