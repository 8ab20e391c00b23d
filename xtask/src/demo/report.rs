//! What the demo found: its JSON, its words, and what in it is a reason to fail.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::DemoError;

/// Version of the report's JSON.
const SCHEMA_VERSION: u32 = 1;
/// What the kernel may count over the budget: pages that are being installed while others are on
/// their way out, and the file's own bookkeeping. 1 MiB.
const RESIDENT_SLACK_BYTES: u64 = 1 << 20;

/// The report.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(super) schema: String,
    pub(super) schema_version: u32,
    /// "pass" or "fail", as the guest's program says.
    pub(super) verification: String,
    pub(super) transport: String,
    pub(super) nodes: usize,
    /// Memory nodes that each page is on.
    pub(super) replicas: u8,
    /// Which was killed with SIGKILL in mid-run.
    pub(super) killed_node: Option<String>,
    /// What was made anew for it.
    pub(super) rebuild: Option<Rebuild>,
    pub(super) guest: Guest,
    /// From the start of attaching to the guest's first instruction, ms.
    pub(super) attach_ms: f64,
    pub(super) fault: Fault,
    /// Share of the program's page visits that needed no read from a memory node.
    pub(super) hit_rate: f64,
    pub(super) bytes: Bytes,
    /// The workload's own time, s.
    pub(super) seconds: f64,
}

/// The guest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Guest {
    pub(super) ram_bytes: u64,
    pub(super) local_budget_bytes: u64,
    /// Most bytes of the guest's RAM that were resident at once, as the kernel counts the memory file.
    pub(super) peak_resident_bytes: u64,
    /// Distinct bytes that the program filled and verified.
    pub(super) touched_bytes: u64,
    /// Page visits of the program.
    pub(super) touches: u64,
    /// Pages with wrong contents, visits counted.
    pub(super) wrong_pages: u64,
}

/// What took the place of a lost memory node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Rebuild {
    /// Replicas that were made anew.
    pub(super) extents: u64,
    /// Bytes that were copied for them.
    pub(super) bytes: u64,
    /// From the kill until every extent had all its replicas again; null: not before the guest's end.
    pub(super) seconds: Option<f64>,
    /// From the kill until the control plane counted the node as down.
    pub(super) down_after_seconds: Option<f64>,
    /// Extents that lost their last replica.
    pub(super) lost_extents: u64,
}

/// Fault service, as the agent measures it: event read to page installed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(super) count: u64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
}

/// Bytes between the agent and the memory nodes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Bytes {
    pub(super) read: u64,
    pub(super) written: u64,
}

impl Report {
    pub(super) const SCHEMA: &str = "demo.report";

    pub(super) fn version() -> u32 {
        SCHEMA_VERSION
    }

