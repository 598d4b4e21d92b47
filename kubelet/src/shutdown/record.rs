//! When the node last shut down gracefully, kept in a file for the metrics of the next start.

use std::io::ErrorKind;
use std::path::Path;

use component::files;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// In the kubelet's root folder, as upstream has it.
pub const FILE: &str = "graceful_node_shutdown_state";
/// Go's time that is none.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// From the first pod's end to the last one's; `None`: not yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub start: Option<Timestamp>,
    pub end: Option<Timestamp>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Text {
    start_time: String,
    end_time: String,
}

impl Default for Text {
    fn default() -> Self {
        Self { start_time: NEVER.to_owned(), end_time: NEVER.to_owned() }
    }
}

impl Times {
    /// What the last kubelet has written; nothing if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is something else.
    pub fn load(root: &Path) -> anyhow::Result<Self> {
        let text = match std::fs::read_to_string(root.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let text: Text = serde_json::from_str(&text)?;
        let time = |text: &str| match text {
            NEVER => Ok(None),
            text => text.parse().map(Some),
        };
        Ok(Self { start: time(&text.start_time)?, end: time(&text.end_time)? })
    }

    /// Writes them, durably: the machine is about to go.
    ///
    /// # Errors
    /// The file system's.
    pub fn store(self, root: &Path) -> anyhow::Result<()> {
        let text = |time: Option<Timestamp>| time.map_or(NEVER.to_owned(), |time| time.to_string());
        let text = Text { start_time: text(self.start), end_time: text(self.end) };
        Ok(files::write(&root.join(FILE), &serde_json::to_vec(&text)?, 0o644)?)
    }

    /// For `/metrics`: seconds since 1970, 0 if there is none.
    pub fn seconds(self) -> [i64; 2] {
        [self.start, self.end].map(|time| time.map_or(0, Timestamp::as_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Times::load(root.path()).unwrap(), Times::default());
        let at = |second| Timestamp::from_second(second).ok();
        for (start, end) in [(at(1_800_000_000), None), (at(1_800_000_000), at(1_800_000_009))] {
            let times = Times { start, end };
            times.store(root.path()).unwrap();
            assert_eq!(Times::load(root.path()).unwrap(), times);
        }
        assert_eq!(Times { start: at(5), end: None }.seconds(), [5, 0]);
        // As upstream writes it.
        let theirs =
            "{\"startTime\":\"2026-01-02T03:04:05.6+01:00\",\"endTime\":\"0001-01-01T00:00:00Z\"}";
        std::fs::write(root.path().join(FILE), theirs).unwrap();
        let times = Times::load(root.path()).unwrap();
        assert_eq!(times.start, "2026-01-02T02:04:05.6Z".parse().ok());
        assert_eq!(times.end, None);
        std::fs::write(root.path().join(FILE), "half").unwrap();
        assert!(Times::load(root.path()).is_err());
    }
}
