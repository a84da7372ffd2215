//! Server names (SNI) that a route asks for: one name, or all names below one.

/// Whether this is a pattern: `example.com`, or `*.example.com`, which stands for one or more labels before
/// `.example.com`.
#[must_use]
pub fn is_pattern(text: &[u8]) -> bool {
    let mut in_label = false;
    for &byte in text.strip_prefix(b"*.").unwrap_or(text) {
        in_label = match byte {
            b'.' if !in_label => return false,
            b'.' => false,
            b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => true,
            _ => return false,
        }
    }
    in_label
}

/// Whether the name is one that the pattern stands for, in any case.
#[must_use]
#[inline(never)]
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (wildcard, end) = match pattern {
        [b'*', end @ ..] => (true, end),
        _ => (false, pattern),
    };
    let start = name.len().wrapping_sub(end.len());
    (start > 0) == wildcard && name.get(start..).is_some_and(|same| same.eq_ignore_ascii_case(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_exactly_and_in_any_case() {
        let pattern = b"API.example.com";
        assert!(is_pattern(pattern) && matches(pattern, b"api.EXAMPLE.com"));
        for other in [&b""[..], b"example.com", b"xapi.example.com", b"a.api.example.com", b"api.example.com."] {
            assert!(!matches(pattern, other), "{other:?}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_or_more_labels() {
        let pattern = b"*.Example.com";
        assert!(is_pattern(pattern));
        for name in [&b"a.example.com"[..], b"a.b.EXAMPLE.COM", b"-.example.com"] {
            assert!(matches(pattern, name), "{name:?}");
        }
        for name in [&b""[..], b"example.com", b".example.com", b"aexample.com", b"a.example.org", b"com"] {
            assert!(!matches(pattern, name), "{name:?}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            &b""[..],
            b".",
            b"*",
            b"*.",
            b".example.com",
            b"*.*.com",
            b"a.*.com",
            b"*a.com",
            b"**.com",
            b"example..com",
            b"example.com.",
            b"exa mple.com",
            b"example.com:443",
            b"https://example.com",
            b"b\xc3\xbccher.example",
        ] {
            assert!(!is_pattern(text), "{text:?}");
        }
    }
}
