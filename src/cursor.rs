//! A read position in a byte string, for addresses, configuration documents and routes.

/// The bytes that have not been read yet.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    /// The unread bytes.
    pub rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte of `text`.
    #[must_use]
    pub fn new(text: &'a [u8]) -> Self {
        Self { rest: text }
    }

    /// Returns the next byte without reading it.
    #[must_use]
    pub fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// Reads the next byte.
    #[inline(always)]
    pub fn read_byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    /// Reads the next byte if it is `expected`, and returns whether it was.
    #[inline(never)]
    pub fn take(&mut self, expected: u8) -> bool {
        let found = self.peek() == Some(expected);
        if found {
            self.read_byte();
        }
        found
    }

    /// Reads the next `COUNT` bytes, or returns `None` if fewer remain.
    #[inline(always)]
    pub fn array<const COUNT: usize>(&mut self) -> Option<&'a [u8; COUNT]> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(bytes)
    }

    /// Reads the next `count` bytes, or returns `None` if fewer remain.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(bytes)
    }

    /// Skips white space as JSON defines it.
    #[inline(never)]
    pub fn skip_white_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.read_byte();
        }
    }

    /// Reads all following digits as a number. `radix` must be at most 16. Returns `None` if there is no digit or the number
    /// exceeds `max`, which must be below 2^27. It stops at the digit with which the number exceeds `max`.
    #[inline(never)]
    pub fn number(&mut self, radix: u32, max: u32) -> Option<u32> {
        let mut number = None;
        while let Some(digit) = self.peek().and_then(|byte| char::from(byte).to_digit(radix)) {
            self.read_byte();
            let value = number.unwrap_or(0_u32).wrapping_mul(radix).wrapping_add(digit);
            if value > max {
                return None;
            }
            number = Some(value);
        }
        number
    }

    /// Reads a decimal number without leading zeros; otherwise like [`Self::number`].
    pub fn decimal(&mut self, max: u32) -> Option<u32> {
        match self.rest {
            [b'0', b'0'..=b'9', ..] => None,
            _ => self.number(10, max),
        }
    }

    /// Reads a character in UTF-8 (RFC 3629).
    pub fn read_utf8(&mut self) -> Option<char> {
        let first = self.read_byte()?;
        let length = match first.leading_ones() {
            0 => return Some(char::from(first)),
            1 => return None, // a continuation byte
            ones => ones,
        };
        let mut letter = u32::from(first) & 0x7f_u32.checked_shr(length)?;
        for _ in 1..length {
            let byte = self.read_byte()?;
            if byte & 0xc0 != 0x80 {
                return None;
            }
            letter = letter << 6 | u32::from(byte & 0x3f);
        }
        char::from_u32(letter).filter(|letter| letter.len_utf8() == length as usize)
    }

    /// Reads the rest of a JSON escape sequence, after its backslash.
    #[inline(never)]
    pub fn read_escape(&mut self) -> Option<char> {
        let letter = self.read_byte()?;
        if letter == b'u' {
            return self.read_utf16();
        }
        let index = b"\"\\/bfnrt".iter().position(|&known| known == letter)?;
        b"\"\\/\x08\x0c\n\r\t".get(index).copied().map(char::from)
    }

    /// Reads a character given as one UTF-16 code unit, or as two in two escape sequences. Returns `None` for half of a pair.
    fn read_utf16(&mut self) -> Option<char> {
        let first = self.read_code_unit()?;
        if first >> 10 != 0xd800 >> 10 {
            return char::from_u32(first); // None for the second half of a pair
        }
        if !self.take(b'\\') || !self.take(b'u') {
            return None;
        }
        let second = self.read_code_unit()?;
        if second >> 10 != 0xdc00 >> 10 {
            return None;
        }
        char::from_u32(((first & 0x3ff) << 10 | second & 0x3ff).wrapping_add(0x1_0000))
    }

    /// Reads four hexadecimal digits.
    #[inline(never)]
    fn read_code_unit(&mut self) -> Option<u32> {
        let digits: &[u8; 4] = self.array()?;
        let mut digits = Self::new(digits);
        digits.number(16, 0xffff).filter(|_| digits.rest.is_empty())
    }
}
