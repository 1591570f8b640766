use std::vec;
use std::vec::Vec;

use pfnguard_shared::HostFunction;
use pfnguard_shared::Mode;
use pfnguard_shared::request::RequestFlags;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::addr::{Pfn, PfnRange};
use crate::fake::{self, FakeMachine, RAM, Setup};
use crate::hypervisor::Hypervisor;
use crate::region::fixture::{MEMORY, MMIO, memory, mmio, range, request};

const ARG_PAGE: u64 = RAM.0 + 1;
const HEADER: usize = size_of::<MigrationHeader>();

fn small_ram() -> Vec<PfnRange> {
    vec![range((RAM.0, 128)), range((fake::IMAGE.start().0, 128))]
}

struct Bench {
    hv: Hypervisor<FakeMachine>,
    cpu: Cpu<FakeMachine>,
}

impl Bench {
    fn new(entries: Vec<Entry>, capabilities: Capabilities) -> Self {
        let (hv, mut cpus) =
            Setup { entries, capabilities, ram: small_ram(), ..Setup::default() }.launch();
        let mut bench = Self { hv, cpu: cpus.remove(0) };
        bench.done(HostFunction::HostShareHyp, &[ARG_PAGE, 1]);
        bench.done(HostFunction::ArgPageSet, &[ARG_PAGE]);
        bench
    }

    /// A host with a VM that shares cacheable memory and has MMIO donated as device.
    fn source(capabilities: Capabilities, contract: ContractFlags) -> Self {
        let mut bench = Self::new(vec![mmio(), memory()], capabilities);
        let flags = u64::from(contract.raw());
        bench.done(HostFunction::VmCreate, &[flags, 1, RAM.0 + 16, 16]);
        let mut part = request(MEMORY, Mode::Share, MemType::Cacheable);
        (part.pfn, part.pages) = (MEMORY.0 + 4, 8);
        for wire in [part, request(MMIO, Mode::Donate, MemType::Device)] {
            let args = [wire.word().0, wire.pfn, wire.ipa_pfn, wire.pages];
            bench.done(HostFunction::PfnmapBind, &args);
        }
        bench
    }

    fn call(&mut self, function: HostFunction, args: &[u64]) -> [u64; 8] {
        fake::call(&self.hv, &mut self.cpu, function, args)
    }

    fn done(&mut self, function: HostFunction, args: &[u64]) -> [u64; 8] {
        let regs = self.call(function, args);
        assert_eq!(Status::from_register(regs[0]), Some(Status::Success), "{regs:x?}");
        regs
    }

    fn export(&mut self) -> Vec<u8> {
        let bytes = self.done(HostFunction::MigrateExport, &[0])[1];
        let mut descriptor = vec![0; usize::try_from(bytes).unwrap()];
        self.cpu.local.read(Pfn(ARG_PAGE), 0, &mut descriptor);
        descriptor
    }

    /// Checks a descriptor: failing items, the header and the items as they came back.
    fn check(&mut self, descriptor: &[u8]) -> (u64, MigrationHeader, Vec<MigrationItem>) {
        self.cpu.local.write(Pfn(ARG_PAGE), 0, descriptor);
        let failed = self.done(HostFunction::MigrateCheck, &[])[1];
        let mut back = vec![0; descriptor.len()];
        self.cpu.local.read(Pfn(ARG_PAGE), 0, &mut back);
        (failed, header(&back), items(&back))
    }
}

fn header(descriptor: &[u8]) -> MigrationHeader {
    MigrationHeader::read_from_bytes(&descriptor[..HEADER]).unwrap()
}

fn items(descriptor: &[u8]) -> Vec<MigrationItem> {
    let chunks = descriptor[HEADER..].chunks(size_of::<MigrationItem>());
    chunks.map(|bytes| MigrationItem::read_from_bytes(bytes).unwrap()).collect()
}

fn coherent() -> Capabilities {
    Capabilities::FWB.with(Capabilities::DIC).with(Capabilities::MTE)
}

#[test]
fn r33_a_descriptor_names_what_a_vm_needs() {
    let mut bench = Bench::source(coherent(), ContractFlags::NONE);
    let descriptor = bench.export();
    let found = header(&descriptor);
    assert_eq!((found.magic, found.version, found.items), (MAGIC, VERSION, 2));
    assert_eq!(found.contract, 0);
    assert_eq!(found.capabilities, COHERENT.raw());
    let items = items(&descriptor);
    assert_eq!(&items[0].name[..7], b"memory\0");
    assert_eq!((items[0].offset_pages, items[0].pages), (4, 8));
    assert_eq!(items[0].ipa_pfn, MEMORY.0);
    assert_eq!((items[0].mode, items[0].mem_type, items[0].perms), (1, 3, 3));
    assert_eq!((items[0].flags, items[1].flags), (0, 0));
}

