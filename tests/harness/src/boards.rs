//! Boards for tests: small RAM with every kind of edge, and one region of every kind.

use std::ops::Range;
use std::sync::OnceLock;

use pfnguard_shared::PAGE_SHIFT;
use pfnguard_shared::Perms;
use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::{
    BlockSizes, Entry, PlatformFlags, RegionClass, RegionFlags, ResetKind,
};
use pfnguard_shared::request::{MemTypes, Modes};

use crate::board::{Board, Config};

/// RAM: an edge, a 2 MiB block and an edge; then a bank without a block. 1096 pages.
pub const RAM: [Range<u64>; 2] = [0x4_01e8..0x4_0460, 0x4_0800..0x4_09d0];

/// Registers: page 0 also holds the reset registers.
pub(crate) const MMIO: Range<u64> = 0x3_0000..0x3_0008;
/// Memory with a 2 MiB block and an edge.
pub(crate) const MEMORY: Range<u64> = 0x3_01f8..0x3_0420;
/// Memory next to it, zeroed when it comes back, of a device that polls its reset.
pub const POLLED: Range<u64> = 0x3_0420..0x3_0430;
/// Memory of a device that its driver resets.
pub(crate) const EXTERNAL: Range<u64> = 0x3_0440..0x3_0450;
/// Registers of a device that masters the bus; nothing but Device is granted (R03).
const STREAMS: Range<u64> = 0x3_0460..0x3_0464;
/// A region that is blocked.
const QUIRKED: Range<u64> = 0x3_0470..0x3_0472;
/// Registers that nobody reaches.
const CLOSED: Range<u64> = 0x3_0480..0x3_0484;
/// Memory of 1 GiB and a little.
const LARGE: Range<u64> = 0x8_0000..0xc_0002;

fn entry(name: &str, pages: Range<u64>, class: RegionClass) -> Entry {
    let mut label = [0; 32];
    label[..name.len()].copy_from_slice(name.as_bytes());
    Entry {
        name: label,
        base: pages.start << PAGE_SHIFT,
        size: (pages.end - pages.start) << PAGE_SHIFT,
        class: class.raw(),
        modes: Modes::ALL.raw(),
        types: MemTypes::DEVICE.with(MemTypes::ANY_UNCACHED).raw(),
        perms: Perms::READ.with(Perms::WRITE).raw(),
        max_vms: 2,
        blocks: BlockSizes::ALL.raw(),
        flags: RegionFlags::NC_SAFE.raw(),
        ..Entry::zeroed()
    }
}

fn memory(name: &str, pages: Range<u64>, flags: RegionFlags) -> Entry {
    Entry {
        types: MemTypes::ALL.raw(),
        perms: Perms::ALL.raw(),
        flags: flags.with(RegionFlags::NC_SAFE).raw(),
        ..entry(name, pages, RegionClass::Memory)
    }
}

/// Returns one region of every kind.
pub fn entries() -> Vec<Entry> {
    let promises = RegionFlags::CMO_BY_ADDRESS
        .with(RegionFlags::EXCLUSIVES)
        .with(RegionFlags::ATOMICS)
        .with(RegionFlags::TAGS);
    let register = MMIO.start << PAGE_SHIFT;
    let zeroed = RegionFlags::CMO_BY_ADDRESS.with(RegionFlags::ZERO_ON_RETURN);
    let mut quirk = [0; 32];
    quirk[..5].copy_from_slice(b"hangs");
    let closed = Entry {
        flags: RegionFlags::HOST_CLOSED.raw(),
        modes: 0,
        types: 0,
        perms: 0,
        max_vms: 0,
        ..entry("closed", CLOSED, RegionClass::Mmio)
    };
    vec![
        Entry {
            reset: ResetKind::Readback.raw(),
            reset_width: 4,
            reset_addr: register + 4,
            ..entry("mmio", MMIO, RegionClass::Mmio)
        },
        memory("memory", MEMORY, promises),
        Entry {
            reset: ResetKind::Poll.raw(),
            reset_width: 8,
            reset_addr: register + 8,
            reset_mask: 3,
            reset_value: 1,
            reset_bound: 3,
            ..memory("polled", POLLED, zeroed)
        },
        Entry {
            reset: ResetKind::External.raw(),
            max_vms: 1,
            blocks: BlockSizes::PAGE.raw(),
            ..memory("external", EXTERNAL, RegionFlags::EXCLUSIVES)
        },
        Entry {
            stream_count: 1,
            streams: [0x100, 0, 0, 0],
            types: MemTypes::DEVICE.raw(),
            flags: RegionFlags::NONE.raw(),
            ..entry("streams", STREAMS, RegionClass::Mmio)
        },
        Entry {
            flags: RegionFlags::QUIRKED.raw(),
            quirk,
            types: MemTypes::DEVICE.raw(),
            ..entry("quirked", QUIRKED, RegionClass::Mmio)
        },
        closed,
        Entry { modes: Modes::SHARE.raw(), ..memory("large", LARGE, promises) },
    ]
}

fn config(capabilities: Capabilities, flags: PlatformFlags, pa_bits: u32) -> Config {
    Config { ram: RAM.to_vec(), entries: entries(), flags, capabilities, pa_bits, cpus: 2 }
}

/// Without what only some CPUs have.
fn common() -> Capabilities {
    Capabilities::ALL.without(Capabilities::REPEAT_TLBI).without(Capabilities::NORMAL_NC)
}

fn without_any_uncached(mut config: Config) -> Config {
    for entry in &mut config.entries {
        entry.types &= !MemTypes::ANY_UNCACHED.raw();
        entry.flags &= !RegionFlags::NC_SAFE.raw();
    }
    config
}

fn in_pages(mut config: Config) -> Config {
    for entry in &mut config.entries {
        entry.blocks = BlockSizes::PAGE.raw();
    }
    config
}

/// Returns every board: with all abilities; without tag control, regions in pages only; without FWB
/// and DIC; and one where Normal-NC is forbidden.
pub fn all() -> &'static [&'static Board] {
    static BOARDS: OnceLock<Vec<&'static Board>> = OnceLock::new();
    BOARDS.get_or_init(|| {
        let none = PlatformFlags::NONE;
        let incoherent = common()
            .without(Capabilities::FWB)
            .without(Capabilities::DIC)
            .without(Capabilities::MTE_PERM)
            .without(Capabilities::LSE);
        let forbidden = PlatformFlags::NORMAL_NC_FORBIDDEN;
        let plain = common().without(Capabilities::MTE).without(Capabilities::MTE_PERM);
        vec![
            Board::new(config(common(), none, 48)),
            Board::new(in_pages(config(common().without(Capabilities::MTE_PERM), none, 40))),
            Board::new(config(incoherent, none, 44)),
            Board::new(without_any_uncached(config(plain, forbidden, 36))),
        ]
    })
}

/// Returns a board with one small bank of RAM and two regions: registers that are read back, and
/// memory that a driver resets.
pub fn small() -> &'static Board {
    static BOARD: OnceLock<&'static Board> = OnceLock::new();
    BOARD.get_or_init(|| {
        let mut config = config(common(), PlatformFlags::NONE, 40);
        config.ram.clear();
        config.ram.push(0x4_0000..0x4_0080);
        config.entries.retain(|entry| [MMIO, EXTERNAL].contains(&crate::board::pages(entry)));
        Board::new(config)
    })
}
