//! A strict reader of JSON (RFC 8259) for a text whose shape is known: the caller asks for what has to come next, and
//! an error says where that is not so.

use crate::line::{Line, append_decimal};
use alloc::{string::String, vec::Vec};

/// Strings, keys among them, are at most this long, in bytes.
pub const MAX_STRING: usize = 1_024;

/// The text is not what was asked for; [`Reader::into_error`] says why.
#[derive(Debug)]
pub struct Failed;

/// A text, how far it is read, and where in the document that is.
pub struct Reader<'a> {
    rest: &'a [u8],
    path: Vec<u8>,
    error: Line,
}

/// An object or a list that is being read.
pub struct Scope {
    path: usize,
    count: usize,
    seen: u32,
}

impl Scope {
    /// How many fields or items were begun.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the object has the field of this index.
    #[must_use]
    pub fn has(&self, field: u32) -> bool {
        self.seen & 1_u32.wrapping_shl(field) != 0
    }
}

impl<'a> Reader<'a> {
    /// From the start of the text.
    #[must_use]
    pub fn new(text: &'a [u8]) -> Self {
        Self { rest: text, path: Vec::new(), error: Line::new("plugin configuration: ") }
    }

    /// What was wrong first, and where, as a line of the log.
    #[must_use]
    pub fn into_error(self) -> Line {
        self.error
    }

    /// Fails at the value that is being read.
    pub fn fail(&mut self, what: &str) -> Failed {
        if !self.path.is_empty() {
            self.error.ascii(&self.path).text(": ");
        }
        self.error.text(what);
        Failed
    }

    /// Fails at the value that is being read, because of this text.
    pub fn fail_at(&mut self, text: &[u8], what: &str) -> Failed {
        self.fail("");
        self.error.quoted(text).text(what);
        Failed
    }

    /// Begins an object.
    pub fn object(&mut self) -> Result<Scope, Failed> {
        self.open(b'{', "not an object")
    }

    /// Begins a list.
    pub fn list(&mut self) -> Result<Scope, Failed> {
        self.open(b'[', "not a list")
    }

    fn open(&mut self, bracket: u8, what: &str) -> Result<Scope, Failed> {
        if self.take(bracket) { Ok(Scope { path: self.path.len(), count: 0, seen: 0 }) } else { Err(self.fail(what)) }
    }

    /// The index of the next field's name among these, or none at the end of the object.
    pub fn field(&mut self, scope: &mut Scope, names: &[&str]) -> Result<Option<u32>, Failed> {
        if !self.next(scope, b'}')? {
            return Ok(None);
        }
        let name = self.string()?;
        let Some(index) = (0..).zip(names).find_map(|(index, known)| (*known == name).then_some(index)) else {
            return Err(self.fail_at(name.as_bytes(), " is not a field here"));
        };
        if scope.path > 0 {
            self.path.push(b'.');
        }
        self.path.extend_from_slice(name.as_bytes());
        if scope.has(index) {
            return Err(self.fail("given twice"));
        }
        scope.seen |= 1_u32.wrapping_shl(index);
        if self.take(b':') { Ok(Some(index)) } else { Err(self.fail("no colon after the field's name")) }
    }

    /// Whether the list has another item.
    pub fn item(&mut self, scope: &mut Scope) -> Result<bool, Failed> {
        let count = scope.count;
        let more = self.next(scope, b']')?;
        if more {
            self.path.push(b'[');
            append_decimal(&mut self.path, count);
            self.path.push(b']');
        } else if count == 0 {
            return Err(self.fail("an empty list"));
        }
        Ok(more)
    }

    fn next(&mut self, scope: &mut Scope, end: u8) -> Result<bool, Failed> {
        self.path.truncate(scope.path);
        if self.take(end) {
            return Ok(false);
        }
        if scope.count > 0 && !self.take(b',') {
            return Err(self.fail("no comma or closing bracket after a value"));
        }
        scope.count = scope.count.wrapping_add(1);
        Ok(true)
    }

    /// A string, its escapes resolved.
    pub fn string(&mut self) -> Result<String, Failed> {
        if !self.take(b'"') {
            return Err(self.fail("not a string"));
        }
        let mut string = Vec::new();
        loop {
            match self.byte() {
                Some(b'"') => return String::from_utf8(string).map_err(|_| self.fail("not UTF-8")),
                Some(b'\\') => match self.escape() {
                    Some(letter) => string.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
                    None => return Err(self.fail("an escape that JSON does not have")),
                },
                Some(byte) if byte >= b' ' => string.push(byte),
                _ => return Err(self.fail("a string that does not end, or a control character in it")),
            }
            if string.len() > MAX_STRING {
                return Err(self.fail("longer than 1024 bytes"));
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        Some(match self.byte()? {
            byte @ (b'"' | b'\\' | b'/') => char::from(byte),
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.hex()?;
                if unit & 0xfc00 != 0xd800 {
                    return char::from_u32(unit); // none for the second half of a pair
                }
                if self.byte()? != b'\\' || self.byte()? != b'u' {
                    return None;
                }
                let second = self.hex()?;
                if second & 0xfc00 != 0xdc00 {
                    return None;
                }
                char::from_u32(((unit & 0x3ff) << 10 | second & 0x3ff).wrapping_add(0x1_0000))?
            }
            _ => return None,
        })
    }

    fn hex(&mut self) -> Option<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            unit = unit << 4 | char::from(self.byte()?).to_digit(16)?;
        }
        Some(unit)
    }

    /// The digits of a number without sign, fraction and exponent.
    pub fn digits(&mut self) -> Result<&'a [u8], Failed> {
        self.space();
        let end = self.rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at_checked(end).unwrap_or_default();
        self.rest = rest;
        match (digits, rest.first()) {
            ([] | [b'0', _, ..], _) | (_, Some(b'.' | b'e' | b'E')) => Err(self.fail("not a whole number")),
            _ => Ok(digits),
        }
    }

    /// Fails where anything but white space is left.
    pub fn end(&mut self) -> Result<(), Failed> {
        self.space();
        if self.rest.is_empty() {
            return Ok(());
        }
        self.path.clear();
        Err(self.fail_at(self.rest, " after the end of the object"))
    }

    fn take(&mut self, wanted: u8) -> bool {
        self.space();
        match self.rest.split_first() {
            Some((&byte, rest)) if byte == wanted => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    fn space(&mut self) {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }
}
