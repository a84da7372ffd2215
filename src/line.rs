//! A line of the log, put together without `core::fmt`, whose machinery is larger than the filter.

use crate::bytes::Bytes;

/// At most so many bytes of a foreign text are shown.
const SHOWN: usize = 128;

/// A line of the log, one part after the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Line(Bytes);

impl Line {
    /// A line of sluice's that begins with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut line = Self::default();
        line.begin(text);
        line
    }

    /// Begins an empty line with this text.
    pub fn begin(&mut self, text: &str) -> &mut Self {
        self.text("sluice: ").text(text)
    }

    /// Appends a text of our own.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.ascii(text.as_bytes())
    }

    /// Appends bytes of our own, ASCII.
    pub fn ascii(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    /// Appends a foreign text in quotes: its start if it is long, what is not printable ASCII as `\xNN`.
    pub fn quoted(&mut self, text: &[u8]) -> &mut Self {
        self.0.push(b'"');
        for &byte in text.iter().take(SHOWN) {
            if matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\' {
                self.0.push(byte);
            } else {
                self.text("\\x").hex(byte >> 4).hex(byte & 15);
            }
        }
        self.0.push(b'"');
        if text.len() > SHOWN {
            self.text("... (").number(text.len()).text(" bytes)");
        }
        self
    }

    /// Appends the hexadecimal digit of a number below 16.
    #[inline(never)]
    fn hex(&mut self, nibble: u8) -> &mut Self {
        self.0.push(nibble.wrapping_add(if nibble < 10 { b'0' } else { b'a' - 10 }));
        self
    }

    /// Appends a number in decimal.
    pub fn number(&mut self, number: usize) -> &mut Self {
        append_decimal(&mut self.0, number);
        self
    }

    /// The bytes of the line, ASCII.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Appends a number in decimal.
pub fn append_decimal(to: &mut Bytes, number: usize) {
    if number >= 10 {
        append_decimal(to, number / 10);
    }
    #[expect(clippy::cast_possible_truncation, reason = "a decimal digit")]
    to.push(b'0'.wrapping_add((number % 10) as u8));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};

    fn quoted(text: &[u8]) -> String {
        String::from_utf8(Line::new("").quoted(text).bytes().to_vec()).unwrap()
    }

    #[test]
    fn foreign_text_cannot_break_the_line_or_its_quotes() {
        assert_eq!(quoted(b"a\"\\\n\x7f\xff~ "), r#"sluice: "a\x22\x5c\x0a\x7f\xff~ ""#);
    }

    #[test]
    fn long_text_is_cut_and_its_length_told() {
        assert_eq!(quoted(&[b'x'; 128]), std::format!("sluice: \"{}\"", "x".repeat(128)));
        let long = quoted(&[b'x'; 129]);
        assert_eq!(long, std::format!("sluice: \"{}\"... (129 bytes)", "x".repeat(128)));
    }

    #[test]
    fn numbers_are_decimal() {
        for number in [0, 7, 10, 4_294_967_295] {
            assert_eq!(Line::new("").number(number).bytes(), ("sluice: ".to_string() + &number.to_string()).as_bytes());
        }
    }
}
