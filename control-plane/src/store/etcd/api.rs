//! The messages and calls of `proto/etcd.proto`, as generated.

#![allow(missing_docs, reason = "the proto file has them")]
#![allow(unreachable_pub, dead_code, reason = "generated")]
#![allow(clippy::all, reason = "generated")]

tonic::include_proto!("etcdserverpb");
