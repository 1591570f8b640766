//! Worlds prepared in a few fixed ways, so that one call says much.

use pfnguard_shared::request::{HostAlias, Request, RequestFlags};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{HostFunction, MemType, Mode, Perms};

use crate::board::Board;
use crate::boards::{EXTERNAL, MEMORY, MMIO, RAM};
use crate::world::World;

/// How far a world has come. Each has done what those before have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing was called.
    Launched,
    /// CPU 0 has an argument page; VM 0 is not protected, VM 1 is; each has a vCPU that can run.
    Created,
    /// VM 0 has RAM of its own and of the host's, a region that is mapped and one that is not;
    /// VM 1 owns RAM and a region.
    Holding,
    /// VM 1 is dying, its region in quarantine.
    Dying,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 4] = [Self::Launched, Self::Created, Self::Holding, Self::Dying];

    /// Launches a board and brings it to this stage.
    ///
    /// # Panics
    /// Where a call on the way there is refused, or not as specified.
    pub fn world(self, board: &'static Board) -> World {
        let mut world = World::new(board);
        for (stage, calls) in [
            (Self::Created, created()),
            (Self::Holding, holding()),
            (Self::Dying, vec![call(HostFunction::VmTeardown, [1, 0, 0, 0, 0])]),
        ] {
            if stage > self {
                break;
            }
            for regs in calls {
                assert_eq!(world.call(0, regs)[0], 0, "{stage:?}: {regs:x?}");
            }
        }
        world
    }
}

/// The argument page.
pub const ARG_PAGE: u64 = RAM[0].start;
/// Pages of a VM's tables.
const TABLES: u64 = 12;
/// The first 2 MiB block of RAM.
pub const BLOCK: u64 = RAM[0].start.next_multiple_of(512);

fn call(function: HostFunction, args: [u64; 5]) -> [u64; 8] {
    let [x1, x2, x3, x4, x5] = args;
    [function.raw().into(), x1, x2, x3, x4, x5, 0, 0]
}

fn created() -> Vec<[u64; 8]> {
    use HostFunction as F;
    let tables = [BLOCK + 64, BLOCK + 64 + TABLES];
    let protected = u64::from(ContractFlags::PROTECTED.raw());
    vec![
        call(F::HostShareHyp, [ARG_PAGE, 1, 0, 0, 0]),
        call(F::ArgPageSet, [ARG_PAGE, 0, 0, 0, 0]),
        call(F::VmCreate, [0, 2, tables[0], TABLES, 0]),
        call(F::VmCreate, [protected, 1, tables[1], TABLES, 0]),
        call(F::VcpuInit, [0, 0, 0x1000, 0, 0]),
        call(F::VcpuInit, [1, 0, 0x1000, 0, 0]),
    ]
}

fn holding() -> Vec<[u64; 8]> {
    use HostFunction as F;
    let all = u64::from(Perms::ALL.raw());
    vec![
        call(F::HostDonateGuest, [0, BLOCK, 0, 4, 0]),
        call(F::HostShareGuest, [0, BLOCK + 8, 8, 2, all]),
        call(F::HostDonateGuest, [1, BLOCK + 16, 0, 4, 0]),
        bind(0, Mode::Share, MEMORY.start, 0x200, 2, RequestFlags::MAP_NOW),
        bind(0, Mode::Share, MMIO.start, 0x210, 1, RequestFlags::NONE),
        bind(1, Mode::Donate, EXTERNAL.start, 0x200, 2, RequestFlags::NONE),
    ]
}

/// Of the one type that every board grants.
fn bind(vm: u16, mode: Mode, pfn: u64, ipa_pfn: u64, pages: u64, flags: RequestFlags) -> [u64; 8] {
    let request = Request {
        vm,
        mode: mode.raw(),
        mem_type: MemType::Device.raw(),
        perms: Perms::READ.with(Perms::WRITE).raw(),
        flags: flags.raw(),
        alias: HostAlias::None.raw(),
        pfn,
        ipa_pfn,
        pages,
        ..Request::zeroed()
    };
    call(HostFunction::PfnmapBind, [request.word().0, pfn, ipa_pfn, pages, 0])
}

#[cfg(test)]
mod tests {
    use pfnguard_shared::info::RegionState;

    use super::*;
    use crate::boards;

    #[test]
    fn every_board_comes_to_every_stage() {
        for board in boards::all() {
            for stage in Stage::ALL {
                stage.world(board).finish();
            }
            let world = Stage::Dying.world(board);
            let waits = |region: &&_| **region == RegionState::Quarantined;
            let regions: Vec<_> = world.state().regions.iter().map(|one| one.state).collect();
            assert_eq!(regions.iter().filter(waits).count(), 1);
            assert_eq!(world.state().vms.len(), 2);
        }
    }
}
