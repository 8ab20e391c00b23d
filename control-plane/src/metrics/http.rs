//! The smallest HTTP server that a monitor can read from.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a request may take to come, and its answer to go.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes of a request.
const MAX_REQUEST_BYTES: u64 = 8 << 10;
/// The text format of Prometheus, as it is named.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why nothing can be read.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be served on {address}")]
pub struct MetricsError {
    /// What was asked for.
    address: SocketAddr,
    /// The system's reason.
    #[source]
    source: io::Error,
}

/// Serves `GET /metrics`, one request at a time. Dropping it ends it.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Listens; `page` makes the text, `None` where there is none any more.
    pub fn start(
        address: SocketAddr,
        page: impl Fn() -> Option<String> + Send + 'static,
    ) -> Result<Self, MetricsError> {
        let start = || {
            let listener = TcpListener::bind(address)?;
            let address = listener.local_addr()?;
            let ending = Arc::<AtomicBool>::default();
            let seen = Arc::clone(&ending);
            let thread = std::thread::Builder::new()
                .name("myco-metrics".to_owned())
                .spawn(move || serve(&listener, &seen, &page))?;
            Ok(Self {
                address,
                ending,
                thread: Some(thread),
            })
        };
        start().map_err(|source| MetricsError { address, source })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        // Wakes the thread; if that cannot be done, it ends with the process.
        let woken = TcpStream::connect_timeout(&self.address, PATIENCE).is_ok();
        if let Some(thread) = self.thread.take()
            && woken
            && thread.join().is_err()
        {
            tracing::error!("the thread that serves metrics panicked");
        }
    }
}

fn serve(listener: &TcpListener, ending: &AtomicBool, page: &dyn Fn() -> Option<String>) {
    for stream in listener.incoming() {
        if ending.load(Ordering::Acquire) {
            return;
        }
        match stream.and_then(|stream| answer(&stream, page)) {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%error, "a reader of metrics went away");
                // Out of descriptors, mostly: there is nobody to be woken by.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn answer(mut stream: &TcpStream, page: &dyn Fn() -> Option<String>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.take(MAX_REQUEST_BYTES));
    let mut request = String::new();
    lines.read_line(&mut request)?;
    let mut header = String::new();
    while lines.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (status, body) = if request.starts_with("GET /metrics ") {
        match page() {
            Some(text) => ("200 OK", text),
            None => ("503 Service Unavailable", String::new()),
        }
    } else {
        ("404 Not Found", "metrics are at /metrics\n".to_owned())
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
