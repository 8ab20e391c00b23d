//! What the library says without being asked: why a program is about to get SIGBUS.
//!
//! It goes to the program's `tracing` subscriber; where there is none, as in every C program, to standard
//! error, because the program would otherwise die without a word.

use mycoram_agent::ThreadPanic;

fn say(sentence: &str) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{sentence}");
    } else {
        eprintln!("mycoram: {sentence}");
    }
}

/// `total` pages are lost so far, the last ones with `node`.
pub(crate) fn lost(total: u64, node: Option<&str>) {
    let why = match node {
        Some(node) => format!("memory node {node} is gone"),
        None => "no memory node has them any more".to_owned(),
    };
    say(&format!(
        "{total} pages of far memory are lost, because {why}: an access to one raises SIGBUS"
    ));
}

/// There is a daemon, and it does not know the mapping.
pub(crate) fn unknown() {
    say(
        "the agent's daemon does not know this program's far memory any more: an access to a page that \
         is not local raises SIGBUS",
    );
}

/// Somebody else has the region.
pub(crate) fn fenced() {
    say("this program's far memory has a new owner: nothing of it is served here any more");
}

/// The library itself has failed.
pub(crate) fn failed(panic: &ThreadPanic) {
    say(&format!(
        "this program's far memory is not served any more, because {panic}, which is a bug in mycoram: an access \
         to a page that is not local raises SIGBUS"
    ));
}

/// The daemon has gone, or is back.
pub(crate) fn daemon_away(is_away: bool) {
    if is_away {
        say("the agent's daemon has gone: far memory waits for the next one");
    } else {
        say("the agent's daemon is back");
    }
}
