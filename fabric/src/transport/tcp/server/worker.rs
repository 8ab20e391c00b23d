//! A thread that serves connections: its ring, its connections, and the orders it takes.
//!
//! ```text
//!   orders (channel + eventfd) --\
//!   listener (first worker only) --> ring --> completion --> connection: parse, check, answer
//!   sockets ---------------------/     ^                         |
//!                                      +---- send, receive <-----+
//! ```
//!
//! Each connection has at most one send and one receive with the kernel, so all take turns. An order
//! that takes a right away is done when the kernel has given back everything that could still use it;
//! whoever gave the order holds the other end of a channel that closes then.

use std::convert::Infallible;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use io_uring::{cqueue, opcode, squeue, types};
use nix::sys::eventfd::EventFd;

use super::connection::{Census, Connection, Phase, Surroundings};
use super::{RING_COMPLETIONS, RING_ENTRIES, TcpServerConfig};
use crate::transport::Mapping;
use crate::transport::access::{Access, SessionNumber};
use crate::transport::tcp::ring::Ring;
use crate::transport::tcp::socket;
use crate::units::Rkey;
use crate::wire::data::{Frame, FrameKind, Status};

/// How often connections that must go on by themselves are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long a peer that was told everything may take to hang up.
const LINGER: Duration = Duration::from_millis(1000);
/// Spins between two looks at the clock.
const SPINS: usize = 32;

const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const CANCEL: u64 = 2;
const WAKE: u64 = 3;
const ACCEPT: u64 = 4;
const OPERATIONS: u64 = 8;

/// What a worker is told to do.
pub(super) enum Order {
    /// Serve this socket.
    Serve(TcpStream),
    /// The key is not good any more: end what still uses it.
    Forget(Rkey, Sender<Infallible>),
    /// The sessions are over: end their connections, with this farewell.
    End(Arc<[SessionNumber]>, Status, Sender<Infallible>),
    /// Finish what is owed and return.
    Finish,
}

/// What all workers of a server share.
pub(super) struct Shared {
    pub(super) pool: Arc<Mapping>,
    pub(super) access: Access,
    pub(super) census: Census,
    pub(super) config: TcpServerConfig,
}

/// The giving end of a worker's orders.
#[derive(Clone)]
pub(super) struct Desk {
    orders: Sender<Order>,
    bell: Arc<EventFd>,
}

impl Desk {
    pub(super) fn new() -> io::Result<(Self, Receiver<Order>)> {
        use nix::sys::eventfd::EfdFlags;
        let (orders, taken) = crossbeam_channel::unbounded();
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        Ok((Self { orders, bell }, taken))
    }

    /// Gives an order; one to a worker that has returned is dropped, and so done.
    pub(super) fn give(&self, order: Order) {
        if self.orders.send(order).is_ok() {
            let _ = self.bell.write(1);
        }
    }
}

/// See the module.
pub(super) struct Worker {
    // First, so that it is closed before what its entries point to is freed.
    ring: Ring,
    shared: Arc<Shared>,
    orders: Receiver<Order>,
    bell: Arc<EventFd>,
    bell_value: Box<u64>,
    connections: Vec<Option<Box<Connection>>>,
    vacant: Vec<usize>,
    /// The first worker has it, and the desks of all.
    door: Option<Door>,
    ticked: Instant,
    /// Some connection may have a deadline.
    timed: bool,
    finish_by: Option<Instant>,
}

