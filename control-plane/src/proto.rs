//! The messages and the service of `proto/mycoram.proto`, as generated. The proto file is their
//! documentation.

#![allow(missing_docs, reason = "the proto file has them")]
#![allow(unreachable_pub, reason = "generated")]
#![allow(clippy::all, reason = "generated")]

tonic::include_proto!("mycoram.v1");
