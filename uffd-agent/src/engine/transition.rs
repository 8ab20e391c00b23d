//! The one function that says what follows from what.

use crate::page_table::{PageState, Source, Word};

/// What happens to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// A thread of the target waits for it.
    Fault,
    /// It may be wanted soon.
    Prefetch,
    /// It has been put into the file.
    Installed,
    /// It cannot be had from anywhere.
    FetchFailed,
    /// Nothing was done yet for the fetch that began, and nothing will be.
    FetchDropped,
    /// It was found not to be in the file, although it should: the target has discarded it.
    HoleFound,
    /// A discard that was announced must be over, and the page is still there.
    DataFound,
    /// It was chosen to leave through this pipe.
    Evict {
        /// Which pipe.
        batch: u8,
        /// Which place in it.
        slot: u8,
    },
    /// It leaves not after all: it was not spliced, or its hole not punched.
    Stays,
    /// Its hole is punched.
    Parked,
    /// It is about to be written out.
    WriteBegins,
    /// It is on the memory node, and the entry's checksum is its own.
    Written,
    /// It could not be written.
    WriteFailed,
    /// It is what the memory node holds already.
    FoundClean,
    /// It is all zero.
    FoundZero,
    /// It cannot be written out and comes back.
    BringHome,
    /// It cannot be written out, and there is no room for it here.
    Abandon,
    /// The target discards it.
    Discard,
}

/// What is to be done after a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Nothing.
    Nothing,
    /// Put zeros into the file.
    InstallZero,
    /// Read it from its memory node.
    Read,
    /// Copy it out of its parking pipe.
    ReadParked,
    /// Somebody else is at it already, and will wake who waits.
    Wait,
    /// Look again soon: an evictor is between two steps.
    Again,
    /// Ask the file whether it is there.
    LookForHole,
    /// Raise SIGBUS at whoever touches it.
    Poison,
    /// Wake who came while it was fetched.
    Wake,
    /// Ask the file later whether it is still there.
    LookLater,
    /// It is not wanted, or may not be had, now.
    Refused,
}

/// A bug, said aloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a page that is {word:?}")]
pub(crate) struct IllegalTransition {
    pub(crate) word: Word,
    pub(crate) event: Event,
}

