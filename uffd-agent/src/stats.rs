//! A region's figures, and the file through which other processes read them.

use std::path::{Path, PathBuf};

use mycoram_fabric::pages::RemoteStats;
use serde::{Deserialize, Serialize};

/// Version of the figures' JSON.
pub const STATS_VERSION: u32 = 1;
/// Upper bounds of [`RegionStats::fault_buckets`] and [`RegionStats::writeback_buckets`], us; the last bucket has none.
pub const LATENCY_BUCKETS_US: [u32; 15] = [
    5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000, 100_000, 1_000_000, 10_000_000,
];

/// What a region has done, and how it stands. Counters run since the agent attached or took over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RegionStats {
    /// Version of this schema.
    pub version: u32,
    /// The region's name.
    pub name: String,
    /// The target process.
    pub target_pid: i32,
    /// The agent process.
    pub agent_pid: i32,
    /// Seconds since attach or take-over.
    pub uptime_s: f64,
    /// Pages of the region.
    pub pages: u64,
    /// The budget, pages.
    pub budget_pages: u64,
    /// Fault events served, whatever it took.
    pub faults: u64,
    /// Faults for which a remote page had to be read.
    pub majors: u64,
    /// Faults served without a remote read: new pages, pages still leaving, pages already on their way.
    pub hits: u64,
    /// `hits / faults`; 1 when there were no faults.
    pub hit_rate: f64,
    /// Service time of a fault, event read to page installed, us.
    pub fault_p50_us: f64,
    /// As above.
    pub fault_p99_us: f64,
    /// As above.
    pub fault_p999_us: f64,
    /// As above.
    pub fault_max_us: f64,
    /// Faults by service time: how many took longer than the bucket's bound before ([`LATENCY_BUCKETS_US`]),
    /// and not longer than its own.
    #[serde(default)]
    pub fault_buckets: Vec<u64>,
    /// All service times together, us.
    #[serde(default)]
    pub fault_sum_us: f64,
    /// How long ago the oldest of those pages was taken away that are not yet acknowledged by their memory nodes, s;
    /// 0 when there are none.
    #[serde(default)]
    pub writeback_lag_s: f64,
    /// Evictions that had to write, from the choice of their pages to the last acknowledgement, as
    /// [`Self::fault_buckets`].
    #[serde(default)]
    pub writeback_buckets: Vec<u64>,
    /// All of these times together, us.
    #[serde(default)]
    pub writeback_sum_us: f64,
    /// Pages in the file.
    pub resident: u64,
    /// Largest number of pages that were resident, fetched or leaving at once.
    pub peak_resident: u64,
    /// Pages on memory nodes only.
    pub remote: u64,
    /// Pages being fetched.
    pub fetching: u64,
    /// Pages in parking pipes.
    pub leaving: u64,
    /// Pages never written, or discarded.
    pub never_written: u64,
    /// Pages lost for good.
    pub lost: u64,
    /// How often a page was lost; one that is thrown away and written again is no longer lost.
    #[serde(default)]
    pub losses: u64,
    /// Pages evicted.
    pub evictions: u64,
    /// Evictions for which nothing was sent: the page was as it had last been written back.
    pub evictions_clean: u64,
    /// Evictions for which nothing was sent: the page was all zero.
    pub evictions_zero: u64,
    /// Faults served from a parking pipe.
    pub rescued: u64,
    /// Faults that waited for free budget.
    pub waited_for_budget: u64,
    /// Pages that could not be written out, because their node is gone, and stay for that reason.
    pub homeless: u64,
    /// Pages fetched ahead.
    pub prefetch_issued: u64,
    /// Pages fetched ahead that were asked for while on their way.
    pub prefetch_used: u64,
    /// Huge pages (512 pages) that came as one.
    #[serde(default)]
    pub huge_in: u64,
    /// Huge pages that left as one.
    #[serde(default)]
    pub huge_out: u64,
    /// Pages discarded by the target.
    pub discarded: u64,
    /// Pages whose checksum was wrong at first reading.
    pub checksum_mismatches: u64,
    /// Those of them whose seal did not open: changed at the memory node, or an older version of the page.
    #[serde(default)]
    pub seals_broken: u64,
    /// Threads of the region that panicked. Each time it was not served any more, until it was taken over.
    #[serde(default)]
    pub thread_panics: u64,
    /// What the first of them said, if the region is not served any more for that reason.
    #[serde(default)]
    pub failure: Option<String>,
    /// What the lanes moved.
    pub transport: RemoteStats,
}

/// Why no figures could be read.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// No such region, or no right to read it.
    #[error("the figures of the region cannot be read from {path}: is it running?")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// Another version's figures, or none at all.
    #[error("{path} does not hold a region's figures of version {STATS_VERSION}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
}

impl RegionStats {
    /// Where the region `name` puts its figures, once a second.
    #[must_use]
    pub fn path(state_dir: &Path, name: &crate::RegionName) -> PathBuf {
        state_dir.join(format!("{name}.stats.json"))
    }

    /// Reads figures that an agent has put there.
    pub fn read(path: &Path) -> Result<Self, StatsError> {
        let bytes = std::fs::read(path).map_err(|source| StatsError::Read {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_slice(&bytes).map_err(|source| StatsError::Parse {
            path: path.to_owned(),
            source,
        })
    }
}
