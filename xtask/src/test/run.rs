//! Runs test programs on this machine, with a limit for each.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::build::Suite;
use super::tally::{self, End, SuiteReport};
use crate::checkout;

/// A test program that takes longer hangs.
pub(super) const LIMIT: Duration = Duration::from_secs(900);

/// Why a test program's result is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("cannot run {program}")]
    Start {
        program: Box<str>,
        source: io::Error,
    },
}

/// The variables a test program gets, in every place.
pub(super) fn environment(suite: &Suite) -> Vec<(String, String)> {
    vec![
        (
            "CARGO_MANIFEST_DIR".to_owned(),
            suite.package_dir.to_string_lossy().into_owned(),
        ),
        // Tests that need rxe are run by us where it is: on the host they need not insist.
        ("MYCORAM_RXE_ELSEWHERE".to_owned(), "1".to_owned()),
    ]
}

/// Runs one suite here, with these QEMUs where it asks for them; its report and all it wrote.
pub(crate) fn on_host(suite: &Suite, qemus: &str) -> Result<(SuiteReport, String), RunError> {
    let mut command = Command::new(&suite.executable);
    command
        .current_dir(&suite.package_dir)
        .env("MYCORAM_QEMU", qemus)
        .envs(environment(suite));
    run(&mut command, suite.name())
}

/// Runs the documentation's examples.
pub(crate) fn doc_tests() -> Result<(SuiteReport, String), RunError> {
    let mut command = checkout::cargo();
    command.args(["test", "--quiet", "--workspace", "--doc"]);
    run(&mut command, "doc tests".to_owned())
}

fn run(command: &mut Command, name: String) -> Result<(SuiteReport, String), RunError> {
    let began = Instant::now();
    let program = || name.as_str().into();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| RunError::Start {
            program: program(),
            source,
        })?;
    let (output, in_time) = collect(&mut child, LIMIT);
    let status = child.wait().map_err(|source| RunError::Start {
        program: program(),
        source,
    })?;
    let hung = format!("ran longer than {} s and was ended", LIMIT.as_secs());
    let killed = format!("ended with {status}");
    let end = match (in_time, status.code()) {
        (false, _) => End::Broke(&hung),
        (true, Some(code)) => End::Code(code),
        (true, None) => End::Broke(&killed),
    };
    let report = tally::count(
        name,
        "host".to_owned(),
        &output,
        &end,
        began.elapsed().as_secs_f64(),
    );
    Ok((report, output))
}

/// Reads both outputs to their end, or kills the child at the limit; true if it ended in time.
fn collect(child: &mut Child, limit: Duration) -> (String, bool) {
    let (pieces, inbox) = channel::<Vec<u8>>();
    let pipes: [Option<Box<dyn Read + Send>>; 2] = [
        child
            .stdout
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        child
            .stderr
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
    ];
    for mut pipe in pipes.into_iter().flatten() {
        let pieces = pieces.clone();
        std::thread::spawn(move || {
            let mut piece = vec![0u8; 64 << 10];
            while let Ok(length) = pipe.read(&mut piece) {
                if length == 0 || pieces.send(piece[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    drop(pieces);
    let deadline = Instant::now() + limit;
    let mut output = Vec::new();
    let in_time = loop {
        match inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(piece) => output.extend_from_slice(&piece),
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => {
                // Fails only if it has ended by itself meanwhile.
                let _ = child.kill();
                break false;
            }
        }
    };
    (String::from_utf8_lossy(&output).into_owned(), in_time)
}
