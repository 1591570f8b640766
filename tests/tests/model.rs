//! The hypervisor's decision beside the reference model's: status, rule and facts are equal for
//! every combination of a grid over manifests, platforms, contracts and requests.

use pfnguard_core::addr::{Pfn, PfnRange};
use pfnguard_core::decide::{Applicant, BindRequest, decide};
use pfnguard_core::error::{HcallError, Refusal};
use pfnguard_core::machine::{Stage2Type, TagAccess};
use pfnguard_core::manifest::{Entry as CoreEntry, Label, Manifest, Reset};
use pfnguard_core::region::RegionTable;
use pfnguard_model::{Granted, Platform, Refused, Verdict};
use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::{BlockSizes, Entry, PlatformFlags, RegionClass, RegionFlags};
use pfnguard_shared::request::{HostAlias, MemTypes, Modes, Request, RequestFlags};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{MemType, Mode, NO_PFN, PAGE_SHIFT, Perms};

const PAGE: u64 = 1 << PAGE_SHIFT;
/// First page of the entry that grids over grants use, and its length.
const PLACE: (u64, u64) = (0x100, 4);

/// One manifest on one platform, as both sides see it.
struct Bench {
    platform: Platform,
    entries: Vec<Entry>,
    table: RegionTable,
    compared: usize,
    granted: usize,
}

impl Bench {
    fn new(platform: Platform, entries: Vec<Entry>) -> Self {
        let manifest = Manifest {
            entries: entries.iter().map(core_entry).collect(),
            platform: platform.flags,
            sha256: [0; 32],
        };
        let ram: Vec<PfnRange> = platform.ram.iter().map(|ram| pages(ram.start, ram.end)).collect();
        let table = RegionTable::new(&manifest, &ram, platform.capabilities);
        Self { platform, entries, table, compared: 0, granted: 0 }
    }

    fn compare(&mut self, request: &Request, contract: ContractFlags) {
        let model = pfnguard_model::decide(&self.platform, &self.entries, request, contract);
        let core = self.core(request, contract);
        let facts = (&self.platform, &self.entries, request, contract);
        assert_eq!(core, model.map_err_to_abi(), "{facts:#x?}");
        if let Ok(granted) = core {
            assert_eq!(granted.mem_type.raw(), request.mem_type, "R09");
            assert_eq!(granted.perms.raw(), request.perms, "R09");
            self.granted += 1;
        }
        self.compared += 1;
    }

    fn core(&self, request: &Request, contract: ContractFlags) -> Result<Granted, Refusal> {
        let decoded = BindRequest::decode(request).map_err(|error| error.refusal())?;
        let applicant = Applicant { vm: Some(decoded.vm), contract };
        let grant = decide(&self.table, applicant, &decoded)
            .map_err(|refusal| HcallError::from(refusal).refusal())?;
        let mem_type = match grant.attrs.mem {
            Stage2Type::Forced(mem_type) => mem_type,
            Stage2Type::AsStage1 => panic!("a guest's type is always forced"),
        };
        let no_tags = grant.attrs.tags == TagAccess::Forbidden;
        Ok(Granted { mem_type, perms: grant.attrs.perms, no_tags })
    }
}

/// The model's verdict in the words of the ABI.
trait ToAbi {
    fn map_err_to_abi(self) -> Result<Granted, Refusal>;
}

impl ToAbi for Verdict {
    fn map_err_to_abi(self) -> Result<Granted, Refusal> {
        match self {
            Self::Granted(granted) => Ok(granted),
            Self::Refused(Refused { status, rule, subject, pfn, requested, granted }) => {
                let pfn = pfn.unwrap_or(NO_PFN);
                Err(Refusal { status, rule, subject, pfn, requested, granted })
            }
        }
    }
}

fn pages(start: u64, end: u64) -> PfnRange {
    PfnRange::new(Pfn(start / PAGE), (end - start) / PAGE).expect("a sound range")
}

