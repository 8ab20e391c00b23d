//! The control plane as a process: the state machine behind a store, spoken to over gRPC.
//!
//! ```text
//!   gRPC (tonic, mutual TLS)        one thread
//!   requests  --words--> commands --bounded queue--> Keeper: Cluster::apply
//!   replies   <--words-- answers  <--after-----------  Store::commit, several steps at a time
//!   metrics (HTTP)  <----------------------------------  looks at the same state
//! ```
//!
//! Nothing is decided here. The keeper's thread owns the state and the store; an answer is given when the
//! store has its changes. What cannot be stored is undone, and its callers are told to ask again.

mod checks;
mod figures;
mod grants;
mod keeper;
mod refusals;
mod roles;
mod rpc;
mod serve;
mod store_address;

pub use serve::{ControlServer, ServeConfig, ServeError, Trust};
pub use store_address::{StoreAddress, StoreAddressError};
