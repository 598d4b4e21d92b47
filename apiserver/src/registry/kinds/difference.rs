//! Where two values differ, as `diff -u` shows texts: upstream's messages of what may not change
//! end so. Upstream prints the fields of its internal types there, zeros included; we print those
//! of the API.

use apimachinery::Value;

/// Lines that are shown around a change.
const CONTEXT: usize = 3;
/// Pairs of lines that are compared at most; what is longer is shown as replaced.
const MAX_PAIRS: usize = 1 << 20;

/// Lines of the old text that gave way to lines of the new one.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Change {
    old: (usize, usize),
    new: (usize, usize),
}

/// The lines that differ, with some around them; empty if none does.
pub fn difference(old: &Value, new: &Value) -> String {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    print("", old, "", &mut a);
    print("", new, "", &mut b);
    let mut out = String::new();
    for hunk in changes(&a, &b).chunk_by(|l, r| r.old.0 - l.old.1 <= 2 * CONTEXT) {
        let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else { continue };
        let before = first.old.0.min(CONTEXT);
        let after = (a.len() - last.old.1).min(CONTEXT);
        out.push_str(&format!(
            "@@ -{} +{} @@\n",
            range(first.old.0 - before, last.old.1 + after),
            range(first.new.0 - before, last.new.1 + after)
        ));
        let mut at = first.old.0 - before;
        let mut show = |sign: char, lines: &[String]| {
            lines.iter().for_each(|line| out.push_str(&format!("{sign}{line}\n")));
        };
        for change in hunk {
            show(' ', &a[at..change.old.0]);
            show('-', &a[change.old.0..change.old.1]);
            show('+', &b[change.new.0..change.new.1]);
            at = change.old.1;
        }
        show(' ', &a[at..at + after]);
    }
    out
}

fn range(start: usize, end: usize) -> String {
    match end - start {
        1 => (start + 1).to_string(),
        0 => format!("{start},0"),
        length => format!("{},{length}", start + 1),
    }
}

/// The lines of a value as JSON, its keys in order. What Go takes for absent is left out.
fn print(head: &str, value: &Value, tail: &str, lines: &mut Vec<String>) {
    let inner = lines_indent(head);
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().filter(|(_, v)| !is_absent(v)).collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            lines.push(format!("{head}{{"));
            for (i, (key, value)) in entries.iter().enumerate() {
                let comma = if i + 1 < entries.len() { "," } else { "" };
                print(
                    &format!("{inner} {}: ", text(&Value::from(key.as_str()))),
                    value,
                    comma,
                    lines,
                );
            }
            lines.push(format!("{inner}}}{tail}"));
        }
        Value::Array(list) if !list.is_empty() => {
            lines.push(format!("{head}["));
            for (i, value) in list.iter().enumerate() {
                let comma = if i + 1 < list.len() { "," } else { "" };
                print(&format!("{inner} "), value, comma, lines);
            }
            lines.push(format!("{inner}]{tail}"));
        }
        other => lines.push(format!("{head}{}{tail}", text(other))),
    }
}

fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// The blanks that a line begins with.
fn lines_indent(head: &str) -> &str {
    &head[..head.len() - head.trim_start().len()]
}

/// A value in one line, escaped as Go does it.
fn text(value: &Value) -> String {
    value.to_string().replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

/// What gave way to what, in order.
fn changes(a: &[String], b: &[String]) -> Vec<Change> {
    let start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (rest_a, rest_b) = (&a[start..], &b[start..]);
    let end = rest_a.iter().rev().zip(rest_b.iter().rev()).take_while(|(a, b)| a == b).count();
    let (mid_a, mid_b) = (&rest_a[..rest_a.len() - end], &rest_b[..rest_b.len() - end]);
    let mut kept = kept_pairs(mid_a, mid_b);
    kept.push((mid_a.len(), mid_b.len()));
    let mut changes = Vec::new();
    let mut at = (0, 0);
    for (i, j) in kept {
        if (i, j) != at {
            let old = (start + at.0, start + i);
            changes.push(Change { old, new: (start + at.1, start + j) });
        }
        at = (i + 1, j + 1);
    }
    changes
}

/// A longest common subsequence: the positions of its lines in both texts.
fn kept_pairs(a: &[String], b: &[String]) -> Vec<(usize, usize)> {
    let width = b.len() + 1;
    if a.len().saturating_mul(b.len()) > MAX_PAIRS {
        return Vec::new();
    }
    // At (i, j): how many lines the rests from there have in common.
    let mut common = vec![0_u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i * width + j] = if a[i] == b[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut kept) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            kept.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if common[(i + 1) * width + j] >= common[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_shown_with_what_is_around_them() {
        let cases = [
            (json!({"a": 1}), json!({"a": 1, "b": null, "c": []}), ""),
            (
                json!({"a": {"n": "x<y", "o": 2, "p": 3, "q": 4, "r": [5]}, "z": true}),
                json!({"a": {"n": "x<z", "o": 2, "p": 3, "q": 4, "r": [5, 6]}}),
                "@@ -1,12 +1,12 @@\n {\n  \"a\": {\n-  \"n\": \"x\\u003cy\",\n+  \"n\": \
                 \"x\\u003cz\",\n   \"o\": 2,\n   \"p\": 3,\n   \"q\": 4,\n   \"r\": [\n-   5\n+   \
                 5,\n+   6\n   ]\n- },\n- \"z\": true\n+ }\n }\n",
            ),
            (
                json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}),
                json!({"a": 1, "b": 2, "c": 3, "d": 4}),
                "@@ -2,6 +2,5 @@\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3,\n- \"d\": 4,\n- \"e\": 5\n+ \
                 \"d\": 4\n }\n",
            ),
            (json!("a"), json!("b"), "@@ -1 +1 @@\n-\"a\"\n+\"b\"\n"),
        ];
        for (old, new, want) in cases {
            assert_eq!(difference(&old, &new), want, "{old} {new}");
        }
    }

    #[test]
    fn distant_changes_stand_apart_and_long_texts_end() {
        let list = |changed: &[usize], len: usize| -> Value {
            let element = |i: usize| if changed.contains(&i) { json!("new") } else { json!(i) };
            (0..len).map(element).collect::<Vec<_>>().into()
        };
        let text = difference(&list(&[], 20), &list(&[2, 15], 20));
        let heads: Vec<&str> = text.lines().filter(|l| l.starts_with("@@")).collect();
        assert_eq!(heads, ["@@ -1,7 +1,7 @@", "@@ -14,7 +14,7 @@"]);
        let long = difference(&list(&[], 4000), &list(&[1, 3998], 4000));
        assert_eq!(long.lines().filter(|l| l.starts_with("@@")).count(), 1);
    }
}
