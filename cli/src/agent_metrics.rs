//! `--metrics` of the commands that serve regions.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mycoram_agent::{RegionName, RegionStats};
use mycoram_control::metrics::{MetricsServer, agent_page};

use crate::exit_codes;
use crate::failure::Failure;

/// The option, as each of them has it.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Metrics {
    /// Where metrics are read over HTTP, in the format of Prometheus [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
}

impl Metrics {
    /// Serves what this process's regions have written to `state_dir` within the last second.
    pub(crate) fn of_all(self, state_dir: &Path) -> Result<Option<MetricsServer>, Failure> {
        let state_dir = state_dir.to_owned();
        self.serve(move || {
            let files = std::fs::read_dir(&state_dir).ok();
            let files = files.into_iter().flatten().flatten();
            let paths = files.map(|entry| entry.path());
            paths.filter(|path| is_figures(path)).collect()
        })
    }

    /// The same for one region.
    pub(crate) fn of_one(
        self,
        state_dir: &Path,
        name: &RegionName,
    ) -> Result<Option<MetricsServer>, Failure> {
        let path = RegionStats::path(state_dir, name);
        self.serve(move || vec![path.clone()])
    }

    fn serve(
        self,
        files: impl Fn() -> Vec<PathBuf> + Send + 'static,
    ) -> Result<Option<MetricsServer>, Failure> {
        let here = i64::from(std::process::id());
        let page = move || {
            // A region that has just ended has no figures any more.
            let all = files().into_iter();
            let all = all.filter_map(|path| RegionStats::read(&path).ok());
            let mut ours: Vec<_> = all.filter(|s| i64::from(s.agent_pid) == here).collect();
            ours.sort_by(|a, b| a.name.cmp(&b.name));
            Some(agent_page(&ours))
        };
        self.metrics
            .map(|address| MetricsServer::start(address, page))
            .transpose()
            .map_err(|error| {
                Failure::new(exit_codes::FAILURE, error)
                    .advise("give --metrics an address of this machine and a port that is free")
            })
    }
}

fn is_figures(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".stats.json")
}
