use super::fixture::{COHERENT_CPU, MEMORY, MMIO, RAM, manifest, memory, mmio, range, table};
use super::*;

fn vm(number: u64) -> VmId {
    VmId::from_raw(number).unwrap()
}

fn id(number: u64) -> RegionId {
    RegionId::from_raw(number).unwrap()
}

fn binding(ipa: u64, state: BindingState) -> Binding {
    Binding {
        region: id(1),
        vm: vm(0),
        ipa: IpaRange::new(IpaPfn(ipa), 4).unwrap(),
        pfns: PfnRange::new(Pfn(MEMORY.0), 4).unwrap(),
        mode: Mode::Share,
        mem_type: MemType::Cacheable,
        perms: Perms::READ,
        tags: TagAccess::Allowed,
        flags: RequestFlags::NONE,
        state,
    }
}

fn host_type(table: &RegionTable, pfn: u64) -> Result<Stage2Type, RegionState> {
    match table.host_view(Pfn(pfn)) {
        Some(HostView::Region { attrs, .. }) => attrs.map(|attrs| attrs.mem),
        Some(HostView::Outside { .. }) | None => panic!("no region at {pfn:#x}"),
    }
}

#[test]
fn r45_what_is_closed_has_no_host_translation() {
    let mut entry = mmio();
    entry.flags = RegionFlags::HOST_CLOSED;
    let table = table(&[entry], Capabilities::ALL);
    let view = table.host_view(Pfn(MMIO.0));
    assert!(matches!(view, Some(HostView::Region { attrs: Err(RegionState::Free), .. })));
}

#[test]
fn a_page_is_found_in_its_region_only() {
    let table = table(&[mmio(), memory()], COHERENT_CPU);
    let found = |pfn| table.lookup(Pfn(pfn)).map(|(id, _)| id);
    assert_eq!(found(MMIO.0 - 1), None);
    assert_eq!(found(MMIO.0), Some(id(0)));
    assert_eq!(found(MEMORY.0 - 1), Some(id(0)));
    assert_eq!(found(MEMORY.0), Some(id(1)));
    assert_eq!(found(RAM.0), None);
    assert_eq!(table.first_in(&range((0, PFN_LIMIT))).map(|(id, _)| id), Some(id(0)));
}

#[test]
fn pages_outside_reach_up_to_the_neighbouring_regions() {
    let mut far = memory();
    far.range = range((0x2_0000, 1));
    let table = table(&[mmio(), far], COHERENT_CPU);
    let outside = |start, end: u64| Some(HostView::Outside { range: range((start, end - start)) });
    assert_eq!(table.host_view(Pfn(0)), outside(0, MMIO.0));
    assert_eq!(table.host_view(Pfn(RAM.0)), outside(MMIO.0 + MMIO.1, 0x2_0000));
    assert_eq!(table.host_view(Pfn(PFN_LIMIT - 1)), outside(0x2_0001, PFN_LIMIT));
    assert_eq!(table.host_view(Pfn(PFN_LIMIT)), None);
    assert_eq!(table.host_view(Pfn(u64::MAX)), None);
}

#[test]
fn r06_the_host_has_no_cacheable_lines_of_mmio() {
    let table = table(&[mmio(), memory()], COHERENT_CPU);
    assert_eq!(host_type(&table, MMIO.0), Ok(Stage2Type::Forced(MemType::AnyUncached)));
    assert_eq!(host_type(&table, MEMORY.0), Ok(Stage2Type::AsStage1));
}

#[test]
fn r03_the_host_gets_device_where_nothing_more_is_granted() {
    let mut ungranted = mmio();
    ungranted.types = MemTypes::NONE;
    let table = table(&[ungranted], COHERENT_CPU);
    assert_eq!(host_type(&table, MMIO.0), Ok(Stage2Type::Forced(MemType::Device)));
}

#[test]
fn r04_the_host_gets_no_normal_nc_where_the_platform_forbids_it() {
    let mut forbidden = manifest(&[mmio()]);
    forbidden.platform = PlatformFlags::NORMAL_NC_FORBIDDEN;
    let table = RegionTable::new(&forbidden, &[], COHERENT_CPU.with(Capabilities::NORMAL_NC));
    assert_eq!(host_type(&table, MMIO.0), Ok(Stage2Type::Forced(MemType::Device)));
    assert!(!table.capabilities().contains(Capabilities::NORMAL_NC));
}

#[test]
fn r40_the_host_has_no_cacheable_lines_that_nobody_could_clean() {
    let mut uncleanable = memory();
    uncleanable.flags = RegionFlags::NC_SAFE;
    let table = table(&[uncleanable], COHERENT_CPU);
    assert_eq!(host_type(&table, MEMORY.0), Ok(Stage2Type::Forced(MemType::AnyUncached)));
}

#[test]
fn r10_the_host_has_the_type_of_a_shared_region_and_nothing_of_a_donated_one() {
    let mut table = table(&[mmio(), memory()], COHERENT_CPU);
    table.set_hold(id(1), Hold::Shared(MemType::AnyUncached));
    assert_eq!(host_type(&table, MEMORY.0), Ok(Stage2Type::Forced(MemType::AnyUncached)));
    table.set_hold(id(1), Hold::Donated(vm(0), MemType::Device));
    assert_eq!(host_type(&table, MEMORY.0), Err(RegionState::Donated));
}

#[test]
fn r41_nobody_has_a_region_in_quarantine_the_host_included() {
    let mut table = table(&[mmio()], COHERENT_CPU);
    table.set_hold(id(0), Hold::Quarantined);
    assert_eq!(host_type(&table, MMIO.0), Err(RegionState::Quarantined));
    table.set_hold(id(0), Hold::Lost);
    assert_eq!(host_type(&table, MMIO.0), Err(RegionState::Lost));
}

