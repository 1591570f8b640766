//! Contents of frames, through this CPU's windows.

use core::ptr::NonNull;

use pfnguard_core::addr::{PfnRange, PhysAddr};
use pfnguard_core::machine::{Frames, RegisterWidth};
use pfnguard_shared::PAGE_SIZE;

use crate::attempt;
use crate::barrier;
use crate::cache::DataCache;
use crate::fixmap::{Window, WindowType};
use crate::pool::{PhysMap, to_usize};

/// Access to frames for one CPU.
#[derive(Debug)]
pub struct FrameAccess<W, C> {
    window: W,
    cache: C,
    /// How EL2 maps its own frames.
    own: PhysMap,
}

impl<W: Window, C: DataCache> FrameAccess<W, C> {
    /// Returns access through `window` with the maintenance of `cache`; the hypervisor's own frames
    /// are mapped as `own` says.
    pub const fn new(window: W, cache: C, own: PhysMap) -> Self {
        Self { window, cache, own }
    }
}

impl<W: Window, C: DataCache> Frames for FrameAccess<W, C> {
    fn zero(&mut self, range: PfnRange) {
        let cache = &self.cache;
        // SAFETY: whole pages, mapped write-back; the hypervisor holds no references into frames
        // that it reaches through a window.
        let zero = |start: NonNull<u8>, len| unsafe { cache.zero(start.as_ptr(), len) };
        match range.pages() {
            1 => self.window.with_page(range.start(), WindowType::Cacheable, |page| {
                zero(page, PAGE_SIZE);
            }),
            _ => self.window.with_range(range, WindowType::Cacheable, zero),
        }
    }

    fn zero_own(&mut self, range: PfnRange) {
        let start = range.start().base().expect("frames have an address: hypervisor bug");
        let len = to_usize(range.pages()) * PAGE_SIZE;
        // SAFETY: whole pages, mapped write-back and writable: the caller's promise. They are new
        // to the tables, or about to leave them, so nothing refers to them.
        unsafe { self.cache.zero(self.own.pointer(start).as_ptr(), len) };
    }

    /// Stores as Device: the only type that every region takes. No cacheable mapping is left, and
    /// what was cached is cleaned and invalidated before (R40), so the stores are what the next
    /// owner sees.
    fn zero_device(&mut self, range: PfnRange) {
        self.window.with_range(range, WindowType::Device, |start, len| {
            let first = start.cast::<u64>().as_ptr();
            let mut word = first;
            while word < first.wrapping_byte_add(len) {
                // SAFETY: inside the `len` bytes, mapped writable for the time of the call, and
                // aligned.
                unsafe { word.write_volatile(0) };
                word = word.wrapping_add(1);
            }
            barrier::dsb_sy();
        });
    }

    /// Maintains through a Device mapping: the instructions reach the caches of all CPUs whatever
    /// the type (Arm ARM, D7.5.9), and nothing can be fetched again speculatively behind them.
    fn clean_invalidate(&mut self, range: PfnRange) {
        let cache = &self.cache;
        self.window.with_range(range, WindowType::Device, |start, len| {
            // SAFETY: whole pages, mapped.
            unsafe { cache.clean_invalidate(start.as_ptr(), len) };
        });
    }

    fn forget_instructions(&mut self) {
        self.cache.forget_instructions();
    }

    fn read_register(&mut self, addr: PhysAddr, width: RegisterWidth) -> Option<u64> {
        // All earlier writes, of whatever type, are complete before the device is asked.
        barrier::dsb_sy();
        self.window.with_page(addr.pfn(), WindowType::Device, |page| {
            // SAFETY: the offset is inside the page.
            let register = unsafe { page.add(addr.offset()) };
            // SAFETY: mapped, and aligned as the manifest's check demands.
            unsafe { attempt::load(register, width) }
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::cell::RefCell;
    use std::rc::Rc;
    use std::vec::Vec;

    use pfnguard_core::addr::Pfn;

    use super::*;
    use crate::cache::CacheGeometry;
    use crate::testing::Memory;

    const START: u64 = 0x100;

    /// A window that is always open, and the types it was opened with.
    struct Open {
        memory: Memory,
        types: Rc<RefCell<Vec<WindowType>>>,
    }

    impl Window for Open {
        fn with_page<R>(
            &mut self,
            pfn: Pfn,
            mem: WindowType,
            access: impl FnOnce(NonNull<u8>) -> R,
        ) -> R {
            self.types.borrow_mut().push(mem);
            access(self.memory.map().pointer(pfn.base().unwrap()))
        }

        fn with_range(
            &mut self,
            range: PfnRange,
            mem: WindowType,
            mut access: impl FnMut(NonNull<u8>, usize),
        ) {
            for pfn in range.iter() {
                self.with_page(pfn, mem, |page| access(page, PAGE_SIZE));
            }
        }
    }

    type Opened = Rc<RefCell<Vec<WindowType>>>;

    /// Three pages of ones.
    fn frames() -> (FrameAccess<Open, CacheGeometry>, Memory, Opened) {
        let memory = Memory::new(START, 3);
        (0..3 * 512).for_each(|word| memory.set_word((START << 12) + word * 8, u64::MAX));
        let types = Opened::default();
        let window = Open { memory, types: Rc::clone(&types) };
        (FrameAccess::new(window, CacheGeometry::read(), memory.map()), memory, types)
    }

    fn middle() -> PfnRange {
        PfnRange::single(Pfn(START + 1)).unwrap()
    }

    #[test]
    fn zeroing_reaches_every_byte_of_the_range_and_no_other() {
        for device in [WindowType::Cacheable, WindowType::Device] {
            let (mut frames, memory, types) = frames();
            match device {
                WindowType::Device => frames.zero_device(middle()),
                WindowType::Cacheable | WindowType::Uncached => frames.zero(middle()),
            }
            for word in 0..3 * 512 {
                let expected = if (512..1024).contains(&word) { 0 } else { u64::MAX };
                assert_eq!(memory.word((START << 12) + word * 8), expected);
            }
            assert_eq!(*types.borrow(), [device]);
        }
    }

    #[test]
    fn frames_of_its_own_are_zeroed_without_a_window() {
        let (mut frames, memory, types) = frames();
        frames.zero_own(middle());
        for word in 0..3 * 512 {
            let expected = if (512..1024).contains(&word) { 0 } else { u64::MAX };
            assert_eq!(memory.word((START << 12) + word * 8), expected);
        }
        assert_eq!(*types.borrow(), []);
    }

    #[test]
    fn registers_are_read_as_device_in_their_width() {
        let (mut frames, memory, types) = frames();
        memory.set_word((START << 12) + 0x18, 0x1122_3344_5566_7788);
        let address = PhysAddr((START << 12) + 0x18);
        assert_eq!(frames.read_register(address, RegisterWidth::Word), Some(0x5566_7788));
        let whole = frames.read_register(address, RegisterWidth::Doubleword);
        assert_eq!(whole, Some(0x1122_3344_5566_7788));
        assert_eq!(*types.borrow(), [WindowType::Device; 2]);
    }

    #[test]
    fn maintenance_never_opens_a_cacheable_window() {
        let (mut frames, _, types) = frames();
        frames.clean_invalidate(middle());
        assert_eq!(*types.borrow(), [WindowType::Device]);
    }
}
