//! Random calls with random arguments, on the device and on VMs, by children that may die of them.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, RawFd};

use fastrand::Rng;
use nix::libc;
use nix::sys::wait::WaitStatus;
use pfnguard_shared::device::Ioctl;

use crate::attacks::{child, held};
use crate::device::Device;
use crate::memory::{Memory, PAGE};
use crate::outcome::{Outcome, equal};

/// Children, and calls of each.
const CHILDREN: u64 = 8;
const CALLS: u32 = 5000;
/// Bytes of the longest argument, and of what a call may write behind it.
const ARGUMENT: usize = 256;

/// Makes them; nothing stays behind.
pub fn run() -> Outcome {
    let device = Device::open()?;
    let before = held(&device)?;
    let mut succeeded = 0;
    for seed in 0..CHILDREN {
        let ending = child(|| {
            let succeeded = calls(&mut Rng::with_seed(seed));
            std::process::exit(succeeded.unwrap_or(0));
        })?;
        // A call may have written over the child, which dies of that; what matters is the kernel.
        if let WaitStatus::Exited(_, calls) = ending {
            succeeded |= calls;
        }
        equal(held(&device)?, before, &format!("seed {seed}: pages that are held"))?;
    }
    equal(succeeded, 0b111, "VMs were made, pages lent, pages given")
}

/// Returns which of the calls that begin something have succeeded, a bit each.
fn calls(random: &mut Rng) -> Outcome<i32> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/pfnguard")?;
    let memory = Memory::new(64 * PAGE)?;
    let mut files = vec![device.as_raw_fd()];
    let mut succeeded = 0;
    for _ in 0..CALLS {
        let file = files[random.usize(..files.len())];
        let call = Ioctl::ALL[random.usize(..Ioctl::ALL.len())];
        let made = make(file, call, random, &memory);
        if call == Ioctl::CreateVm && made >= 0 {
            files.push(made);
        }
        let begins = [Ioctl::CreateVm, Ioctl::ShareRam, Ioctl::DonateRam];
        let bit = begins.iter().position(|begin| *begin == call && made >= 0);
        succeeded |= bit.map_or(0, |bit| 1 << bit);
        if files.len() > 6 {
            let old = files.swap_remove(random.usize(1..files.len()));
            // SAFETY: the file is this function's alone.
            unsafe { libc::close(old) };
        }
    }
    Ok(succeeded)
}

fn make(file: RawFd, call: Ioctl, random: &mut Rng, memory: &Memory) -> i32 {
    let mut argument = [0; ARGUMENT / 8];
    let sensible = sensible(call, random, memory);
    argument[..sensible.len()].copy_from_slice(&sensible);
    if random.bool() {
        argument[random.usize(..8)] = pick(random, memory);
    }
    // SAFETY: what the call may write to is this process's, which expects to be overwritten.
    unsafe { libc::ioctl(file, call.raw().cast_signed(), argument.as_mut_ptr()) }
}

/// Returns the first words of an argument that may be accepted.
fn sensible(call: Ioctl, random: &mut Rng, memory: &Memory) -> [u64; 4] {
    let page = |pages: u64| PAGE * pages;
    let (address, size) = (memory.address() + page(random.u64(..32)), page(random.u64(1..32)));
    let guest = 0x4000_0000 + page(random.u64(..64));
    if call == Ioctl::CreateVm {
        return [random.u64(..4) | 1 << 32, random.u64(1..32), 0, 0];
    }
    if call == Ioctl::AddTables {
        return [random.u64(1..8), 0, 0, 0];
    }
    match call == Ioctl::ShareRam || call == Ioctl::Bind {
        true => [address, size, guest, 3],
        false if call == Ioctl::UnshareRam => [0, size, guest, 0],
        false => [address, size, guest, 0],
    }
}

/// Returns a number that means something somewhere, or any.
fn pick(random: &mut Rng, memory: &Memory) -> u64 {
    match random.u8(..6) {
        0 => memory.address() + PAGE * random.u64(..64),
        1 => PAGE * random.u64(1..32),
        2 => random.u64(..8) | random.u64(..40) << 32,
        3 => random.u64(..),
        4 => 1 << random.u32(..64),
        _ => 0,
    }
}
