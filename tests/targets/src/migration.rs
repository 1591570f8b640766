//! Migration descriptors: exported from one world, changed, checked in another (R33).

use std::sync::OnceLock;

use pfnguard_harness::board::Board;
use pfnguard_harness::{Stage, boards};
use pfnguard_shared::{HostFunction, PAGE_SIZE};

use crate::worlds::{self, After};

/// VMs of a world that holds something.
const VMS: usize = 2;

/// A byte that chooses the VM, one the world that checks, then changes: two bytes of place and
/// one that is exclusive-ored.
///
/// # Panics
/// Where the verdict is not as specified, or a descriptor fails where it comes from.
pub fn run(data: &[u8]) {
    let Some(([vm, world], changes)) = data.split_first_chunk() else { return };
    let boards = boards::all();
    let from = usize::from(*vm) / VMS % boards.len();
    let mut page = exported()[from][usize::from(*vm) % VMS];
    let before = page;
    for [low, high, change] in changes.as_chunks().0 {
        page[usize::from(u16::from_le_bytes([*low, *high])) % PAGE_SIZE] ^= change;
    }
    worlds::with(*world, |target| {
        target.write_arg_page(0, 0, &page);
        let check = u64::from(HostFunction::MigrateCheck.raw());
        let answer = target.call(0, [check, 0, 0, 0, 0, 0, 0, 0]);
        // Where it comes from, while nobody holds anything yet, everything is there.
        let same = std::ptr::eq(target.board(), boards[from]);
        if page == before && same && worlds::chosen(*world).1 == Stage::Created {
            assert_eq!(answer[..3], [0; 3], "fails at home");
        }
        After::Unchanged
    });
}

type Descriptors = [[u8; PAGE_SIZE]; VMS];

/// Descriptors of every board's VMs.
fn exported() -> &'static [Descriptors] {
    static EXPORTED: OnceLock<Vec<Descriptors>> = OnceLock::new();
    EXPORTED.get_or_init(|| boards::all().iter().map(|board| export(board)).collect())
}

fn export(board: &'static Board) -> Descriptors {
    let mut world = Stage::Holding.world(board);
    let export = u64::from(HostFunction::MigrateExport.raw());
    [0, 1].map(|vm| {
        assert_eq!(world.call(0, [export, vm, 0, 0, 0, 0, 0, 0])[0], 0, "the VM is active");
        world.read_arg_page(0).expect("the world has an argument page")
    })
}
