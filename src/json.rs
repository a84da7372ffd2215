//! A strict reader of a document whose shape is known: the caller asks for what has to come next, and an error says where
//! that is not so. The document is JSON (RFC 8259) or, with the same meaning, the wire bytes of a
//! `google.protobuf.Struct`.
//!
//! Envoy's API says that a Wasm plugin gets a Struct as JSON; those tried (1.36.4, 1.39.3 and the one of .envoy-version)
//! hand over its bytes.

use crate::{
    bytes::Bytes,
    cursor::Cursor,
    line::{Line, append_decimal},
};

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
    path: Bytes,
    text: Bytes,
    error: Line,
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

const NO_ESCAPE: &str = "not an escape of JSON";

fn bit(field: usize) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "there are few fields")]
    1_u32.wrapping_shl(field as u32)
}

impl<'a> Reader<'a> {
    /// From the start of the document.
    #[must_use]
    pub fn new(document: &'a [u8]) -> Self {
        // Every entry of a struct has a value, whose tag no JSON holds anywhere.
        #[expect(clippy::manual_contains, reason = "its search for a byte is larger in the module")]
        let is_struct = document.first() == Some(&tag::ENTRY) && document.iter().any(|&byte| byte == tag::VALUE);
        let (path, text, error) = (Bytes::default(), Bytes::default(), Line::default());
        Self { rest: Cursor(document), is_struct, path, text, error }
    }

    /// Whether an object begins here.
    #[must_use]
    pub fn is_object(&self) -> bool {
        let mut rest = self.rest;
        rest.space();
        self.is_struct || rest.0.first() == Some(&b'{')
    }

    /// What was wrong first, and where, as a line of the log; an empty one where nothing was.
    #[must_use]
    pub fn into_error(self) -> Line {
        self.error
    }

    fn failed(&self) -> bool {
        !self.error.bytes().is_empty()
    }

    /// Fails at the value that is being read.
    pub fn fail(&mut self, what: &str) {
        self.fails(false, what);
    }

    /// Fails because of the text that was read last.
    pub fn refuse(&mut self, what: &str) {
        self.fails(true, what);
    }

    /// Fails because of all that is left to be read.
    pub fn refuse_rest(&mut self, what: &str) {
        self.text.truncate(0);
        self.text.extend(self.rest.0);
        self.refuse(what);
    }

