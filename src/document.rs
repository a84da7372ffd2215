//! A strict pull reader for configuration documents: JSON text (RFC 8259), or the wire format of `google.protobuf.Struct`
//! with the same meaning. The caller asks for what must come next.
//!
//! Errors are sticky: the first one is kept with its path, nothing is left to read after it, and [`Reader::finish`] returns it.
//! So the caller checks for errors once, at the end. (A `Result` for each read took 1.7 KB more code before wasm-opt.)
//!
//! Envoy's API documentation says that a Wasm plugin receives a Struct as JSON. The versions that we tried (1.36.4, 1.39.3
//! and the one in `.envoy-version`) pass its wire format.

use crate::{config_error::ConfigError, cursor::Cursor, text::Text};
use alloc::string::String;

/// The maximum length of a string or key, in bytes.
pub const MAX_STRING: usize = 1_024;

/// The field tags of the messages in
/// <https://github.com/protocolbuffers/protobuf/blob/v30.2/src/google/protobuf/struct.proto>.
///
/// ```text
/// Struct     ENTRY length (KEY length text, VALUE length Value)   for each field
/// ListValue  ENTRY length Value                                   for each item
/// Value      NUMBER 8 bytes | STRING length text | STRUCT length Struct | LIST length ListValue
/// ```
mod tag {
    pub const ENTRY: u8 = 0x0a;
    pub const KEY: u8 = 0x0a;
    pub const VALUE: u8 = 0x12;
    pub const NUMBER: u8 = 0x11;
    pub const STRING: u8 = 0x1a;
    pub const STRUCT: u8 = 0x2a;
    pub const LIST: u8 = 0x32;
}

const INCONSISTENT: &str = "inconsistent protobuf message";

/// A document and a read position in it.
pub struct Reader<'a> {
    cursor: Cursor<'a>,
    is_struct: bool,
    /// The path of the value that is being read. After an error, its path, `: ` and the message.
    path: Text,
    /// The string that was read last.
    string: String,
    /// The end of the current value.
    value_end: End,
    /// After an error, the length of its path.
    error: Option<usize>,
}

/// The end of a message of a Struct: the number of bytes of the document that follow it. Always 0 in JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
struct End(usize);

/// An object or list that is being read.
pub struct Scope {
    path_length: usize,
    end: End,
    count: usize,
    /// One bit for each field that was read, by its index.
    fields: u32,
}

