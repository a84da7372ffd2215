//! A strict reader of a document whose shape is known: the caller asks for what has to come next, and an error says where
//! that is not so. The document is JSON (RFC 8259) or, with the same meaning, the wire bytes of a
//! `google.protobuf.Struct`.
//!
//! Envoy's API says that a Wasm plugin gets a Struct as JSON; those tried (1.36.4, 1.39.3 and the one of .envoy-version)
//! hand over its bytes.

use crate::{
    cursor::Cursor,
    line::{Line, append_decimal},
};
use alloc::{string::String, vec::Vec};

/// Strings, keys among them, are at most this long, in bytes.
pub const MAX_STRING: usize = 1_024;

/// The tags of google.protobuf's messages
/// (<https://github.com/protocolbuffers/protobuf/blob/v30.2/src/google/protobuf/struct.proto>).
mod tag {
    /// Of a `Struct`'s entry and its key, and of a `ListValue`'s value.
    pub const ENTRY: u8 = 0x0a;
    /// Of the value in a `Struct`'s entry.
    pub const VALUE: u8 = 0x12;
    /// Of a `Value`'s kinds.
    pub const NUMBER: u8 = 0x11;
    pub const STRING: u8 = 0x1a;
    pub const STRUCT: u8 = 0x2a;
    pub const LIST: u8 = 0x32;
}

/// A document, how far it is read, and where in it that is. After an error nothing is left to read: there are no more
/// fields and items, what else is read is empty, and what else fails is not told.
pub struct Reader<'a> {
    rest: Cursor<'a>,
    is_struct: bool,
    path: Vec<u8>,
    error: Line,
    failed: bool,
}

/// An object or a list that is being read.
pub struct Scope {
    path: usize,
    /// In a struct: how many bytes of the document come after it.
    after: usize,
    /// How many fields or items were begun.
    pub count: usize,
    /// The index of the field that is being read.
    pub field: usize,
    seen: u32,
}

impl Scope {
    /// Whether the object has the field of this index.
    #[must_use]
    pub fn has(&self, field: usize) -> bool {
        self.seen & bit(field) != 0
    }
}

fn bit(field: usize) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "there are few fields")]
    1_u32.wrapping_shl(field as u32)
}

impl<'a> Reader<'a> {
    /// From the start of the text.
    #[must_use]
    pub fn new(document: &'a [u8]) -> Self {
        // Every entry of a struct has a value, whose tag no JSON holds anywhere.
        #[expect(clippy::manual_contains, reason = "its search for a byte is larger in the module")]
        let is_struct = document.first() == Some(&tag::ENTRY) && document.iter().any(|&byte| byte == tag::VALUE);
        let error = Line::new("plugin configuration: ");
        Self { rest: Cursor(document), is_struct, path: Vec::new(), error, failed: false }
    }

    /// Whether an object begins here.
    #[must_use]
    pub fn is_object(&mut self) -> bool {
        self.space();
        self.is_struct || self.rest.0.first() == Some(&b'{')
    }

    /// What was wrong first, and where, as a line of the log; none where nothing was.
    #[must_use]
    pub fn into_error(self) -> Option<Line> {
        self.failed.then_some(self.error)
    }

    /// Fails at the value that is being read.
    pub fn fail(&mut self, what: &str) {
        if self.fails() {
            self.error.text(what);
        }
    }

    /// Fails at the value that is being read, because of this text.
    pub fn fail_at(&mut self, text: &[u8], what: &str) {
        if self.fails() {
            self.error.quoted(text).text(what);
        }
    }

    /// Whether this is the first error.
    #[inline(never)]
    fn fails(&mut self) -> bool {
        if self.failed {
            return false;
        }
        self.failed = true;
        self.rest = Cursor(b"");
        if !self.path.is_empty() {
            self.error.ascii(&self.path).text(": ");
        }
        true
    }

    /// Begins an object.
    pub fn object(&mut self) -> Scope {
        self.open(b'{', tag::STRUCT, "not an object")
    }

