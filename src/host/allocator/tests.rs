//! The allocator on a fake WebAssembly memory, which is one allocation of this machine.

#![allow(clippy::arithmetic_side_effects, reason = "a test that overflows has failed")]

use super::*;
use std::{
    alloc::{alloc, dealloc},
    thread_local,
    vec::Vec,
};

/// The largest size of the fake memory, in pages.
const PAGES: usize = 8;

thread_local! {
    /// The end of the memory and the limit of its growth, in pages. Addresses begin at 0, as in WebAssembly.
    static END: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

pub fn memory_size<const MEMORY: u32>() -> usize {
    END.get().0
}

pub fn memory_grow<const MEMORY: u32>(pages: usize) -> usize {
    let (end, limit) = END.get();
    if pages > limit - end {
        return usize::MAX;
    }
    END.set((end + pages, limit));
    end
}

struct Memory {
    start: *mut u8,
    allocator: Allocator,
}

impl Memory {
    const LAYOUT: Layout = match Layout::from_size_align(PAGES * PAGE, PAGE) {
        Ok(layout) => layout,
        Err(_) => panic!(),
    };

    /// A memory of one page, of which the allocator gets all but the first `used` bytes.
    fn new(used: usize) -> Self {
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(Self::LAYOUT) };
        assert!(!start.is_null());
        let first = start.expose_provenance() / PAGE;
        END.set((first + 1, first + PAGES));
        Self { start, allocator: Allocator::new(start.wrapping_add(used)) }
    }

    fn pages(&self) -> usize {
        memory_size::<0>() - self.start.addr() / PAGE
    }

    fn allocate(&self, size: usize) -> *mut u8 {
        // SAFETY: the size is not zero.
        let block = unsafe { self.allocator.alloc(layout(size)) };
        let end = self.start.addr() + self.pages() * PAGE;
        assert!(block.is_null() || block.addr() >= self.start.addr() && block.addr() + size <= end);
        assert!(block.addr().is_multiple_of(16));
        block
    }

    fn free(&self, block: *mut u8, size: usize) {
        // SAFETY: `allocate` returned the block for this size.
        unsafe { self.allocator.dealloc(block, layout(size)) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` allocated it.
        unsafe { dealloc(self.start, Self::LAYOUT) };
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 1).unwrap()
}

#[test]
fn block_sizes_are_powers_of_two_and_blocks_are_adjacent() {
    let memory = Memory::new(32);
    for (size, offset) in [(1, 32), (16, 48), (17, 64), (33, 96), (64, 160), (100, 224), (1, 352)] {
        assert_eq!(memory.allocate(size).addr() - memory.start.addr(), offset, "{size}");
    }
}

#[test]
fn a_freed_block_is_the_next_one_of_its_size() {
    let memory = Memory::new(0);
    let [a, b, c] = [20, 32, 33].map(|size| memory.allocate(size));
    memory.free(a, 20);
    memory.free(b, 32);
    memory.free(c, 33);
    let other = memory.allocate(16);
    assert!(![a, b, c].contains(&other));
    assert_eq!([memory.allocate(17), memory.allocate(30), memory.allocate(64)], [b, a, c]);
    assert!(![a, b, c].contains(&memory.allocate(32)));
}

#[test]
fn the_memory_grows_only_as_far_as_it_is_used() {
    let memory = Memory::new(0);
    assert!(!memory.allocate(PAGE).is_null());
    assert_eq!(memory.pages(), 1);
    assert!(!memory.allocate(16).is_null());
    assert_eq!(memory.pages(), 2);
    assert!(!memory.allocate(2 * PAGE).is_null());
    assert_eq!(memory.pages(), 4);
}

#[test]
fn an_allocation_that_does_not_fit_returns_null_and_smaller_ones_succeed() {
    let memory = Memory::new(0);
    for size in [PAGES * PAGE + 1, 1 << 31, 1 << 32, 1 << 40, isize::MAX.cast_unsigned()] {
        assert!(memory.allocate(size).is_null(), "{size}");
        assert_eq!(memory.pages(), 1, "{size}");
    }
    let mut count = 0;
    while !memory.allocate(PAGE / 2).is_null() {
        count += 1;
    }
    assert_eq!(count, 2 * PAGES);
    assert!(memory.allocate(16).is_null());
}

/// Allocates and frees blocks in a pseudo-random order. Each block is filled with a number of its own, which must still be there
/// when the block is freed.
#[test]
fn blocks_in_use_do_not_overlap() {
    let memory = Memory::new(0);
    let mut state = 1_u32;
    let mut next = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    let mut blocks: Vec<(*mut u8, usize, u8)> = Vec::new();
    for round in 0..if cfg!(miri) { 1_000 } else { 100_000 } {
        if blocks.len() < 40 && next(2) == 0 {
            let size = 1 + next(200);
            let block = memory.allocate(size);
            assert!(!block.is_null());
            // SAFETY: the block has this size.
            unsafe { block.write_bytes(round as u8, size) };
            blocks.push((block, size, round as u8));
        } else if !blocks.is_empty() {
            let (block, size, byte) = blocks.swap_remove(next(blocks.len()));
            // SAFETY: the block has this size and was filled.
            let content = unsafe { core::slice::from_raw_parts(block, size) };
            assert!(content.iter().all(|&found| found == byte));
            memory.free(block, size);
        }
    }
    assert!(memory.pages() < PAGES, "freed blocks are not used again");
}
