//! Where the image lies: symbols of the linker script `payload.ld`.
//!
//! The image runs where it was loaded and is mapped at EL2 to its own physical addresses, so the
//! address of a symbol is a physical address too.

use core::ops::Range;

use pfnguard_core::addr::{PfnRange, PhysAddr};
use pfnguard_shared::{PAGE_SHIFT, PAGE_SIZE};

/// Bytes of the stack of every CPU but the boot CPU, whose launch needs more.
pub const STACK_SIZE: usize = 8 * PAGE_SIZE;
/// Bytes of the stack on which a CPU reports its own fault.
pub const EMERGENCY_SIZE: usize = 4 * PAGE_SIZE;
/// Pages of one CPU's block: guard, stack, guard, emergency stack.
pub const STACK_BLOCK_PAGES: usize = 2 + (STACK_SIZE + EMERGENCY_SIZE) / PAGE_SIZE;

macro_rules! symbols {
    ($($(#[$doc:meta])* $name:ident => $symbol:ident;)*) => {
        unsafe extern "C" {
            $(static $symbol: u8;)*
        }

        $($(#[$doc])*
        fn $name() -> usize {
            (&raw const $symbol).addr()
        })*
    };
}

symbols! {
    start => image_start;
    end_of_text => text_end;
    end_of_rodata => rodata_end;
    end_of_bss => bss_end;
    stack_bottom => cpu0_stack_bottom;
    stack_top => cpu0_stack_top;
    emergency_bottom => cpu0_emergency_bottom;
    emergency_top => cpu0_emergency_top;
    end => image_end;
}

/// The two stacks of one CPU; below each lies a page that is never mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stacks {
    /// Where its Rust code runs.
    pub main: Range<usize>,
    /// Where its fault handler runs.
    pub emergency: Range<usize>,
}

impl Stacks {
    /// Returns the boot CPU's stacks, which lie in the image.
    pub fn boot_cpu() -> Self {
        Self { main: stack_bottom()..stack_top(), emergency: emergency_bottom()..emergency_top() }
    }

    /// Cuts a block of [`STACK_BLOCK_PAGES`] pages into guard, stack, guard, emergency stack.
    ///
    /// # Panics
    ///
    /// Where the block has another size.
    pub fn in_block(block: PfnRange) -> Self {
        assert!(usize::try_from(block.pages()) == Ok(STACK_BLOCK_PAGES), "stacks in {block}");
        let base = address(block);
        let main = base + PAGE_SIZE..base + PAGE_SIZE + STACK_SIZE;
        let emergency = main.end + PAGE_SIZE..main.end + PAGE_SIZE + EMERGENCY_SIZE;
        Self { main, emergency }
    }

    /// Names the guard page that `addr` lies in.
    pub fn guard_at(&self, addr: usize) -> Option<&'static str> {
        let below = |stack: &Range<usize>| stack.start - PAGE_SIZE..stack.start;
        if below(&self.main).contains(&addr) {
            Some("guard page below the stack")
        } else if below(&self.emergency).contains(&addr) {
            Some("guard page below the emergency stack")
        } else {
            None
        }
    }
}

fn address(range: PfnRange) -> usize {
    range.start().base().and_then(|base| usize::try_from(base.0).ok()).expect("an address")
}

/// Returns the address at which the image was loaded.
pub fn image_base() -> PhysAddr {
    PhysAddr(to_u64(start()))
}

/// Returns all pages of the image, stacks and guard pages included.
pub fn image() -> PfnRange {
    pages(start()..end())
}

/// Returns the pages that hold code.
pub fn text() -> PfnRange {
    pages(start()..end_of_text())
}

/// Returns the pages that hold constants, read-only once the MMU is on.
pub fn rodata() -> PfnRange {
    pages(end_of_text()..end_of_rodata())
}

/// Returns the pages that hold variables.
pub fn data() -> PfnRange {
    pages(end_of_rodata()..end_of_bss())
}

/// Returns the pages of `range`, whose ends are page-aligned.
///
/// # Panics
///
/// Where it is empty: a section without bytes has no place in the image.
pub fn pages(range: Range<usize>) -> PfnRange {
    let first = PhysAddr(to_u64(range.start)).pfn();
    PfnRange::new(first, to_u64(range.len()) >> PAGE_SHIFT).expect("a section has pages")
}

fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("addresses have 64 bits")
}
