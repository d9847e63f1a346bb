//! The limits on an `attribution`, so that every reader of a result can parse it.

use super::{ATTRIBUTION_BYTES_LIMIT, ATTRIBUTION_DEPTH_LIMIT};

/// Says what is wrong with the JSON text of an attribution, as a phrase that begins with "expected".
pub fn flaw_in(text: &str) -> Option<String> {
    if !text.starts_with('{') || text.len() > ATTRIBUTION_BYTES_LIMIT {
        return Some(format!("expected an object of at most {ATTRIBUTION_BYTES_LIMIT} bytes, or null"));
    }
    if depth(text) > ATTRIBUTION_DEPTH_LIMIT {
        return Some(format!("expected objects and arrays at most {ATTRIBUTION_DEPTH_LIMIT} deep"));
    }
    has_lone_surrogate(text).then(|| "expected no escape of half a surrogate pair".to_owned())
}

/// How deep valid JSON text nests.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether valid JSON text escapes half of a UTF-16 surrogate pair, which many parsers refuse.
fn has_lone_surrogate(text: &str) -> bool {
    let mut rest = text;
    let mut awaits_low = false;
    while let Some(at) = rest.find('\\') {
        // The second half follows its first half at once.
        if awaits_low && at > 0 {
            return true;
        }
        let escape = &rest[at + 1..];
        let unit = escape.strip_prefix('u').and_then(|hex| u16::from_str_radix(hex.get(..4)?, 16).ok());
        let is_low = unit.is_some_and(|unit| (0xDC00..=0xDFFF).contains(&unit));
        if awaits_low != is_low {
            return true;
        }
        awaits_low = unit.is_some_and(|unit| (0xD800..=0xDBFF).contains(&unit));
        rest = escape.get(if unit.is_some() { 5 } else { 1 }..).unwrap_or_default();
    }
    awaits_low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_surrogate_pairs_are_found_and_whole_pairs_are_let_through() {
        for fine in [r#"{"a":"\ud83d\ude00"}"#, r#"{"a":"\\ud800"}"#, r#"{"a":"ü\n\u00fc"}"#, "{}"] {
            assert!(!has_lone_surrogate(fine), "{fine}");
        }
        for lone in [
            r#"{"a":"\ud800"}"#,
            r#"{"a":"\udc00"}"#,
            r#"{"a":"\ud800x\udc00"}"#,
            r#"{"a":"\ud800\n"}"#,
            r#"{"a":"\ud800\ud800\udc00"}"#,
            r#"{"a":"\\\ud800"}"#,
        ] {
            assert!(has_lone_surrogate(lone), "{lone}");
            assert!(serde_json::from_str::<serde_json::Value>(lone).is_err(), "{lone}");
        }
    }

    #[test]
    fn depth_counts_objects_and_arrays_and_no_brackets_in_strings() {
        assert_eq!(depth(r#"{"a":[{"b":"[[[\"[["}],"c":{}}"#), 3);
        assert_eq!(depth("{}"), 1);
    }
}
