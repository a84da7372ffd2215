//! A growable ASCII buffer for log lines and errors, without `core::fmt`, whose machinery is larger than the filter.

use alloc::{string::String, vec::Vec};

/// The number of bytes of a quoted text that are shown.
const QUOTED_MAX: usize = 128;

/// An ASCII text for a log or an error message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(Vec<u8>);

impl Text {
    /// Starts with `text`, which must be ASCII.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut new = Self::default();
        new.push(text);
        new
    }

    /// Appends `text`, which must be ASCII.
    #[inline(never)]
    pub fn push(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Appends another text.
    pub fn push_text(&mut self, text: &Self) -> &mut Self {
        self.0.extend_from_slice(&text.0);
        self
    }

    /// Appends an untrusted text in quotes. Quotes, backslashes and everything that is not printable ASCII become
    /// `\xNN`. Of a longer text, only the first 128 bytes are shown, followed by its length.
    #[inline(never)]
    pub fn push_quoted(&mut self, text: &[u8]) -> &mut Self {
        self.push_byte(b'"');
        for &byte in text.iter().take(QUOTED_MAX) {
            if matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\' {
                self.push_byte(byte);
            } else {
                self.push("\\x").push_byte(hex_digit(byte >> 4)).push_byte(hex_digit(byte & 15));
            }
        }
        self.push_byte(b'"');
        if text.len() > QUOTED_MAX {
            self.push("... (").push_number(text.len()).push(" bytes)");
        }
        self
    }

    /// Appends a number in decimal.
    #[inline(never)]
    pub fn push_number(&mut self, number: usize) -> &mut Self {
        if number >= 10 {
            self.push_number(number / 10);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a single decimal digit")]
        self.push_byte(b'0'.wrapping_add((number % 10) as u8))
    }

    #[inline(never)]
    fn push_byte(&mut self, byte: u8) -> &mut Self {
        self.0.push(byte);
        self
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the text is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Shortens the text to its first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }

    /// Returns the bytes, which are ASCII.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the text as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Copies a string.
#[must_use]
pub fn owned(text: &str) -> String {
    concatenate(text, "")
}

/// Joins two strings. The string grows as needed, like every other list of the module, because the library's code that reserves a
/// capacity in advance took 257 bytes more.
#[must_use]
#[inline(never)]
pub fn concatenate(first: &str, second: &str) -> String {
    let mut string = String::new();
    string.push_str(first);
    string.push_str(second);
    string
}

/// Returns the hexadecimal digit of a number below 16.
fn hex_digit(nibble: u8) -> u8 {
    nibble.wrapping_add(if nibble < 10 { b'0' } else { b'a' - 10 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};

    fn quoted(text: &[u8]) -> String {
        String::from_utf8(Text::default().push_quoted(text).as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn quoted_text_stays_on_its_line_and_in_its_quotes() {
        assert_eq!(quoted(b"a\"\\\n\x7f\xff~ "), r#""a\x22\x5c\x0a\x7f\xff~ ""#);
    }

    #[test]
    fn long_quoted_text_is_cut_and_its_length_is_shown() {
        assert_eq!(quoted(&[b'x'; 128]), std::format!("\"{}\"", "x".repeat(128)));
        assert_eq!(quoted(&[b'x'; 129]), std::format!("\"{}\"... (129 bytes)", "x".repeat(128)));
    }

    #[test]
    fn numbers_are_decimal() {
        for number in [0, 7, 10, 4_294_967_295] {
            assert_eq!(Text::default().push_number(number).as_bytes(), number.to_string().as_bytes());
        }
    }
}
