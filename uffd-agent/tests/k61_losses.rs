//! Lost pages, with poison and without it. Run on Linux 6.1 too, which has none.

mod support;

use support::losses::one_node_of_two_dies;

#[test]
fn lost_pages_are_poisoned() {
    one_node_of_two_dies("poison", |_| {});
}

#[test]
fn without_poison_the_thread_gets_sigbus() {
    one_node_of_two_dies("sigbus", |config| config.without_poison = true);
}
