//! Patterns for server names (the SNI of a TLS handshake): one name, or all names below one.

/// A pattern such as `example.com`, or `*.example.com` for one or more labels before `.example.com`. Without a trailing dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerNamePattern<'a>(&'a [u8]);

impl<'a> ServerNamePattern<'a> {
    /// Parses a pattern: labels of letters, digits, `-` and `_`, which are not empty, optionally preceded by `*.`. Drops one
    /// trailing dot. Returns `None` for anything else.
    #[must_use]
    #[inline(never)]
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let text = without_trailing_dot(text);
        let mut in_label = false;
        for &byte in text.strip_prefix(b"*.").unwrap_or(text) {
            in_label = match byte {
                b'.' if in_label => false,
                b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => true,
                _ => return None,
            }
        }
        in_label.then_some(Self(text))
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The pattern for a text that [`Self::as_bytes`] returned. The text is not checked.
    #[must_use]
    pub fn from_bytes(text: &'a [u8]) -> Self {
        Self(text)
    }

    /// Returns whether the pattern matches `name`, ignoring case and one trailing dot.
    #[must_use]
    #[inline(never)]
    pub fn matches(self, name: &[u8]) -> bool {
        let name = without_trailing_dot(name);
        let (is_wildcard, end) = match self.0 {
            [b'*', end @ ..] => (true, end),
            _ => (false, self.0),
        };
        match name.len().checked_sub(end.len()).and_then(|start| name.split_at_checked(start)) {
            Some((labels, rest)) => labels.is_empty() != is_wildcard && rest.eq_ignore_ascii_case(end),
            None => false,
        }
    }
}

/// Removes one trailing dot, which marks a name as fully qualified and does not change what it names.
fn without_trailing_dot(name: &[u8]) -> &[u8] {
    match name {
        [name @ .., b'.'] => name,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &[u8], name: &[u8]) -> bool {
        ServerNamePattern::parse(pattern).unwrap().matches(name)
    }

    #[test]
    fn names_match_exactly_and_ignore_case() {
        for pattern in [&b"API.example.com"[..], b"api.example.com."] {
            assert!(matches(pattern, b"api.EXAMPLE.com"));
            for other in [&b""[..], b"example.com", b"xapi.example.com", b"a.api.example.com", b"api.example.co"] {
                assert!(!matches(pattern, other), "{other:?}");
            }
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_or_more_labels() {
        for pattern in [&b"*.Example.com"[..], b"*.Example.com."] {
            for name in [&b"a.example.com"[..], b"a.b.EXAMPLE.COM", b"-.example.com"] {
                assert!(matches(pattern, name), "{name:?}");
            }
            for name in [&b""[..], b"example.com", b".example.com", b"aexample.com", b"a.example.org", b"com"] {
                assert!(!matches(pattern, name), "{name:?}");
            }
        }
    }

    #[test]
    fn one_trailing_dot_is_removed() {
        for (name, expected) in [("a.b.", "a.b"), ("a.b", "a.b"), ("a..", "a."), (".", ""), ("", "")] {
            assert_eq!(without_trailing_dot(name.as_bytes()), expected.as_bytes(), "{name:?}");
        }
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in [
            &b""[..],
            b".",
            b"*",
            b"*.",
            b"*..",
            b".example.com",
            b"*.*.com",
            b"a.*.com",
            b"*a.com",
            b"**.com",
            b"example..com",
            b"example.com..",
            b"exa mple.com",
            b"example.com:443",
            b"https://example.com",
            b"b\xc3\xbccher.example",
        ] {
            assert_eq!(ServerNamePattern::parse(text), None, "{text:?}");
        }
    }
}
