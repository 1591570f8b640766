//! Worlds of a thread, prepared and kept: launching one takes as long as ten calls.

use std::cell::RefCell;

use pfnguard_harness::board::Board;
use pfnguard_harness::{Stage, World, boards};

/// Calls after which a world is made anew, so that the history of a finding stays short.
const CALLS: u16 = 64;

/// What is to become of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It is as it was: the next input may have it.
    Unchanged,
    /// It is not.
    Changed,
}

/// A world, and how many calls it has seen.
struct Kept(World, u16);

thread_local! {
    static KEPT: RefCell<Vec<Option<Kept>>> = const { RefCell::new(Vec::new()) };
}

/// Number of prepared worlds.
pub fn count() -> usize {
    boards::all().len() * Stage::ALL.len()
}

/// Returns the board and the stage that a byte chooses.
pub fn chosen(byte: u8) -> (&'static Board, Stage) {
    let (boards, index) = (boards::all(), usize::from(byte) % count());
    (boards[index % boards.len()], Stage::ALL[index / boards.len()])
}

/// Lends the world that a byte chooses.
pub fn with(byte: u8, act: impl FnOnce(&mut World) -> After) {
    let index = usize::from(byte) % count();
    let kept = KEPT.with_borrow_mut(|kept| {
        kept.resize_with(count(), || None);
        kept[index].take()
    });
    let Kept(mut world, calls) = kept.unwrap_or_else(|| {
        let (board, stage) = chosen(byte);
        Kept(stage.world(board), 0)
    });
    if act(&mut world) == After::Unchanged && calls < CALLS {
        KEPT.with_borrow_mut(|kept| kept[index] = Some(Kept(world, calls + 1)));
    }
}
