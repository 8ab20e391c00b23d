//! The bench's end of a program: starts it, gives orders, ends it.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::poll::{PollFd, PollFlags, poll};

use super::orders::{Answer, Order};
use crate::child;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("the program could not be started")]
    Start(#[source] std::io::Error),
    #[error("the program was killed by signal {0}")]
    Killed(i32),
    #[error("the program ended in the middle of an order")]
    Ended,
    #[error("the program's answer cannot be read")]
    Answer(#[from] serde_json::Error),
    #[error("the program could not carry it out: {0}")]
    Refused(Box<str>),
}

/// How long a program may take to give its memory back when no more orders come, ms.
const LEAVE_MS: u16 = 10_000;

/// A running program. Dropped, it is told to leave, so that its memory is with the node again for the
/// next one; killed if it does not.
pub(crate) struct Program {
    child: Child,
    /// `None` only while it is dropped: a closed pipe says that no more orders come.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Program {
    /// Starts one on `cpu`, inside of the control group whose `cgroup.procs` is given.
    pub(crate) fn start(
        cpu: Option<usize>,
        group: Option<&std::path::Path>,
    ) -> Result<Self, ProgramError> {
        let mut command = Command::new(std::env::current_exe().map_err(ProgramError::Start)?);
        command
            .arg("program")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(cpu) = cpu {
            command.args(["--cpu", &cpu.to_string()]);
        }
        if let Some(path) = group {
            let group = std::fs::OpenOptions::new()
                .write(true)
                .open(path)
                .map_err(ProgramError::Start)?;
            // SAFETY: between fork and exec the closure makes one system call on an open descriptor.
            unsafe { command.pre_exec(move || (&group).write_all(b"0")) };
        }
        // It pins itself.
        let mut child = child::tie(&mut command, None)
            .spawn()
            .map_err(ProgramError::Start)?;
        let missing = || ProgramError::Start(std::io::ErrorKind::BrokenPipe.into());
        let orders = child.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        Ok(Self {
            child,
            orders: Some(orders),
            answers,
        })
    }

    /// Bytes of the files in memory that it has mapped under the given directory's name, which are its
    /// agent's page tables; `None` if there is none.
    pub(crate) fn page_table_bytes(&self) -> std::io::Result<Option<u64>> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id()))?;
        let bytes: u64 = maps
            .lines()
            .filter(|line| line.contains("/dev/shm/mycoram"))
            .filter_map(|line| {
                let (start, end) = line.split_whitespace().next()?.split_once('-')?;
                let at = |text| u64::from_str_radix(text, 16).ok();
                at(end)?.checked_sub(at(start)?)
            })
            .sum();
        Ok((bytes > 0).then_some(bytes))
    }

    /// Gives an order and waits for the answer.
    pub(crate) fn order(&mut self, order: &Order) -> Result<Answer, ProgramError> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        let mut answer = String::new();
        let orders = self.orders.as_mut().ok_or(ProgramError::Ended)?;
        let got = orders
            .write_all(line.as_bytes())
            .and_then(|()| orders.flush())
            .and_then(|()| self.answers.read_line(&mut answer));
        if got.unwrap_or(0) == 0 {
            let signal = self.child.wait().ok().and_then(|status| status.signal());
            return Err(signal.map_or(ProgramError::Ended, ProgramError::Killed));
        }
        let answer: Result<Answer, Box<str>> = serde_json::from_str(&answer)?;
        answer.map_err(ProgramError::Refused)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.orders.take());
        // Its end closes the pipe of its answers.
        let answers = PollFd::new(self.answers.get_ref().as_fd(), PollFlags::POLLIN);
        let _ = poll(&mut [answers], LEAVE_MS);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
