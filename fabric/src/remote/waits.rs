//! Waiting until every lane has heard of a change: until then work that knows nothing of it is under way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::bell::Bell;

/// What a lane says of itself.
#[derive(Debug)]
pub(super) struct LanePost {
    /// All work of the lane that is under way was begun with this version of the homes, or a later one.
    heard: AtomicU64,
    /// Rung when there is a new version. None in simulated time.
    bell: Option<Arc<Bell>>,
    /// It was, and has to be silenced.
    rung: AtomicBool,
}

impl LanePost {
    pub(super) fn new(bell: Option<Arc<Bell>>) -> Self {
        Self {
            heard: AtomicU64::new(0),
            bell,
            rung: AtomicBool::new(false),
        }
    }

    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Whether the bell was rung since the last call.
    pub(super) fn was_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::AcqRel)
    }

    pub(super) fn hear(&self, version: u64) {
        self.heard.store(version, Ordering::Release);
    }
}

/// The lanes of a region that are open.
#[derive(Debug, Default)]
pub(super) struct LanePosts {
    posts: Mutex<Vec<Weak<LanePost>>>,
}

impl LanePosts {
    pub(super) fn add(&self, post: &Arc<LanePost>) {
        let mut posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
        posts.retain(|post| post.strong_count() > 0);
        posts.push(Arc::downgrade(post));
    }

    /// Wakes the lanes that sleep; answers who has to hear of `version`.
    pub(super) fn tell(&self, version: u64) -> LanesHeard {
        let posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
        for post in posts.iter().filter_map(Weak::upgrade) {
            if let Some(bell) = &post.bell {
                bell.ring();
                // Behind the ring: whoever sees this silences it.
                post.rung.store(true, Ordering::Release);
            }
        }
        LanesHeard {
            version,
            posts: posts.clone(),
        }
    }
}

/// The lanes that have to hear of a version.
#[derive(Clone, Debug)]
pub(super) struct LanesHeard {
    version: u64,
    posts: Vec<Weak<LanePost>>,
}

impl LanesHeard {
    /// Nobody is waited for.
    #[cfg(test)]
    pub(super) fn everybody() -> Self {
        Self {
            version: 0,
            posts: Vec::new(),
        }
    }

    /// Whether all have, or are gone.
    pub(super) fn all(&self) -> bool {
        self.posts
            .iter()
            .filter_map(Weak::upgrade)
            .all(|post| post.heard.load(Ordering::Acquire) >= self.version)
    }
}
