//! Runs test programs in one guest, which is booted when the first of them comes, and again if one broke it.

use std::error::Error;
use std::io;
use std::time::Instant;

use mycoram_testbed::{Booted, Job, Outcome, OutputSink, RunError, Testbed, Wanted};

use super::build::Suite;
use super::place::{Group, GuestNeed};
use super::run::{LIMIT, environment};
use super::tally::{self, End, SuiteReport};
use crate::testbed;

/// A guest for a group of suites.
pub(crate) struct Guest {
    need: GuestNeed,
    booted: Option<Booted>,
}

/// Keeps all a test program writes.
#[derive(Default)]
struct Kept(Vec<u8>);

impl OutputSink for Kept {
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stdout(bytes)
    }
}

impl Guest {
    pub(crate) fn new(need: GuestNeed) -> Self {
        Self { need, booted: None }
    }

    /// Runs one suite; its report and all it wrote. Errors are those of booting, and Ctrl-C.
    pub(crate) fn run(
        &mut self,
        suite: &Suite,
        group: Group,
    ) -> Result<(SuiteReport, String), Box<dyn Error>> {
        let mut booted = match self.booted.take() {
            Some(booted) => booted,
            None => self.boot()?,
        };
        let program = suite.executable.to_string_lossy();
        let mut job = Job::here(program, vec!["--nocapture".to_owned()], LIMIT)?;
        job.working_dir.clone_from(&suite.package_dir);
        job.environment.extend(environment(suite));
        let mut kept = Kept::default();
        let began = Instant::now();
        let outcome = booted.run(&job, &mut kept);
        let output = String::from_utf8_lossy(&kept.0).into_owned();
        let said;
        let end = match &outcome {
            Ok(Outcome::Exited(code)) => End::Code(*code),
            Ok(Outcome::Signalled(signal)) => {
                said = format!("killed by signal {signal}");
                End::Broke(&said)
            }
            Err(RunError::Interrupted { signal }) => {
                return Err(Box::new(RunError::Interrupted { signal: *signal }));
            }
            Err(error) => {
                said = testbed::chain(error);
                End::Broke(&said)
            }
        };
        let report = tally::count(
            suite.name(),
            group.to_string(),
            &output,
            &end,
            began.elapsed().as_secs_f64(),
        );
        // After anything but an ending of its own, the next suite gets a fresh guest.
        if outcome.is_ok() {
            self.booted = Some(booted);
        }
        Ok((report, output))
    }

    fn boot(&self) -> Result<Booted, Box<dyn Error>> {
        let mut options = testbed::options();
        options.wanted = Wanted::Guest;
        options.kernel = Some(self.need.kernel);
        options.topology = self.need.topology;
        Ok(Testbed::detect(options)?.boot()?)
    }
}