/// Where connections come in.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) desks: Vec<Desk>,
    pub(super) next: usize,
    pub(super) accepting: bool,
    /// Descriptors or memory ran out: not before then.
    pub(super) shut_until: Option<Instant>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        desk: &Desk,
        orders: Receiver<Order>,
        door: Option<Door>,
    ) -> Result<Self, crate::transport::tcp::RingError> {
        Ok(Self {
            ring: Ring::new(RING_ENTRIES, RING_COMPLETIONS)?,
            shared,
            orders,
            bell: Arc::clone(&desk.bell),
            bell_value: Box::new(0),
            connections: Vec::new(),
            vacant: Vec::new(),
            door,
            ticked: Instant::now(),
            timed: false,
            finish_by: None,
        })
    }

    /// Serves until told to finish.
    pub(super) fn run(mut self) {
        if let Err(error) = self.serve() {
            tracing::error!(%error, "a tcp worker ends, because its io_uring failed");
        }
        // Whatever is left: no operation may be with the kernel when the pool goes.
        for connection in self.connections.iter().flatten() {
            socket::shut(&connection.stream);
        }
        let give_up = Instant::now() + LINGER;
        while self.connections.iter().flatten().any(|c| c.is_pending()) {
            if Instant::now() > give_up || self.ring.submit_and_wait(Some(TICK)).is_err() {
                break;
            }
            while let Some(entry) = self.ring.next() {
                self.note(&entry);
            }
        }
        for connection in self.connections.iter_mut().flatten() {
            connection.enter(Phase::Closing, &self.shared.census);
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        self.ring.enable()?;
        self.listen_for_orders()?;
        loop {
            self.open_door()?;
            self.wait()?;
            while let Some(entry) = self.ring.next() {
                self.take(&entry)?;
            }
            if (self.timed || self.finish_by.is_some()) && self.ticked.elapsed() >= TICK {
                self.tick()?;
            }
            if self.finish_by.is_some() && self.connections.iter().all(Option::is_none) {
                return Ok(());
            }
        }
    }

    /// Submits, and waits for something to do: spinning first where that is configured.
    fn wait(&mut self) -> io::Result<()> {
        let spin = Duration::from_micros(self.shared.config.spin_us.into());
        if !spin.is_zero() {
            self.ring.submit()?;
            let begun = Instant::now();
            while !self.ring.has_news() && begun.elapsed() < spin {
                for _ in 0..SPINS {
                    std::hint::spin_loop();
                }
            }
            if self.ring.has_news() {
                return if self.ring.work_is_deferred() {
                    self.ring.submit()
                } else {
                    Ok(())
                };
            }
        }
        let timed = self.timed
            || self.finish_by.is_some()
            || self.door.as_ref().is_some_and(|door| !door.accepting);
        self.ring.submit_and_wait(timed.then_some(TICK))
    }

    fn push(&mut self, entry: squeue::Entry, index: usize, operation: u64) -> io::Result<()> {
        let entry = entry.user_data(index as u64 * OPERATIONS + operation);
        // SAFETY: messages and buffers of a connection are boxed and kept until the kernel has given
        // them back; the pool outlives the ring; the bell's value is boxed.
        unsafe { self.ring.push(&entry) }
    }

    fn listen_for_orders(&mut self) -> io::Result<()> {
        let bell = types::Fd(self.bell.as_raw_fd());
        let value = (&raw mut *self.bell_value).cast::<u8>();
        self.push(opcode::Read::new(bell, value, 8).build(), 0, WAKE)
    }

    fn open_door(&mut self) -> io::Result<()> {
        let finishing = self.finish_by.is_some();
        if let Some(door) = self.door.as_mut().filter(|d| !d.accepting && !finishing) {
            if door.shut_until.is_some_and(|until| Instant::now() < until) {
                return Ok(());
            }
            door.shut_until = None;
            door.accepting = true;
            let listener = types::Fd(door.listener.as_raw_fd());
            let accept = opcode::AcceptMulti::new(listener).flags(libc::SOCK_CLOEXEC);
            return self.push(accept.build(), 0, ACCEPT);
        }
        Ok(())
    }

    /// One completion.
    fn take(&mut self, entry: &cqueue::Entry) -> io::Result<()> {
        match entry.user_data() % OPERATIONS {
            WAKE => {
                while let Ok(order) = self.orders.try_recv() {
                    self.obey(order)?;
                }
                self.listen_for_orders()
            }
            ACCEPT => self.accepted(entry),
            CANCEL => Ok(()),
            _ => match self.note(entry) {
                Some(index) => self.go_on(index),
                None => Ok(()),
            },
        }
    }

    /// Notes what a send or receive did; says whose it was.
    fn note(&mut self, entry: &cqueue::Entry) -> Option<usize> {
        let operation = entry.user_data() % OPERATIONS;
        if operation != SEND && operation != RECEIVE {
            return None;
        }
        let index = (entry.user_data() / OPERATIONS) as usize;
        let connection = self.connections.get_mut(index)?.as_mut()?;
        let result = entry.result();
        let mut over = false;
        if operation == SEND {
            connection.send.pending = false;
            if result >= 0 {
                connection.sent(result as usize);
            }
        } else {
            connection.receive.pending = false;
            connection.more = cqueue::sock_nonempty(entry.flags());
            if result > 0 {
                connection.received(result as usize);
            }
            over = result == 0;
        }
        over |= result < 0 && !socket::is_passing(-result);
        if over && !matches!(connection.phase, Phase::Ending(_)) {
            connection.enter(Phase::Closing, &self.shared.census);
        }
        Some(index)
    }

    /// Does what the connection can do next, and asks the kernel for what it needs.
    fn go_on(&mut self, index: usize) -> io::Result<()> {
        let shared = &*self.shared;
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        connection.serve(&Surroundings {
            pool: &shared.pool,
            access: &shared.access,
            census: &shared.census,
            max_session_connections: shared.config.max_session_connections,
        });
        let target = socket::target(&connection.stream);
        match &connection.phase {
            Phase::Ending(status) if !connection.is_pending() => {
                // The kernel has given everything back: nothing of the session touches memory now.
                let status = *status;
                connection.waiters.clear();
                if !connection.is_inside_an_answer() && status != Status::Done {
                    say_farewell(&connection.stream, status);
                }
                linger(connection, &shared.census);
            }
            Phase::Draining if !connection.owes_answers() && !connection.send.pending => {
                linger(connection, &shared.census);
            }
            Phase::Draining if connection.deadline.is_none() => {
                connection.deadline = Some(Instant::now() + LINGER);
            }
            Phase::Closing => {
                if connection.is_pending() {
                    socket::shut(&connection.stream);
                } else {
                    self.connections[index] = None;
                    self.vacant.push(index);
                    shared.census.sockets.fetch_sub(1, Ordering::Relaxed);
                }
                return Ok(());
            }
            _ => {}
        }
        self.timed |= connection.deadline.is_some();
        let (mut send, mut receive) = (None, None);
        if !connection.send.pending && connection.fill_send() {
            connection.send.pending = true;
            send = Some(connection.send.send(target));
        }
        if !connection.receive.pending && connection.fill_receive(&shared.pool) {
            connection.receive.pending = true;
            receive = Some(connection.receive.receive(target, !connection.more));
        }
        // The answer first: somebody waits for it.
        if let Some(entry) = send {
            self.push(entry, index, SEND)?;
        }
        if let Some(entry) = receive {
            self.push(entry, index, RECEIVE)?;
        }
        Ok(())
    }

    fn accepted(&mut self, entry: &cqueue::Entry) -> io::Result<()> {
        let Some(door) = &mut self.door else {
            return Ok(());
        };
        door.accepting = cqueue::more(entry.flags());
        if entry.result() < 0 {
            // EINVAL: the door was shut, by us.
            let expected = -entry.result() == libc::EINVAL || socket::is_passing(-entry.result());
            if !expected && !door.accepting {
                tracing::warn!(
                    errno = -entry.result(),
                    "a data connection was not accepted"
                );
            }
            return Ok(());
        }
        // SAFETY: the kernel made this descriptor for us; nobody else knows it.
        let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(entry.result()) });
        let config = &self.shared.config;
        let timeout = Duration::from_millis(config.peer_timeout_ms.into());
        let full = self.shared.census.sockets.load(Ordering::Relaxed) >= config.max_connections;
        if full || self.finish_by.is_some() || socket::set_options(&stream, timeout).is_err() {
            // Dropped: the peer sees the connection closed.
            return Ok(());
        }
        let turn = door.next % door.desks.len();
        door.next = door.next.wrapping_add(1);
        if turn == 0 {
            return self.adopt(stream);
        }
        door.desks[turn].give(Order::Serve(stream));
        Ok(())
    }

    /// Takes a new socket, in the place of the one that has been greeting longest if there are too many.
    fn adopt(&mut self, stream: TcpStream) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        if shared.census.greeting.load(Ordering::Relaxed) >= shared.config.max_greeting {
            let oldest = (0..self.connections.len())
                .filter_map(|index| {
                    let connection = self.connections[index].as_ref()?;
                    matches!(connection.phase, Phase::Greeting)
                        .then_some((connection.deadline, index))
                })
                .min();
            match oldest {
                Some((_, index)) => self.close(index)?,
                None => return Ok(()),
            }
        }
        let patience = Duration::from_millis(shared.config.hello_timeout_ms.into());
        let connection = Connection::new(stream, Instant::now() + patience, &shared.census);
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.connections[index] = Some(Box::new(connection));
        self.go_on(index)
    }

    fn close(&mut self, index: usize) -> io::Result<()> {
        if let Some(connection) = self.connections[index].as_mut() {
            connection.enter(Phase::Closing, &self.shared.census);
        }
        self.go_on(index)
    }

    fn obey(&mut self, order: Order) -> io::Result<()> {
        match order {
            Order::Serve(stream) => self.adopt(stream),
            Order::Forget(rkey, done) => {
                for index in 0..self.connections.len() {
                    if let Some(connection) = self.connections[index].as_mut()
                        && connection.uses(rkey)
                    {
                        connection.waiters.push(done.clone());
                        self.close(index)?;
                    }
                }
                Ok(())
            }
            Order::End(sessions, status, done) => {
                for index in 0..self.connections.len() {
                    if let Some(connection) = self.connections[index].as_mut()
                        && connection.belongs_to(&sessions)
                    {
                        connection.waiters.push(done.clone());
                        // Others are on their way out already.
                        if !matches!(connection.phase, Phase::Ending(_) | Phase::Closing) {
                            self.end(index, status)?;
                        }
                    }
                }
                Ok(())
            }
            Order::Finish => {
                let drain = Duration::from_millis(self.shared.config.drain_timeout_ms.into());
                self.finish_by = Some(Instant::now() + drain);
                if let Some(door) = &self.door {
                    use nix::sys::socket::{Shutdown, shutdown};
                    let _ = shutdown(door.listener.as_raw_fd(), Shutdown::Both);
                }
                self.drain_all()
            }
        }
    }

    /// Ends a connection whose session is over. What the kernel has is taken back, not shut down, so
    /// that the peer can still be told why.
    fn end(&mut self, index: usize, status: Status) -> io::Result<()> {
        let Some(connection) = self.connections[index].as_mut() else {
            return Ok(());
        };
        connection.enter(Phase::Ending(status), &self.shared.census);
        let pending = [
            (RECEIVE, connection.receive.pending),
            (SEND, connection.send.pending),
        ];
        for (operation, _) in pending.iter().filter(|(_, pending)| *pending) {
            let theirs = index as u64 * OPERATIONS + operation;
            self.push(opcode::AsyncCancel::new(theirs).build(), index, CANCEL)?;
        }
        self.go_on(index)
    }

    fn drain_all(&mut self) -> io::Result<()> {
        for index in 0..self.connections.len() {
            let Some(connection) = self.connections[index].as_mut() else {
                continue;
            };
            match connection.phase {
                Phase::Open(_) if connection.owes_answers() => {
                    connection.enter(Phase::Draining, &self.shared.census);
                    connection.deadline = self.finish_by;
                    self.go_on(index)?;
                }
                Phase::Ending(_) | Phase::Draining => {}
                _ => self.close(index)?,
            }
        }
        Ok(())
    }

    /// Closes what is over its time.
    fn tick(&mut self) -> io::Result<()> {
        let now = Instant::now();
        self.ticked = now;
        let forced = self.finish_by.is_some_and(|by| now >= by);
        self.timed = false;
        for index in 0..self.connections.len() {
            let Some(connection) = &self.connections[index] else {
                continue;
            };
            let late = connection.deadline.is_some_and(|by| now >= by);
            let lingers = matches!(connection.phase, Phase::Lingering);
            self.timed |= connection.deadline.is_some();
            if late || forced || (lingers && self.finish_by.is_some()) {
                self.close(index)?;
            }
        }
        Ok(())
    }
}

/// Everything is said: the peer is to see the end of the stream behind it, not a reset that would
/// throw away what it has not read.
fn linger(connection: &mut Connection, census: &Census) {
    let _ = connection.stream.shutdown(std::net::Shutdown::Write);
    connection.deadline = Some(Instant::now() + LINGER);
    connection.enter(Phase::Lingering, census);
}

/// One frame, if the socket takes it at once; a peer that does not hear it sees the connection end.
fn say_farewell(stream: &TcpStream, status: Status) {
    use nix::sys::socket::{MsgFlags, send};
    let farewell = Frame {
        status,
        ..Frame::new(FrameKind::Farewell)
    };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = send(stream.as_raw_fd(), &farewell.encode(), flags);
}
