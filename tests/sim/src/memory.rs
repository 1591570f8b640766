//! Physical memory of the simulated machine: one span of addresses, zero when it is made.
//!
//! A span is mapped by the host system when it is first touched and belongs to its thread:
//! worlds come and go in it, and each gives it back zero.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;

use pfnguard_arch::pool::PhysMap;
use pfnguard_core::addr::{Pfn, PfnRange};
use pfnguard_shared::PAGE_SIZE;

pub use pfnguard_walker::{Page, WORDS};

/// Where a marker is written, by word: near both ends and in the middle, behind the word that a
/// list of free pages uses.
const MARKED: [usize; 3] = [1, WORDS / 2, WORDS - 1];

/// Physical memory from one page on.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    range: PfnRange,
    /// Address at which the developer's machine has it.
    start: usize,
    /// Address of the allocation that holds it.
    allocated: usize,
}

thread_local! {
    /// Spans that no world uses.
    static IDLE: RefCell<Vec<Memory>> = const { RefCell::new(Vec::new()) };
}

impl Memory {
    /// Takes the memory of `range`, all of it zero.
    pub fn take(range: PfnRange) -> Self {
        let used = IDLE.with_borrow_mut(|idle| {
            let found = idle.iter().position(|memory| memory.range == range)?;
            Some(idle.swap_remove(found))
        });
        used.unwrap_or_else(|| Self::allocate(range))
    }

    fn allocate(range: PfnRange) -> Self {
        // SAFETY: the size is a page at least.
        let allocated = unsafe { alloc_zeroed(Self::layout(range)) };
        assert!(!allocated.is_null(), "out of memory");
        let allocated = allocated.expose_provenance();
        Self { range, start: allocated.next_multiple_of(PAGE_SIZE), allocated }
    }

    /// Gives the memory back, for the next [`Self::take`]; the caller has zeroed it.
    pub fn give_back(self) {
        // A thread that ends has no next one.
        if IDLE.try_with(|idle| idle.borrow_mut().push(self)).is_err() {
            self.free();
        }
    }

    /// Frees the memory, whatever it holds.
    pub fn free(self) {
        // SAFETY: allocated with this layout; the world, which alone used it, is gone.
        unsafe {
            dealloc(
                core::ptr::with_exposed_provenance_mut(self.allocated),
                Self::layout(self.range),
            );
        }
    }

    /// A page more than the span, which is aligned in it: the allocator writes all of an aligned
    /// allocation to zero it, and leaves one that is not to the system, page by page.
    fn layout(range: PfnRange) -> Layout {
        let bytes = (to_usize(range.pages()) + 1) * PAGE_SIZE;
        Layout::from_size_align(bytes, align_of::<u64>()).expect("a span has a layout")
    }

    /// Returns how the hypervisor sees it.
    pub fn map(&self) -> PhysMap {
        PhysMap::with_offset(self.start.wrapping_sub(to_usize(self.range.start().0) * PAGE_SIZE))
    }

    /// Returns whether the page exists.
    pub fn has(&self, pfn: u64) -> bool {
        self.range.contains(Pfn(pfn))
    }

    fn pointer(&self, pfn: u64) -> *mut Page {
        assert!(self.has(pfn), "page {pfn:#x} is not memory");
        let offset = to_usize(pfn - self.range.start().0) * PAGE_SIZE;
        core::ptr::with_exposed_provenance_mut(self.start + offset)
    }

    /// Lends a page. The world is one thread's, and nothing of the hypervisor runs meanwhile.
    pub fn page<R>(&self, pfn: u64, look: impl FnOnce(&Page) -> R) -> R {
        // SAFETY: inside the span, aligned, initialised, and written by nobody while `look` runs.
        look(unsafe { &*self.pointer(pfn).cast_const() })
    }

    /// Lends a page for writing.
    pub fn page_mut<R>(&self, pfn: u64, change: impl FnOnce(&mut Page) -> R) -> R {
        // SAFETY: inside the span, aligned, initialised, and reached by nobody else while
        // `change` runs.
        change(unsafe { &mut *self.pointer(pfn) })
    }

    /// Returns whether the page holds nothing but zeroes.
    pub fn is_zero(&self, pfn: u64) -> bool {
        self.page(pfn, |page| page.iter().fold(0, |all, word| all | word) == 0)
    }

    /// Writes `marker` at some places of the page.
    pub fn mark(&self, pfn: u64, marker: u64) {
        self.page_mut(pfn, |page| MARKED.iter().for_each(|&word| page[word] = marker));
    }

    /// Returns whether the page holds `marker` wherever [`Self::mark`] writes it.
    pub fn is_marked(&self, pfn: u64, marker: u64) -> bool {
        self.page(pfn, |page| MARKED.iter().all(|&word| page[word] == marker))
    }

    /// Zeroes the page.
    pub fn clear(&self, pfn: u64) {
        self.page_mut(pfn, |page| page.fill(0));
    }
}

impl pfnguard_walker::Memory for Memory {
    fn page<R>(&self, pfn: u64, look: impl FnOnce(&Page) -> R) -> R {
        Self::page(self, pfn, look)
    }
}

/// Returns a number of pages, or a page's number in a span, as an index.
pub fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("this machine has 64-bit pointers")
}
