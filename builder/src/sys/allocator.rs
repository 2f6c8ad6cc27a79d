//! Memory for the binary: the C library's, except that a few large buffers are kept when they are
//! given back.
//!
//! musl makes a mapping of its own for every block of more than 128 KiB and takes it down again, so
//! that each buffer of the network costs the kernel a hundred page faults: a sixth of the time of a
//! pull. What is kept is bounded by the number of places below.
#![expect(
    unsafe_code,
    reason = "an allocator hands out memory that nobody vouches for"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError, TryLockError};

/// Blocks larger than this, in bytes, are mappings of their own in musl.
const SMALL: usize = 128 << 10;
/// Sizes that blocks are made in, bytes. What is not touched of them takes no memory.
const SIZES: [usize; 2] = [256 << 10, 512 << 10];
/// Blocks of each size that are kept.
const KEPT: usize = 8;

/// The C library's allocator with places for large blocks.
#[derive(Debug)]
pub struct Keeping {
    places: [Mutex<Places>; SIZES.len()],
}

/// Blocks that may be handed out again.
#[derive(Debug)]
struct Places {
    blocks: [Option<Block>; KEPT],
    used: usize,
}

/// A block that nobody uses.
#[derive(Clone, Copy, Debug)]
struct Block(NonNull<u8>);

// SAFETY: a block in its place is known there only; whoever takes it out has it alone.
unsafe impl Send for Block {}

impl Keeping {
    /// An allocator that keeps nothing yet.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "it is made for a static only, which Default cannot do"
    )]
    pub const fn new() -> Self {
        Self {
            places: [const {
                Mutex::new(Places {
                    blocks: [None; KEPT],
                    used: 0,
                })
            }; SIZES.len()],
        }
    }

    /// The size that blocks of this layout are made in, as an index.
    fn size(layout: Layout) -> Option<usize> {
        if layout.size() <= SMALL || layout.align() > align_of::<u128>() {
            return None;
        }
        SIZES.iter().position(|&size| layout.size() <= size)
    }

    /// A block that was kept. Where another thread is at the places just now, none: it is not worth
    /// waiting, and a process that was split off must not wait for threads that it has not.
    fn take(&self, size: usize) -> Option<NonNull<u8>> {
        let mut places = match self.places[size].try_lock() {
            Ok(places) => places,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return None,
        };
        places.used = places.used.checked_sub(1)?;
        let at = places.used;
        places.blocks[at].take().map(|block| block.0)
    }

    /// Keeps a block if there is a place for it.
    fn keep(&self, size: usize, block: NonNull<u8>) -> bool {
        let mut places = match self.places[size].try_lock() {
            Ok(places) => places,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return false,
        };
        let at = places.used;
        let Some(place) = places.blocks.get_mut(at) else {
            return false;
        };
        *place = Some(Block(block));
        places.used += 1;
        true
    }

    fn of_size(size: usize) -> Layout {
        // SAFETY: the alignment is a power of two, and the sizes are far from the largest.
        unsafe { Layout::from_size_align_unchecked(SIZES[size], align_of::<u128>()) }
    }
}

