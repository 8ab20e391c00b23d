//! What a successor makes of each page that a killed agent left in the middle of something.
//!
//! The file is the truth: whatever an agent had in mind, a page that is in the file is resident, with its
//! last write. A page that is not is where the word says; one that was leaving, or was being brought back
//! from a pipe, is in that pipe, if it ever got there.

use crate::page_table::{PageState, Source, Word};

/// What a page is after its agent died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) word: Word,
    /// It is in this place of this pipe, and has to be written out or brought home.
    pub(crate) parked: Option<(u8, u8)>,
}

/// `in_file`: the kernel has the page. `spliced`: how many pages pipe `batch` holds.
pub(crate) fn recover(word: Word, in_file: bool, spliced: impl Fn(u8) -> u32) -> Recovered {
    // No WRITE is in flight any more: the epoch of who sent it is fenced. What it left behind is unknown.
    let synced = word.synced() && !word.writing();
    let plain = Word::from_bits(word.bits() & !u64::from(u32::MAX)).next_generation();
    let done = |state: PageState, synced: bool| Recovered {
        word: plain.with_state(state).with_synced(synced),
        parked: None,
    };
    if in_file {
        let zero = word.state() == PageState::NeverWritten
            || word.state() == PageState::Fetching && word.source() == Source::Zero;
        let mut there = done(PageState::Resident, synced && !zero);
        // A discard that was announced may still be on its way: the keeper has to look at it.
        there.word = there.word.with_suspect(word.suspect());
        return there;
    }
    // A suspect page is never punched by an agent: this hole is the target's, whose discard is done.
    if word.suspect() {
        return done(PageState::NeverWritten, false);
    }
    let in_pipe = |word: Word| {
        let (batch, slot) = (word.batch(), word.slot());
        if u32::from(slot) < spliced(batch) {
            Recovered {
                word: plain
                    .with_state(PageState::Leaving)
                    .with_place(batch, slot)
                    .with_parked(true)
                    .with_synced(synced),
                parked: Some((batch, slot)),
            }
        } else {
            // Gone from the file without the agent's doing: the target discarded it.
            done(PageState::NeverWritten, false)
        }
    };
    match (word.state(), word.source()) {
        (PageState::NeverWritten | PageState::Resident, _)
        | (PageState::Fetching, Source::Zero) => done(PageState::NeverWritten, false),
        (PageState::Remote, _) | (PageState::Fetching, Source::Remote) => {
            let mut there = done(PageState::Remote, synced);
            there.word = there.word.with_unseen(word.unseen());
            there
        }
        (PageState::Fetching, Source::Reference) | (PageState::Leaving, _) => in_pipe(word),
        (PageState::Lost, _) => done(PageState::Lost, false),
    }
}
