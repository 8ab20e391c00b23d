//! How busy a memory node is: what its heartbeats say, and placement goes by.
//!
//! Over tcp the node's own threads move each byte, so the share of time for which they run is what there is to run
//! out of. Over verbs the device moves them: the bytes that it counts, of what its link could carry.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::transport::tcp::TcpServerConfig;
use nix::time::{ClockId, clock_gettime};

/// Where the kernel tells of RDMA devices.
const DEVICES: &str = "/sys/class/infiniband";
/// Bytes that a device counts as one.
const DEVICE_WORD: u64 = 4;

/// What something was used for, and what that is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    used: u64,
    /// Used in a second, it is busy all the time.
    all_in_a_second: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct LoadMeter {
    source: Source,
    last: Option<(Instant, Used)>,
}

#[derive(Debug)]
enum Source {
    /// Threads that serve.
    Threads(u64),
    /// Ports of devices.
    Devices(PathBuf),
}

impl LoadMeter {
    /// Of a node that lends over this transport.
    pub(super) fn new(transport: TransportKind) -> Self {
        let source = match transport {
            TransportKind::Verbs => Source::Devices(DEVICES.into()),
            _ => Source::Threads(TcpServerConfig::default().threads.max(1) as u64),
        };
        Self { source, last: None }
    }

    /// How busy it was since the last call, 0 to 100. What cannot be measured here is 0: an emulated device
    /// counts no bytes.
    pub(super) fn percent(&mut self) -> u32 {
        let now = Instant::now();
        let used = self.source.used().unwrap_or_default();
        let last = self.last.replace((now, used));
        last.map_or(0, |(then, before)| {
            share(used, before, now.duration_since(then).as_micros())
        })
    }
}

/// What part was used since `before`, percent.
fn share(now: Used, before: Used, us: u128) -> u32 {
    let used = u128::from(now.used.saturating_sub(before.used)) * 100 * 1_000_000;
    let all = u128::from(now.all_in_a_second) * us;
    let percent = used.checked_div(all).unwrap_or(0);
    u32::try_from(percent).unwrap_or(100).min(100)
}

impl Source {
    fn used(&self) -> Option<Used> {
        match self {
            Self::Threads(threads) => {
                let ran = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).ok()?;
                let us = ran.tv_sec() * 1_000_000 + ran.tv_nsec() / 1000;
                Some(Used {
                    used: u64::try_from(us).ok()?,
                    all_in_a_second: threads * 1_000_000,
                })
            }
            Self::Devices(devices) => busiest_port(devices),
        }
    }
}

/// The port that has moved most, of what it could: one direction of its link.
fn busiest_port(devices: &Path) -> Option<Used> {
    let inside = |path: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let ports = inside(devices)
        .into_iter()
        .flat_map(|device| inside(&device.join("ports")));
    let used = ports.filter_map(|port| {
        let count = |name: &str| -> Option<u64> {
            let text = std::fs::read_to_string(port.join("counters").join(name)).ok()?;
            text.trim().parse::<u64>().ok()?.checked_mul(DEVICE_WORD)
        };
        let rate = std::fs::read_to_string(port.join("rate")).ok()?;
        Some(Used {
            used: count("port_xmit_data")?.max(count("port_rcv_data")?),
            all_in_a_second: bytes_a_second(&rate)?,
        })
    });
    used.max_by_key(|port| port.used)
}

/// Reads `100 Gb/sec (4X EDR)`.
fn bytes_a_second(rate: &str) -> Option<u64> {
    let gigabits: f64 = rate.split_whitespace().next()?.parse().ok()?;
    (gigabits > 0.0).then_some((gigabits * 1e9 / 8.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_the_time_that_has_passed() {
        let at = |used| Used {
            used,
            all_in_a_second: 2_000_000,
        };
        assert_eq!(share(at(500_000), at(0), 1_000_000), 25);
        assert_eq!(share(at(1_500_000), at(500_000), 500_000), 100);
        assert_eq!(share(at(9_000_000), at(0), 1_000_000), 100);
        assert_eq!(share(at(5), at(9), 1_000_000), 0, "a counter began anew");
        assert_eq!(share(at(5), at(0), 0), 0);
        assert_eq!(share(Used::default(), Used::default(), 10), 0);
    }

    #[test]
    fn a_process_that_works_is_busy() {
        let mut meter = LoadMeter {
            source: Source::Threads(1),
            last: None,
        };
        assert_eq!(meter.percent(), 0, "nothing to compare with");
        let ran = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("a clock");
        let begun = ran();
        while (ran() - begun).tv_nsec() < 50_000_000 && (ran() - begun).tv_sec() == 0 {
            std::hint::spin_loop();
        }
        assert!(meter.percent() > 0);
    }

    #[test]
    fn a_device_tells_what_it_moved_and_what_it_could() {
        let devices = tempfile::tempdir().expect("a directory");
        let port = devices.path().join("mlx5_0/ports/1");
        std::fs::create_dir_all(port.join("counters")).expect("made");
        let write =
            |name: &str, text: &str| std::fs::write(port.join(name), text).expect("written");
        write("rate", "100 Gb/sec (4X EDR)\n");
        write("counters/port_xmit_data", "1000\n");
        assert_eq!(
            busiest_port(devices.path()),
            None,
            "half of it is not there"
        );
        write("counters/port_rcv_data", "250\n");
        let used = busiest_port(devices.path());
        assert_eq!(
            used,
            Some(Used {
                used: 4000,
                all_in_a_second: 12_500_000_000
            })
        );
    }
}
