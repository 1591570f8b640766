//! Page pools: where tables come from.

use core::cell::Cell;
use core::ptr::NonNull;

use aarch64_paging::descriptor::{PagingAttributes, PhysicalAddress};
use aarch64_paging::paging::{PageTable, Translation};
use pfnguard_core::addr::{Pfn, PfnRange, PhysAddr};
use pfnguard_shared::{PAGE_SHIFT, PAGE_SIZE};

/// Where the hypervisor sees its own physical memory: `VA = PA + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysMap {
    offset: usize,
}

impl PhysMap {
    /// The payload's map: virtual and physical address are the same.
    pub const IDENTITY: Self = Self { offset: 0 };

    /// Returns the map that adds `offset` bytes, modulo the address space.
    pub const fn with_offset(offset: usize) -> Self {
        Self { offset }
    }

    /// Returns the virtual address of the hypervisor's own `addr`.
    ///
    /// # Panics
    ///
    /// Where `addr` is mapped at address 0: nothing of the hypervisor is there.
    pub fn pointer(self, addr: PhysAddr) -> NonNull<u8> {
        let addr = to_usize(addr.0).wrapping_add(self.offset);
        let pointer = core::ptr::with_exposed_provenance_mut(addr);
        NonNull::new(pointer).expect("address 0 is not the hypervisor's: hypervisor bug")
    }

    /// Returns the physical address behind `pointer`.
    fn address(self, pointer: NonNull<u8>) -> PhysAddr {
        PhysAddr(to_u64(pointer.as_ptr().expose_provenance().wrapping_sub(self.offset)))
    }
}

/// Converts a 64-bit number on a machine whose pointers have 64 bits.
pub(crate) fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("pointers have 64 bits")
}

/// Converts a size or address to 64 bits.
pub(crate) fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("pointers have 64 bits")
}

/// Zeroes a page with plain stores, which work with the MMU off too.
///
/// # Safety
///
/// `page` must be page aligned and valid for `PAGE_SIZE` bytes of writes, and nothing else may
/// access it but table walkers.
unsafe fn zero_page(page: NonNull<u8>) {
    let words = page.cast::<[u64; 8]>();
    for index in 0..PAGE_SIZE / size_of::<[u64; 8]>() {
        // SAFETY: `index` keeps the chunk inside the page.
        let chunk = unsafe { words.add(index) };
        // SAFETY: the caller promises a writable, aligned page. Volatile keeps the loop from
        // becoming a call to a byte-wise `memset`.
        unsafe { chunk.write_volatile([0; 8]) };
    }
}

/// A list of pages, linked through their own first words.
///
/// A link is a page address: bit 0 is clear, so that a table walker that still reads a page on the
/// list sees an invalid descriptor.
#[derive(Debug)]
struct PageList {
    /// Address of the first page; 0 where the list is empty.
    head: Cell<u64>,
    len: Cell<u64>,
}

impl PageList {
    const fn new() -> Self {
        Self { head: Cell::new(0), len: Cell::new(0) }
    }

    /// # Safety
    ///
    /// The page at `addr` must be the list owner's from now on, mapped through `map`.
    unsafe fn push(&self, map: PhysMap, addr: PhysAddr) {
        let link = map.pointer(addr).cast::<u64>();
        // SAFETY: the caller hands over the whole page, which is mapped and aligned.
        unsafe { link.write_volatile(self.head.get()) };
        self.head.set(addr.0);
        self.len.set(self.len.get() + 1);
    }

    /// Removes a page and zeroes its link.
    fn pop(&self, map: PhysMap) -> Option<PhysAddr> {
        let addr = self.head.get();
        self.len.set(self.len.get().checked_sub(1)?);
        let link = map.pointer(PhysAddr(addr)).cast::<u64>();
        // SAFETY: pages on the list are the list's, mapped and aligned (`push`).
        self.head.set(unsafe { link.read_volatile() });
        // SAFETY: as above.
        unsafe { link.write_volatile(0) };
        Some(PhysAddr(addr))
    }

    #[cfg(feature = "hosted")]
    fn pages(&self, map: PhysMap) -> impl Iterator<Item = Pfn> {
        let next = move |addr: &u64| {
            let link = map.pointer(PhysAddr(*addr)).cast::<u64>();
            // SAFETY: pages on the list are the list's, mapped and aligned (`push`).
            unsafe { link.read_volatile() }
        };
        let some = |addr: u64| (addr != 0).then_some(addr);
        let pages = core::iter::successors(some(self.head.get()), move |addr| some(next(addr)));
        pages.map(|addr| PhysAddr(addr).pfn())
    }
}