#[test]
fn r33_a_tagged_general_purpose_vm_needs_tags_exclusives_and_atomics() {
    let contract = ContractFlags::GENERAL_PURPOSE.with(ContractFlags::MTE);
    let mut bench = Bench::new(vec![memory()], coherent().with(Capabilities::LSE));
    let flags = u64::from(contract.raw());
    bench.done(HostFunction::VmCreate, &[flags, 1, RAM.0 + 16, 16]);
    let wire = request(MEMORY, Mode::Share, MemType::Cacheable);
    bench.done(HostFunction::PfnmapBind, &[wire.word().0, wire.pfn, wire.ipa_pfn, wire.pages]);
    let descriptor = bench.export();
    let needed = COHERENT.with(Capabilities::MTE).with(Capabilities::LSE);
    assert_eq!(header(&descriptor).capabilities, needed.raw());
    let promises = RegionFlags::TAGS.with(RegionFlags::EXCLUSIVES).with(RegionFlags::ATOMICS);
    assert_eq!(items(&descriptor)[0].flags, promises.raw());
}

#[test]
fn r33_a_vm_moves_to_a_host_that_has_the_same() {
    let descriptor = Bench::source(coherent(), ContractFlags::MTE).export();
    let mut target = Bench::new(vec![mmio(), memory()], coherent());
    let before = fake::snapshot(&target.hv);
    let (failed, header, items) = target.check(&descriptor);
    assert_eq!((failed, header.status, header.missing), (0, 0, 0));
    assert!(items.iter().all(|item| (item.status, item.rule) == (0, 0)));
    assert_eq!(fake::snapshot(&target.hv), before);
}

#[test]
fn r33_each_item_that_fails_on_the_next_host_is_named() {
    let descriptor = Bench::source(coherent(), ContractFlags::MTE).export();
    let mut target = Bench::new(vec![mmio(), memory()], Capabilities::DIC);
    let (failed, header, items) = target.check(&descriptor);
    assert_eq!(failed, 1);
    assert_eq!((header.status, header.rule), (Status::Unsupported.raw(), Rule::R07.raw()));
    assert_eq!(header.missing, Capabilities::FWB.with(Capabilities::MTE).raw());
    assert_eq!(items[0].status, Status::Unsupported.raw());
    assert_eq!((items[0].rule, items[0].subject), (7, Subject::Capabilities.raw()));
    assert_eq!(items[1].status, 0);
}

#[test]
fn r33_a_region_that_the_next_host_lacks_is_not_found() {
    let descriptor = Bench::source(coherent(), ContractFlags::NONE).export();
    let (failed, _, items) = Bench::new(vec![mmio()], coherent()).check(&descriptor);
    assert_eq!(failed, 1);
    assert_eq!((items[0].status, items[0].rule), (Status::NotFound.raw(), Rule::R33.raw()));
}

#[test]
fn r33_properties_that_a_binding_rests_on_must_be_there() {
    let mut bench = Bench::new(vec![memory()], Capabilities::MTE);
    bench.done(HostFunction::VmCreate, &[0, 1, RAM.0 + 16, 16]);
    let wire = request(MEMORY, Mode::Donate, MemType::Cacheable); // by R08
    bench.done(HostFunction::PfnmapBind, &[wire.word().0, wire.pfn, wire.ipa_pfn, wire.pages]);
    let descriptor = bench.export();
    assert_eq!(header(&descriptor).capabilities, 0);
    assert_eq!(items(&descriptor)[0].flags, RegionFlags::CMO_BY_ADDRESS.raw());
    let mut entry = memory();
    entry.flags = entry.flags.without(RegionFlags::CMO_BY_ADDRESS);
    let (failed, _, items) = Bench::new(vec![entry], coherent()).check(&descriptor);
    assert_eq!(failed, 1);
    assert_eq!((items[0].rule, items[0].subject), (33, Subject::RegionFlags.raw()));
}