    /// Begins a list.
    pub fn list(&mut self) -> Scope {
        self.open(b'[', tag::LIST, "not a list")
    }

    fn open(&mut self, bracket: u8, tag: u8, what: &str) -> Scope {
        let mut after = 0;
        // The outermost struct is no value, and so has no tag.
        if !self.is_struct || !self.path.is_empty() {
            self.expect(bracket, tag, what);
            after = self.after_chunk();
        }
        Scope { path: self.path.len(), after, count: 0, field: 0, seen: 0 }
    }

    /// Whether the object has another field, whose name must be one of these.
    #[inline(never)]
    pub fn field(&mut self, scope: &mut Scope, names: &[&str]) -> bool {
        if !self.next(scope, b'}') {
            return false;
        }
        let name = self.text(tag::ENTRY);
        let name = name.as_bytes();
        scope.field = one_of(names, name);
        if scope.field == names.len() {
            self.fail_at(name, " is not a field here");
        }
        if scope.path > 0 {
            self.path.push(b'.');
        }
        self.path.extend_from_slice(name);
        if scope.has(scope.field) {
            self.fail("given twice");
        }
        scope.seen |= bit(scope.field);
        self.expect(b':', tag::VALUE, "no colon after the field's name");
        self.after_chunk();
        !self.failed
    }

    /// Whether the list has another item.
    #[inline(never)]
    pub fn item(&mut self, scope: &mut Scope) -> bool {
        let count = scope.count;
        let more = self.next(scope, b']');
        if more {
            self.path.push(b'[');
            append_decimal(&mut self.path, count);
            self.path.push(b']');
        } else if count == 0 {
            self.fail("an empty list");
        }
        more
    }

    #[inline(never)]
    fn next(&mut self, scope: &mut Scope, end: u8) -> bool {
        self.path.truncate(scope.path);
        let ends = if self.is_struct { self.rest.0.len() <= scope.after } else { self.take(end) };
        if ends || self.failed {
            return false;
        }
        if scope.count > 0 || self.is_struct {
            self.expect(b',', tag::ENTRY, "no comma or closing bracket after a value");
            self.after_chunk();
        }
        scope.count = scope.count.wrapping_add(1);
        !self.failed
    }

    /// A string, its escapes resolved.
    pub fn string(&mut self) -> String {
        self.text(tag::STRING)
    }

    #[inline(never)]
    fn text(&mut self, tag: u8) -> String {
        let mut string = String::new();
        self.expect(b'"', tag, "not a string");
        let after = self.after_chunk();
        while !self.failed {
            if self.is_struct && self.rest.0.len() <= after {
                return string;
            }
            let (letter, wrong) = match self.rest.byte() {
                byte if self.is_struct || byte >= 0x80 => (self.letter(byte), "not UTF-8"),
                b'"' => return string,
                b'\\' => (self.escape(), "an escape that JSON does not have"),
                0..b' ' => (None, "a string that does not end, or a control character in it"),
                byte => (Some(char::from(byte)), ""),
            };
            match letter {
                Some(letter) => string.push(letter),
                None => self.fail(wrong),
            }
            if string.len() > MAX_STRING {
                self.fail("longer than 1024 bytes");
            }
        }
        string
    }

    /// The letter that begins with this byte (RFC 3629).
    #[inline(never)]
    fn letter(&mut self, first: u8) -> Option<char> {
        let ones = first.leading_ones();
        let least = match ones {
            0 => return Some(char::from(first)),
            2 => 0x80,
            3 => 0x800,
            4 => 0x1_0000,
            _ => return None,
        };
        let mut letter = u32::from(first) & 0x7f_u32.wrapping_shr(ones);
        for _ in 1..ones {
            let byte = u32::from(self.rest.byte());
            if byte >> 6 != 2 {
                return None;
            }
            letter = letter << 6 | byte & 0x3f;
        }
        char::from_u32(letter).filter(|_| letter >= least)
    }

