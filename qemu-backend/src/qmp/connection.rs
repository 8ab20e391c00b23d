//! The socket: lines in both directions, a descriptor with a command, deadlines, the queue of events.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::QmpError;
use super::message::{Command, Message, parse};

/// How long a command may take: 10 s. Most answer within a millisecond; `stop` flushes disks.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// Events kept for [`Qmp::next_event`]; the oldest is dropped for a newer one.
pub const EVENT_QUEUE: usize = 256;
/// A message of QEMU is at most this long.
pub(super) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Something that QEMU tells unasked.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name, such as `STOP` or `SHUTDOWN`.
    pub name: Box<str>,
    /// What it says besides; `Null` if nothing.
    pub data: Value,
}

/// A QMP connection in command mode.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    /// What was read and is not yet a whole line.
    partial: Vec<u8>,
    events: VecDeque<Event>,
    dropped_events: u64,
    last_id: u64,
    deadline: Duration,
}

impl Qmp {
    /// Connects to the socket at `path` and negotiates.
    pub fn connect(path: &Path, deadline: Duration) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path).map_err(|source| QmpError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::negotiate(stream, deadline)
    }

    /// Negotiates on a socket that is connected already.
    ///
    /// `deadline` bounds the greeting (which comes when QEMU's main loop runs), and then each command.
    pub fn negotiate(stream: UnixStream, deadline: Duration) -> Result<Self, QmpError> {
        stream.set_nonblocking(true)?;
        let mut qmp = Self {
            stream,
            partial: Vec::new(),
            events: VecDeque::new(),
            dropped_events: 0,
            last_id: 0,
            deadline,
        };
        match qmp.read_message(Instant::now() + deadline) {
            Ok(Some(Message::Greeting)) => {}
            Ok(None) => return Err(QmpError::NoGreeting { limit: deadline }),
            Ok(Some(_)) | Err(QmpError::Malformed(_)) => return Err(QmpError::NotQmp),
            Err(other) => return Err(other),
        }
        qmp.execute::<Value>("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Bounds each later command by `deadline`.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Runs a command and waits for its answer.
    pub fn execute<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        self.execute_with(command, arguments, None)
    }

    /// Runs a command that takes a descriptor (`add-fd`, `getfd`).
    pub fn execute_with_fd<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Value,
        fd: BorrowedFd<'_>,
    ) -> Result<T, QmpError> {
        self.execute_with(command, arguments, Some(fd))
    }

    /// The oldest event that was not taken yet, among those that have been read.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How many events were dropped because nobody took them.
    #[must_use]
    pub fn dropped_events(&self) -> u64 {
        self.dropped_events
    }

    /// Waits for an event of this name; those before it are dropped. `None` if `limit` passed first.
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Result<Option<Event>, QmpError> {
        let until = Instant::now() + limit;
        loop {
            while let Some(event) = self.events.pop_front() {
                if &*event.name == name {
                    return Ok(Some(event));
                }
            }
            match self.read_message(until)? {
                Some(Message::Event(event)) => self.keep(event),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn execute_with<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<T, QmpError> {
        let until = Instant::now() + self.deadline;
        self.last_id += 1;
        let id = self.last_id;
        let line = Command {
            execute: command,
            arguments,
            id,
        }
        .to_line()?;
        self.send(&line, fd, until, command)?;
        loop {
            match self.read_message(until)? {
                None => {
                    return Err(QmpError::Deadline {
                        command,
                        limit: self.deadline,
                    });
                }
                Some(Message::Event(event)) => self.keep(event),
                // The late answer to a command whose deadline passed.
                Some(
                    Message::Return {
                        id: Some(other), ..
                    }
                    | Message::Error {
                        id: Some(other), ..
                    },
                ) if other != id => {}
                Some(Message::Return { value, .. }) => return Ok(serde_json::from_value(value)?),
                Some(Message::Error { refusal, .. }) => {
                    return Err(QmpError::Refused {
                        command,
                        class: refusal.class,
                        description: refusal.desc,
                    });
                }
                Some(Message::Greeting) => return Err(QmpError::NotQmp),
            }
        }
    }

    fn send(
        &self,
        line: &[u8],
        mut fd: Option<BorrowedFd<'_>>,
        until: Instant,
        command: &'static str,
    ) -> Result<(), QmpError> {
        let mut rest = line;
        while !rest.is_empty() {
            let raw = fd.map(|fd| [fd.as_raw_fd()]);
            let rights = raw.as_ref().map(|fds| ControlMessage::ScmRights(fds));
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(
                self.stream.as_raw_fd(),
                &[IoSlice::new(rest)],
                rights.as_slice(),
                flags,
                None,
            ) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    fd = None;
                }
                Err(Errno::EAGAIN) => {
                    if !self.wait(PollFlags::POLLOUT, until)? {
                        return Err(QmpError::Deadline {
                            command,
                            limit: self.deadline,
                        });
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(QmpError::Closed),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    /// The next message; `None` if `until` passed first.
    fn read_message(&mut self, until: Instant) -> Result<Option<Message>, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.partial[searched..].iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=searched + end).collect();
                searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return parse(&line).map(Some);
            }
            searched = self.partial.len();
            if searched > MAX_MESSAGE_BYTES {
                return Err(QmpError::TooLong {
                    limit: MAX_MESSAGE_BYTES,
                });
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(count) => self.partial.extend_from_slice(&chunk[..count]),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        if !self.wait(PollFlags::POLLIN, until)? {
                            return Ok(None);
                        }
                    }
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::ConnectionReset => return Err(QmpError::Closed),
                    _ => return Err(error.into()),
                },
            }
        }
    }

    fn wait(&self, what: PollFlags, until: Instant) -> Result<bool, QmpError> {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that the last millisecond does not spin.
        let timeout =
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.stream.as_fd(), what)];
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0 || Instant::now() < until),
            Err(Errno::EINTR) => Ok(Instant::now() < until),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == EVENT_QUEUE {
            self.events.pop_front();
            self.dropped_events += 1;
        }
        self.events.push_back(event);
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::{BufRead, BufReader, Write};
    use std::thread::JoinHandle;

    const LIMIT: Duration = Duration::from_millis(200);

    /// A peer that answers each line with the next of `answers`; `$ID` stands for the command's id.
    fn peer(
        greeting: &'static str,
        answers: &'static [&'static str],
    ) -> (UnixStream, JoinHandle<()>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            theirs.write_all(greeting.as_bytes()).unwrap();
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            for answer in answers {
                let Some(Ok(line)) = lines.next() else { return };
                let command: Value = serde_json::from_str(&line).unwrap();
                let text = answer.replace("$ID", &command["id"].to_string());
                theirs.write_all(text.as_bytes()).unwrap();
            }
            // Stay until the client has gone, as QEMU does.
            let _ = lines.next();
        });
        (ours, thread)
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
    const OK: &str = "{\"return\": {}, \"id\": $ID}\r\n";

    #[test]
    fn events_and_late_answers_do_not_confuse_a_command() {
        let (socket, thread) = peer(
            GREETING,
            &[
                OK,
                "{\"event\": \"STOP\"}\r\n{\"return\": 7, \"id\": 999}\r\n{\"return\": 5, \"id\": $ID}\r\n",
            ],
        );
        let mut qmp = Qmp::negotiate(socket, LIMIT).unwrap();
        assert_eq!(qmp.execute::<u32>("x", json!({"a": 1})).unwrap(), 5);
        assert_eq!(&*qmp.next_event().unwrap().name, "STOP");
        assert_eq!(qmp.next_event(), None);
        drop(qmp);
        thread.join().unwrap();
    }

    #[test]
    fn refusals_silence_and_ends_are_told_apart() {
        const REFUSAL: &str =
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": $ID}\n";
        let (socket, thread) = peer(GREETING, &[OK, REFUSAL, "{\"ret"]);
        let mut qmp = Qmp::negotiate(socket, LIMIT).unwrap();
        match qmp.execute::<Value>("a", Value::Null) {
            Err(QmpError::Refused {
                command: "a",
                class,
                description,
            }) => {
                assert_eq!((&*class, &*description), ("GenericError", "no"));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            qmp.execute::<Value>("b", Value::Null),
            Err(QmpError::Deadline { command: "b", .. })
        ));
        assert!(matches!(
            qmp.execute::<Value>("c", Value::Null),
            Err(QmpError::Closed)
        ));
        thread.join().unwrap();
    }

    #[test]
    fn a_socket_that_is_held_or_no_qmp_is_told() {
        let (socket, _thread) = peer("", &[]);
        assert!(matches!(
            Qmp::negotiate(socket, LIMIT),
            Err(QmpError::NoGreeting { .. })
        ));
        let (socket, _thread) = peer(
            "QEMU 7.2.22 monitor - type 'help' for more information\n",
            &[],
        );
        assert!(matches!(
            Qmp::negotiate(socket, LIMIT),
            Err(QmpError::NotQmp)
        ));
        assert!(matches!(
            Qmp::connect(Path::new("/nonexistent/socket"), LIMIT),
            Err(QmpError::Connect { .. })
        ));
    }

    #[test]
    fn the_queue_of_events_is_bounded() {
        let (socket, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            theirs.write_all(GREETING.as_bytes()).unwrap();
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            lines.next();
            for n in 0..EVENT_QUEUE + 10 {
                writeln!(theirs, "{{\"event\": \"E{n}\"}}").unwrap();
            }
            theirs.write_all(b"{\"return\": {}, \"id\": 1}\n").unwrap();
            writeln!(theirs, "{{\"event\": \"LAST\", \"data\": {{\"x\": 1}}}}").unwrap();
        });
        let mut qmp = Qmp::negotiate(socket, LIMIT).unwrap();
        assert_eq!(qmp.dropped_events(), 10);
        assert_eq!(&*qmp.next_event().unwrap().name, "E10");
        let last = qmp.wait_event("LAST", LIMIT).unwrap().unwrap();
        assert_eq!(last.data, json!({"x": 1}));
        assert!(matches!(
            qmp.wait_event("NONE", LIMIT),
            Err(QmpError::Closed)
        ));
        thread.join().unwrap();
    }
}
