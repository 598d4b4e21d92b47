//! Warnings of a request. They reach the client whatever becomes of it, as upstream's recorder
//! writes them down at once: an object that is refused may have had fields that nobody knows.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;

/// What a request warns of, in order.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    pub fn push(&self, warning: String) {
        self.0.lock().push(warning);
    }

    /// A list to add to; what it holds when it goes is said.
    pub fn collect(&self) -> Said {
        Said { sink: self.clone(), own: Vec::new() }
    }

    /// All of them; none is left.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// Warnings of one step, which are said when it ends, well or not.
#[derive(Debug)]
pub struct Said {
    sink: Warnings,
    own: Vec<String>,
}

impl Deref for Said {
    type Target = Vec<String>;

    fn deref(&self) -> &Vec<String> {
        &self.own
    }
}

impl DerefMut for Said {
    fn deref_mut(&mut self) -> &mut Vec<String> {
        &mut self.own
    }
}

impl Drop for Said {
    fn drop(&mut self) {
        self.sink.0.lock().append(&mut self.own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_said_though_the_step_fails() {
        let warnings = Warnings::default();
        let fails = || -> Result<(), ()> {
            let mut said = warnings.collect();
            said.push("b".to_owned());
            Err(())
        };
        warnings.push("a".to_owned());
        assert_eq!(fails(), Err(()));
        assert_eq!(warnings.take(), ["a", "b"]);
        assert!(warnings.take().is_empty());
    }
}
