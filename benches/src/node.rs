//! A memory node as users start it: `myco node serve`, a process of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mycoram_fabric::session::{Dial, TcpDial};
use mycoram_fabric::transport::TransportKind;

use crate::child;

/// How long a node may take to be there: it registers its memory first.
const STARTS: Duration = Duration::from_secs(30);

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("{} could not be run", program.display())]
    Start {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("myco node serve ended: {status}")]
    Ended { status: std::process::ExitStatus },
    #[error("myco node serve did not answer in {seconds} s")]
    Silent { seconds: u64 },
}

/// A running node; ended when dropped.
pub(crate) struct Node {
    child: Child,
    control: SocketAddr,
}

/// `myco`, built beside this program.
fn program() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name("myco"));
    beside.unwrap_or_else(|| "myco".into())
}

impl Node {
    /// Starts one that lends `capacity` bytes, on `cpu`.
    pub(crate) fn start(
        transport: TransportKind,
        capacity: u64,
        cpu: Option<usize>,
    ) -> Result<Self, NodeError> {
        let program = program();
        let start = |source| NodeError::Start {
            program: program.clone(),
            source,
        };
        let (host, name) = match transport {
            // Over verbs, the address of the test bed's second device.
            TransportKind::Verbs => {
                let address = std::env::var("MYCORAM_RXE_ADDR_2").ok();
                let address = address.and_then(|address| address.parse().ok());
                (
                    address.unwrap_or(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2))),
                    "verbs",
                )
            }
            TransportKind::Tcp | TransportKind::Sim => (Ipv4Addr::LOCALHOST.into(), "tcp"),
        };
        let free = TcpListener::bind((host, 0)).and_then(|listener| listener.local_addr());
        let control = free.map_err(start)?;
        let mut command = Command::new(&program);
        command
            .args(["node", "serve", "--transport", name])
            .args(["--listen", &control.to_string()])
            .args(["--capacity", &format!("{capacity}B")])
            .stdout(Stdio::null());
        let child = child::tie(&mut command, cpu).spawn().map_err(start)?;
        let mut node = Self { child, control };
        node.await_answer()?;
        Ok(node)
    }

    fn await_answer(&mut self) -> Result<(), NodeError> {
        let begun = Instant::now();
        while begun.elapsed() < STARTS {
            let answer = TcpDial::default()
                .dial(self.control)
                .and_then(|mut channel| channel.hello());
            if answer.is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(NodeError::Ended { status });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(NodeError::Silent {
            seconds: STARTS.as_secs(),
        })
    }

    /// Its control address.
    pub(crate) fn control(&self) -> SocketAddr {
        self.control
    }

    /// Stops its process where it stands; its connections stay.
    pub(crate) fn stop(&self) -> nix::Result<()> {
        // A child that was not waited for keeps its number.
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)
    }

    /// Its process, as /proc names it.
    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
