//! What a region can be asked to be. What does not fit together does not validate.

use std::path::PathBuf;
use std::str::FromStr;

use mycoram_fabric::pages::LaneConfig;
use mycoram_fabric::units::{ByteCount, PAGE_BYTES};
use serde::{Deserialize, Serialize};

/// Where state files live unless told otherwise: tmpfs, so that nothing of it reaches a disk.
pub const DEFAULT_STATE_DIR: &str = "/dev/shm/mycoram";
/// Longest name of a region, bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// Most fault workers, and most eviction workers, of one region.
pub const MAX_WORKERS: u8 = 16;
/// Smallest local budget, pages. Below it, pages on their way in and out would be all there is.
pub const MIN_BUDGET_PAGES: u64 = 64;

/// A region's name: letters, digits, `-`, `_`, `.`; not starting with a dot. It names files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegionName(String);

impl RegionName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegionName {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let fits = !text.is_empty()
            && text.len() <= MAX_NAME_BYTES
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(ConfigError::Name)
        }
    }
}

impl TryFrom<String> for RegionName {
    type Error = ConfigError;
    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<RegionName> for String {
    fn from(name: RegionName) -> Self {
        name.0
    }
}

impl std::fmt::Display for RegionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who leaves first when the budget is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VictimPolicy {
    /// Small queue, main queue, ghost queue: a page seen once does not push out one seen often.
    #[default]
    S3Fifo,
}

/// What is fetched before it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefetchPolicy {
    /// Nothing. Best for access that is known to be random.
    Off,
    /// Neighbours ahead of a run of neighbouring faults.
    Sequential,
    /// As sequential, and equal distances as well.
    #[default]
    Stride,
}

/// What a program knows about its coming accesses to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Advice {
    /// No special pattern: prefetch by what the faults show.
    Normal,
    /// No pattern: nothing is fetched ahead.
    Random,
    /// In order: fetched far ahead from the first fault on.
    Sequential,
    /// Soon: what is remote is fetched now, as far as free budget goes.
    WillNeed,
    /// Not soon: evicted first. The content is kept; this discards nothing.
    DontNeed,
}

/// A region's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionConfig {
    /// Names its state file and its figures. Unique on a machine.
    pub name: RegionName,
    /// Bytes that may be resident on this machine, whole pages, at least [`MIN_BUDGET_PAGES`] pages. No
    /// default: it is the point of a region. Pages that are fetched or leaving count as resident.
    pub local_budget: ByteCount,
    /// Threads that serve faults, 1 to [`MAX_WORKERS`]. Default 1. Each owns a lane (frames, a queue pair
    /// to each node) and, after activity, up to `spin_us` of a core. More than one pays when many threads
    /// fault at once; they contend for the userfaultfd.
    #[serde(default = "one")]
    pub fault_workers: u8,
    /// Threads that evict, 1 to [`MAX_WORKERS`] and not more than half the target's pipes. Default 1. Each
    /// owns a lane. One keeps up with about 250 000 pages/s.
    #[serde(default = "one")]
    pub eviction_workers: u8,
    /// What is fetched ahead. Default stride.
    #[serde(default)]
    pub prefetch: PrefetchPolicy,
    /// Most pages that one fault worker fetches ahead, 0 to half of its frames. Default 256. A longer window
    /// hides more latency and wastes more when the pattern ends.
    #[serde(default = "default_window")]
    pub prefetch_window_pages: u32,
    /// Who leaves first. Default s3-fifo.
    #[serde(default)]
    pub victims: VictimPolicy,
    /// How long an evicted page is kept before its bytes are read, ms, at most 1000. Default 2. Longer than
    /// any copy that the kernel makes by itself (`read`, `process_vm_writev`). Costs speed of eviction:
    /// `pipes * 64 / settle` pages/s is the most.
    #[serde(default = "default_settle")]
    pub settle_ms: u32,
    /// The same, while the target has a file open for direct IO (`O_DIRECT`, or any that is registered with
    /// an io_uring), ms, at most 10000; the longer of the two counts. Default 200. It has to be longer than the longest direct
    /// read into a page that the target does not touch itself meanwhile, or what that read brings is lost.
    #[serde(default = "default_direct_settle")]
    pub direct_settle_ms: u32,
    /// Whether another agent may take the region over. Default true. A program that serves itself says
    /// false: then its state file has no name, no figures are written, and nothing of it is left behind,
    /// however the process ends.
    #[serde(default = "yes")]
    pub has_successor: bool,
    /// How long a fault worker keeps looking after its last event before it sleeps, us, at most 100000.
    /// Default 200. Longer saves wake-ups (5 to 40 us each) and takes CPU time from others.
    #[serde(default = "default_spin")]
    pub spin_us: u32,
    /// Where the page table's file and the figures live: a tmpfs directory, made when missing. Default
    /// [`DEFAULT_STATE_DIR`]. On a disk it would work, and be slow.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Pages leave this machine sealed (encrypted and authenticated) with a key from this file; see
    /// docs/sealing.md for how to make one. Default: they leave as they are. Costs about 1 us a page each way
    /// (`cargo xtask bench replicas`: `seal_us`, `open_us`), 24 bytes a page, and twice the lanes' frames. A region
    /// stays what it was started as, and whoever takes it over has to name the same file; without it nobody can
    /// read the region's pages any more.
    #[serde(default)]
    pub seal_key: Option<PathBuf>,
    /// What every lane is asked to be. At least 64 frames.
    #[serde(skip, default = "default_lane")]
    pub lane: LaneConfig,
    /// Do without UFFDIO_POISON even where the kernel has it. Default false. For tests of what stands in
    /// for it on Linux before 6.6.
    #[serde(skip)]
    pub without_poison: bool,
}

