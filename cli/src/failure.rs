//! A subcommand that failed: the error with its causes, the exit code, and what to do now.

use std::borrow::Cow;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use crate::exit_codes;
use crate::output::Output;

/// Why a subcommand ended, for a person and for a script.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    error: Box<dyn Error + Send + Sync>,
    advice: Option<Cow<'static, str>>,
}

/// The error object that `--json` prints on stdout.
#[derive(Serialize)]
struct ErrorObject<'a> {
    exit_code: u8,
    error: String,
    causes: Vec<String>,
    what_to_do: Option<&'a str>,
}

impl Failure {
    /// `code` is one of [`exit_codes`].
    pub(crate) fn new(code: u8, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            code,
            error: error.into(),
            advice: None,
        }
    }

    /// Says what to do now: one sentence in the imperative.
    pub(crate) fn advise(mut self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Prints it and gives its exit code.
    pub(crate) fn report(&self, output: &Output) -> ExitCode {
        let causes = causes(&*self.error);
        let mut stderr = std::io::stderr().lock();
        // Nobody is left to tell if stderr is closed.
        let _ = writeln!(stderr, "myco: {}", self.error);
        for cause in &causes {
            let _ = writeln!(stderr, "  because: {cause}");
        }
        if let Some(advice) = &self.advice {
            let _ = writeln!(stderr, "  what to do: {advice}");
        }
        if output.is_json() {
            let _ = output.json(
                "myco.error",
                1,
                &ErrorObject {
                    exit_code: self.code,
                    error: self.error.to_string(),
                    causes,
                    what_to_do: self.advice.as_deref(),
                },
            );
        }
        ExitCode::from(self.code)
    }
}

/// Says what is wrong with the arguments, or shows the help or the version that they ask for.
pub(crate) fn usage(error: &clap::Error, output: &Output) -> ExitCode {
    // Nobody is left to tell if stderr is closed.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if output.is_json() {
        let _ = output.json(
            "myco.error",
            1,
            &ErrorObject {
                exit_code: exit_codes::USAGE,
                error: usage_words(error),
                causes: Vec::new(),
                what_to_do: Some("see --help of the command"),
            },
        );
    }
    ExitCode::from(exit_codes::USAGE)
}

/// What clap says before it shows the usage, in one line.
fn usage_words(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.lines().take_while(|line| !line.is_empty());
    let words: Vec<_> = first.flat_map(str::split_whitespace).collect();
    let line = words.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// The chain of sources, without those that only repeat what was said before.
fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut said = error.to_string();
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !said.contains(&text) {
            said.clone_from(&text);
            causes.push(text);
        }
        next = cause.source();
    }
    causes
}

impl From<std::io::Error> for Failure {
    /// For output that cannot be written; anything else is wrapped where its meaning is known.
    fn from(error: std::io::Error) -> Self {
        Self::new(exit_codes::FAILURE, error)
    }
}
