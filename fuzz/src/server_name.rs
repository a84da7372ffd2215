//! Server names and their patterns.
//!
//! Model: a pattern without its trailing dot is a list of labels, separated by dots. Only the first label may be `*`, which
//! stands for one or more bytes of a name. Patterns and names are compared in lower case.

use crate::input::Input;
use sluice::server_name::ServerNamePattern;

fn without_trailing_dot(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".").unwrap_or(name)
}

/// Returns whether `sluice` must accept this pattern.
#[must_use]
pub fn is_pattern(text: &[u8]) -> bool {
    let is_label = |label: &[u8]| {
        !label.is_empty() && label.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let mut labels: Vec<&[u8]> = without_trailing_dot(text).split(|&byte| byte == b'.').collect();
    if labels[0] == b"*" {
        labels.remove(0);
    }
    !labels.is_empty() && labels.into_iter().all(is_label)
}

/// Returns whether a pattern must match a name.
#[must_use]
pub fn is_match(pattern: &[u8], name: &[u8]) -> bool {
    let [pattern, name] = [pattern, name].map(|text| without_trailing_dot(text).to_ascii_lowercase());
    match pattern.strip_prefix(b"*") {
        Some(end) => name.strip_suffix(end).is_some_and(|labels| !labels.is_empty()),
        None => name == pattern,
    }
}

/// Parses a pattern, and matches it against the rest of the data, the pattern's text, and combinations of both.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let text = input.text();
    let found = ServerNamePattern::parse(text);
    assert_eq!(found.is_some(), is_pattern(text), "{:?}", String::from_utf8_lossy(text));
    let Some(pattern) = found else { return };
    assert_eq!(ServerNamePattern::from_bytes(pattern.as_bytes()), pattern);
    let end = text.strip_prefix(b"*").unwrap_or(text);
    for name in [input.0, text, end, &[input.0, end].concat(), &[end, input.0].concat()] {
        assert_eq!(pattern.matches(name), is_match(text, name), "{pattern:?} {:?}", String::from_utf8_lossy(name));
    }
}