    pub(super) fn read(path: &Path) -> Result<Self, DemoError> {
        let bytes = std::fs::read(path).map_err(|source| DemoError::File {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_slice(&bytes).map_err(|source| DemoError::Shape {
            what: "the report's fields",
            source,
        })
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), DemoError> {
        let text = serde_json::to_string_pretty(self).map_err(|source| DemoError::Shape {
            what: "the report's fields",
            source,
        })?;
        std::fs::write(path, text + "\n").map_err(|source| DemoError::File {
            path: path.to_owned(),
            source,
        })
    }

    /// What is wrong with what was found; nothing if the demo did what it promises.
    pub(super) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        if self.verification != "pass" {
            complaints.push(format!(
                "the guest found {} pages with wrong contents",
                self.guest.wrong_pages
            ));
        }
        let bound = self.guest.local_budget_bytes + RESIDENT_SLACK_BYTES;
        if self.guest.peak_resident_bytes > bound {
            complaints.push(format!(
                "{} bytes were resident, {bound} are allowed",
                self.guest.peak_resident_bytes
            ));
        }
        if self.guest.peak_resident_bytes == 0 {
            complaints
                .push("the kernel's count of the guest's resident RAM was never seen".to_owned());
        }
        if self.guest.touched_bytes <= self.guest.local_budget_bytes {
            complaints.push(
                "the program used no more memory than the budget: nothing was shown".to_owned(),
            );
        }
        if self.fault.count == 0 || self.bytes.read == 0 || self.bytes.written == 0 {
            complaints.push("no page came from a memory node: nothing was shown".to_owned());
        }
        if self.replicas > 1 {
            complaints.extend(self.complaint_of_loss());
        }
        complaints
    }

    fn complaint_of_loss(&self) -> Option<String> {
        let Some(rebuild) = &self.rebuild else {
            return Some("no memory node was killed: nothing was shown".to_owned());
        };
        if rebuild.lost_extents > 0 {
            return Some(format!(
                "{} extents lost their last replica",
                rebuild.lost_extents
            ));
        }
        if rebuild.seconds.is_none() || rebuild.extents == 0 {
            return Some("the guest ended before the lost replicas were made anew".to_owned());
        }
        None
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<22}{value}");
        row(
            "verification",
            format!(
                "{} ({:.0} MiB, {} visits, {:.1} s)",
                self.verification,
                mib(self.guest.touched_bytes),
                self.guest.touches,
                self.seconds
            ),
        )?;
        row(
            "guest RAM",
            format!(
                "{:.0} MiB, local budget {:.0} MiB",
                mib(self.guest.ram_bytes),
                mib(self.guest.local_budget_bytes)
            ),
        )?;
        row(
            "peak resident",
            format!(
                "{:.1} MiB, as the kernel counts",
                mib(self.guest.peak_resident_bytes)
            ),
        )?;
        row(
            "memory nodes",
            format!(
                "{} over {}, each page on {}",
                self.nodes, self.transport, self.replicas
            ),
        )?;
        if let (Some(node), Some(rebuild)) = (&self.killed_node, &self.rebuild) {
            row("killed in mid-run", node.clone())?;
            row(
                "rebuilt",
                match rebuild.seconds {
                    Some(seconds) => format!(
                        "{} extents, {:.0} MiB: counted as down after {:.1} s, whole again after {seconds:.1} s",
                        rebuild.extents,
                        mib(rebuild.bytes),
                        rebuild.down_after_seconds.unwrap_or_default(),
                    ),
                    None => "not before the guest's end".to_owned(),
                },
            )?;
        }
        row(
            "faults",
            format!(
                "{} ({:.0} a second)",
                self.fault.count,
                self.fault.count as f64 / self.seconds.max(0.001)
            ),
        )?;
        row(
            "fault service",
            format!(
                "p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us",
                self.fault.p50_us, self.fault.p99_us, self.fault.p999_us
            ),
        )?;
        row(
            "hit rate",
            format!("{:.3} of the page visits", self.hit_rate),
        )?;
        row(
            "moved",
            format!(
                "{:.0} MiB read, {:.0} MiB written",
                mib(self.bytes.read),
                mib(self.bytes.written)
            ),
        )?;
        row("time to attach", format!("{:.1} ms", self.attach_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Fault, Guest, Rebuild, Report};

    fn good() -> Report {
        Report {
            schema: Report::SCHEMA.to_owned(),
            schema_version: Report::version(),
            verification: "pass".to_owned(),
            transport: "tcp".to_owned(),
            nodes: 3,
            replicas: 2,
            killed_node: Some("node3".to_owned()),
            rebuild: Some(Rebuild {
                extents: 3,
                bytes: 48 << 20,
                seconds: Some(2.0),
                down_after_seconds: Some(1.0),
                lost_extents: 0,
            }),
            guest: Guest {
                ram_bytes: 512 << 20,
                local_budget_bytes: 128 << 20,
                peak_resident_bytes: 127 << 20,
                touched_bytes: 400 << 20,
                touches: 5,
                wrong_pages: 0,
            },
            attach_ms: 2.0,
            fault: Fault {
                count: 9,
                p50_us: 1.0,
                p99_us: 2.0,
                p999_us: 3.0,
            },
            hit_rate: 0.5,
            bytes: Bytes {
                read: 1,
                written: 1,
            },
            seconds: 1.0,
        }
    }

    #[test]
    fn a_report_that_shows_nothing_or_something_wrong_is_a_failure() {
        assert_eq!(good().complaints(), Vec::<String>::new());
        let spoil: [fn(&mut Report); 9] = [
            |r| r.verification = "fail".to_owned(),
            |r| r.guest.peak_resident_bytes = 200 << 20,
            |r| r.guest.peak_resident_bytes = 0,
            |r| r.guest.touched_bytes = 100 << 20,
            |r| r.fault.count = 0,
            |r| r.bytes.read = 0,
            |r| r.rebuild = None,
            |r| r.rebuild.as_mut().unwrap().seconds = None,
            |r| r.rebuild.as_mut().unwrap().lost_extents = 1,
        ];
        for spoil in spoil {
            let mut report = good();
            spoil(&mut report);
            assert_eq!(report.complaints().len(), 1);
        }
    }
}
