//! Container logs in CRI's format: `TIMESTAMP stdout|stderr P|F CONTENT`, one record per line.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

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
