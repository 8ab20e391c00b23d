//! What goes to stdout: data, in words or as JSON objects that carry their schema's name and version.

use std::io::{self, Write};

use serde::Serialize;

/// How a subcommand prints its data.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    schema: &'static str,
    schema_version: u32,
    #[serde(flatten)]
    data: &'a T,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether `--json` was given.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints `data`: one line of JSON under `schema` with `--json`, else what `words` writes.
    /// A field that is renamed, removed or changes its meaning is a new `schema_version`.
    pub(crate) fn print<T: Serialize>(
        &self,
        schema: &'static str,
        schema_version: u32,
        data: &T,
        words: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.json {
            self.json(schema, schema_version, data)
        } else {
            Self::words(words)
        }
    }

    /// Prints words, whatever `--json` says.
    pub(crate) fn words(words: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        finish(words(&mut stdout).and_then(|()| stdout.flush()))
    }

    /// Prints one line of JSON, whatever `--json` says.
    pub(crate) fn json<T: Serialize>(
        &self,
        schema: &'static str,
        schema_version: u32,
        data: &T,
    ) -> io::Result<()> {
        let versioned = Versioned {
            schema,
            schema_version,
            data,
        };
        let mut line = serde_json::to_vec(&versioned).map_err(io::Error::from)?;
        line.push(b'\n');
        let mut stdout = io::stdout().lock();
        finish(stdout.write_all(&line).and_then(|()| stdout.flush()))
    }
}

/// A reader that has gone away (`myco ... | head`) is no failure of ours.
fn finish(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
