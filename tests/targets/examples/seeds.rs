//! Writes the seeds of the targets that take calls: `cargo run -p pfnguard-targets --example seeds`.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

use pfnguard_harness::prepared::{ARG_PAGE, BLOCK};
use pfnguard_harness::rules::counted;
use pfnguard_harness::{Stage, boards};
use pfnguard_shared::HostFunction as F;
use pfnguard_shared::migration::MigrationHeader;
use pfnguard_shared::request::{Request, RequestFlags};
use pfnguard_shared::{MemType, Mode, Perms};
use pfnguard_targets::sequence;
use zerocopy::IntoBytes;

/// Sequences of which some become seeds.
const CANDIDATES: u64 = 20_000;
/// Bytes of each.
const BYTES: usize = 1024;

fn main() -> io::Result<()> {
    for (name, regs) in calls() {
        let dying = matches!(name, F::HostReclaimGuest | F::VmFree | F::PfnmapReset);
        let stage = if dying { Stage::Dying } else { Stage::Holding };
        let bytes = [&[world(stage), 0], regs.as_bytes()].concat();
        write("single_call", &name.name().to_lowercase(), &bytes)?;
    }
    // R01 and R15: pages in no region, and RAM.
    let request = request();
    for (name, pfn) in [("bind_nowhere", 0x100), ("bind_ram", BLOCK + 256)] {
        let bind = u64::from(F::PfnmapBind.raw());
        let regs = [bind, request.word().0, pfn, request.ipa_pfn, 1, 0, 0, 0];
        write("single_call", name, &[&[world(Stage::Holding), 0], regs.as_bytes()].concat())?;
    }
    for (name, bytes) in pages() {
        write("arg_page", name, &bytes)?;
    }
    for (name, bytes) in descriptors() {
        write("migration", name, &bytes)?;
    }
    sequences()
}

fn write(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    fs::create_dir_all(&corpus)?;
    fs::write(corpus.join(name), bytes)
}

/// The byte that chooses this stage on the first board.
fn world(stage: Stage) -> u8 {
    let stage = Stage::ALL.iter().position(|one| *one == stage).expect("a stage");
    u8::try_from(stage * boards::all().len()).expect("few worlds")
}

/// A request for a page of the region of memory, which every board grants.
fn request() -> Request {
    Request {
        vm: 0,
        mode: Mode::Share.raw(),
        mem_type: MemType::Device.raw(),
        perms: Perms::READ.with(Perms::WRITE).raw(),
        flags: RequestFlags::MAP_NOW.raw(),
        pfn: boards::all()[0].machine.region_pages(1).start + 8,
        ipa_pfn: 0x300,
        pages: 1,
        ..Request::zeroed()
    }
}

/// Every function, with arguments that the prepared worlds grant.
fn calls() -> Vec<(F, [u64; 8])> {
    let request = request();
    let free = BLOCK + 256;
    let arguments = |function: F| match function {
        F::Uid | F::Revision | F::ArgPageClear | F::TraceInfo | F::MigrateCheck => vec![],
        F::Info => vec![4],
        F::RegionInfo | F::PfnmapCheck => vec![1],
        F::ArgPageSet => vec![ARG_PAGE],
        F::HostShareHyp => vec![free, 2],
        F::HostUnshareHyp => vec![ARG_PAGE, 1],
        F::HostShareGuest => vec![0, free, 16, 2, 7],
        F::HostUnshareGuest => vec![0, BLOCK + 8, 8, 1],
        F::HostDonateGuest => vec![0, free, 16, 2],
        F::HostReclaimGuest => vec![1, BLOCK + 16, 4],
        F::VmCreate => vec![1, 2, free, 8],
        F::VmPoolAdd => vec![0, free, 1],
        F::VmEnableMte | F::VmTeardown | F::VmFree | F::MigrateExport => vec![1],
        F::VcpuInit => vec![0, 1, 0x1000, 5],
        F::VcpuRun => vec![0, 0],
        F::VcpuGetReg => vec![0, 0, 1],
        F::VcpuSetReg => vec![0, 0, 1, 7],
        F::PfnmapBind => vec![request.word().0, request.pfn, request.ipa_pfn, request.pages],
        F::PfnmapMap | F::PfnmapUnbind => vec![0, 0x210],
        F::PfnmapReset => vec![3],
        F::PfnmapProbe => vec![0, 0x200],
    };
    let regs = |function: &F| {
        let mut regs = [0; 8];
        let args = arguments(*function);
        regs[0] = u64::from(function.raw());
        regs[1..=args.len()].copy_from_slice(&args);
        (*function, regs)
    };
    F::ALL.iter().map(regs).collect()
}

/// A batch of three requests of which one is granted; a descriptor's header; two calls that write.
fn pages() -> Vec<(&'static str, Vec<u8>)> {
    let holding = world(Stage::Holding);
    let good = request();
    let executable = Request { perms: Perms::ALL.raw(), ..good };
    let batch = [good, executable, Request::zeroed()];
    let header = MigrationHeader {
        magic: pfnguard_shared::migration::MAGIC,
        version: pfnguard_shared::migration::VERSION,
        ..MigrationHeader::zeroed()
    };
    vec![
        ("check", [&[holding, 0, 3], batch.as_bytes()].concat()),
        ("migrate-check", [&[holding, 1, 0], header.as_bytes()].concat()),
        ("migrate-export", vec![holding, 2, 0]),
        ("region-info", vec![holding, 3, 1]),
    ]
}

/// Unchanged, where it came from and elsewhere; with another number of items and another type.
fn descriptors() -> Vec<(&'static str, Vec<u8>)> {
    const ITEMS: u8 = 12;
    const TYPE: u8 = 48 + 32 + 3 * 8 + 4 + 1;
    vec![
        ("home", vec![0, world(Stage::Created)]),
        ("elsewhere", vec![1, world(Stage::Dying) + 2]),
        ("more-items", vec![0, world(Stage::Created), ITEMS, 0, 7]),
        ("cacheable", vec![0, world(Stage::Created), TYPE, 0, 2]),
    ]
}

/// Of many random sequences those that exercise a rule in a way that none before did.
fn sequences() -> io::Result<()> {
    let (mut seen, mut random) = (BTreeSet::new(), 0x9e37_79b9_7f4a_7c15u64);
    for number in 0..CANDIDATES {
        let mut bytes = vec![number.to_le_bytes()[0]];
        for _ in 0..BYTES / 8 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            bytes.extend(random.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        let exercised = counted(|| sequence::run(&bytes));
        let granted = exercised.granted.keys().map(|rule| (*rule, true));
        let refused = exercised.refused.keys().map(|rule| (*rule, false));
        let new = granted.chain(refused).filter(|one| seen.insert(*one)).count();
        if new > 0 {
            println!("sequence {number}: {new} new, {} in all", seen.len());
            write("sequence", &format!("rules-{:02}", seen.len()), &bytes)?;
        }
    }
    Ok(())
}