fn core_entry(entry: &Entry) -> CoreEntry {
    let streams = entry.streams.iter().copied().take(usize::from(entry.stream_count));
    CoreEntry {
        name: Label::decode(&entry.name).expect("a sound name"),
        range: pages(entry.base, entry.base + entry.size),
        class: RegionClass::from_raw(entry.class).expect("a class"),
        modes: Modes::from_raw(entry.modes).expect("modes"),
        types: MemTypes::from_raw(entry.types).expect("types"),
        perms: Perms::from_raw(entry.perms).expect("perms"),
        max_vms: entry.max_vms,
        blocks: BlockSizes::from_raw(entry.blocks).expect("blocks"),
        flags: RegionFlags::from_raw(entry.flags).expect("flags"),
        reset: Reset::None,
        streams: streams.collect(),
        quirk: Label::EMPTY,
    }
}

fn entry((start, pages): (u64, u64), class: RegionClass) -> Entry {
    Entry {
        base: start * PAGE,
        size: pages * PAGE,
        class: class.raw(),
        modes: Modes::ALL.raw(),
        types: MemTypes::ALL.raw(),
        perms: Perms::ALL.raw(),
        max_vms: 1,
        blocks: BlockSizes::PAGE.raw(),
        flags: RegionFlags::NC_SAFE.raw(),
        ..Entry::zeroed()
    }
}

fn request((pfn, pages): (u64, u64), mode: Mode, mem_type: MemType, perms: Perms) -> Request {
    Request {
        mode: mode.raw(),
        mem_type: mem_type.raw(),
        perms: perms.raw(),
        pfn,
        ipa_pfn: pfn,
        pages,
        ..Request::zeroed()
    }
}

/// Every request that differs in what a manifest grants.
fn requests() -> Vec<Request> {
    let mut all = Vec::new();
    for &mode in Mode::ALL {
        for &mem_type in MemType::ALL {
            for perms in (0..=Perms::ALL.raw()).filter_map(Perms::from_raw) {
                all.push(request(PLACE, mode, mem_type, perms));
            }
        }
    }
    all
}

const CLASSES: [RegionClass; 2] = [RegionClass::Mmio, RegionClass::Memory];
const PLATFORMS: [PlatformFlags; 2] = [PlatformFlags::NONE, PlatformFlags::NORMAL_NC_FORBIDDEN];

fn subsets<T>(all: u64, from_raw: impl Fn(u64) -> Option<T>) -> Vec<T> {
    (0..=all).filter(|raw| raw & !all == 0).filter_map(from_raw).collect()
}

#[test]
fn the_model_agrees_on_every_combination_of_grants_and_requests() {
    let capabilities = Capabilities::FWB.with(Capabilities::DIC);
    let requests = requests();
    let (mut compared, mut granted) = (0, 0);
    for class in CLASSES {
        for (modes, types) in (0..4).flat_map(|modes| (0..8).map(move |types| (modes, types))) {
            for perms in 0..8 {
                for flags in [RegionFlags::NONE, RegionFlags::NC_SAFE, RegionFlags::QUIRKED] {
                    for platform in PLATFORMS {
                        let platform = Platform { capabilities, flags: platform, ram: vec![] };
                        let flags = flags.raw();
                        let entry = Entry { modes, types, perms, flags, ..entry(PLACE, class) };
                        let mut bench = Bench::new(platform, vec![entry]);
                        for request in &requests {
                            bench.compare(request, ContractFlags::NONE);
                        }
                        compared += bench.compared;
                        granted += bench.granted;
                    }
                }
            }
        }
    }
    assert_eq!(compared, 2 * 4 * 8 * 8 * 3 * 2 * requests.len());
    assert!(granted > 0 && granted < compared);
}