    #[inline(never)]
    fn escape(&mut self) -> Option<char> {
        Some(match self.rest.byte() {
            byte @ (b'"' | b'\\' | b'/') => char::from(byte),
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let mut letter = self.unit();
                if letter >> 10 == 0xd800 >> 10 && self.rest.take(b'\\') && self.rest.take(b'u') {
                    let second = self.unit();
                    if second >> 10 == 0xdc00 >> 10 {
                        letter = ((letter & 0x3ff) << 10 | second & 0x3ff).wrapping_add(0x1_0000);
                    }
                }
                return char::from_u32(letter); // none for half of a pair
            }
            _ => return None,
        })
    }

    /// A unit of UTF-16 in four hexadecimal digits; no letter's number where it is not that.
    #[inline(never)]
    fn unit(&mut self) -> u32 {
        let mut digits = Cursor(self.rest.bytes(4).unwrap_or_default());
        let unit = digits.number(16, 0xffff);
        if digits.0.is_empty() { unit } else { u32::MAX }
    }

    /// A port: a number from 1 to 65535, without sign, fraction and exponent.
    #[inline(never)]
    pub fn port(&mut self) -> u16 {
        let mut digits = Vec::new();
        self.space();
        if self.is_struct {
            self.expect(0, tag::NUMBER, "not a whole number");
            let bytes = self.rest.bytes(8).and_then(|bytes| bytes.try_into().ok());
            let number = bytes.map_or(0.0, f64::from_le_bytes);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what is lost is compared")]
            let whole = number as u32;
            if f64::from(whole) != number {
                self.fail("not a whole number");
            }
            append_decimal(&mut digits, whole as usize);
        } else {
            while let [digit @ b'0'..=b'9', ..] = self.rest.0 {
                digits.push(*digit);
                self.rest.byte();
            }
            if matches!((digits.as_slice(), self.rest.0), ([] | [b'0', _, ..], _) | (_, [b'.' | b'e' | b'E', ..])) {
                self.fail("not a whole number");
            }
        }
        match u16::try_from(Cursor(&digits).number(10, 65_535)) {
            Ok(port) if port > 0 => port,
            _ => {
                self.fail_at(&digits, " is not a port");
                0
            }
        }
    }

    /// Fails where anything but white space is left.
    pub fn end(&mut self) {
        self.space();
        let rest = self.rest.0;
        if !rest.is_empty() {
            self.path.clear();
            self.fail_at(rest, " after the end of the object");
        }
    }

    #[inline(never)]
    fn expect(&mut self, wanted: u8, tag: u8, otherwise: &str) {
        let found = if self.is_struct { self.rest.take(tag) } else { self.take(wanted) };
        if !found {
            self.fail(otherwise);
        }
    }

    /// In a struct goes past the length that follows a tag; how many bytes of the document come after what is so long.
    #[inline(never)]
    fn after_chunk(&mut self) -> usize {
        let (mut length, mut shift) = (0, 0);
        while self.is_struct {
            let byte = self.rest.byte();
            length |= usize::from(byte & 0x7f).wrapping_shl(shift);
            shift = shift.wrapping_add(7);
            if byte < 0x80 {
                break;
            }
        }
        match self.rest.0.len().checked_sub(length) {
            Some(after) => after,
            None => {
                self.fail("cut off");
                0
            }
        }
    }

    fn take(&mut self, wanted: u8) -> bool {
        self.space();
        self.rest.take(wanted)
    }

    fn space(&mut self) {
        while !self.is_struct
            && let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.rest.0
        {
            self.rest.0 = rest;
        }
    }
}

/// The index of the text among these; how many they are where it is none of them.
#[must_use]
#[inline(never)]
pub fn one_of(texts: &[&str], text: &[u8]) -> usize {
    texts.iter().position(|known| known.as_bytes() == text).unwrap_or(texts.len())
}