/// Table pages of one set of tables: free ones, and freed ones that a TLB may still walk.
///
/// Every free page is zero but for its link. Implements the allocation side of aarch64-paging,
/// which cannot report failure: callers check [`Self::free`] against the worst case first.
#[derive(Debug)]
pub struct TablePool {
    map: PhysMap,
    free: PageList,
    pending: PageList,
}

impl TablePool {
    /// Returns an empty pool over memory seen through `map`.
    pub const fn new(map: PhysMap) -> Self {
        Self { map, free: PageList::new(), pending: PageList::new() }
    }

    /// Adds pages to the pool. The page with the lowest address is handed out first.
    ///
    /// # Safety
    ///
    /// `range` must be the pool's alone from now on, mapped through the pool's map, and zero.
    pub unsafe fn add(&self, range: PfnRange) {
        for pfn in range.iter().rev() {
            // SAFETY: the caller hands over the pages.
            unsafe { self.free.push(self.map, address(pfn)) };
        }
    }

    /// Takes one zero page out of the pool for good.
    pub fn take(&self) -> Option<Pfn> {
        self.free.pop(self.map).map(PhysAddr::pfn)
    }

    /// Returns the number of free pages.
    pub fn free(&self) -> u64 {
        self.free.len.get()
    }

    /// Returns every free page.
    #[cfg(feature = "hosted")]
    pub(crate) fn free_pages(&self) -> impl Iterator<Item = Pfn> {
        self.free.pages(self.map)
    }

    /// Returns whether tables were freed that [`Self::recycle`] has not seen.
    pub fn has_pending(&self) -> bool {
        self.pending.len.get() > 0
    }

    /// Zeroes the freed tables and makes them free pages.
    ///
    /// # Safety
    ///
    /// TLB maintenance must have completed since the tables were unlinked.
    #[inline]
    pub unsafe fn recycle(&self) {
        if self.has_pending() {
            // SAFETY: the caller's promise.
            unsafe { self.recycle_pending() };
        }
    }

    /// # Safety
    ///
    /// As [`Self::recycle`].
    unsafe fn recycle_pending(&self) {
        while let Some(addr) = self.pending.pop(self.map) {
            // SAFETY: the page is the pool's; no walker uses it any more (caller).
            unsafe { zero_page(self.map.pointer(addr)) };
            // SAFETY: as above, and now zero.
            unsafe { self.free.push(self.map, addr) };
        }
    }

    /// Puts a table that nothing links to on the list of freed ones.
    ///
    /// # Safety
    ///
    /// The table must come from this pool and no descriptor may lead to it.
    pub(crate) unsafe fn retire(&self, table: PhysAddr) {
        // SAFETY: the caller gives the page back.
        unsafe { self.pending.push(self.map, table) };
    }

    /// Returns how the pool's memory is seen.
    pub(crate) fn map(&self) -> PhysMap {
        self.map
    }
}

impl<A: PagingAttributes> Translation<A> for TablePool {
    fn allocate_table(&mut self) -> (NonNull<PageTable<A>>, PhysicalAddress) {
        let addr = self.free.pop(self.map).expect("table pool ran dry: hypervisor bug");
        (self.map.pointer(addr).cast(), PhysicalAddress(to_usize(addr.0)))
    }

    unsafe fn deallocate_table(&mut self, page_table: NonNull<PageTable<A>>) {
        let addr = self.map.address(page_table.cast());
        // SAFETY: aarch64-paging frees what it unlinked, once (contract of the trait).
        unsafe { self.retire(addr) };
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<A>> {
        self.map.pointer(PhysAddr(to_u64(pa.0))).cast()
    }
}

/// Returns the address of a frame that is known to exist.
pub(crate) fn address(pfn: Pfn) -> PhysAddr {
    pfn.base().expect("frames of a range have addresses")
}

/// The hypervisor's launch-time memory, given out once and for good, from the bottom up.
#[derive(Debug)]
pub struct HypPool {
    next: u64,
    end: u64,
}

impl HypPool {
    /// Returns a pool of the pages of `range`.
    pub const fn new(range: PfnRange) -> Self {
        Self { next: range.start().0, end: range.end().0 }
    }

