//! A text, and how far it is read: what the readers of addresses, JSON and wire bytes have in common.

/// What is left of a text.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    /// The next byte; NUL at the end.
    #[inline(never)]
    pub fn byte(&mut self) -> u8 {
        match self.0 {
            [byte, rest @ ..] => {
                self.0 = rest;
                *byte
            }
            [] => 0,
        }
    }

    /// So many bytes; none, and the end is reached, where there are not so many left.
    #[inline(never)]
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at_checked(count).unwrap_or_default();
        self.0 = rest;
        bytes
    }

    /// So many bytes; none where there are not so many left.
    #[inline(always)]
    pub fn chunk<const COUNT: usize>(&mut self) -> Option<&'a [u8; COUNT]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(chunk)
    }

    /// The number in the next four bytes; none where there are not so many left.
    #[inline(always)]
    pub fn word(&mut self) -> Option<usize> {
        self.chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize)
    }

    /// Goes past the next byte if it is this one; whether it is.
    #[inline(never)]
    pub fn take(&mut self, wanted: u8) -> bool {
        let taken = self.0.first() == Some(&wanted);
        if taken {
            self.byte();
        }
        taken
    }

    /// Goes past JSON's white space.
    #[inline(never)]
    pub fn space(&mut self) {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }

    /// The number that the next digits are; [`u32::MAX`] where there are none, or it is above the limit.
    #[inline(never)]
    pub fn number(&mut self, radix: u32, limit: u32) -> u32 {
        let mut number = u32::MAX;
        while let Some(digit) = self.0.first().and_then(|&digit| char::from(digit).to_digit(radix)) {
            self.byte();
            number = if number == u32::MAX { digit } else { number.wrapping_mul(radix).wrapping_add(digit) };
            if number > limit {
                return u32::MAX;
            }
        }
        number
    }

    /// The same in decimal and without leading zeros.
    pub fn decimal(&mut self, limit: u32) -> u32 {
        match self.0 {
            [b'0', b'0'..=b'9', ..] => u32::MAX,
            _ => self.number(10, limit),
        }
    }
}
