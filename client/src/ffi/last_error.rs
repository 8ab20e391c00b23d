//! The last failure of each thread, in words and as a status.

use std::cell::RefCell;
use std::error::Error;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::status::Status;

/// A failed call.
pub(super) struct Failure {
    pub(super) status: Status,
    pub(super) sentence: String,
}

impl Failure {
    pub(super) fn new(status: Status, sentence: &str) -> Self {
        Self {
            status,
            sentence: sentence.to_owned(),
        }
    }

    /// The error and everything that caused it, from the outside in.
    pub(super) fn from_error(status: Status, error: &dyn Error) -> Self {
        Self {
            status,
            sentence: in_words(error),
        }
    }
}

/// `error` and its sources in one line, each said once.
pub(crate) fn in_words(error: &dyn Error) -> String {
    let mut sentence = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let words = source.to_string();
        if !sentence.ends_with(&words) {
            sentence.push_str(": ");
            sentence.push_str(&words);
        }
        next = source.source();
    }
    sentence
}

struct Last {
    status: Status,
    sentence: CString,
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

fn set(failure: Option<Failure>) {
    let last = failure.map(|failure| {
        let mut bytes = failure.sentence.into_bytes();
        bytes.retain(|&byte| byte != 0);
        Last {
            status: failure.status,
            sentence: CString::new(bytes).unwrap_or_default(),
        }
    });
    // A thread that is ending has no last error any more; then there is nobody to ask for it either.
    let _ = LAST.try_with(|slot| *slot.borrow_mut() = last);
}

/// The calling thread's last failure, or an empty sentence if its last call was done.
pub(super) fn sentence() -> *const c_char {
    const NOTHING: &CStr = c"";
    LAST.try_with(|slot| slot.borrow().as_ref().map(|last| last.sentence.as_ptr()))
        .ok()
        .flatten()
        .unwrap_or(NOTHING.as_ptr())
}

/// The calling thread's last status.
pub(super) fn status() -> Status {
    LAST.try_with(|slot| slot.borrow().as_ref().map(|last| last.status))
        .ok()
        .flatten()
        .unwrap_or(Status::Ok)
}

/// Runs the body of a C function: keeps its failure for the thread, and lets no panic out.
pub(super) fn guarded<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Status> {
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Err(Failure {
            status: Status::Bug,
            sentence: format!("a bug in libmycoram: {what}"),
        })
    });
    match outcome {
        Ok(value) => {
            set(None);
            Ok(value)
        }
        Err(failure) => {
            let status = failure.status;
            set(Some(failure));
            Err(status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, guarded, sentence, status};
    use crate::status::Status;
    use std::ffi::CStr;

    fn words() -> String {
        // SAFETY: `sentence` gives a terminated string that lives until this thread's next call.
        unsafe { CStr::from_ptr(sentence()) }
            .to_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn a_panic_becomes_a_status_and_a_sentence() {
        assert_eq!(guarded::<()>(|| panic!("page 7")), Err(Status::Bug));
        assert_eq!(words(), "a bug in libmycoram: page 7");
        assert_eq!(guarded(|| Ok(1)), Ok(1));
        assert_eq!((status(), words().as_str()), (Status::Ok, ""));
    }

    #[test]
    fn each_thread_has_its_own() {
        let failed: Result<(), _> = guarded(|| Err(Failure::new(Status::NotMapped, "a\0b")));
        assert_eq!(failed, Err(Status::NotMapped));
        std::thread::spawn(|| assert_eq!((status(), words().as_str()), (Status::Ok, "")))
            .join()
            .unwrap();
        assert_eq!((status(), words().as_str()), (Status::NotMapped, "ab"));
    }
}
