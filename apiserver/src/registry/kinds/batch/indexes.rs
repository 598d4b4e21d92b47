//! Lists of a job's indexes as text: `0-3,7`.

type Interval = (i64, i64);

fn number(text: &str, completions: i64) -> Result<i64, String> {
    let value: i64 = text
        .parse()
        .map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
    if value >= completions { Err(format!("too large index: {text:?}")) } else { Ok(value) }
}

fn interval(text: &str, completions: i64) -> Result<Interval, String> {
    let mut parts = text.split('-');
    let (first, last) = (parts.next().unwrap_or(""), parts.next());
    if parts.next().is_some() {
        return Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at \
             most two parts separated by '-'"
        ));
    }
    let first = number(first, completions)?;
    let Some(last) = last else { return Ok((first, first)) };
    let last = number(last, completions)?;
    if first >= last {
        return Err(format!("non-increasing order, previous: {first}, current: {last}"));
    }
    Ok((first, last))
}

/// How many indexes the text names.
///
/// # Errors
/// What is wrong with it, in upstream's words.
pub fn count(text: &str, completions: i64) -> Result<i64, String> {
    let mut total = 0;
    let mut before: Option<i64> = None;
    for piece in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = interval(piece, completions)?;
        if let Some(before) = before.filter(|b| *b >= first) {
            return Err(format!("non-increasing order, previous: {before}, current: {first}"));
        }
        total += last - first + 1;
        before = Some(last);
    }
    Ok(total)
}

/// The first index that both lists name. What does not parse is passed over.
pub fn overlap(completed: &str, failed: &str, completions: i64) -> Option<i64> {
    let all = |text: &str| -> Vec<Interval> {
        text.split(',').filter_map(|piece| interval(piece, completions).ok()).collect()
    };
    let (completed, failed) = (all(completed), all(failed));
    let (mut c, mut f) = (completed.iter().peekable(), failed.iter().peekable());
    while let (Some(one), Some(other)) = (c.peek(), f.peek()) {
        if one.0 <= other.1 && other.0 <= one.1 {
            return Some(one.0.max(other.0));
        }
        let behind = if one.0 <= other.0 { &mut c } else { &mut f };
        behind.next();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted_or_refused() {
        let cases = [
            ("", Ok(0)),
            ("0", Ok(1)),
            ("0-2,4", Ok(4)),
            ("5", Err("too large index: \"5\"")),
            ("a", Err("cannot convert string to integer for index: \"a\"")),
            ("2-1", Err("non-increasing order, previous: 2, current: 1")),
            ("1,1", Err("non-increasing order, previous: 1, current: 1")),
            (
                "1-2-3",
                Err("the fragment \"1-2-3\" violates the requirement that an index interval can \
                     have at most two parts separated by '-'"),
            ),
        ];
        for (text, want) in cases {
            assert_eq!(count(text, 5), want.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn lists_that_share_an_index_overlap() {
        for (completed, failed, want) in [
            ("0-2", "2-3", Some(2)),
            ("0-2,4", "3", None),
            ("x,1", "1", Some(1)),
            ("0,2,4", "1,3", None),
        ] {
            assert_eq!(overlap(completed, failed, 9), want, "{completed} {failed}");
        }
    }
}