    #[inline(never)]
    fn fails(&mut self, because_of_text: bool, what: &str) {
        if self.failed() {
            return;
        }
        self.rest = Cursor(b"");
        self.error.begin("plugin configuration: ");
        if !self.path.is_empty() {
            self.error.ascii(&self.path).text(": ");
        }
        if because_of_text {
            self.error.quoted(&self.text);
        }
        self.error.text(what);
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

    /// Whether the object has another field, whose name must be one of these words.
    #[inline(never)]
    pub fn field(&mut self, scope: &mut Scope, names: &str) -> bool {
        if !self.next(scope, b'}') {
            return false;
        }
        self.read_text(tag::ENTRY);
        scope.field = one_of(names, &self.text);
        if scope.field == usize::MAX {
            self.refuse(" is not a field here");
        }
        if scope.path > 0 {
            self.path.push(b'.');
        }
        self.path.extend(&self.text);
        if scope.has(scope.field) {
            self.fail("given twice");
        }
        scope.seen |= bit(scope.field);
        self.expect(b':', tag::VALUE, "no colon after the field");
        self.after_chunk();
        !self.failed()
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
        if ends || self.failed() {
            return false;
        }
        if scope.count > 0 || self.is_struct {
            self.expect(b',', tag::ENTRY, "no comma or bracket after a value");
            self.after_chunk();
        }
        scope.count = scope.count.wrapping_add(1);
        !self.failed()
    }

    /// A string, its escapes resolved.
    #[inline(always)]
    pub fn string(&mut self) -> &[u8] {
        self.read_text(tag::STRING);
        &self.text
    }

    /// The string that was read last.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    #[inline(never)]
    fn read_text(&mut self, tag: u8) {
        self.text.truncate(0);
        self.expect(b'"', tag, "not a string");
        let after = self.after_chunk();
        while !self.failed() {
            let ends = if self.is_struct { self.rest.0.len() <= after } else { self.rest.take(b'"') };
            if ends {
                break;
            }
            let byte = self.rest.byte();
            if byte == b'\\' && !self.is_struct {
                self.escape();
            } else if byte < b' ' && !self.is_struct {
                self.fail("an unended string or a control character");
            } else {
                self.text.push(byte);
            }
            if self.text.len() > MAX_STRING {
                self.fail("longer than 1024 bytes");
            }
        }
        if !is_utf8(&self.text) {
            self.fail("not UTF-8");
        }
    }

    /// Resolves the escape after a backslash.
    #[inline(never)]
    fn escape(&mut self) {
        let letter = self.rest.byte();
        if letter == b'u' {
            return self.unicode_escape();
        }
        let place = b"\"\\/bfnrt".iter().position(|&known| known == letter);
        match place.and_then(|place| b"\"\\/\x08\x0c\n\r\t".get(place)) {
            Some(&byte) => self.text.push(byte),
            None => self.fail(NO_ESCAPE),
        }
    }

    /// Appends the letter in one unit of UTF-16 or two, as UTF-8.
    fn unicode_escape(&mut self) {
        let mut letter = self.unit();
        if letter >> 10 == 0xd800 >> 10 && self.rest.take(b'\\') && self.rest.take(b'u') {
            let second = self.unit();
            if second >> 10 == 0xdc00 >> 10 {
                letter = ((letter & 0x3ff) << 10 | second & 0x3ff).wrapping_add(0x1_0000);
            }
        }
        let ones = leading_ones(letter);
        if ones == 1 {
            return self.fail(NO_ESCAPE); // half of a pair
        }
        let mut bits = ones.saturating_sub(1).wrapping_mul(6);
        self.text.push(low_byte(!0xff_u32.wrapping_shr(ones) | letter >> bits));
        while bits > 0 {
            bits = bits.wrapping_sub(6);
            self.text.push(low_byte(letter >> bits & 0x3f | 0x80));
        }
    }

    /// A unit of UTF-16 in four hexadecimal digits; no letter's number where it is not that.
    #[inline(never)]
    fn unit(&mut self) -> u32 {
        let mut digits = Cursor(self.rest.bytes(4));
        let unit = digits.number(16, 0xffff);
        if digits.0.is_empty() { unit } else { u32::MAX }
    }

    /// A port: a number from 1 to 65535, without sign, fraction and exponent.
    #[inline(never)]
    pub fn port(&mut self) -> u32 {
        const WANTED: &str = "not a whole number from 1 to 65535";
        let port = if self.is_struct {
            self.expect(0, tag::NUMBER, WANTED);
            let number = self.rest.chunk().map_or(0.0, |bytes| f64::from_le_bytes(*bytes));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what is lost is compared")]
            let whole = number as u32;
            if f64::from(whole) == number { whole } else { 0 }
        } else {
            self.rest.space();
            let whole = self.rest.decimal(65_535);
            if let [b'.' | b'e' | b'E', ..] = self.rest.0 { 0 } else { whole }
        };
        if !matches!(port, 1..=65_535) {
            self.fail(WANTED);
        }
        port
    }

    /// Fails where anything but white space is left.
    pub fn end(&mut self) {
        if !self.is_struct {
            self.rest.space();
        }
        if !self.rest.0.is_empty() {
            self.path.truncate(0);
            self.refuse_rest(" after the object");
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
        self.rest.space();
        self.rest.take(wanted)
    }
}

/// Whether the text is UTF-8 (RFC 3629).
#[inline(never)]
fn is_utf8(text: &[u8]) -> bool {
    let mut rest = Cursor(text);
    while !rest.0.is_empty() {
        let first = rest.byte();
        let ones = first.leading_ones();
        let mut letter = u32::from(first) & 0x7f_u32.wrapping_shr(ones);
        for _ in 1..ones {
            let byte = u32::from(rest.byte());
            if byte >> 6 != 2 {
                return false;
            }
            letter = letter << 6 | byte & 0x3f;
        }
        if ones != leading_ones(letter) {
            return false;
        }
    }
    true
}

/// With how many ones the first byte of this letter begins in UTF-8; 1, which no first byte has, for what is no letter.
#[inline(never)]
fn leading_ones(letter: u32) -> u32 {
    match letter {
        0..0x80 => 0,
        0x80..0x800 => 2,
        0xd800..0xe000 | 0x11_0000.. => 1,
        0x800..0x1_0000 => 3,
        _ => 4,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the other bits are in other bytes")]
fn low_byte(bits: u32) -> u8 {
    bits as u8
}

/// The index of the text among these words; [`usize::MAX`] where it is none of them.
#[must_use]
#[inline(never)]
pub fn one_of(words: &str, text: &[u8]) -> usize {
    let mut words = Cursor(words.as_bytes());
    let mut index = 0;
    while !words.0.is_empty() {
        let (mut rest, mut same) = (Cursor(text), true);
        while let letter @ 1.. = words.byte()
            && letter != b' '
        {
            same &= rest.take(letter);
        }
        if same && rest.0.is_empty() {
            return index;
        }
        index = index.wrapping_add(1);
    }
    usize::MAX
}