fn one() -> u8 {
    1
}
fn default_window() -> u32 {
    256
}
fn default_settle() -> u32 {
    2
}
fn default_direct_settle() -> u32 {
    200
}
fn yes() -> bool {
    true
}
fn default_spin() -> u32 {
    200
}
fn default_state_dir() -> PathBuf {
    PathBuf::from(DEFAULT_STATE_DIR)
}
fn default_lane() -> LaneConfig {
    LaneConfig {
        frames: 512,
        ..LaneConfig::default()
    }
}

/// Why a configuration cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a name.
    #[error(
        "a region's name has 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' or '.', and does not start with '.'"
    )]
    Name,
    /// Too small, or not whole pages.
    #[error(
        "a local budget of {asked} cannot be: it is whole pages of 4KiB, at least {MIN_BUDGET_PAGES} of them"
    )]
    Budget {
        /// What was asked.
        asked: ByteCount,
    },
    /// A number outside of its bounds.
    #[error("{field} is {asked}, and must be {least} to {most}")]
    OutOfBounds {
        /// Which field.
        field: &'static str,
        /// What was asked.
        asked: u64,
        /// Least.
        least: u64,
        /// Most.
        most: u64,
    },
}

impl RegionConfig {
    /// The defaults, for a region of this name and budget.
    #[must_use]
    pub fn new(name: RegionName, local_budget: ByteCount) -> Self {
        Self {
            name,
            local_budget,
            fault_workers: one(),
            eviction_workers: one(),
            prefetch: PrefetchPolicy::default(),
            prefetch_window_pages: default_window(),
            victims: VictimPolicy::default(),
            settle_ms: default_settle(),
            direct_settle_ms: default_direct_settle(),
            has_successor: yes(),
            spin_us: default_spin(),
            state_dir: default_state_dir(),
            seal_key: None,
            lane: default_lane(),
            without_poison: false,
        }
    }

    /// Checks what no single field can say. `pipes` is how many parking pipes the target has.
    pub fn validate(&self, pipes: usize) -> Result<(), ConfigError> {
        check_budget(self.local_budget)?;
        let within = |field, asked: u64, least: u64, most: u64| {
            if (least..=most).contains(&asked) {
                Ok(())
            } else {
                Err(ConfigError::OutOfBounds {
                    field,
                    asked,
                    least,
                    most,
                })
            }
        };
        let workers = u64::from(MAX_WORKERS);
        within("fault_workers", self.fault_workers.into(), 1, workers)?;
        within(
            "the target's parking pipes",
            pipes as u64,
            2,
            crate::MAX_PARKING_PIPES as u64,
        )?;
        within(
            "eviction_workers",
            self.eviction_workers.into(),
            1,
            workers.min(pipes as u64 / 2),
        )?;
        within("lane.frames", self.lane.frames.into(), 64, 1 << 16)?;
        within("lane.depth", self.lane.depth.into(), 4, 8192)?;
        within(
            "prefetch_window_pages",
            self.prefetch_window_pages.into(),
            0,
            u64::from(self.lane.frames) / 2,
        )?;
        within("settle_ms", self.settle_ms.into(), 0, 1000)?;
        within("direct_settle_ms", self.direct_settle_ms.into(), 0, 10_000)?;
        within("spin_us", self.spin_us.into(), 0, 100_000)
    }
}

/// Whether a budget can be.
pub(crate) fn check_budget(asked: ByteCount) -> Result<(), ConfigError> {
    let pages = asked.get() / PAGE_BYTES as u64;
    if !asked.is_page_aligned() || pages < MIN_BUDGET_PAGES || pages > u64::from(u32::MAX) {
        return Err(ConfigError::Budget { asked });
    }
    Ok(())
}
