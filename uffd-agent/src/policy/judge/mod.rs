//! The policies judged: on seeded traces, against what somebody who knew the future would have done.

mod fetching;
mod huge;
mod leaving;
mod traces;
