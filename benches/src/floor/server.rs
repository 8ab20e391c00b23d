//! The other ends of the floors: a page server of our own for TCP, perftest for verbs.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Waiting;
use crate::child;
use crate::placement::Placement;

/// How long perftest's server may take to listen.
const LISTENS: Duration = Duration::from_secs(5);

/// Why the other end is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    #[error("{program} could not be run")]
    Start {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the page server did not say its address")]
    NoAddress,
    #[error("ib_read_lat gave no figure: {words}")]
    NoFigure { words: Box<str> },
}

/// A child process that is killed when dropped.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A page server for [`super::tcp::Client`].
pub(crate) struct Server {
    _process: Owned,
    address: SocketAddr,
}

impl Server {
    pub(crate) fn start(cpu: Option<usize>, waiting: Waiting) -> Result<Self, ServerError> {
        let program = "the page server";
        let start = |source| ServerError::Start { program, source };
        let waiting = match waiting {
            Waiting::Polling => "polling",
            Waiting::Sleeping => "sleeping",
        };
        let mut command = Command::new(std::env::current_exe().map_err(start)?);
        command
            .args(["page-server", "--waiting", waiting])
            .stdout(Stdio::piped());
        let mut process = Owned(child::tie(&mut command, cpu).spawn().map_err(start)?);
        let mut line = String::new();
        let out = process.0.stdout.take().ok_or(ServerError::NoAddress)?;
        BufReader::new(out).read_line(&mut line).map_err(start)?;
        let address = line.trim().parse().map_err(|_| ServerError::NoAddress)?;
        Ok(Self {
            _process: process,
            address,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The bare READ of 4 KiB over verbs, as perftest measures it.
pub(crate) struct ReadLatency;

impl ReadLatency {
    /// Median of `count` READs, microseconds, from the first device of the test bed to the second.
    pub(crate) fn measure(count: u32, placement: Placement) -> Result<f64, ServerError> {
        let program = "ib_read_lat";
        let start = |source| ServerError::Start { program, source };
        let variable =
            |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
        let base = |device: String| {
            let mut command = Command::new(program);
            command.args([
                "-R",
                "-F",
                "-s",
                "4096",
                "-n",
                &count.to_string(),
                "-d",
                &device,
            ]);
            command
        };
        let mut server = base(variable("MYCORAM_RXE_DEV_2", "rxe2"));
        server.stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Owned(
            child::tie(&mut server, placement.node_cpu)
                .spawn()
                .map_err(start)?,
        );
        let address = variable("MYCORAM_RXE_ADDR_2", "10.77.0.2");
        let mut words = String::new();
        let begun = Instant::now();
        // perftest does not say when it listens, so the client is tried until it gets through.
        while begun.elapsed() < LISTENS && matches!(server.0.try_wait(), Ok(None)) {
            let mut client = base(variable("MYCORAM_RXE_DEV_1", "rxe1"));
            let output = child::tie(client.arg(&address), placement.program_cpu)
                .output()
                .map_err(start)?;
            words = String::from_utf8_lossy(&output.stdout).into_owned();
            if let Some(median) = typical(&words) {
                return Ok(median);
            }
            words.push_str(&String::from_utf8_lossy(&output.stderr));
            std::thread::sleep(Duration::from_millis(50));
        }
        let words = words.trim().lines().last().unwrap_or("nothing").into();
        Err(ServerError::NoFigure { words })
    }
}

/// The column `t_typical[usec]`, perftest's median, of the line for 4096 bytes.
fn typical(output: &str) -> Option<f64> {
    output.lines().find_map(|line| {
        let mut columns = line.split_whitespace();
        (columns.next() == Some("4096")).then(|| columns.nth(3)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::typical;

    #[test]
    fn the_median_is_the_fifth_column() {
        let output = " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]\n \
             4096    1000          72.08          740.45       129.16   \t       127.88      57.31\n";
        assert_eq!(typical(output), Some(129.16));
        assert_eq!(typical("nothing"), None);
    }
}