    /// Takes `pages` pages whose first number is a multiple of `align`, a power of two; pages
    /// skipped for alignment are lost.
    pub fn take(&mut self, pages: u64, align: u64) -> Option<PfnRange> {
        let start = self.next.checked_next_multiple_of(align)?;
        let range = PfnRange::new(Pfn(start), pages).filter(|range| range.end().0 <= self.end)?;
        self.next = range.end().0;
        Some(range)
    }

    /// Returns the number of pages left.
    pub const fn left(&self) -> u64 {
        self.end - self.next
    }
}

/// Returns the number of aligned blocks of `1 << shift` pages that `ranges` touch. The ranges are
/// in ascending order.
pub(crate) fn blocks_touched(ranges: &[PfnRange], shift: u32) -> u64 {
    let mut next_free = 0;
    let mut count = 0;
    for range in ranges {
        let first = (range.start().0 >> shift).max(next_free);
        let past = ((range.end().0 - 1) >> shift) + 1;
        count += past.saturating_sub(first);
        next_free = past.max(next_free);
    }
    count
}

const _: () = assert!(PAGE_SIZE == 1 << PAGE_SHIFT);

#[cfg(test)]
mod tests {
    use aarch64_paging::descriptor::Stage2Attributes;

    use super::*;
    use crate::testing::Memory;

    fn pool(pages: u64) -> (TablePool, Memory) {
        let memory = Memory::new(0x1234, pages);
        let pool = TablePool::new(memory.map());
        // SAFETY: the memory is new, zero, and only this pool's.
        unsafe { pool.add(memory.range()) };
        (pool, memory)
    }

    fn allocate(pool: &mut TablePool) -> NonNull<PageTable<Stage2Attributes>> {
        pool.allocate_table().0
    }

    #[test]
    fn pages_come_out_zero_and_in_order() {
        let (pool, memory) = pool(3);
        for index in 0..3 {
            let pfn = pool.take().unwrap();
            assert_eq!(pfn, Pfn(0x1234 + index));
            assert!(memory.is_clear(pfn) && memory.word(pfn.0 << 12) == 0);
        }
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn a_freed_table_is_not_used_again_before_the_maintenance() {
        let (mut pool, memory) = pool(2);
        let table = allocate(&mut pool);
        memory.set_word((0x1234 << 12) + 8, 3);
        // SAFETY: allocated just now.
        unsafe { Translation::<Stage2Attributes>::deallocate_table(&mut pool, table) };
        assert_eq!((pool.free(), pool.has_pending()), (1, true));
        assert_eq!(memory.word((0x1234 << 12) + 8), 3, "walkers may still read it");
        assert_eq!(memory.word(0x1234 << 12) & 1, 0, "the link is an invalid descriptor");
        assert_eq!(allocate(&mut pool), memory.map().pointer(PhysAddr(0x1235 << 12)).cast());

        // SAFETY: no TLB knows the table.
        unsafe { pool.recycle() };

        assert_eq!((pool.free(), pool.has_pending()), (1, false));
        assert!(memory.is_clear(Pfn(0x1234)));
    }

    #[test]
    #[should_panic(expected = "ran dry")]
    fn an_empty_pool_is_our_own_bug() {
        let (mut pool, _) = pool(1);
        allocate(&mut pool);
        allocate(&mut pool);
    }

    #[test]
    fn launch_memory_is_given_out_aligned_once() {
        let mut pool = HypPool::new(PfnRange::new(Pfn(3), 20).unwrap());
        assert_eq!(pool.take(1, 1), PfnRange::new(Pfn(3), 1));
        assert_eq!(pool.take(8, 8), PfnRange::new(Pfn(8), 8));
        assert_eq!(pool.left(), 7);
        assert_eq!(pool.take(8, 1), None);
        assert_eq!(pool.take(7, 1), PfnRange::new(Pfn(16), 7));
    }

    #[test]
    fn a_block_that_two_ranges_touch_counts_once() {
        let ranges = [(0, 1), (5, 4), (510, 4), (2048, 1)];
        let ranges = ranges.map(|(start, pages)| PfnRange::new(Pfn(start), pages).unwrap());
        assert_eq!(blocks_touched(&ranges, 9), 3);
    }
}