#[test]
fn the_model_agrees_on_every_combination_of_abilities_promises_and_contracts() {
    let abilities = Capabilities::FWB.with(Capabilities::DIC).with(Capabilities::MTE_PERM);
    let promises = RegionFlags::CMO_BY_ADDRESS
        .with(RegionFlags::TAGS)
        .with(RegionFlags::EXCLUSIVES)
        .with(RegionFlags::ATOMICS);
    let contracts = subsets(u64::from(ContractFlags::ALL.raw()), |raw| {
        u32::try_from(raw).ok().and_then(ContractFlags::from_raw)
    });
    let promises = subsets(u64::from(promises.raw()), |raw| {
        u32::try_from(raw).ok().and_then(RegionFlags::from_raw)
    });
    let (mut compared, mut granted) = (0, 0);
    for capabilities in subsets(abilities.raw(), Capabilities::from_raw) {
        for &promise in &promises {
            for stream_count in [0, 3] {
                let flags = promise.with(RegionFlags::NC_SAFE).raw();
                let entry = Entry { flags, stream_count, ..entry(PLACE, RegionClass::Memory) };
                let platform = Platform { capabilities, ..Platform::default() };
                let mut bench = Bench::new(platform, vec![entry]);
                compare_uses(&mut bench, &contracts);
                compared += bench.compared;
                granted += bench.granted;
            }
        }
    }
    assert_eq!(compared, 8 * 16 * 2 * 8 * requests().len() * 3 * 2);
    assert!(granted > 0 && granted < compared);
}

fn compare_uses(bench: &mut Bench, contracts: &[ContractFlags]) {
    for &contract in contracts {
        for request in requests() {
            for &alias in HostAlias::ALL {
                for flags in [RequestFlags::NONE, RequestFlags::GENERAL_PURPOSE] {
                    let (alias, flags) = (alias.raw(), flags.raw());
                    bench.compare(&Request { alias, flags, ..request }, contract);
                }
            }
        }
    }
}

#[test]
fn the_model_agrees_on_every_place_among_entries_and_ram() {
    let entries = [(4, 4), (8, 4), (16, 2)].map(|place| entry(place, RegionClass::Memory));
    let platform = Platform {
        ram: vec![20 * PAGE..22 * PAGE, 12 * PAGE..14 * PAGE, 14 * PAGE..15 * PAGE],
        ..Platform::default()
    };
    let mut bench = Bench::new(platform, entries.to_vec());
    for start in 0..26 {
        for pages in 1..26 {
            let request = request((start, pages), Mode::Share, MemType::Device, Perms::READ);
            bench.compare(&request, ContractFlags::NONE);
        }
    }
    assert_eq!(bench.granted, 10 + 10 + 3, "the ranges within one entry");
}

#[test]
fn the_model_agrees_on_malformed_requests() {
    let mut bench = Bench::new(Platform::default(), vec![entry(PLACE, RegionClass::Memory)]);
    let sound = request(PLACE, Mode::Share, MemType::Device, Perms::READ);
    let changes: [fn(&mut Request, u8); 6] = [
        |r, byte| r.mode = byte,
        |r, byte| r.mem_type = byte,
        |r, byte| r.perms = byte,
        |r, byte| r.flags = byte,
        |r, byte| r.alias = byte,
        |r, byte| r.reserved = byte,
    ];
    for change in changes {
        for byte in 0..=u8::MAX {
            let mut request = sound;
            change(&mut request, byte);
            bench.compare(&request, ContractFlags::NONE);
        }
    }
    let edges = [0, 1, PLACE.0, (1 << 40) - 1, 1 << 40, (1 << 40) + 1, 1 << 52, u64::MAX];
    for (pfn, ipa_pfn) in edges.iter().flat_map(|pfn| edges.map(|ipa| (*pfn, ipa))) {
        for pages in edges {
            bench.compare(&Request { pfn, ipa_pfn, pages, ..sound }, ContractFlags::NONE);
        }
    }
}
