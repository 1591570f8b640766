//! Calls that read and write the argument page, on anything that a host may have left there. The
//! harness lets no word be read twice.

use pfnguard_shared::{HostFunction, PAGE_SIZE};

use crate::worlds::{self, After};

const FUNCTIONS: [HostFunction; 4] = [
    HostFunction::PfnmapCheck,
    HostFunction::MigrateCheck,
    HostFunction::MigrateExport,
    HostFunction::RegionInfo,
];

/// A byte that chooses the world, one for the function, one for `x1`, then the page.
///
/// # Panics
/// Where the call is not as specified.
pub fn run(data: &[u8]) {
    let Some(([world, function, x1], page)) = data.split_first_chunk() else { return };
    let function = FUNCTIONS[usize::from(*function) % FUNCTIONS.len()];
    worlds::with(*world, |world| {
        let mut contents = [0; PAGE_SIZE];
        let length = page.len().min(PAGE_SIZE);
        contents[..length].copy_from_slice(&page[..length]);
        world.write_arg_page(0, 0, &contents);
        world.call(0, [function.raw().into(), u64::from(*x1), 0, 0, 0, 0, 0, 0]);
        // None of them changes more than the page, which the next input writes anew.
        After::Unchanged
    });
}
