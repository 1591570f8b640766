//! One call with raw registers, in a prepared world.

use pfnguard_shared::Status;

use crate::worlds::{self, After};

/// A byte that chooses the world, one for the CPU, `x0..=x7`, and what device registers answer.
///
/// # Panics
/// Where the call is not as specified.
pub fn run(data: &[u8]) {
    let Some(([world, cpu], rest)) = data.split_first_chunk() else { return };
    let (words, rest) = rest.as_chunks::<8>();
    let mut regs = [0; 8];
    for (reg, word) in regs.iter_mut().zip(words) {
        *reg = u64::from_le_bytes(*word);
    }
    let registers: Vec<_> =
        rest.iter().map(|byte| (byte % 8 < 7).then_some(u64::from(byte % 4))).collect();
    worlds::with(*world, |world| {
        let cpu = usize::from(*cpu) % world.cpus();
        let answer = world.call_with(cpu, regs, &[], &registers);
        // A refused call has changed nothing (R35), as the world has just checked.
        match Status::from_register(answer[0]) {
            Some(Status::Success) | None => After::Changed,
            Some(_) => After::Unchanged,
        }
    });
}