// SAFETY: blocks of the listed sizes come from `System` with the layout `of_size` and go back to it
// with the same; one that is kept meanwhile is in one place, and is taken from there before it is
// handed out. All others are `System`'s alone. Nothing here allocates or panics.
unsafe impl GlobalAlloc for Keeping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(size) = Self::size(layout) else {
            // SAFETY: the caller's promises are those that `System` asks for.
            return unsafe { System.alloc(layout) };
        };
        match self.take(size) {
            Some(block) => block.as_ptr(),
            // SAFETY: the layout is not empty.
            None => unsafe { System.alloc(Self::of_size(size)) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(size) = Self::size(layout) else {
            // SAFETY: as above.
            return unsafe { System.alloc_zeroed(layout) };
        };
        match self.take(size) {
            Some(block) => {
                // SAFETY: the block has at least the size of the layout, and is ours.
                unsafe { ptr::write_bytes(block.as_ptr(), 0, layout.size()) };
                block.as_ptr()
            }
            // SAFETY: as above.
            None => unsafe { System.alloc_zeroed(Self::of_size(size)) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match (Self::size(layout), NonNull::new(block)) {
            (Some(size), Some(kept)) => {
                if !self.keep(size, kept) {
                    // SAFETY: a block of such a layout was made with `of_size`.
                    unsafe { System.dealloc(block, Self::of_size(size)) };
                }
            }
            // SAFETY: the block came from `System` with this layout.
            _ => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size is one that a layout may have.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (Self::size(layout), Self::size(new)) {
            // SAFETY: the block is `System`'s, and stays so.
            (None, None) => unsafe { System.realloc(block, layout, new_size) },
            (old, new) if old == new => block,
            _ => {
                // SAFETY: both layouts are not empty; both blocks have at least the bytes that are
                // copied, and the new one is not the old one.
                unsafe {
                    let moved = self.alloc(new);
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    /// Fills a block, so that one that is handed out twice shows.
    fn fill(block: *mut u8, size: usize, byte: u8) {
        assert!(!block.is_null());
        // SAFETY: the tests fill what they have allocated with this size.
        unsafe { ptr::write_bytes(block, byte, size) };
    }

    fn holds(block: *mut u8, size: usize, byte: u8) -> bool {
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(block, size) };
        bytes.iter().all(|&found| found == byte)
    }

    #[test]
    fn large_blocks_are_kept_and_handed_out_once() {
        let keeping = Keeping::new();
        let (size, other) = (200 << 10, 256 << 10);
        // SAFETY: all layouts are of some size; each block is freed once, with its layout.
        unsafe {
            let first = keeping.alloc(layout(size));
            fill(first, size, 1);
            keeping.dealloc(first, layout(size));
            let second = keeping.alloc(layout(other));
            assert_eq!(first, second, "of the same size as it is made");
            let third = keeping.alloc(layout(size));
            assert_ne!(second, third);
            fill(second, other, 2);
            fill(third, size, 3);
            assert!(holds(second, other, 2));
            keeping.dealloc(third, layout(size));
            let zeroed = keeping.alloc_zeroed(layout(size));
            assert_eq!(zeroed, third);
            assert!(holds(zeroed, size, 0));
            keeping.dealloc(second, layout(other));
            keeping.dealloc(zeroed, layout(size));
        }
    }

    #[test]
    fn blocks_grow_and_shrink_over_all_sizes() {
        let keeping = Keeping::new();
        let sizes = [
            100,
            SMALL,
            SMALL + 1,
            SIZES[0],
            SIZES[0] + 1,
            SIZES[1],
            SIZES[1] + 1,
            2 << 20,
        ];
        for from in sizes {
            for to in sizes {
                // SAFETY: as above.
                unsafe {
                    let block = keeping.alloc(layout(from));
                    fill(block, from, 7);
                    let moved = keeping.realloc(block, layout(from), to);
                    assert!(holds(moved, from.min(to), 7), "{from} {to}");
                    fill(moved, to, 8);
                    keeping.dealloc(moved, layout(to));
                }
            }
        }
    }

    #[test]
    fn no_more_is_kept_than_there_are_places() {
        let keeping = Keeping::new();
        let blocks: Vec<_> = (0..KEPT + 3)
            // SAFETY: as above.
            .map(|_| unsafe { keeping.alloc(layout(SIZES[1])) })
            .collect();
        for block in blocks {
            // SAFETY: as above.
            unsafe { keeping.dealloc(block, layout(SIZES[1])) };
        }
        assert_eq!(keeping.places[1].lock().unwrap().used, KEPT);
    }

    #[test]
    fn threads_do_not_get_each_others_blocks() {
        let keeping = Keeping::new();
        std::thread::scope(|scope| {
            for byte in 0..8 {
                let keeping = &keeping;
                scope.spawn(move || {
                    for round in 0..200 {
                        let size = SMALL + 1 + round * 1900;
                        // SAFETY: as above.
                        unsafe {
                            let block = keeping.alloc(layout(size));
                            fill(block, size, byte);
                            std::thread::yield_now();
                            assert!(holds(block, size, byte));
                            keeping.dealloc(block, layout(size));
                        }
                    }
                });
            }
        });
    }
}
