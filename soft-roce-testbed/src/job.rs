//! What a caller hands in and gets back: a command, where its output goes, how it ended.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::console::Diagnosis;
use crate::frames::FrameError;

/// One command to run inside.
#[derive(Debug, Clone)]
pub struct Job {
    /// Program; searched in `PATH`, or relative to `working_dir`.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where it runs; the same path as on the host.
    pub working_dir: PathBuf,
    /// Its environment, besides the variables of the test bed.
    pub environment: Vec<(String, String)>,
    /// After this it counts as hung and the whole guest is ended.
    pub limit: Duration,
}

impl Job {
    /// A job with this process's working directory and the part of its environment that programs
    /// built by cargo need (`PATH`, `CARGO_*`, `RUST_*`, `MYCORAM_*` and the like).
    pub fn here(
        program: impl Into<String>,
        arguments: Vec<String>,
        limit: Duration,
    ) -> io::Result<Self> {
        let environment = std::env::vars()
            .filter(|(name, _)| is_passed_on(name))
            .collect();
        Ok(Self {
            program: program.into(),
            arguments,
            working_dir: std::env::current_dir()?,
            environment,
            limit,
        })
    }
}

fn is_passed_on(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "TERM",
        "CI",
        "NO_COLOR",
        "LD_LIBRARY_PATH",
    ];
    const PREFIXES: &[&str] = &[
        "CARGO_MANIFEST",
        "CARGO_PKG",
        "CARGO_BIN",
        "CARGO_TARGET",
        "RUST_",
        "MYCORAM_",
        "MYCO_",
        "LC_",
        "PROPTEST_",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit code.
    Exited(i32),
    /// Killed by this signal.
    Signalled(i32),
}

impl Outcome {
    /// The exit code a shell would show: 128 + the signal for a killed command.
    pub const fn exit_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => 128 + signal,
        }
    }
}

/// Why a command has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error("cannot start {program} inside the test bed")]
    Start {
        /// The program.
        program: Box<str>,
        /// Why.
        source: io::Error,
    },
    /// It ran over its limit.
    #[error("the command ran longer than {} s and was ended; {diagnosis} (console: {console})", limit.as_secs())]
    Timeout {
        /// The limit.
        limit: Duration,
        /// What the console says.
        diagnosis: Diagnosis,
        /// The console's log.
        console: PathBuf,
    },
    /// The guest went away under the command.
    #[error("the test bed broke under the command: {diagnosis} (console: {console})")]
    Broke {
        /// What the console says.
        diagnosis: Diagnosis,
        /// The console's log.
        console: PathBuf,
    },
    /// Ctrl-C and the like.
    #[error("interrupted by signal {signal}")]
    Interrupted {
        /// The signal.
        signal: i32,
    },
    /// An earlier job ended the guest.
    #[error("the test bed was ended by an earlier command")]
    Gone,
    /// The two ends disagree.
    #[error("the test bed's inside answered out of turn")]
    Protocol,
    /// The control stream or the signals failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The caller's sink refused output.
    #[error("cannot pass the command's output on")]
    Output(#[source] io::Error),
}

/// Where a command's output goes, piece by piece as it comes.
pub trait OutputSink {
    /// Bytes it wrote to standard output.
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Bytes it wrote to standard error.
    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Passes output on to this process's own streams.
#[derive(Debug, Default, Clone, Copy)]
pub struct PassThrough;

impl OutputSink for PassThrough {
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_on_what_cargo_built_programs_need_and_no_more() {
        assert!(
            is_passed_on("PATH")
                && is_passed_on("RUST_BACKTRACE")
                && is_passed_on("CARGO_MANIFEST_DIR")
        );
        assert!(!is_passed_on("SSH_AUTH_SOCK") && !is_passed_on("CARGO_REGISTRY_TOKEN"));
    }

    #[test]
    fn a_killed_command_shows_as_in_a_shell() {
        assert_eq!(Outcome::Signalled(9).exit_code(), 137);
        assert_eq!(Outcome::Exited(7).exit_code(), 7);
    }
}
