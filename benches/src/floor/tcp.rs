//! The bare TCP round trip: 64 bytes there, 4096 back, on a plain socket.
//!
//! ```text
//!   client (this thread)  --64 B-->  page server (another process)
//!                         <--4096 B--
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use super::Waiting;
use crate::samples::Latencies;

const REQUEST_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;

/// Serves pages to one client until it hangs up. Says its address on standard output first.
pub(crate) fn serve(waiting: Waiting) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let (mut stream, _) = listener.accept()?;
    prepare(&stream, waiting)?;
    let page = [0x5au8; PAGE_BYTES];
    let mut request = [0u8; REQUEST_BYTES];
    loop {
        match read_exact(&mut stream, &mut request) {
            Ok(()) => write_all(&mut stream, &page)?,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// A client's connection to a page server.
pub(crate) struct Client(TcpStream);

impl Client {
    pub(crate) fn connect(server: SocketAddr, waiting: Waiting) -> std::io::Result<Self> {
        let stream = TcpStream::connect(server)?;
        prepare(&stream, waiting)?;
        Ok(Self(stream))
    }

    /// Takes `count` round trips, one after the other.
    pub(crate) fn round_trips(&mut self, count: u32) -> std::io::Result<Latencies> {
        let request = [0u8; REQUEST_BYTES];
        let mut page = [0u8; PAGE_BYTES];
        let mut latencies = Latencies::new();
        for _ in 0..count {
            let start = Instant::now();
            write_all(&mut self.0, &request)?;
            read_exact(&mut self.0, &mut page)?;
            latencies.record(start.elapsed());
        }
        Ok(latencies)
    }
}

fn prepare(stream: &TcpStream, waiting: Waiting) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(waiting == Waiting::Polling)
}

fn read_exact(stream: &mut TcpStream, mut into: &mut [u8]) -> std::io::Result<()> {
    while !into.is_empty() {
        match stream.read(into) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => into = &mut into[n..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_all(stream: &mut TcpStream, mut from: &[u8]) -> std::io::Result<()> {
    while !from.is_empty() {
        match stream.write(from) {
            Ok(n) => from = &from[n..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
