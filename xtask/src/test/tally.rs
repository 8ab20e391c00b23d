//! Counts what test programs say about themselves: pure.

use std::fmt;

use serde::Serialize;

/// All suites so far.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    suites: Vec<SuiteReport>,
}

/// One test program's result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SuiteReport {
    pub(crate) name: String,
    /// Host, or which guest.
    pub(crate) place: String,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    pub(crate) seconds: f64,
    /// Failed tests by name, and what broke where no test could tell.
    pub(crate) failures: Vec<String>,
}

impl Report {
    pub(crate) fn add(&mut self, suite: SuiteReport) {
        self.suites.push(suite);
    }

    pub(crate) fn failed(&self) -> u64 {
        self.suites.iter().map(|suite| suite.failed).sum()
    }

    /// The closing line.
    pub(crate) fn sum(&self) -> String {
        let total = |count: fn(&SuiteReport) -> u64| self.suites.iter().map(count).sum::<u64>();
        format!(
            "{} passed, {} failed, {} skipped",
            total(|suite| suite.passed),
            self.failed(),
            total(|suite| suite.skipped)
        )
    }

    pub(crate) fn print_failures(&self) {
        for suite in &self.suites {
            for failure in &suite.failures {
                println!("failed: {} ({}): {failure}", suite.name, suite.place);
            }
        }
    }
}

impl fmt::Display for SuiteReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.failed == 0 { "ok" } else { "FAILED" };
        write!(
            f,
            "{verdict}: {} passed, {} failed, {} skipped in {:.1} s",
            self.passed, self.failed, self.skipped, self.seconds
        )
    }
}

/// How a test program ended.
pub(crate) enum End<'a> {
    /// With this exit code.
    Code(i32),
    /// In another way, in words.
    Broke(&'a str),
}

/// Reads a test program's output. What broke without any test saying so counts as one failure.
pub(crate) fn count(
    name: String,
    place: String,
    output: &str,
    end: &End<'_>,
    seconds: f64,
) -> SuiteReport {
    let mut suite = SuiteReport {
        name,
        place,
        passed: 0,
        failed: 0,
        skipped: 0,
        seconds,
        failures: Vec::new(),
    };
    let mut summaries = 0;
    for line in output.lines() {
        if let Some(result) = line.trim_start().strip_prefix("test result: ") {
            summaries += 1;
            suite.passed += number_before(result, " passed");
            suite.failed += number_before(result, " failed");
            suite.skipped += number_before(result, " ignored");
        } else if let Some(test) = failed_test(line) {
            suite.failures.push(test.to_owned());
        }
    }
    match end {
        // A program without the standard harness: its exit code is its one test.
        End::Code(0) => suite.passed += u64::from(summaries == 0),
        End::Code(_) if suite.failed > 0 => {}
        End::Code(code) => {
            suite.failed += 1;
            suite
                .failures
                .push(format!("exit code {code} without a failed test"));
        }
        End::Broke(said) => {
            suite.failed += 1;
            suite.failures.push((*said).to_owned());
        }
    }
    suite
}

fn failed_test(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("test ")?;
    let (name, _) = rest.split_once(" ... ")?;
    rest.ends_with("FAILED").then_some(name)
}

/// The number right before `mark`.
fn number_before(text: &str, mark: &str) -> u64 {
    let before = text.find(mark).map_or("", |at| &text[..at]);
    before
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(output: &str, end: &End<'_>) -> SuiteReport {
        count("n".to_owned(), "host".to_owned(), output, end, 0.0)
    }

    #[test]
    fn sums_all_summaries() {
        let output = "test a ... ok\ntest result: ok. 31 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n";
        let suite = counted(output, &End::Code(0));
        assert_eq!((suite.passed, suite.failed, suite.skipped), (32, 0, 2));
        let mut report = Report::default();
        report.add(suite);
        assert_eq!(report.sum(), "32 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn names_the_failed() {
        let output = "test x::y ... FAILED\ntest result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured\n";
        let suite = counted(output, &End::Code(101));
        assert_eq!(
            (suite.passed, suite.failed, suite.failures),
            (3, 1, vec!["x::y".to_owned()])
        );
    }

    #[test]
    fn what_broke_without_a_word_is_a_failure() {
        assert_eq!(counted("test a ... ok\n", &End::Code(134)).failed, 1);
        assert_eq!(
            counted("", &End::Broke("the guest's kernel panicked")).failed,
            1
        );
        assert_eq!(
            counted(
                "test result: ok. 3 passed; 0 failed; 0 ignored\n",
                &End::Code(1)
            )
            .failed,
            1
        );
    }

    #[test]
    fn a_program_without_harness_counts_by_its_exit_code() {
        assert_eq!(counted("all fine\n", &End::Code(0)).passed, 1);
    }
}
