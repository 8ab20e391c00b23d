//! The whole function as a table: what changes here changes what the agent does.

use super::{Action, Event, transition};
use crate::page_table::{PageState, Source, Word};

const EVENTS: [Event; 18] = [
    Event::Fault,
    Event::Prefetch,
    Event::Installed,
    Event::FetchFailed,
    Event::FetchDropped,
    Event::HoleFound,
    Event::DataFound,
    Event::Evict { batch: 1, slot: 2 },
    Event::Stays,
    Event::Parked,
    Event::WriteBegins,
    Event::Written,
    Event::WriteFailed,
    Event::FoundClean,
    Event::FoundZero,
    Event::BringHome,
    Event::Abandon,
    Event::Discard,
];

fn words() -> Vec<Word> {
    let base = Word::NEVER_WRITTEN;
    let leaving = base.with_state(PageState::Leaving).with_place(1, 2);
    let fetching = |source| base.with_state(PageState::Fetching).with_source(source);
    vec![
        base,
        base.with_state(PageState::Remote).with_synced(true),
        fetching(Source::Zero),
        fetching(Source::Remote).with_synced(true),
        fetching(Source::Reference).with_place(1, 2),
        base.with_state(PageState::Resident),
        base.with_state(PageState::Resident).with_suspect(true),
        base.with_state(PageState::Resident).with_writing(true),
        base.with_state(PageState::Resident).with_homeless(true),
        leaving,
        leaving.with_suspect(true),
        leaving.with_parked(true),
        leaving.with_parked(true).with_synced(true),
        leaving.with_parked(true).with_writing(true),
        base.with_state(PageState::Lost),
    ]
}

fn table() -> String {
    let mut text = String::new();
    for word in words() {
        for event in EVENTS {
            let line = match transition(word, event) {
                Ok((_, Action::Refused)) => continue,
                Ok((after, action)) => format!("{word:?} {event:?} -> {after:?} {action:?}\n"),
                Err(_) => continue,
            };
            text.push_str(&line);
        }
    }
    text
}

#[test]
fn the_table_is_as_reviewed() {
    let reviewed = include_str!("table.txt");
    let table = table();
    if table != reviewed {
        let at = std::env::temp_dir().join("mycoram-transition-table.txt");
        let _ = std::fs::write(&at, &table);
        panic!(
            "the transition table has changed; the new one is in {}",
            at.display()
        );
    }
}

/// From every word that can come about, every event leads to a word that makes sense.
#[test]
fn no_reachable_word_contradicts_itself() {
    use std::collections::HashSet;
    let strip = |w: Word| {
        // Generations only count: they would make the space endless.
        Word::from_bits(w.bits() & u64::from(u32::MAX))
    };
    let mut seen = HashSet::from([Word::NEVER_WRITTEN.bits()]);
    let mut todo = vec![Word::NEVER_WRITTEN];
    while let Some(word) = todo.pop() {
        for event in EVENTS {
            // What only the holder of an operation may say, it says only while it has one.
            let allowed = match event {
                Event::Written | Event::WriteFailed => word.writing(),
                Event::FoundZero => !word.writing(),
                _ => true,
            };
            let Ok((after, _)) = transition(word, event) else {
                continue;
            };
            if !allowed {
                continue;
            }
            let after = strip(after);
            assert!(Word::checked(after.bits()).is_ok());
            let state = after.state();
            assert!(!(after.synced() && after.writing()), "{after:?}");
            assert!(!after.parked() || state == PageState::Leaving, "{after:?}");
            assert!(
                !after.waiters() || state == PageState::Fetching,
                "{after:?}"
            );
            assert!(after.synced() || state != PageState::Remote, "{after:?}");
            assert!(!after.writing() || state != PageState::Remote, "{after:?}");
            let suspect_in = matches!(state, PageState::Resident | PageState::Leaving);
            assert!(!after.suspect() || suspect_in, "{after:?}");
            assert!(!(after.suspect() && after.parked()), "{after:?}");
            if seen.insert(after.bits()) {
                todo.push(after);
            }
        }
    }
    assert!(seen.len() < 200, "{} words", seen.len());
}
