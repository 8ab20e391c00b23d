//! The control plane: which memory nodes there are, and where extents go. Never on the path of a page.
//!
//! ```text
//!   nodes file (TOML) --NodesFile--> StaticPlacement: Placement --candidates--> fabric::remote
//!   commands, now --cluster::Cluster--> answers and orders, records to be made durable
//! ```
//!
//! Without a service, placement is static: a file that people write. Whoever opens a region stores
//! where its extents went (see `fabric::remote::Remote::directory`), so a changed file moves nothing.
//! `cluster` is what the service decides by: leases, placement, healing, as pure logic; `store` keeps its
//! records; `reign` is who leads and when a step counts; `service` speaks for it over gRPC (`proto/mycoram.proto`), `client` calls it; `identity` has the
//! certificates and keys of all of them.

pub mod client;
pub mod cluster;
pub mod identity;
pub mod measure;
pub mod metrics;
mod nodes_file;
pub mod proto;
pub mod reign;
mod rendezvous;
pub mod service;
mod static_placement;
pub mod store;
mod words;

pub use nodes_file::{NodesFile, NodesFileError, Problem};
pub use rendezvous::Weight;
pub use static_placement::StaticPlacement;