impl Scope {
    /// The number of fields or items read so far, including the current one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns whether the field of this index was read.
    #[must_use]
    pub fn has(&self, field: usize) -> bool {
        self.fields & field_bit(field) != 0
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an object has fewer than 32 known fields")]
fn field_bit(field: usize) -> u32 {
    1_u32.wrapping_shl(field as u32)
}

impl<'a> Reader<'a> {
    /// Starts at the beginning of `document`.
    #[must_use]
    pub fn new(document: &'a [u8]) -> Self {
        // JSON never contains the byte VALUE, and every entry of a Struct does.
        #[expect(clippy::manual_contains, reason = "slice::contains is larger in the module")]
        let is_struct = document.first() == Some(&tag::ENTRY) && document.iter().any(|&byte| byte == tag::VALUE);
        Self {
            cursor: Cursor::new(document),
            is_struct,
            path: Text::default(),
            string: String::new(),
            value_end: End(0),
            error: None,
        }
    }

    /// Returns whether the document starts with an object.
    #[must_use]
    pub fn is_object(&self) -> bool {
        let mut cursor = self.cursor;
        cursor.skip_white_space();
        self.is_struct || cursor.peek() == Some(b'{')
    }

    /// Ends the document. Returns the first error.
    pub fn finish(&mut self) -> Result<(), ConfigError> {
        if !self.is_struct {
            self.cursor.skip_white_space();
        }
        if !self.cursor.rest.is_empty() {
            self.reject_rest(" after the object");
        }
        match self.error {
            None => Ok(()),
            Some(path_length) => Err(ConfigError::new(core::mem::take(&mut self.path), path_length)),
        }
    }

    /// Rejects the current value.
    #[inline(never)]
    pub fn reject(&mut self, message: &str) {
        if self.begin_error() {
            self.path.push(message);
        }
    }

    /// Rejects the current value because of the string that was read last, which is quoted before the message.
    #[inline(never)]
    pub fn reject_string(&mut self, message: &str) {
        if self.begin_error() {
            self.path.push_quoted(self.string.as_bytes()).push(message);
        }
    }

    /// Rejects the document because of its unread rest, which is quoted before the message.
    #[inline(never)]
    pub fn reject_rest(&mut self, message: &str) {
        let rest = self.cursor.rest;
        if self.error.is_none() {
            self.path.truncate(0);
        }
        if self.begin_error() {
            self.path.push_quoted(rest).push(message);
        }
    }

    /// Records an error unless there is one: ends the document and completes the path. Returns whether the caller must append
    /// the message.
    #[inline(never)]
    fn begin_error(&mut self) -> bool {
        let is_first = self.error.is_none();
        if is_first {
            self.cursor = Cursor::new(b"");
            self.error = Some(self.path.len());
            if !self.path.is_empty() {
                self.path.push(": ");
            }
        }
        is_first
    }

    /// Begins to read an object.
    pub fn begin_object(&mut self) -> Scope {
        // The outermost Struct is not in a Value, so it has no tag.
        let is_outermost_struct = self.is_struct && self.path.is_empty();
        let end = if is_outermost_struct { End(0) } else { self.open_value(b'{', tag::STRUCT, "expected an object") };
        Scope { path_length: self.path.len(), end, count: 0, fields: 0 }
    }

    /// Begins to read a list.
    pub fn begin_list(&mut self) -> Scope {
        let end = self.open_value(b'[', tag::LIST, "expected a list");
        Scope { path_length: self.path.len(), end, count: 0, fields: 0 }
    }

    /// Goes to the next field of an object, whose name must be one of the words in `names`. Returns its index there, or
    /// `None` at the end of the object.
    #[inline(never)]
    pub fn next_field(&mut self, scope: &mut Scope, names: &str) -> Option<usize> {
        if !self.next_entry(scope, b'}') {
            return None;
        }
        let end = self.open(b'"', tag::KEY, "expected a string");
        self.read_string(end);
        let field = self.position_in(names);
        if self.error.is_some() {
            return None;
        }
        if scope.path_length > 0 {
            self.path.push(".");
        }
        self.path.push(&self.string);
        if scope.has(field) {
            self.reject("duplicate field");
        }
        scope.fields |= field_bit(field);
        self.open_value(b':', tag::VALUE, "expected a colon");
        self.error.is_none().then_some(field)
    }

    /// Goes to the next item of a list. Returns whether there is one. An empty list is an error.
    #[inline(never)]
    pub fn next_item(&mut self, scope: &mut Scope) -> bool {
        let index = scope.count;
        let found = self.next_entry(scope, b']');
        if found {
            self.path.push("[").push_number(index).push("]");
        } else if index == 0 {
            self.reject("must not be empty");
        }
        found
    }

    #[inline(never)]
    fn next_entry(&mut self, scope: &mut Scope, closing: u8) -> bool {
        if self.error.is_some() {
            return false;
        }
        self.path.truncate(scope.path_length);
        let at_end = if self.is_struct { self.cursor.rest.len() == scope.end.0 } else { self.take(closing) };
        if at_end {
            return false;
        }
        if self.is_struct || scope.count > 0 {
            self.value_end = self.open(b',', tag::ENTRY, "expected a comma or a bracket");
            if self.value_end.0 < scope.end.0 {
                self.reject(INCONSISTENT); // the entry ends after its object or list
            }
        }
        scope.count = scope.count.wrapping_add(1);
        self.error.is_none()
    }

    /// Reads a string and resolves its escape sequences.
    #[inline(never)]
    pub fn string(&mut self) -> &str {
        let end = self.open_value(b'"', tag::STRING, "expected a string");
        self.read_string(end);
        &self.string
    }

    /// The string that was read last.
    #[must_use]
    pub fn last_string(&self) -> &str {
        &self.string
    }

    /// Reads a string that must be one of `words`, and returns its index there.
    #[inline(never)]
    pub fn one_of(&mut self, words: &str) -> usize {
        self.string();
        self.position_in(words)
    }

    /// Returns the index in `words` of the string that was read last.
    #[inline(never)]
    fn position_in(&mut self, words: &str) -> usize {
        if let Some(index) = word_index(words, self.string.as_bytes()) {
            return index;
        }
        if self.begin_error() {
            self.path.push_quoted(self.string.as_bytes()).push(", expected one of: ").push(words);
        }
        0
    }

    /// Reads a string after its opening quote or its length.
    #[inline(never)]
    fn read_string(&mut self, end: End) {
        self.string.clear();
        while self.error.is_none() && !(self.is_struct && self.cursor.rest.len() == end.0) {
            let letter = match self.cursor.read_utf8() {
                Some('"') if !self.is_struct => return,
                Some('\\') if !self.is_struct => self.cursor.read_escape(),
                Some(letter) if letter >= ' ' || self.is_struct => Some(letter),
                _ => None,
            };
            match letter {
                Some(letter) => self.string.push(letter),
                None => self.reject("unterminated or invalid string"),
            }
            if self.string.len() > MAX_STRING {
                self.reject("longer than 1024 bytes");
            }
        }
    }

    /// Reads a TCP port: a number from 1 to 65535, in JSON without sign, fraction and exponent.
    #[inline(never)]
    pub fn port(&mut self) -> u16 {
        let port = if self.is_struct { self.read_double() } else { self.read_decimal() };
        match port {
            Some(port @ 1..) => port,
            _ => {
                self.reject("expected a port from 1 to 65535");
                0
            }
        }
    }

    fn read_decimal(&mut self) -> Option<u16> {
        self.cursor.skip_white_space();
        let number = self.cursor.decimal(65_535)?;
        if let Some(b'.' | b'e' | b'E') = self.cursor.peek() {
            return None;
        }
        u16::try_from(number).ok()
    }

    fn read_double(&mut self) -> Option<u16> {
        if !self.cursor.take(tag::NUMBER) {
            return None;
        }
        let number = f64::from_le_bytes(*self.cursor.array()?);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the next line compares the result"
        )]
        let whole = number as u32;
        let is_whole = f64::from(whole) == number && self.cursor.rest.len() == self.value_end.0;
        if is_whole { u16::try_from(whole).ok() } else { None }
    }

