//! Another kernel in place of this one, by kexec.

use nix::libc;

use crate::memory::{Memory, PAGE};
use crate::outcome::Outcome;

/// `LINUX_REBOOT_MAGIC1`, `LINUX_REBOOT_MAGIC2` and `LINUX_REBOOT_CMD_KEXEC`.
const REBOOT: [libc::c_long; 3] = [0xfee1_dead, 0x2812_1969, 0x4558_4543];
/// Where the other kernel would lie: RAM of the machine.
const TARGET: u64 = 0x5000_0000;

/// `struct kexec_segment`.
#[repr(C)]
struct Segment {
    buffer: u64,
    buffer_size: u64,
    memory: u64,
    memory_size: u64,
}

/// Loads a page as the next kernel and enters it; does not return where that works, or is refused.
pub fn run() -> Outcome {
    let page = Memory::new(PAGE)?;
    let segment =
        Segment { buffer: page.address(), buffer_size: PAGE, memory: TARGET, memory_size: PAGE };
    // SAFETY: the call reads one segment, which names memory of this process.
    let loaded = unsafe { libc::syscall(libc::SYS_kexec_load, TARGET, 1, &raw const segment, 0) };
    nix::Error::result(loaded)?;
    let [first, second, command] = REBOOT;
    // SAFETY: the call takes numbers; nothing of this process is needed afterwards.
    let entered = unsafe { libc::syscall(libc::SYS_reboot, first, second, command, 0) };
    Ok(nix::Error::result(entered).map(drop)?)
}
