//! The program under test: a process of its own that takes orders, one JSON line each, and answers the
//! same way. One thread does everything that is measured: it touches, and it is the floors' client, so
//! that all figures of a run are taken by the same thread on the same processor.
//!
//! ```text
//!   bench  --{"order":"random",...}-->  program: memory (far or plain), touches
//!          <--{"ok":{...}}------------
//! ```

mod memory;
mod orders;
mod process;
mod touch;

pub(crate) use memory::MemoryKind;
pub(crate) use orders::{Answer, Order};
pub(crate) use process::{Program, ProgramError};

use std::io::{BufRead, Write};

/// Serves orders from standard input until it ends.
pub(crate) fn serve(cpu: Option<usize>) -> std::io::Result<()> {
    crate::placement::pin(cpu)?;
    let mut worker = orders::Worker::default();
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let answer = serde_json::from_str(&line?)
            .map_err(|error| error.to_string())
            .and_then(|order| worker.carry_out(order));
        serde_json::to_writer(&mut out, &answer)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}
