//! Which routes, or upstreams, have series of their own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use super::{LONGEST_NAME, OTHER, OWN_SERIES};

/// The names that have series of their own, with the living handles.
#[derive(Debug)]
pub(super) struct Own<T>(Mutex<HashMap<Arc<str>, Weak<T>>>);

impl<T> Own<T> {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Weak<T>>> {
        self.0
            .lock()
            .expect("no code panics while holding this lock")
    }

    /// The living handles of this name, else new ones; `None` when the bound is reached, or the name is no label of its own.
    pub(super) fn claim(&self, name: &str, build: impl FnOnce(Arc<str>) -> T) -> Option<Arc<T>> {
        // A route may well be called like the series that others share; its end must not end theirs.
        if name == OTHER {
            return None;
        }
        let mut own = self.lock();
        match own.get(name) {
            Some(handles) => {
                if let Some(living) = handles.upgrade() {
                    return Some(living);
                }
                // The last holder is letting go right now: taking its place keeps the series.
            }
            None if own.len() >= OWN_SERIES || name.len() > LONGEST_NAME => return None,
            None => {}
        }
        let name: Arc<str> = name.into();
        let handles = Arc::new(build(name.clone()));
        own.insert(name, Arc::downgrade(&handles));
        Some(handles)
    }

    /// Called by the last holder: `remove` takes the series away, unless somebody has claimed the name anew.
    pub(super) fn release(&self, name: &str, remove: impl FnOnce()) {
        let mut own = self.lock();
        if own
            .get(name)
            .is_some_and(|handles| handles.strong_count() == 0)
        {
            own.remove(name);
            remove();
        }
    }
}

impl<T> Default for Own<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}
