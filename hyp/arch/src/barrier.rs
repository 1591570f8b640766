//! Barriers (Arm ARM, B2.7). Off target they order the compiler only.

#[cfg(not(target_arch = "aarch64"))]
use core::sync::atomic::{Ordering, compiler_fence};

macro_rules! barrier {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            #[cfg(target_arch = "aarch64")]
            // SAFETY: a barrier changes no register and no memory.
            unsafe {
                core::arch::asm!($instruction, options(nostack, preserves_flags))
            };
            #[cfg(not(target_arch = "aarch64"))]
            compiler_fence(Ordering::SeqCst);
        }
    };
}

barrier!(
    /// Waits for stores to be visible to all CPUs and their table walkers.
    dsb_ishst,
    "dsb ishst"
);
barrier!(
    /// Waits for all accesses and maintenance, on all CPUs of the inner shareable domain.
    dsb_ish,
    "dsb ish"
);
barrier!(
    /// Waits for all accesses and maintenance, for the whole system.
    dsb_sy,
    "dsb sy"
);
barrier!(
    /// Makes this CPU see earlier changes of context: registers, TLB, instruction memory.
    isb,
    "isb"
);
barrier!(
    /// Waits until profiling (`PSB CSYNC`) and trace (`TSB CSYNC`) have written what they hold;
    /// both are hints, and do nothing where there is neither unit.
    drain_profiling,
    "hint #17\nhint #18\ndsb nsh"
);
