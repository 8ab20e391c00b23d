//! How a test finds out whether it runs inside the test bed, and says so when it does not.

use std::io::{self, Write};

/// What a test that needs rxe is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Run,
    /// Somebody runs it in the test bed: here it is a declared skip.
    Skip,
    /// In CI nobody would run it: a failure, never a silent pass.
    Fail,
}

fn decide(inside: bool, elsewhere: bool, ci: bool) -> Decision {
    match (inside, elsewhere, ci) {
        (true, _, _) => Decision::Run,
        (false, false, true) => Decision::Fail,
        (false, _, _) => Decision::Skip,
    }
}

/// Whether the caller runs inside the test bed. Where it does not, one sentence on standard error says
/// how to run it; with `CI=true` and nobody running it elsewhere (`MYCORAM_RXE_ELSEWHERE=1`) that is a failure.
///
/// # Panics
///
/// In the case just told: the panic is the test's failure.
pub fn is_inside(what: &str) -> bool {
    let set = |name: &str, wanted: &str| std::env::var(name).is_ok_and(|value| value == wanted);
    let decision = decide(
        std::env::var_os("MYCORAM_TESTBED").is_some(),
        set("MYCORAM_RXE_ELSEWHERE", "1"),
        set("CI", "true"),
    );
    match decision {
        Decision::Run => return true,
        Decision::Skip => {
            // Past the capture of the test harness: a skip is never silent. Without a stderr nobody could hear it anyway.
            let _ = writeln!(
                io::stderr(),
                "skipped: {what} needs the test bed; run: cargo xtask testbed -- TEST-PROGRAM"
            );
        }
        Decision::Fail => {
            panic!("{what} needs the test bed, and nothing runs it there; run: cargo xtask test")
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_a_silent_pass_in_ci() {
        assert_eq!(decide(true, false, true), Decision::Run);
        assert_eq!(decide(false, true, true), Decision::Skip);
        assert_eq!(decide(false, false, true), Decision::Fail);
        assert_eq!(decide(false, false, false), Decision::Skip);
    }
}
