//! Sequences of structured calls over several VMs, CPUs and regions, with guests that act, resets,
//! accesses of the host and writes to argument pages.

use arbitrary::Unstructured;
use pfnguard_harness::{World, boards, calls};

/// Most steps of a sequence.
const STEPS: usize = 32;

/// A byte that chooses the board, and the bytes of [`calls::sequence`].
///
/// # Panics
/// Where anything is not as specified.
pub fn run(data: &[u8]) {
    let Some((board, steps)) = data.split_first() else { return };
    let boards = boards::all();
    let mut world = World::new(boards[usize::from(*board) % boards.len()]);
    calls::sequence(&mut world, &mut Unstructured::new(steps), STEPS);
}
