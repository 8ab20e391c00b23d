//! What monitors read: figures over HTTP, in the text format of Prometheus.
//!
//! ```text
//!   GET /metrics --> MetricsServer (one thread, one request at a time) --> a page made at this moment
//! ```
//!
//! Names are `mycoram_<noun>_<unit>`, counters end in `_total`; units are bytes, seconds and counts. Labels
//! are names of nodes and failure domains, states, and kinds of errors: as many as there are of those.

mod agent;
mod http;
mod node;
mod page;

pub use agent::agent_page;
pub use http::{MetricsError, MetricsServer};
pub use node::node_page;
pub use page::Page;
pub(crate) use page::label;