/// The flags that a binding was requested with are part of what is asked of the next host.
#[test]
fn r33_a_general_purpose_binding_needs_atomics_on_the_next_host_too() {
    let mut bench = Bench::new(vec![memory()], coherent().with(Capabilities::LSE));
    bench.done(HostFunction::VmCreate, &[0, 1, RAM.0 + 16, 16]);
    let mut wire = request(MEMORY, Mode::Share, MemType::Cacheable);
    wire.flags = RequestFlags::GENERAL_PURPOSE.raw();
    bench.done(HostFunction::PfnmapBind, &[wire.word().0, wire.pfn, wire.ipa_pfn, wire.pages]);
    let descriptor = bench.export();
    assert_eq!(items(&descriptor)[0].request_flags, RequestFlags::GENERAL_PURPOSE.raw());
    let mut entry = memory();
    entry.flags = entry.flags.without(RegionFlags::ATOMICS);
    // Without the flags of the item, nothing would be asked but what it says that it had.
    let mut bytes = descriptor.clone();
    let at = HEADER + core::mem::offset_of!(MigrationItem, flags);
    bytes[at..at + 4].fill(0);
    let target = vec![entry];
    let (failed, _, items) = Bench::new(target, coherent().with(Capabilities::LSE)).check(&bytes);
    assert_eq!((failed, items[0].subject), (1, Subject::RegionFlags.raw()));
}

/// Tags count where the VM has them and the binding allows them.
#[test]
fn r33_cacheable_memory_of_a_vm_with_tags_needs_tags() {
    for (contract, tags) in
        [(ContractFlags::MTE, RegionFlags::TAGS), (ContractFlags::NONE, RegionFlags::NONE)]
    {
        let descriptor = Bench::source(coherent(), contract).export();
        assert_eq!(items(&descriptor)[0].flags, tags.raw());
    }
}

#[test]
fn r33_a_smaller_region_refuses_the_item() {
    let descriptor = Bench::source(coherent(), ContractFlags::NONE).export();
    let mut small = memory();
    small.range = range((MEMORY.0, 6));
    let (failed, _, items) = Bench::new(vec![mmio(), small], coherent()).check(&descriptor);
    assert_eq!((failed, items[0].rule), (1, Rule::R14.raw()));
}

#[test]
fn a_page_without_a_descriptor_is_refused_and_left_as_it_is() {
    let sound = Bench::source(coherent(), ContractFlags::NONE).export();
    let mut target = Bench::new(vec![mmio(), memory()], coherent());
    let changes: [fn(&mut MigrationHeader); 6] = [
        |h| h.magic[0] = 0,
        |h| h.version = 2,
        |h| h.items = 51,
        |h| h.reserved = 1,
        |h| h.contract = 0x80,
        |h| h.capabilities = 1 << 63,
    ];
    for change in changes {
        let mut header = header(&sound);
        change(&mut header);
        target.cpu.local.write(Pfn(ARG_PAGE), 0, header.as_bytes());
        let regs = target.call(HostFunction::MigrateCheck, &[]);
        assert_eq!(regs[0], Status::InvalidParameter.to_register());
        let mut back = MigrationHeader::zeroed();
        target.cpu.local.read(Pfn(ARG_PAGE), 0, back.as_mut_bytes());
        assert_eq!(back, header);
    }
}

#[test]
fn garbage_items_fail_one_by_one() {
    let mut descriptor = Bench::source(coherent(), ContractFlags::NONE).export();
    let changes: [fn(&mut MigrationItem); 7] = [
        |i| i.name = [0xff; 32],
        |i| i.mode = 9,
        |i| i.flags = u32::MAX,
        |i| i.reserved = 1,
        |i| i.offset_pages = u64::MAX,
        |i| i.ipa_pfn = 1 << 28,
        |i| i.pages = 0,
    ];
    let sound = items(&descriptor)[0];
    for change in changes {
        let mut item = sound;
        change(&mut item);
        descriptor[HEADER..HEADER + size_of::<MigrationItem>()].copy_from_slice(item.as_bytes());
        let mut target = Bench::new(vec![mmio(), memory()], coherent());
        let (failed, _, items) = target.check(&descriptor);
        assert_eq!(failed, 1, "{item:?}");
        assert_ne!(items[0].status, 0);
    }
}

/// A descriptor can leave its claim out; the contract still counts (R20).
#[test]
fn r20_a_contract_with_mte_needs_mte_whatever_is_claimed() {
    let mte = ContractFlags::MTE;
    let mut descriptor = Bench::source(Capabilities::ALL, mte).export();
    let claims = core::mem::offset_of!(MigrationHeader, capabilities);
    let claimed = u64::from_le_bytes(descriptor[claims..claims + 8].try_into().unwrap());
    let without = claimed & !Capabilities::MTE.raw();
    descriptor[claims..claims + 8].copy_from_slice(&without.to_le_bytes());
    let mut target =
        Bench::new(vec![mmio(), memory()], Capabilities::ALL.without(Capabilities::MTE));
    let (_, header, _) = target.check(&descriptor);
    assert_eq!((header.missing, header.rule), (Capabilities::MTE.raw(), Rule::R20.raw()));
}
