//! One suite for every provider: what READ, WRITE, COMPARE_SWAP and FETCH_ADD mean, and what is refused.
//!
//! ```text
//!   conformance_tcp.rs  conformance_sim.rs  rxe_conformance.rs     a Fabric each: how to start things
//!            \                 |                 /
//!             conformance_suite!(the_fabric)                       one #[test] a check
//!       data  refusals  depth  sessions  death  model              the checks
//! ```
//!
//! A check knows nothing of the provider. It may start nodes in this process ([`Node`]) and one in
//! another process that it may kill ([`Victim`]); everything else goes through the public traits.
//! Checks wait for completions, never for time to pass, and never assert how fast something was.

pub(crate) mod client;
pub(crate) mod data;
pub(crate) mod death;
pub(crate) mod depth;
pub(crate) mod model;
pub(crate) mod refusals;
pub(crate) mod sessions;
pub(crate) mod victim;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mycoram_fabric::transport::{
    DataServer, Export, Mapping, QueuePairConfig, RemoteSlice, Ticket, Transport,
};
use mycoram_fabric::units::RemoteAddr;

/// A provider under test.
pub(crate) trait Fabric: Sync {
    /// A memory node in this process.
    type Node: Node;
    /// A memory node that can be killed.
    type Victim: Victim;

    /// The compute side. Called once by each check that needs one.
    fn transport(&self) -> Arc<dyn Transport>;

    /// A memory node with a pool of `pool_bytes` zeroed bytes. Panics with the reason if there is none.
    fn start_node(&self, pool_bytes: usize) -> Self::Node;

    /// A memory node in a process of its own, with everything exported to one tenant and one ticket
    /// admitted. [`victim::ProcessVictim`] is one for providers that use real processes.
    fn start_victim(&self, pool_bytes: usize) -> Self::Victim;

    /// Deadlines are generous: checks share few processors with other work.
    fn config(&self, depth: u32) -> QueuePairConfig {
        QueuePairConfig {
            depth,
            connect_timeout_ms: 20_000,
            response_timeout_ms: 10_000,
        }
    }

    /// How many operations the check of depth keeps in flight.
    fn deep(&self) -> u32 {
        4096
    }

    /// Operations of a random check. Emulated devices may ask for fewer.
    fn rounds(&self) -> u32 {
        2000
    }

    /// How long a completion that must come may take before the check fails.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// A memory node in this process.
pub(crate) trait Node {
    /// What the control channel would call.
    fn server(&self) -> &dyn DataServer;
    /// The pool that it serves.
    fn pool(&self) -> &Mapping;
}

/// Where a victim is and how it lets one in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VictimFacts {
    /// Data address.
    pub(crate) address: SocketAddr,
    /// Admits queue pairs of the tenant that [`Self::export`] is exported to.
    pub(crate) ticket: Ticket,
    /// The whole pool.
    pub(crate) export: Export,
}

/// A memory node that can be killed without warning.
pub(crate) trait Victim {
    /// How to reach it.
    fn facts(&self) -> VictimFacts;
    /// As `kill -9`. Returns when it is gone.
    fn kill(&mut self);
}

/// The place `offset` bytes into an export.
pub(crate) fn at(export: &Export, offset: u64) -> RemoteSlice {
    RemoteSlice {
        addr: RemoteAddr::new(export.addr.get().wrapping_add(offset)),
        rkey: export.rkey,
    }
}

/// One `#[test]` for each check, against the given fabric.
#[macro_export]
macro_rules! conformance_suite {
    ($fabric:expr) => {
        $crate::conformance_suite!(@each $fabric;
            data: read_returns_what_is_stored, write_stores_what_was_given,
                compare_swap_swaps_only_on_equality, fetch_add_wraps_and_returns_the_former_value,
                zero_length_moves_nothing, maximum_length_moves_whole, too_long_is_not_taken,
                unaligned_atomics_are_not_taken, odd_offsets_and_lengths_move_whole,
                posted_order_is_kept, atomics_of_many_connections_add_up,
                concurrent_clients_keep_to_their_own_bytes;
            refusals: an_unknown_rkey_is_refused, a_revoked_rkey_is_refused,
                another_tenants_rkey_is_refused, reading_past_the_end_is_refused,
                an_overflowing_address_is_refused, writing_past_the_end_changes_nothing,
                an_atomic_past_the_end_is_refused,
                the_longest_write_is_refused_as_any_other, everything_behind_a_refusal_is_flushed,
                exporting_outside_of_the_pool_is_refused;
            depth: a_chain_signals_only_what_is_asked, a_full_queue_takes_nothing_of_a_chain,
                poll_never_grows_the_vector, thousands_of_reads_in_flight,
                thousands_of_writes_in_flight, the_queue_can_be_filled_again_and_again,
                a_readiness_waiter_hears_of_every_completion, dropping_with_work_in_flight_ends;
            sessions: an_unknown_ticket_is_refused, a_dismissed_ticket_admits_nobody,
                dismissing_breaks_the_sessions_queue_pairs, fencing_breaks_lower_epochs_only,
                fencing_leaves_other_regions_alone, many_queue_pairs_share_a_ticket,
                revoking_leaves_other_exports_alone, nothing_is_written_after_revoke_returns,
                shutting_down_breaks_what_is_connected;
            death: a_killed_peer_completes_everything_once, a_killed_peer_cannot_be_connected,
                an_idle_queue_pair_notices_the_death;
            model: random_operations_agree_with_a_model, random_chains_agree_with_a_model;
        );
    };
    (@each $fabric:expr; $($module:ident : $($check:ident),+ ;)+) => {
        $(mod $module {
            use super::*;
            $(#[test]
            fn $check() {
                $crate::conformance::$module::$check(&$fabric);
            })+
        })+
    };
}
