//! Container logs in CRI's format: `TIMESTAMP stdout|stderr P|F CONTENT`, one record per line.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub timestamp: &'a str,
    pub stderr: bool,
    /// The record is a whole line or ends one; its line feed is not in `content`.
    pub ends_line: bool,
    pub content: &'a [u8],
}

/// Parses a line of the file, without its line feed. `None` for a malformed one.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let timestamp = std::str::from_utf8(parts.next()?).ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let tags = parts.next()?;
    let content = parts.next()?;
    let ends_line = tags.split(|b| *b == b':').next()? != b"P";
    Some(Record { timestamp, stderr, ends_line, content })
}

/// Runtimes have written a container's log so long after its end at the latest.
const WRITTEN_BY: Duration = Duration::from_secs(2);
/// Between two looks at who writes to a log.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until the log of a container that ended at that time (nanoseconds since 1970) is whole: the
/// runtime reports the end before it has written the last of it, and then closes the file.
pub async fn written(path: &Path, ended: i64) {
    let since_end = || {
        let ended = Timestamp::from_nanosecond(ended.into()).unwrap_or(Timestamp::MIN);
        Duration::try_from(Timestamp::now().duration_since(ended)).unwrap_or_default()
    };
    while since_end() < WRITTEN_BY {
        let looked_at = path.to_owned();
        let looking = tokio::task::spawn_blocking(move || is_written_to(&looked_at));
        if !looking.await.unwrap_or(false) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether any process that can be seen has a file open for writing.
fn is_written_to(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let numbers = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let is_number =
            |e: &std::fs::DirEntry| e.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        entries.filter(is_number).map(|e| e.path()).collect()
    };
    numbers(Path::new("/proc")).into_iter().any(|process| {
        numbers(&process.join("fd")).into_iter().any(|fd| {
            std::fs::read_link(&fd).is_ok_and(|target| target == path)
                && fd.file_name().is_some_and(|n| is_writable(&process.join("fdinfo").join(n)))
        })
    })
}

/// Whether a descriptor is open for writing, by its `/proc/PID/fdinfo/N` (proc(5)).
fn is_writable(fdinfo: &Path) -> bool {
    const ACCESS_MODE: u32 = 3;
    let text = std::fs::read_to_string(fdinfo).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & ACCESS_MODE != 0)
}

/// The end of a log, at most so many lines and bytes.
pub fn last_words(path: &Path, lines: usize, bytes: usize) -> String {
    let Ok(mut file) = std::fs::File::open(path) else { return String::new() };
    let length = file.metadata().map_or(0, |m| m.len());
    // Records carry some fifty bytes beside their content.
    let window = (bytes + lines * 64) as u64;
    let start = length.saturating_sub(window);
    let mut data = Vec::new();
    if file.seek(SeekFrom::Start(start)).is_err()
        || file.take(window).read_to_end(&mut data).is_err()
    {
        return String::new();
    }
    let mut content = Vec::new();
    for line in data.split(|b| *b == b'\n') {
        if let Some(record) = parse(line) {
            content.extend_from_slice(record.content);
            if record.ends_line {
                content.push(b'\n');
            }
        }
    }
    let from = tail_start(&content, lines).max(content.len().saturating_sub(bytes));
    String::from_utf8_lossy(&content[from..]).into_owned()
}

/// Where the last `lines` lines begin.
pub fn tail_start(content: &[u8], lines: usize) -> usize {
    if lines == 0 {
        return content.len();
    }
    let end = content.len() - usize::from(content.ends_with(b"\n"));
    let mut breaks = content[..end].iter().enumerate().rev().filter(|(_, b)| **b == b'\n');
    breaks.nth(lines - 1).map_or(0, |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_parsed() {
        let record = parse(b"2026-01-02T03:04:05.678Z stderr F hello  world").unwrap();
        assert!(record.stderr && record.ends_line);
        assert_eq!(record.content, b"hello  world");
        assert!(!parse(b"t stdout P half").unwrap().ends_line);
        assert!(parse(b"t stdout F:x whole").unwrap().ends_line);
        assert_eq!(parse(b"t stdout F ").unwrap().content, b"");
        for bad in [&b"t other F x"[..], b"t stdout", b""] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn writers_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        assert!(!is_written_to(&path), "it is not there");
        let writer = std::fs::File::create(&path).unwrap();
        assert!(is_written_to(&path));
        let _reader = std::fs::File::open(&path).unwrap();
        drop(writer);
        assert!(!is_written_to(&path));
    }

    #[tokio::test]
    async fn a_log_is_whole_when_nobody_writes_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let writer = std::fs::File::create(&path).unwrap();
        let now = || i64::try_from(Timestamp::now().as_nanosecond()).unwrap();
        let long_ago = now() - i64::try_from(WRITTEN_BY.as_nanos()).unwrap();
        written(&path, long_ago).await;
        let in_time = |limit| tokio::time::timeout(limit, written(&path, now()));
        assert!(in_time(LOOK * 2).await.is_err(), "somebody writes to it");
        drop(writer);
        assert!(in_time(WRITTEN_BY).await.is_ok());
    }

    #[test]
    fn tails_begin_at_lines() {
        for (content, lines, rest) in
            [("a\nb\nc\n", 2, "b\nc\n"), ("a\nb\nc", 1, "c"), ("a\n", 5, "a\n"), ("a\n", 0, "")]
        {
            assert_eq!(&content[tail_start(content.as_bytes(), lines)..], rest, "{content:?}");
        }
    }

    #[test]
    fn last_words_join_partial_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "t stdout F one\nt stdout P tw\nt stdout F o\nt stderr F three\n")
            .unwrap();
        assert_eq!(last_words(&path, 2, 100), "two\nthree\n");
        assert_eq!(last_words(&path, 9, 4), "ree\n");
    }
}
