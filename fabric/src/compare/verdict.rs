//! What the contents of one page's live replicas say of each of them.

/// Most live replicas of a page.
pub(super) const MOST: usize = crate::pages::NodeSet::MOST;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All that could be read are the same, or there was but one.
    Same,
    /// More than half of the live ones hold what `right` holds. The others that could be read are wrong.
    Majority {
        /// One of those that agree.
        right: usize,
        /// One bit for each that does not.
        wrong: u8,
    },
    /// They differ, and nothing tells which is right.
    Undecided,
}

const _: () = assert!(MOST <= u8::BITS as usize);

/// Of the live replicas of one page; `None`: one that could not be read. It counts as one that disagrees.
pub(super) fn judge(contents: &[Option<&[u8]>]) -> Verdict {
    debug_assert!(
        contents.len() <= MOST,
        "a page has at most so many replicas"
    );
    let read = |at: usize| contents[at];
    let all = 0..contents.len();
    let mut there = all.clone().filter_map(read);
    let Some(first) = there.next() else {
        return Verdict::Same;
    };
    if there.all(|content| content == first) {
        return Verdict::Same;
    }
    let agrees = |right: usize| all.clone().filter(move |at| read(*at) == read(right));
    let majority = all
        .clone()
        .filter(|at| read(*at).is_some())
        .find(|at| 2 * agrees(*at).count() > contents.len());
    match majority {
        Some(right) => Verdict::Majority {
            right,
            wrong: all
                .filter(|at| read(*at).is_some() && read(*at) != read(right))
                .fold(0, |wrong, at| wrong | 1 << at),
        },
        None => Verdict::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(contents: &str) -> Verdict {
        let bytes: Vec<[u8; 1]> = contents.bytes().map(|byte| [byte]).collect();
        let contents: Vec<Option<&[u8]>> = bytes
            .iter()
            .map(|byte| (byte != b"-").then_some(&byte[..]))
            .collect();
        judge(&contents)
    }

    #[test]
    fn only_more_than_half_of_all_live_replicas_are_believed() {
        let majority = |right, wrong| Verdict::Majority { right, wrong };
        for (contents, verdict) in [
            ("", Verdict::Same),
            ("-", Verdict::Same),
            ("a", Verdict::Same),
            ("aa", Verdict::Same),
            ("a-", Verdict::Same),
            ("-aa", Verdict::Same),
            ("ab", Verdict::Undecided),
            ("aab", majority(0, 0b100)),
            ("baa", majority(1, 0b001)),
            ("abc", Verdict::Undecided),
            ("ab-", Verdict::Undecided),
            ("aabb", Verdict::Undecided),
            ("aab-", Verdict::Undecided),
            ("abbb", majority(1, 0b0001)),
            ("aaabc", majority(0, 0b11000)),
            ("aabcd", Verdict::Undecided),
        ] {
            assert_eq!(judged(contents), verdict, "{contents}");
        }
    }
}
