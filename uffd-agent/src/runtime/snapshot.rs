//! A region's figures: taken from the counters, written where other processes can read them.

use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

use super::shared::Shared;
use crate::page_table::PageState;
use crate::stats::{LATENCY_BUCKETS_US, RegionStats, STATS_VERSION};

/// The figures as of now.
pub(crate) fn take(shared: &Shared) -> RegionStats {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (counters, pages) = (&shared.counters, &shared.pages);
    let (faults, majors) = (get(&counters.faults), get(&counters.majors));
    let hits = faults.saturating_sub(majors);
    let service = shared
        .service
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let us = |ns: u64| ns as f64 / 1000.0;
    let (fault_buckets, fault_sum_us) = buckets(&service);
    let (writeback_buckets, writeback_sum_us) = {
        let writeback = shared.leaving.took.lock();
        buckets(&writeback.unwrap_or_else(PoisonError::into_inner))
    };
    RegionStats {
        version: STATS_VERSION,
        name: shared.config.name.to_string(),
        target_pid: shared.target_pid,
        agent_pid: std::process::id() as i32,
        uptime_s: shared.now() as f64 / 1e9,
        pages: u64::from(pages.table.pages().get()),
        budget_pages: u64::try_from(pages.credits.budget()).unwrap_or(0),
        faults,
        majors,
        hits,
        hit_rate: if faults == 0 {
            1.0
        } else {
            hits as f64 / faults as f64
        },
        fault_p50_us: us(service.value_at_quantile(0.5)),
        fault_p99_us: us(service.value_at_quantile(0.99)),
        fault_p999_us: us(service.value_at_quantile(0.999)),
        fault_max_us: us(service.max()),
        fault_buckets,
        fault_sum_us,
        writeback_lag_s: shared.writeback_lag() as f64 / 1e9,
        writeback_buckets,
        writeback_sum_us,
        resident: pages.count(PageState::Resident),
        peak_resident: pages.credits.peak_used(),
        remote: pages.count(PageState::Remote),
        fetching: pages.count(PageState::Fetching),
        leaving: pages.count(PageState::Leaving),
        never_written: pages.count(PageState::NeverWritten),
        lost: pages.count(PageState::Lost),
        losses: get(&counters.lost),
        evictions: get(&counters.evictions),
        evictions_clean: get(&counters.evictions_clean),
        evictions_zero: get(&counters.evictions_zero),
        rescued: get(&counters.rescued),
        waited_for_budget: get(&counters.waited_for_budget),
        homeless: u64::try_from(shared.homeless.load(Ordering::Relaxed)).unwrap_or(0),
        prefetch_issued: get(&counters.prefetch_issued),
        prefetch_used: get(&counters.prefetch_used),
        huge_in: get(&counters.huge_in),
        huge_out: get(&counters.huge_out),
        discarded: get(&counters.discarded),
        checksum_mismatches: get(&counters.checksum_mismatches),
        seals_broken: get(&counters.seals_broken),
        thread_panics: get(&counters.thread_panics),
        failure: shared.failure().map(ToString::to_string),
        transport: shared.remote.stats(),
    }
}

/// How many took how long, and the sum in us.
fn buckets(service: &Histogram<u64>) -> (Vec<u64>, f64) {
    let mut counts = vec![0; LATENCY_BUCKETS_US.len() + 1];
    let mut sum_us = 0.0;
    for value in service.iter_recorded() {
        let us = value.value_iterated_to() as f64 / 1000.0;
        let bucket = LATENCY_BUCKETS_US.partition_point(|bound| f64::from(*bound) < us);
        counts[bucket] += value.count_at_value();
        sum_us += us * value.count_at_value() as f64;
    }
    (counts, sum_us)
}

/// Puts figures where [`RegionStats::read`] finds them, whole or not at all.
pub(crate) fn write(stats: &RegionStats, path: &Path) -> std::io::Result<()> {
    let text = serde_json::to_vec(stats)?;
    let half = path.with_extension("new");
    std::fs::write(&half, text)?;
    std::fs::rename(&half, path)
}
