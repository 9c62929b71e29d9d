//! What happened to a key, as one line.

use super::plain;
use crate::source::Entry;

/// Longest value shown, in characters; JSON output has all of it.
const SHOWN: usize = 300;

/// `+ key value`, `- key value`, `~ key old -> new`, or `= key value` of one that was written as it was. What is bound
/// to a lease says so.
pub(super) fn line(key: &[u8], before: Option<&Entry>, after: Option<&Entry>) -> String {
    let key = plain(key);
    let text = match (before, after) {
        (None, None) => format!("- {key}"),
        (None, Some(after)) => format!("+ {key}{}", spaced(&after.value)),
        (Some(before), None) => format!("- {key}{}", spaced(&before.value)),
        (Some(before), Some(after)) if before.value == after.value => {
            format!("= {key}{}", spaced(&after.value))
        }
        (Some(before), Some(after)) => {
            format!(
                "~ {key} {} -> {}",
                shown(&before.value),
                shown(&after.value)
            )
        }
    };
    match after.or(before).map_or(0, |entry| entry.lease) {
        0 => text,
        lease => format!("{text} (lease {lease:x})"),
    }
}

/// A value on one line, cut if it is long; `''` for none.
pub(super) fn shown(value: &[u8]) -> String {
    let text = plain(value);
    match text.char_indices().nth(SHOWN) {
        _ if text.is_empty() => "''".to_owned(),
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text,
    }
}

fn spaced(value: &[u8]) -> String {
    match value {
        b"" => String::new(),
        value => format!(" {}", shown(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_happened() {
        let entry = |value: &str, lease| Entry {
            key: "/h/a/b:80".into(),
            value: value.to_owned().into(),
            mod_revision: 1,
            lease,
        };
        let long = entry(&"x".repeat(1000), 0);
        let long_shown = format!("+ /h/a/b:80 {}\u{2026}", "x".repeat(300));
        for (before, after, expected) in [
            (None, Some(entry("", 0)), "+ /h/a/b:80"),
            (None, Some(entry("{}", 255)), "+ /h/a/b:80 {} (lease ff)"),
            (None, Some(long), &long_shown),
            (
                Some(entry("x\ny", 16)),
                None,
                "- /h/a/b:80 x\u{fffd}y (lease 10)",
            ),
            (
                Some(entry("", 0)),
                Some(entry("y", 0)),
                "~ /h/a/b:80 '' -> y",
            ),
            (Some(entry("y", 0)), Some(entry("y", 0)), "= /h/a/b:80 y"),
            (None, None, "- /h/a/b:80"),
        ] {
            let line = line(b"/h/a/b:80", before.as_ref(), after.as_ref());
            assert_eq!(line, expected);
        }
    }
}
