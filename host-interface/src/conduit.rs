//! What carries the registers to the hypervisor.

/// A way to make a call: `x0..=x7` in, `x0..=x7` out.
pub trait Hypercall {
    /// Makes one call and returns when the hypervisor has answered. The call may write the
    /// argument page of this CPU and, on a guest's behalf, memory that the guest was given.
    fn call(regs: [u64; 8]) -> [u64; 8];
}

/// `HVC #0` with the SMCCC 1.2 convention: the conduit of a kernel at EL1.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug)]
pub struct Hvc;

#[cfg(target_arch = "aarch64")]
impl Hypercall for Hvc {
    #[allow(unsafe_code, reason = "the one instruction that leaves this exception level")]
    fn call(regs: [u64; 8]) -> [u64; 8] {
        let mut out = [0; 8];
        // SAFETY: HVC preserves the stack and x18..x30 (SMCCC 1.2); x0..x17 are declared below. The
        // block is not `nomem`, so memory that the call may write is reloaded afterwards. A
        // hypervisor that is not there makes it undefined, which the kernel's own vector catches.
        unsafe {
            core::arch::asm!(
                "hvc #0",
                inlateout("x0") regs[0] => out[0], inlateout("x1") regs[1] => out[1],
                inlateout("x2") regs[2] => out[2], inlateout("x3") regs[3] => out[3],
                inlateout("x4") regs[4] => out[4], inlateout("x5") regs[5] => out[5],
                inlateout("x6") regs[6] => out[6], inlateout("x7") regs[7] => out[7],
                lateout("x8") _, lateout("x9") _, lateout("x10") _, lateout("x11") _,
                lateout("x12") _, lateout("x13") _, lateout("x14") _, lateout("x15") _,
                lateout("x16") _, lateout("x17") _,
                options(nostack),
            );
        }
        out
    }
}
