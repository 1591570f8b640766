//! Calls to EL3 (SMCCC, PSCI).

use smccc::psci;
use smccc::{Call, Smc};

/// Makes an SMC with `x0..=x3`. `x0` is a function id: its upper half is not part of it.
pub(crate) fn call(regs: [u64; 4]) -> [u64; 4] {
    let [id, a1, a2, a3] = regs;
    let function = u32::try_from(id & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    let mut args = [0; 17];
    args[..3].copy_from_slice(&[a1, a2, a3]);
    let results = Smc::call64(function, args);
    [results[0], results[1], results[2], results[3]]
}

/// Powers the machine off.
pub fn power_off() -> ! {
    // There is nothing to do about an error but to stay here.
    let _ = psci::system_off::<Smc>();
    park()
}

/// Powers this CPU off.
pub fn cpu_off() -> ! {
    let _ = psci::cpu_off::<Smc>();
    park()
}

/// Stops this CPU.
pub fn park() -> ! {
    loop {
        // SAFETY: waits; changes nothing.
        unsafe { core::arch::asm!("wfi", options(nomem, nostack, preserves_flags)) };
    }
}
