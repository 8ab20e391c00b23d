//! Figures of a mapping, since it was made.

/// How a mapping has fared. All counts only grow, except those of pages and bytes held now.
/// The same struct as C's `mycoram_stats`: it may grow at its end, never change before it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Size of the mapping, bytes.
    pub mapped_bytes: u64,
    /// How much of it may be local, bytes.
    pub local_budget_bytes: u64,
    /// How much of it is local now, bytes.
    pub resident_bytes: u64,
    /// Accesses that the agent had to serve.
    pub faults: u64,
    /// Of those, how many waited for a memory node. The others were first touches, pages that were still
    /// leaving, and pages already on their way.
    pub major_faults: u64,
    /// Pages that were asked for and brought in before the program touched them.
    pub prefetched_pages: u64,
    /// Of those, how many it asked for while they were on their way. Later touches cost nothing and are
    /// not counted.
    pub prefetch_hits: u64,
    /// Pages that left local memory.
    pub evicted_pages: u64,
    /// Of those, how many left without a write, because their remote copy was current.
    pub clean_pages: u64,
    /// Pages that no memory node has any more. An access to one raises SIGBUS.
    pub lost_pages: u64,
    /// Bytes read from memory nodes.
    pub bytes_read: u64,
    /// Bytes written to memory nodes.
    pub bytes_written: u64,
    /// Fault service, from the kernel's event to the wake-up: median, nanoseconds.
    pub fault_p50_ns: u64,
    /// The same, 99th percentile.
    pub fault_p99_ns: u64,
    /// The same, 99.9th percentile.
    pub fault_p999_ns: u64,
}

impl Stats {
    /// What the agent counts in pages and microseconds, in this struct's units.
    pub(crate) fn of_region(region: &mycoram_agent::RegionStats) -> Self {
        let page = mycoram_fabric::units::PAGE_BYTES as u64;
        let ns = |us: f64| (us * 1000.0) as u64;
        Self {
            mapped_bytes: region.pages * page,
            local_budget_bytes: region.budget_pages * page,
            resident_bytes: region.resident * page,
            faults: region.faults,
            major_faults: region.majors,
            prefetched_pages: region.prefetch_issued,
            prefetch_hits: region.prefetch_used,
            evicted_pages: region.evictions,
            clean_pages: region.evictions_clean + region.evictions_zero,
            lost_pages: region.lost,
            bytes_read: region.transport.bytes_read,
            bytes_written: region.transport.bytes_written,
            fault_p50_ns: ns(region.fault_p50_us),
            fault_p99_ns: ns(region.fault_p99_us),
            fault_p999_ns: ns(region.fault_p999_us),
        }
    }
}
