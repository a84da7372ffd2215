//! Bytes that are put together piece by piece, as alloc's `Vec` does too, in 400 bytes more of the module.
#![expect(unsafe_code, reason = "memory is taken and given back by address")]

use alloc::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use core::{
    fmt,
    ops::{Deref, DerefMut},
    ptr::{NonNull, copy_nonoverlapping},
    slice::{from_raw_parts, from_raw_parts_mut},
};

/// More bytes than anything of ours is long: more room is not given. Any power of two up to here is a size of memory.
const MOST: usize = 1 << 28;

/// Bytes, of which there may be more.
pub struct Bytes {
    /// A block of memory of so many bytes, ours alone; none where there is room for none.
    block: NonNull<u8>,
    capacity: usize,
    /// How many are there so far, from the block's start on.
    length: usize,
}

impl Bytes {
    /// Appends these.
    #[inline(never)]
    pub fn extend(&mut self, bytes: &[u8]) {
        let room = self.room(bytes.len());
        // SAFETY: there is room for so many, and no other's bytes are in our block.
        unsafe { copy_nonoverlapping(bytes.as_ptr(), room, bytes.len()) };
    }

    /// Appends one.
    #[inline(never)]
    pub fn push(&mut self, byte: u8) {
        let room = self.room(1);
        // SAFETY: there is room for one.
        unsafe { room.write(byte) };
    }

    /// Appends a number, in four bytes.
    pub fn push_word(&mut self, word: usize) {
        self.extend(&word_bytes(word));
    }

    /// Replaces the number at this place.
    pub fn set_word(&mut self, place: usize, word: usize) {
        if let Some(bytes) = self.get_mut(place..).and_then(<[u8]>::first_chunk_mut) {
            *bytes = word_bytes(word);
        }
    }

    /// Drops all but so many, if there are more.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Where the next bytes are to be written, so many.
    #[inline(never)]
    fn room(&mut self, count: usize) -> *mut u8 {
        let start = self.length;
        // Neither is above isize::MAX, so this cannot overflow.
        let end = start.wrapping_add(count);
        if end > self.capacity {
            if end > MOST {
                handle_alloc_error(Layout::new::<u8>());
            }
            let capacity = end.max(16).next_power_of_two();
            // SAFETY: the size is below isize::MAX.
            let layout = unsafe { Layout::from_size_align_unchecked(capacity, 1) };
            // SAFETY: the layout has a size.
            let Some(block) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
            // SAFETY: so many bytes are in our block, and there is room for them in the new one.
            unsafe { copy_nonoverlapping(self.block.as_ptr(), block.as_ptr(), start) };
            *self = Self { block, capacity, length: start };
        }
        self.length = end;
        // SAFETY: the block is at least so long.
        unsafe { self.block.as_ptr().add(start) }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "numbers have four bytes in the module")]
fn word_bytes(word: usize) -> [u8; 4] {
    (word as u32).to_le_bytes()
}

impl Default for Bytes {
    fn default() -> Self {
        Self { block: NonNull::dangling(), capacity: 0, length: 0 }
    }
}

impl Drop for Bytes {
    #[inline(never)]
    fn drop(&mut self) {
        if self.capacity > 0 {
            // SAFETY: the block is ours, and was taken with this layout.
            unsafe { dealloc(self.block.as_ptr(), Layout::from_size_align_unchecked(self.capacity, 1)) };
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes are there, and they change through a `&mut self` only.
        unsafe { from_raw_parts(self.block.as_ptr(), self.length) }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes are there, and nobody else reads them for as long as this.
        unsafe { from_raw_parts_mut(self.block.as_ptr(), self.length) }
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl fmt::Debug for Bytes {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    proptest::proptest! {
        #[test]
        fn bytes_are_what_a_vec_holds(steps: Vec<(u8, Vec<u8>)>) {
            let (mut ours, mut theirs) = (Bytes::default(), Vec::new());
            for (step, bytes) in steps {
                match step % 4 {
                    0 => {
                        ours.push(step);
                        theirs.push(step);
                    }
                    1 => {
                        ours.truncate(step.into());
                        theirs.truncate(step.into());
                    }
                    2 => {
                        ours.push_word(bytes.len());
                        theirs.extend_from_slice(&[u8::try_from(bytes.len()).unwrap(), 0, 0, 0]);
                    }
                    _ => {
                        ours.extend(&bytes);
                        theirs.extend_from_slice(&bytes);
                    }
                }
                proptest::prop_assert_eq!(&*ours, theirs.as_slice());
            }
        }
    }

    #[test]
    fn a_number_is_replaced_where_there_is_one() {
        let mut bytes = Bytes::default();
        bytes.push_word(1);
        bytes.push_word(0x0102_0304);
        bytes.set_word(0, 0xfffe_fdfc);
        bytes.set_word(5, 7);
        assert_eq!(*bytes, [0xfc, 0xfd, 0xfe, 0xff, 4, 3, 2, 1]);
    }
}
