//! The memory allocator of the shipped Wasm module: a free list for each power of two. The allocators that we tried are 262
//! bytes to 4.9 KB larger.
#![expect(unsafe_code, reason = "an allocator works with addresses")]

#[cfg(target_arch = "wasm32")]
use core::arch::wasm32::{memory_grow, memory_size};
use core::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    ptr::{null_mut, with_exposed_provenance_mut},
};
#[cfg(not(target_arch = "wasm32"))]
use tests::{memory_grow, memory_size};

/// Returns blocks whose sizes are powers of two. Freed blocks are kept in a list for each size, so that both operations
/// take the same few steps however many blocks there are.
struct Allocator {
    /// The first free block of each size, by the binary logarithm of the size. Each block holds the address of the next.
    free: [Cell<*mut u8>; 32],
    /// The start of the memory that was never allocated. A pointer and not a `usize`, because it is `__heap_base` at first, whose
    /// address only the linker knows.
    unused: Cell<*const u8>,
}

/// The size of a page of WebAssembly memory, in bytes.
const PAGE: usize = 1 << 16;

#[cfg(target_arch = "wasm32")]
#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new(&raw const __heap_base);

#[cfg(target_arch = "wasm32")]
unsafe extern "C" {
    /// The end of the module's stack and data. Defined by the linker.
    static __heap_base: u8;
}

// SAFETY: without atomics a module has one thread.
unsafe impl Sync for Allocator {}

// SAFETY: a block has one user until it is freed, and is as large and as aligned as the layout asks for: the linker aligns
// `__heap_base` to 16, sizes are multiples of 16, and no type in the module has a larger alignment.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = Self::block_size(layout);
        let Some(list) = self.free.get(size.trailing_zeros() as usize) else { return null_mut() };
        let first = list.get();
        if !first.is_null() {
            // SAFETY: a free block holds the address of the next one.
            list.set(unsafe { first.cast::<*mut u8>().read() });
            return first;
        }
        let start = self.unused.get();
        let Some(next) = start.addr().checked_add(size) else { return null_mut() };
        let missing = next.div_ceil(PAGE).saturating_sub(memory_size::<0>());
        if memory_grow::<0>(missing) == usize::MAX {
            return null_mut();
        }
        self.unused.set(start.with_addr(next));
        with_exposed_provenance_mut(start.addr())
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(list) = self.free.get(Self::block_size(layout).trailing_zeros() as usize) {
            // SAFETY: the block is large enough for an address, and no longer in use.
            unsafe { block.cast::<*mut u8>().write(list.get()) };
            list.set(block);
        }
    }
}

impl Allocator {
    /// An allocator for the memory from this address on.
    const fn new(unused: *const u8) -> Self {
        Self { free: [const { Cell::new(null_mut()) }; 32], unused: Cell::new(unused) }
    }

    /// The size of the block for this layout, or 0 if it exceeds the address space.
    fn block_size(layout: Layout) -> usize {
        layout.size().max(16).checked_next_power_of_two().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
