//! Sets of completion indexes, as statuses and policies write them: `1,3-5,7`.

use std::collections::BTreeSet;

/// Reads; what is no index, or not below `limit`, is left out.
pub fn parse(text: &str, limit: i32) -> BTreeSet<i32> {
    let mut all = BTreeSet::new();
    for piece in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            all.extend(first.max(0)..=last.min(limit - 1));
        }
    }
    all
}

/// Writes runs of three and more as `first-last`.
pub fn format(all: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in all {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let texts = runs.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written_in_runs() {
        for (text, again) in [
            ("", ""),
            ("1,3-5,7", "1,3-5,7"),
            ("0-1", "0,1"),
            ("0,1,2", "0-2"),
            ("8-12", "8,9"),
            ("a,2-x,4", "4"),
        ] {
            assert_eq!(format(&parse(text, 10)), again, "{text}");
        }
    }
}
