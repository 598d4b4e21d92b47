//! What the cells of tables are made of: ages, lists, labels, selectors
//! (k8s.io/kubernetes `printers/internalversion`).

use apimachinery::Value;
use apimachinery::object::{self, str_at};
use jiff::Timestamp;

use crate::registry::Column;

/// Cell of a column.
pub type Cell = fn(&Value, Timestamp) -> Value;

/// A column that is always shown.
pub fn column(
    name: &'static str,
    ty: &'static str,
    description: &'static str,
    cell: Cell,
) -> Column {
    Column { name, ty, format: "", description, priority: 0, cell }
}

/// A column of `-o wide`.
pub fn wide(name: &'static str, ty: &'static str, description: &'static str, cell: Cell) -> Column {
    Column { priority: 1, ..column(name, ty, description, cell) }
}

/// The column `Name`, which all kinds begin with.
pub fn name_column() -> Column {
    Column {
        format: "name",
        ..column("Name", "string", "Name of the object, unique in its scope.", |o, _| {
            object::name(o).into()
        })
    }
}

/// The column `Age`, or another that shows the time since creation.
pub fn age_column() -> Column {
    column("Age", "string", "Time since the object was created.", |o, now| {
        since(object::creation_timestamp(o), now).into()
    })
}

/// What kinds without a printer show.
pub fn created_at_column() -> Column {
    column("Created At", "date", "When the object was created.", |o, _| {
        object::creation_timestamp(o).into()
    })
}

/// `Name` and then these columns.
pub fn named(columns: impl IntoIterator<Item = Column>) -> Vec<Column> {
    std::iter::once(name_column()).chain(columns).collect()
}

/// Time since an RFC 3339 timestamp, in kubectl's short form; `<unknown>` for none.
pub fn since(timestamp: &str, now: Timestamp) -> String {
    match timestamp.parse::<Timestamp>() {
        Ok(then) => human_duration(now.duration_since(then).as_secs()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// Seconds as kubectl shows ages: two units at most, the finer one dropped as ages grow.
pub fn human_duration(seconds: i64) -> String {
    const DAY: i64 = 24;
    const YEAR: i64 = 365 * DAY;
    // Clocks differ a little between machines.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let pair = |big: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{small_unit}"),
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        pair(minutes, 'm', seconds % 60, 's')
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        pair(hours, 'h', minutes % 60, 'm')
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < DAY * 8 {
        pair(hours / DAY, 'd', hours % DAY, 'h')
    } else if hours < YEAR * 2 {
        format!("{}d", hours / DAY)
    } else if hours < YEAR * 8 {
        pair(hours / YEAR, 'y', (hours / DAY) % 365, 'd')
    } else {
        format!("{}y", hours / YEAR)
    }
}

/// `a=1,b=2`, or `<none>`.
pub fn labels(map: Option<&Value>) -> String {
    let Some(Value::Object(map)) = map else { return "<none>".to_owned() };
    if map.is_empty() {
        return "<none>".to_owned();
    }
    let mut pairs: Vec<String> =
        map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect();
    pairs.sort_unstable();
    pairs.join(",")
}

/// A selector as text (`metav1.FormatLabelSelector`): requirements in order of keys. A plain map is
/// what ReplicationControllers have.
pub fn selector(selector: Option<&Value>) -> String {
    let Some(selector) = selector.filter(|s| !s.is_null()) else { return "<none>".to_owned() };
    if selector.as_object().is_some_and(|map| map.values().all(Value::is_string)) {
        return labels(Some(selector));
    }
    match apimachinery::selector::LabelSelector::from_json(Some(selector)) {
        Ok(Some(parsed)) => match parsed.to_string() {
            text if text.is_empty() => "<none>".to_owned(),
            text => text,
        },
        Ok(None) => "<none>".to_owned(),
        Err(_) => "<error>".to_owned(),
    }
}

/// Names and images of containers, each joined by commas.
pub fn containers(spec: &Value) -> (String, String) {
    let of = |field: &str| {
        let list = object::list_at(spec, &["containers"]);
        list.iter().map(|c| str_at(c, &[field])).collect::<Vec<_>>().join(",")
    };
    (of("name"), of("image"))
}

/// The first `max` of a list, and how many more there are.
pub fn list_with_more(list: &[String], count: usize, max: usize) -> String {
    let text = list.join(",");
    if count > max { format!("{text} + {} more...", count - max) } else { text }
}

/// `<none>` for an empty text.
pub fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// Number of entries of a list or map.
pub fn count(value: Option<&Value>) -> usize {
    match value {
        Some(Value::Object(map)) => map.len(),
        Some(Value::Array(list)) => list.len(),
        _ => 0,
    }
}

/// `true`, `false`, or `<unset>`.
pub fn optional_bool(value: Option<&Value>) -> Value {
    match value.and_then(Value::as_bool) {
        Some(b) => b.to_string().into(),
        None => "<unset>".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600, "8h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (2 * 365 * 86400, "2y"),
            (2 * 365 * 86400 + 86400, "2y1d"),
            (9 * 365 * 86400, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }
}