/// What a page becomes, and what is to be done.
pub(crate) fn transition(word: Word, event: Event) -> Result<(Word, Action), IllegalTransition> {
    use PageState::{Fetching, Leaving, Lost, NeverWritten, Remote, Resident};
    let illegal = Err(IllegalTransition { word, event });
    let stay = |action| Ok((word, action));
    let fetch = |source| word.with_state(Fetching).with_source(source);
    match (word.state(), event) {
        (NeverWritten, Event::Fault) => Ok((fetch(Source::Zero), Action::InstallZero)),
        (Remote, Event::Fault | Event::Prefetch) => Ok((fetch(Source::Remote), Action::Read)),
        (Fetching, Event::Fault) => Ok((word.with_waiters(true), Action::Wait)),
        (Resident, Event::Fault) => stay(Action::LookForHole),
        (Leaving, Event::Fault) if word.parked() => Ok((
            fetch(Source::Reference).with_parked(false),
            Action::ReadParked,
        )),
        (Leaving, Event::Fault) => stay(Action::Again),
        (Lost, Event::Fault) => stay(Action::Poison),
        (_, Event::Prefetch) => stay(Action::Refused),

        (Fetching, Event::Installed) => {
            let synced = word.synced() && word.source() != Source::Zero;
            let action = if word.waiters() {
                Action::Wake
            } else {
                Action::Nothing
            };
            let after = word
                .with_state(Resident)
                .with_source(Source::Zero)
                .with_place(0, 0)
                .with_waiters(false)
                .with_unseen(false)
                .with_synced(synced);
            Ok((after, action))
        }
        // Discarded while it was fetched: then it is zeros, and nothing is lost.
        (Fetching, Event::FetchFailed) if word.source() == Source::Zero => {
            stay(Action::InstallZero)
        }
        (Fetching, Event::FetchFailed) => Ok((lost(word), Action::Poison)),
        (Fetching, Event::FetchDropped) => {
            let state = match word.source() {
                Source::Zero => NeverWritten,
                Source::Remote => Remote,
                // The evictor counts the page as taken over: it has to be brought in.
                Source::Reference => return illegal,
            };
            let action = if word.waiters() {
                Action::Wake
            } else {
                Action::Nothing
            };
            let after = word
                .with_state(state)
                .with_source(Source::Zero)
                .with_waiters(false);
            Ok((after, action))
        }

        (Resident, Event::HoleFound) => Ok((discarded(word), Action::Nothing)),
        (Resident, Event::DataFound) => Ok((word.with_suspect(false), Action::Nothing)),
        // It has become something else meanwhile, which is newer knowledge.
        (_, Event::HoleFound | Event::DataFound) => stay(Action::Refused),

        (Resident, Event::Evict { batch, slot }) => {
            if word.writing() || word.suspect() || word.homeless() {
                return stay(Action::Refused);
            }
            let after = word
                .with_state(Leaving)
                .with_parked(false)
                .with_place(batch, slot)
                .next_generation();
            Ok((after, Action::Nothing))
        }
        (_, Event::Evict { .. }) => stay(Action::Refused),
        (Leaving, Event::Stays) if !word.parked() => {
            Ok((word.with_state(Resident).with_place(0, 0), Action::Nothing))
        }
        (Leaving, Event::Parked) if !word.parked() && !word.suspect() => {
            Ok((word.with_parked(true), Action::Nothing))
        }

        (Leaving, Event::WriteBegins) if word.parked() && !word.writing() => {
            Ok((word.with_writing(true).with_synced(false), Action::Nothing))
        }
        (Resident, Event::WriteBegins) if !word.writing() => {
            Ok((word.with_writing(true).with_synced(false), Action::Nothing))
        }
        (_, Event::WriteBegins) => stay(Action::Refused),
        (Leaving, Event::Written) if word.writing() => Ok((
            word.with_state(Remote)
                .with_place(0, 0)
                .with_parked(false)
                .with_writing(false)
                .with_synced(true),
            Action::Nothing,
        )),
        (Resident, Event::Written) if word.writing() => {
            Ok((word.with_writing(false).with_synced(true), Action::Nothing))
        }
        (Fetching, Event::Written) if word.writing() => {
            let synced = word.source() == Source::Reference;
            Ok((
                word.with_writing(false).with_synced(synced),
                Action::Nothing,
            ))
        }
        (NeverWritten | Lost, Event::Written) if word.writing() => {
            Ok((word.with_writing(false).with_synced(false), Action::Nothing))
        }
        (state, Event::WriteFailed) if word.writing() && state != Remote => {
            Ok((word.with_writing(false).with_synced(false), Action::Nothing))
        }

        (Leaving, Event::FoundClean) if word.parked() && word.synced() => Ok((
            word.with_state(Remote).with_place(0, 0).with_parked(false),
            Action::Nothing,
        )),
        (Leaving, Event::FoundZero) if word.parked() => Ok((discarded(word), Action::Nothing)),
        (_, Event::FoundClean | Event::FoundZero) => stay(Action::Refused),
        (Leaving, Event::BringHome) if word.parked() && !word.writing() => Ok((
            fetch(Source::Reference)
                .with_parked(false)
                .with_homeless(true),
            Action::ReadParked,
        )),
        (Leaving, Event::Abandon) if word.parked() && !word.writing() => {
            Ok((lost(word), Action::Poison))
        }
        (_, Event::BringHome | Event::Abandon) => stay(Action::Refused),

        (NeverWritten, Event::Discard) => stay(Action::Nothing),
        (Remote, Event::Discard) => Ok((discarded(word), Action::Nothing)),
        (Lost, Event::Discard) => Ok((discarded(word), Action::Nothing)),
        (Fetching, Event::Discard) => Ok((
            word.with_source(Source::Zero)
                .with_place(0, 0)
                .with_synced(false)
                .with_homeless(false)
                .with_unseen(false)
                .next_generation(),
            Action::Nothing,
        )),
        // The discard is announced before it is done: the page may still hold what is going, or already
        // what came after. Only the file knows, and only later.
        (Resident, Event::Discard) => Ok((word.with_suspect(true), Action::LookLater)),
        (Leaving, Event::Discard) if !word.parked() => {
            Ok((word.with_suspect(true), Action::LookLater))
        }
        (Leaving, Event::Discard) => Ok((discarded(word), Action::Nothing)),
        _ => illegal,
    }
}

/// Reads as zeros from here on. A write in flight stays marked until its completion.
fn discarded(word: Word) -> Word {
    word.with_state(PageState::NeverWritten)
        .with_source(Source::Zero)
        .with_place(0, 0)
        .with_synced(false)
        .with_suspect(false)
        .with_parked(false)
        .with_homeless(false)
        .with_unseen(false)
        .next_generation()
}

fn lost(word: Word) -> Word {
    word.with_state(PageState::Lost)
        .with_source(Source::Zero)
        .with_place(0, 0)
        .with_synced(false)
        .with_waiters(false)
        .with_parked(false)
        .with_homeless(false)
        .with_unseen(false)
        .next_generation()
}

#[cfg(test)]
mod tests;