#[test]
fn r11_the_host_executes_from_no_region() {
    let table = table(&[mmio(), memory()], COHERENT_CPU);
    for pfn in [MMIO.0, MEMORY.0] {
        let Some(HostView::Region { attrs: Ok(attrs), .. }) = table.host_view(Pfn(pfn)) else {
            panic!("no view")
        };
        assert!(!attrs.perms.contains(Perms::EXEC));
    }
}

#[test]
fn r20_the_host_cannot_reach_tags_that_do_not_exist() {
    let tags = |entry, capabilities| match table(&[entry], capabilities).host_view(Pfn(MEMORY.0)) {
        Some(HostView::Region { attrs: Ok(attrs), .. }) => attrs.tags,
        other => panic!("{other:?}"),
    };
    let mut tagless = memory();
    tagless.flags = RegionFlags::CMO_BY_ADDRESS;
    let forbids = COHERENT_CPU.with(Capabilities::MTE_PERM);
    assert_eq!(tags(tagless.clone(), forbids), TagAccess::Forbidden);
    assert_eq!(tags(tagless, COHERENT_CPU), TagAccess::Allowed);
    assert_eq!(tags(memory(), forbids), TagAccess::Allowed);
}

#[test]
fn r30_reserved_tables_are_nobody_elses_until_the_binding_is_installed_or_goes() {
    let mut table = table(&[mmio(), memory()], COHERENT_CPU);
    table.add(binding(0, BindingState::Announced { reserved: 3 }));
    table.add(binding(8, BindingState::Announced { reserved: 2 }));
    assert_eq!(table.tables_left(vm(0), 7), 2);
    assert_eq!(table.tables_left(vm(1), 7), 7);
    assert_eq!(table.tables_left(vm(0), 1), 0);
    table.set_mapped(vm(0), IpaPfn(0));
    assert_eq!(table.tables_left(vm(0), 7), 5);
    table.remove(vm(0), IpaPfn(9));
    assert_eq!(table.tables_left(vm(0), 7), 7);
}

#[test]
fn bindings_are_found_by_any_page_of_theirs() {
    let mut table = table(&[mmio(), memory()], COHERENT_CPU);
    table.add(binding(8, BindingState::Mapped));
    assert!(table.binding_at(vm(0), IpaPfn(11)).is_some());
    assert!(table.binding_at(vm(0), IpaPfn(12)).is_none());
    assert!(table.binding_at(vm(1), IpaPfn(8)).is_none());
    let around = IpaRange::new(IpaPfn(0), 100).unwrap();
    assert_eq!(table.first_bound(vm(0), &around), Some(IpaPfn(8)));
    assert!(!table.binding_overlaps(vm(0), &IpaRange::new(IpaPfn(0), 8).unwrap()));
}

#[test]
fn a_vm_has_no_more_bindings_than_a_descriptor_holds() {
    let mut table = table(&[mmio(), memory()], COHERENT_CPU);
    for index in 0..u64::try_from(MAX_VM_BINDINGS).unwrap() {
        assert_eq!(table.check_room(vm(0)), Ok(()));
        table.add(binding(index * 4, BindingState::Mapped));
    }
    assert_eq!(table.check_room(vm(0)), Err(HcallError::Full { limit: 50 }));
    assert_eq!(table.check_room(vm(1)), Ok(()));
    assert_eq!(table.holders(id(1)), 1);
}

#[test]
fn a_vm_holds_a_region_until_its_last_binding_of_it_goes() {
    let mut table = table(&[mmio(), memory()], COHERENT_CPU);
    assert_eq!((table.count(), table.holders(id(1)), table.has_bindings(vm(0))), (2, 0, false));
    for ipa in [0x100, 0x200] {
        table.add(binding(ipa, BindingState::Mapped));
    }
    assert_eq!((table.holders(id(0)), table.holders(id(1))), (0, 1));
    assert!(table.remove(vm(0), IpaPfn(0x101)).is_some());
    assert_eq!((table.holders(id(1)), table.has_bindings(vm(0))), (1, true));
    assert!(table.remove(vm(0), IpaPfn(0x203)).is_some());
    assert_eq!((table.holders(id(1)), table.has_bindings(vm(0))), (0, false));
}

#[test]
fn the_first_page_of_ram_is_looked_for_from_the_start_of_a_range_on() {
    let table = table(&[mmio()], COHERENT_CPU);
    let end = RAM.0 + RAM.1;
    for (start, pages, found) in [
        (RAM.0 - 2, 2, None),
        (RAM.0 - 2, 3, Some(RAM.0)),
        (end - 1, 5, Some(end - 1)),
        (end, 5, None),
    ] {
        assert_eq!(table.first_ram(&range((start, pages))), found.map(Pfn), "{start:#x}");
    }
}

#[test]
fn ram_behind_a_bank_that_just_ends_is_found() {
    let banks = [range((0x100, 0x10)), range((0x118, 0x10))];
    let table = RegionTable::new(&manifest(&[]), &banks, COHERENT_CPU);
    assert_eq!(table.first_ram(&range((0x110, 0x10))), Some(Pfn(0x118)));
}

#[test]
fn region_numbers_end_where_a_manifest_does() {
    assert!(RegionId::from_raw(127).is_ok());
    let refused = RegionId::from_raw(128);
    assert!(matches!(refused, Err(HcallError::NoObject { number: 128, .. })), "{refused:?}");
}
