//! The control plane: which memory nodes there are, and where extents go. Never on the path of a page.
//!
//! ```text
//!   nodes file (TOML) --NodesFile--> StaticPlacement: Placement --candidates--> fabric::remote
//! ```
//!
//! Placement is static here: a file that people write. Whoever opens a region stores where its
//! extents went (see `fabric::remote::Remote::directory`), so a changed file moves nothing.

mod nodes_file;
mod rendezvous;
mod static_placement;

pub use nodes_file::{NodesFile, NodesFileError, Problem};
pub use rendezvous::Weight;
pub use static_placement::StaticPlacement;