    /// Reads `byte` in JSON, or `tag` and the length after it in a Struct. Returns where the message of this length ends.
    #[inline(never)]
    fn open(&mut self, byte: u8, tag: u8, expected: &str) -> End {
        let found = if self.is_struct { self.cursor.take(tag) } else { self.take(byte) };
        if !found {
            self.reject(expected);
        }
        let end = if self.is_struct { read_length(&mut self.cursor) } else { Some(End(0)) };
        end.unwrap_or_else(|| {
            self.reject(INCONSISTENT);
            End(0)
        })
    }

    /// Like [`Self::open`], for a message that must end where the current value ends.
    #[inline(never)]
    fn open_value(&mut self, byte: u8, tag: u8, expected: &str) -> End {
        let end = self.open(byte, tag, expected);
        if end != self.value_end {
            self.reject(INCONSISTENT);
        }
        end
    }

    /// Reads a byte of JSON, after white space, if it is `expected`. Returns whether it was.
    fn take(&mut self, expected: u8) -> bool {
        self.cursor.skip_white_space();
        self.cursor.take(expected)
    }
}

/// Returns the index of `word` among words that are separated by spaces.
#[must_use]
#[inline(never)]
pub fn word_index(words: &str, word: &[u8]) -> Option<usize> {
    words.as_bytes().split(|&byte| byte == b' ').position(|known| known == word)
}

/// Reads the length of a message, a varint, and returns where the message ends. Returns `None` if the document ends earlier or
/// the varint has too many bytes. Bits that do not fit a `usize` are dropped, so a length that is wrong only in those is accepted.
fn read_length(cursor: &mut Cursor<'_>) -> Option<End> {
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = cursor.read_byte()?;
        length |= usize::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return cursor.rest.len().checked_sub(length).map(End);
        }
        shift = shift.wrapping_add(7);
    }
}
