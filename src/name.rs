//! Server names (SNI) that a route asks for: one name, or all names below one.

use alloc::vec::Vec;

/// A name pattern, of any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// With the leading dot where it is a wildcard.
    text: Vec<u8>,
}

impl Pattern {
    /// `example.com`, or `*.example.com`, which stands for one or more labels before `.example.com`; none for the rest.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (pattern, labels) = match text.strip_prefix(b"*") {
            Some(pattern) => (pattern, pattern.strip_prefix(b".")?),
            None => (text, text),
        };
        is_name(labels).then(|| Self { text: pattern.to_vec() })
    }

    /// Whether this is such a name.
    #[must_use]
    pub fn matches(&self, name: &[u8]) -> bool {
        let same_end = name
            .len()
            .checked_sub(self.text.len())
            .and_then(|start| name.split_at_checked(start))
            .filter(|(_, end)| end.eq_ignore_ascii_case(&self.text));
        match same_end {
            Some((start, _)) => start.is_empty() != (self.text.first() == Some(&b'.')),
            None => false,
        }
    }
}

fn is_name(text: &[u8]) -> bool {
    text.split(|&byte| byte == b'.').all(|label| {
        !label.is_empty() && label.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_exactly_and_in_any_case() {
        let pattern = Pattern::parse(b"API.example.com").unwrap();
        assert!(pattern.matches(b"api.EXAMPLE.com"));
        for other in [&b""[..], b"example.com", b"xapi.example.com", b"a.api.example.com", b"api.example.com."] {
            assert!(!pattern.matches(other), "{other:?}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_or_more_labels() {
        let pattern = Pattern::parse(b"*.Example.com").unwrap();
        for name in [&b"a.example.com"[..], b"a.b.EXAMPLE.COM", b"-.example.com"] {
            assert!(pattern.matches(name), "{name:?}");
        }
        for name in [&b""[..], b"example.com", b".example.com", b"aexample.com", b"a.example.org", b"com"] {
            assert!(!pattern.matches(name), "{name:?}");
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
            assert_eq!(Pattern::parse(text), None, "{text:?}");
        }
    }
}
