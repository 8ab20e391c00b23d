//! The connection to a member below TLS: what the member said last is read before the connection counts as broken.
//!
//! A member that refuses a certificate sends its alert and closes. With TLS 1.3 the client is already writing by
//! then, and would mostly see a broken pipe and never read why.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::Uri;

/// Connects to the host and port of a member's address.
pub(super) async fn connect(to: Uri) -> io::Result<TokioIo<Connection>> {
    let (Some(host), Some(port)) = (to.host(), to.port_u16()) else {
        let why = format!("{to} is not SCHEME://HOST:PORT");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(Connection {
        stream,
        broke: None,
    }))
}

/// See the module.
pub(super) struct Connection {
    stream: TcpStream,
    /// What writing failed of; told when all that came was read.
    broke: Option<io::ErrorKind>,
}

impl Connection {
    /// A write that failed counts as done: the reader is told.
    fn written<T>(&mut self, answer: io::Result<T>, done: T) -> io::Result<T> {
        answer.or_else(|error| {
            self.broke = Some(error.kind());
            Ok(done)
        })
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, into));
        let is_end = read.is_err() || into.filled().len() == before;
        match self.broke {
            Some(kind) if is_end => Poll::Ready(Err(kind.into())),
            _ => Poll::Ready(read),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        Poll::Ready(self.written(written, bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(self.written(flushed, ()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
