use std::vec::Vec;

use pfnguard_shared::manifest::PlatformFlags;
use pfnguard_shared::request::Request;

use super::*;
use crate::addr::{PFN_LIMIT, Pfn};
use crate::error::HcallError;
use crate::manifest::{Entry, Label};
use crate::region::fixture::{
    ALL_PROMISES, COHERENT_CPU, MEMORY, MMIO, RAM, label, manifest, memory, mmio, range, request,
    table,
};
use crate::region::{Binding, BindingState};
use crate::vm::VmSet;

/// What a test looks at of a refusal.
type Reason = (Status, Rule, Subject);

fn vm(number: u64) -> VmId {
    VmId::from_raw(number).unwrap()
}

fn ask(table: &RegionTable, contract: ContractFlags, wire: &Request) -> Result<Grant, RuleRefusal> {
    let request = BindRequest::decode(wire).unwrap();
    decide(table, Applicant { vm: Some(request.vm), contract }, &request)
}

fn reason(table: &RegionTable, wire: &Request) -> Option<Reason> {
    reason_for(table, ContractFlags::NONE, wire)
}

fn reason_for(table: &RegionTable, contract: ContractFlags, wire: &Request) -> Option<Reason> {
    let refusal = ask(table, contract, wire).err()?;
    Some((refusal.status, refusal.rule, refusal.subject))
}

fn sound() -> RegionTable {
    table(&[mmio(), memory()], COHERENT_CPU)
}

fn hold(table: &mut RegionTable, holder: VmId, hold: Hold, mode: Mode, mem_type: MemType) {
    let (region, _) = table.lookup(Pfn(MEMORY.0)).unwrap();
    table.set_hold(region, hold);
    let wire = request((MEMORY.0, 1), mode, mem_type);
    let request = BindRequest::decode(&wire).unwrap();
    table.add(Binding {
        region,
        vm: holder,
        ipa: request.ipa,
        pfns: request.pfns,
        mode,
        mem_type,
        perms: request.perms,
        tags: TagAccess::Allowed,
        flags: request.flags,
        state: BindingState::Mapped,
    });
}

const DEVICE: (Mode, MemType) = (Mode::Share, MemType::Device);

fn on(place: (u64, u64), (mode, mem_type): (Mode, MemType)) -> Request {
    request(place, mode, mem_type)
}

#[test]
fn malformed_requests_are_refused_by_the_field_at_fault() {
    let bad = |change: fn(&mut Request)| {
        let mut wire = on(MEMORY, DEVICE);
        change(&mut wire);
        BindRequest::decode(&wire).unwrap_err()
    };
    let word = |limit| HcallError::Argument { index: 1, limit };
    assert_eq!(bad(|r| r.mode = 0), word(2));
    assert_eq!(bad(|r| r.mode = 3), word(2));
    assert_eq!(bad(|r| r.mem_type = 4), word(3));
    assert_eq!(bad(|r| r.perms = 8), word(7));
    assert_eq!(bad(|r| r.perms = 0), word(7));
    assert_eq!(bad(|r| r.perms = Perms::WRITE.raw()), word(7));
    assert_eq!(bad(|r| r.flags = 0x10), word(15));
    assert_eq!(bad(|r| r.alias = 3), word(2));
    assert_eq!(bad(|r| r.reserved = 1), word(0));
    assert_eq!(bad(|r| r.pages = 0), HcallError::Argument { index: 4, limit: PFN_LIMIT });
    assert_eq!(bad(|r| r.pages = u64::MAX), HcallError::Argument { index: 4, limit: PFN_LIMIT });
    let limit = PFN_LIMIT - MEMORY.1;
    assert_eq!(bad(|r| r.pfn = u64::MAX), HcallError::Argument { index: 2, limit });
    assert_eq!(bad(|r| r.ipa_pfn = PFN_LIMIT), HcallError::Argument { index: 3, limit });
    assert_eq!(bad(|r| r.vm = 16), HcallError::NoObject { number: 16, limit: 16 });
}

#[test]
fn r01_pages_outside_the_manifest_are_denied_and_the_first_is_named() {
    let refusal = ask(&sound(), ContractFlags::NONE, &on((0x100, 7), DEVICE)).unwrap_err();
    assert_eq!((refusal.status, refusal.rule), (Status::Denied, Rule::R01));
    assert_eq!((refusal.pfn, refusal.requested, refusal.granted), (Some(Pfn(0x100)), 7, 0));
    assert!(ask(&sound(), ContractFlags::NONE, &on(MMIO, DEVICE)).is_ok());
}

#[test]
fn r02_a_request_stays_within_its_grants() {
    let mut entry = memory();
    (entry.modes, entry.perms) = (Modes::SHARE, Perms::READ);
    entry.types = MemTypes::DEVICE.with(MemTypes::CACHEABLE);
    let table = table(&[entry], COHERENT_CPU);
    let mut wire = on(MEMORY, (Mode::Donate, MemType::Device));
    assert_eq!(reason(&table, &wire), Some((Status::Denied, Rule::R02, Subject::Modes)));
    wire = on(MEMORY, (Mode::Share, MemType::AnyUncached));
    assert_eq!(reason(&table, &wire), Some((Status::Denied, Rule::R02, Subject::Types)));
    wire = on(MEMORY, DEVICE);
    assert_eq!(reason(&table, &wire), Some((Status::Denied, Rule::R02, Subject::Permissions)));
    wire.perms = Perms::READ.raw();
    assert_eq!(reason(&table, &wire), None);
}

#[test]
fn r02_no_more_vms_hold_a_region_than_it_grants() {
    let mut table = sound();
    for number in [1, 2] {
        let mut wire = on(MEMORY, DEVICE);
        wire.vm = number;
        assert_eq!(reason(&table, &wire), None);
        hold(&mut table, vm(number.into()), Hold::Shared(MemType::Device), DEVICE.0, DEVICE.1);
    }
    let refusal = ask(&table, ContractFlags::NONE, &on(MEMORY, DEVICE)).unwrap_err();
    assert_eq!((refusal.status, refusal.rule), (Status::Busy, Rule::R02));
    assert_eq!((refusal.subject, refusal.requested, refusal.granted), (Subject::Holders, 3, 2));
    let mut holder = on(MEMORY, DEVICE);
    holder.vm = 2;
    assert_eq!(reason(&table, &holder), None);
}

#[test]
fn r02_a_donated_region_is_its_owners_alone() {
    let mut table = sound();
    let donate = (Mode::Donate, MemType::Device);
    hold(&mut table, vm(0), Hold::Donated(vm(0), donate.1), donate.0, donate.1);
    assert_eq!(reason(&table, &on(MEMORY, donate)), None);
    let other_mode = reason(&table, &on(MEMORY, DEVICE));
    assert_eq!(other_mode, Some((Status::Busy, Rule::R02, Subject::Modes)));
    let mut stranger = on(MEMORY, donate);
    stranger.vm = 1;
    assert_eq!(reason(&table, &stranger), Some((Status::Busy, Rule::R02, Subject::RegionState)));
}

#[test]
fn r03_a_region_that_grants_nothing_more_gets_device_only() {
    let mut entry = memory();
    entry.types = MemTypes::DEVICE;
    let table = table(&[entry], COHERENT_CPU);
    for mem_type in [MemType::AnyUncached, MemType::Cacheable] {
        let found = reason(&table, &on(MEMORY, (Mode::Share, mem_type)));
        assert_eq!(found, Some((Status::Denied, Rule::R03, Subject::Types)));
    }
    assert_eq!(reason(&table, &on(MEMORY, DEVICE)), None);
}

#[test]
fn r04_any_uncached_needs_a_safe_entry() {
    let mut entry = memory();
    entry.types = MemTypes::DEVICE.with(MemTypes::CACHEABLE);
    entry.flags = RegionFlags::CMO_BY_ADDRESS;
    let unsafe_nc = table(&[entry], COHERENT_CPU);
    let wire = on(MEMORY, (Mode::Share, MemType::AnyUncached));
    assert_eq!(reason(&unsafe_nc, &wire), Some((Status::Denied, Rule::R04, Subject::Types)));
    assert_eq!(reason(&sound(), &wire), None);
}

#[test]
fn r04_a_platform_without_normal_nc_overrides_every_entry() {
    let mut forbidden = manifest(&[mmio(), memory()]);
    forbidden.platform = PlatformFlags::NORMAL_NC_FORBIDDEN;
    let table = RegionTable::new(&forbidden, &[], COHERENT_CPU.with(Capabilities::NORMAL_NC));
    let wire = on(MMIO, (Mode::Share, MemType::AnyUncached));
    let refusal = ask(&table, ContractFlags::NONE, &wire).unwrap_err();
    assert_eq!((refusal.status, refusal.rule), (Status::Denied, Rule::R04));
    assert_eq!(refusal.requested, Capabilities::NORMAL_NC.raw());
    assert_eq!(refusal.granted, COHERENT_CPU.raw());
}

#[test]
fn r05_r09_a_grant_has_the_type_and_permissions_that_were_asked_for() {
    for mem_type in [MemType::Device, MemType::AnyUncached, MemType::Cacheable] {
        for mode in [Mode::Share, Mode::Donate] {
            let grant = ask(&sound(), ContractFlags::NONE, &on(MEMORY, (mode, mem_type))).unwrap();
            assert_eq!(grant.attrs.mem, Stage2Type::Forced(mem_type));
            assert_eq!(grant.attrs.perms, Perms::READ.with(Perms::WRITE));
        }
    }
}

#[test]
fn r06_mmio_is_never_cacheable() {
    let mut entry = mmio();
    entry.types = MemTypes::ALL; // as no checked manifest says
    let table = table(&[entry], COHERENT_CPU);
    let found = reason(&table, &on(MMIO, (Mode::Share, MemType::Cacheable)));
    assert_eq!(found, Some((Status::Unsupported, Rule::R06, Subject::Types)));
    assert_eq!(reason(&sound(), &on(MEMORY, (Mode::Share, MemType::Cacheable))), None);
}

#[test]
fn r07_shared_cacheable_needs_fwb_and_dic() {
    let wire = on(MEMORY, (Mode::Share, MemType::Cacheable));
    for missing in [Capabilities::FWB, Capabilities::DIC] {
        let table = table(&[memory()], COHERENT_CPU.without(missing));
        let found = reason(&table, &wire);
        assert_eq!(found, Some((Status::Unsupported, Rule::R07, Subject::Capabilities)));
    }
    assert_eq!(reason(&sound(), &wire), None);
}

#[test]
fn r08_donated_cacheable_needs_no_fwb_where_maintenance_reaches_it() {
    let wire = on(MEMORY, (Mode::Donate, MemType::Cacheable));
    assert_eq!(reason(&table(&[memory()], Capabilities::NONE), &wire), None);
    let mut entry = memory();
    entry.flags = entry.flags.without(RegionFlags::CMO_BY_ADDRESS);
    let found = reason(&table(&[entry.clone()], Capabilities::NONE), &wire);
    assert_eq!(found, Some((Status::Unsupported, Rule::R08, Subject::RegionFlags)));
    assert_eq!(reason(&table(&[entry], COHERENT_CPU), &wire), None);
}

#[test]
fn r10_the_hosts_own_mapping_must_fit_the_type() {
    let cases = [
        (MemType::Device, HostAlias::Cacheable, HostAlias::Uncached),
        (MemType::AnyUncached, HostAlias::Cacheable, HostAlias::Uncached),
        (MemType::Cacheable, HostAlias::Uncached, HostAlias::Cacheable),
    ];
    for (mem_type, clashing, fitting) in cases {
        let mut wire = on(MEMORY, (Mode::Share, mem_type));
        wire.alias = clashing.raw();
        let found = reason(&sound(), &wire);
        assert_eq!(found, Some((Status::Unsupported, Rule::R10, Subject::HostAlias)));
        wire.alias = fitting.raw();
        assert_eq!(reason(&sound(), &wire), None);
    }
}

#[test]
fn r10_all_holders_have_the_same_type() {
    let mut table = sound();
    hold(&mut table, vm(1), Hold::Shared(MemType::Device), DEVICE.0, DEVICE.1);
    let found = reason(&table, &on(MEMORY, (Mode::Share, MemType::Cacheable)));
    assert_eq!(found, Some((Status::Unsupported, Rule::R10, Subject::Types)));
    assert_eq!(reason(&table, &on(MEMORY, DEVICE)), None);
}

#[test]
fn r11_nothing_executes_from_uncached_memory() {
    for mem_type in [MemType::Device, MemType::AnyUncached] {
        let mut wire = on(MEMORY, (Mode::Share, mem_type));
        wire.perms = Perms::ALL.raw();
        let refusal = ask(&sound(), ContractFlags::NONE, &wire).unwrap_err();
        assert_eq!((refusal.status, refusal.rule), (Status::NoExec, Rule::R11));
        assert_eq!((refusal.requested, refusal.granted), (7, 3));
    }
}

#[test]
fn r11_execution_from_cacheable_memory_needs_a_grant() {
    let mut wire = on(MEMORY, (Mode::Share, MemType::Cacheable));
    wire.perms = Perms::READ.with(Perms::EXEC).raw();
    assert_eq!(reason(&sound(), &wire), None);
    let mut entry = memory();
    entry.perms = Perms::READ;
    let found = reason(&table(&[entry], COHERENT_CPU), &wire);
    assert_eq!(found, Some((Status::Denied, Rule::R11, Subject::Permissions)));
}

#[test]
fn r12_r13_copy_on_write_and_dirty_logging_are_refused() {
    for (flag, rule) in [(RequestFlags::COW, Rule::R12), (RequestFlags::DIRTY_LOG, Rule::R13)] {
        let mut wire = on(MEMORY, DEVICE);
        wire.flags = flag.raw();
        let found = reason(&sound(), &wire);
        assert_eq!(found, Some((Status::Unsupported, rule, Subject::RequestFlags)));
    }
}

#[test]
fn r14_a_range_that_straddles_is_refused_where_it_crosses() {
    let crossing = |place| {
        let refusal = ask(&sound(), ContractFlags::NONE, &on(place, DEVICE)).unwrap_err();
        assert_eq!((refusal.status, refusal.rule), (Status::Unsupported, Rule::R14));
        (refusal.pfn.unwrap().0, refusal.requested, refusal.granted)
    };
    assert_eq!(crossing((MEMORY.0 - 1, 2)), (MEMORY.0, 0, 1));
    assert_eq!(crossing((RAM.0 - 1, 2)), (RAM.0, 1, u64::MAX));
    assert_eq!(crossing((MMIO.0 - 1, 2)), (MMIO.0, u64::MAX, 0));
    assert_eq!(crossing((0, PFN_LIMIT)), (MMIO.0, u64::MAX, u64::MAX));
}

#[test]
fn r15_ram_is_not_pfnmap() {
    for place in [RAM, (RAM.0, 1)] {
        let refusal = ask(&sound(), ContractFlags::NONE, &on(place, DEVICE)).unwrap_err();
        assert_eq!((refusal.status, refusal.rule), (Status::Denied, Rule::R15));
        assert_eq!(refusal.pfn, Some(Pfn(RAM.0)));
    }
}

#[test]
fn r20_an_mte_vm_gets_cacheable_only_with_tags_or_without_access_to_them() {
    let wire = on(MEMORY, (Mode::Share, MemType::Cacheable));
    let tags = |flags, capabilities| {
        let mut entry = memory();
        entry.flags = flags;
        let table = table(&[entry], capabilities);
        ask(&table, ContractFlags::MTE, &wire).map(|grant| grant.attrs.tags)
    };
    let tagless = RegionFlags::CMO_BY_ADDRESS;
    let refusal = tags(tagless, COHERENT_CPU).unwrap_err();
    assert_eq!((refusal.status, refusal.rule), (Status::Unsupported, Rule::R20));
    let forbids = COHERENT_CPU.with(Capabilities::MTE_PERM);
    assert_eq!(tags(tagless, forbids), Ok(TagAccess::Forbidden));
    assert_eq!(tags(tagless.with(RegionFlags::TAGS), COHERENT_CPU), Ok(TagAccess::Allowed));
}

#[test]
fn r20_uncached_types_stay_allowed_for_mte_vms() {
    for mem_type in [MemType::Device, MemType::AnyUncached] {
        let wire = on(MMIO, (Mode::Share, mem_type));
        assert_eq!(reason_for(&sound(), ContractFlags::MTE, &wire), None);
    }
}

#[test]
fn r22_general_purpose_use_needs_exclusives_atomics_and_tags() {
    let mte = ContractFlags::MTE;
    let general = ContractFlags::GENERAL_PURPOSE;
    let atomics = RegionFlags::EXCLUSIVES.with(RegionFlags::ATOMICS);
    let refused = |flags, contract, request| {
        let mut entry = memory();
        entry.flags = flags;
        let mut wire = on(MEMORY, DEVICE);
        wire.flags = RequestFlags::raw(request);
        reason_for(&table(&[entry], COHERENT_CPU), contract, &wire)
    };
    let r22 = Some((Status::Denied, Rule::R22, Subject::RegionFlags));
    let (none, asked) = (RequestFlags::NONE, RequestFlags::GENERAL_PURPOSE);
    assert_eq!(refused(RegionFlags::NONE, ContractFlags::NONE, none), None);
    assert_eq!(refused(RegionFlags::ATOMICS, ContractFlags::NONE, asked), r22);
    assert_eq!(refused(RegionFlags::EXCLUSIVES, general, none), r22);
    assert_eq!(refused(atomics, general, none), None);
    assert_eq!(refused(atomics, mte, asked), r22);
    assert_eq!(refused(atomics.with(RegionFlags::TAGS), mte, asked), None);
}

#[test]
fn r41_r42_a_region_in_quarantine_is_busy() {
    let mut table = sound();
    let (id, _) = table.lookup(Pfn(MEMORY.0)).unwrap();
    for (hold, rule) in [(Hold::Quarantined, Rule::R41), (Hold::Lost, Rule::R42)] {
        table.set_hold(id, hold);
        let found = reason(&table, &on(MEMORY, DEVICE));
        assert_eq!(found, Some((Status::Busy, rule, Subject::RegionState)));
    }
    table.set_hold(id, Hold::Free);
    assert_eq!(reason(&table, &on(MEMORY, DEVICE)), None);
}

#[test]
fn r43_a_quirked_entry_is_blocked_from_assignment() {
    let mut entry = memory();
    entry.flags = entry.flags.with(RegionFlags::QUIRKED);
    entry.quirk = label("loses writes");
    let found = reason(&table(&[entry], COHERENT_CPU), &on(MEMORY, DEVICE));
    assert_eq!(found, Some((Status::Denied, Rule::R43, Subject::RegionFlags)));
    assert_eq!(memory().quirk, Label::EMPTY);
}

#[test]
fn r45_a_region_with_streams_is_not_donated_while_nothing_blocks_them() {
    let mut entry = memory();
    entry.streams = [0x100, 0x101].into_iter().collect();
    let table = table(&[entry], COHERENT_CPU);
    let refusal = ask(&table, ContractFlags::NONE, &on(MEMORY, (Mode::Donate, MemType::Device)));
    let refusal = refusal.unwrap_err();
    assert_eq!((refusal.status, refusal.rule), (Status::Denied, Rule::R45));
    assert_eq!((refusal.subject, refusal.requested, refusal.granted), (Subject::Streams, 2, 0));
    assert_eq!(reason(&table, &on(MEMORY, DEVICE)), None);
}

#[test]
fn r34_every_refusal_names_a_page() {
    let mut quirked = memory();
    quirked.flags = RegionFlags::QUIRKED;
    let table = table(&[mmio(), quirked], Capabilities::NONE);
    for place in [(0, 1), RAM, MMIO, MEMORY, (MMIO.0, 0x200)] {
        for (mode, mem_type) in [(Mode::Share, MemType::Cacheable), (Mode::Donate, MemType::Device)]
        {
            if let Err(refusal) = ask(&table, ContractFlags::ALL, &on(place, (mode, mem_type))) {
                let pfn = refusal.pfn.unwrap();
                assert!(range(place).contains(pfn), "{refusal:?}");
            }
        }
    }
}

/// Regions that differ in all that a rule looks at.
fn all_kinds() -> impl Iterator<Item = Entry> {
    let flags = [
        ALL_PROMISES,
        ALL_PROMISES.with(RegionFlags::QUIRKED),
        RegionFlags::CMO_BY_ADDRESS,
        RegionFlags::EXCLUSIVES.with(RegionFlags::ATOMICS).with(RegionFlags::NC_SAFE),
        RegionFlags::TAGS,
    ];
    let narrow = Entry { modes: Modes::SHARE, types: MemTypes::DEVICE, max_vms: 1, ..memory() };
    let nothing = Entry { modes: Modes::NONE, types: MemTypes::NONE, max_vms: 0, ..memory() };
    let uncached = Entry { types: MemTypes::ALL.without(MemTypes::CACHEABLE), ..memory() };
    let streams = Entry { streams: [1].into_iter().collect(), ..memory() };
    let bases = [memory(), mmio(), narrow, nothing, uncached, streams];
    bases.into_iter().flat_map(move |base| flags.map(|flags| Entry { flags, ..base.clone() }))
}

/// Every way of asking for `MEMORY`, well-formed; MAP_NOW is no rule's business.
fn all_requests() -> Vec<BindRequest> {
    let mut requests = Vec::new();
    for [mode, mem_type, perms, flags, alias] in
        (0..1 << 10).map(|n: u16| [n & 1, n >> 1 & 3, n >> 3 & 3, n >> 5 & 7, n >> 8])
    {
        let byte = |number: u16| u8::try_from(number).unwrap();
        let wire = Request {
            mode: byte(mode) + 1,
            mem_type: byte(mem_type),
            perms: byte(perms << 1) | Perms::READ.raw(),
            flags: byte(flags),
            alias: byte(alias),
            ..on(MEMORY, DEVICE)
        };
        requests.extend(BindRequest::decode(&wire));
    }
    requests
}

/// Who may hold a region, as far as VM 0 is concerned.
fn all_holds() -> [(Hold, VmSet); 8] {
    let (own, other) = (VmSet::NONE.with(vm(0)), VmSet::NONE.with(vm(1)));
    let both = own.with(vm(1));
    [
        (Hold::Free, VmSet::NONE),
        (Hold::Shared(MemType::Device), own),
        (Hold::Shared(MemType::Cacheable), other),
        (Hold::Shared(MemType::Cacheable), both.with(vm(2)).without(vm(0))),
        (Hold::Donated(vm(0), MemType::Cacheable), own),
        (Hold::Donated(vm(1), MemType::Device), other),
        (Hold::Quarantined, VmSet::NONE),
        (Hold::Lost, VmSet::NONE),
    ]
}

#[test]
#[cfg_attr(miri, ignore = "millions of requests")]
fn a_use_that_is_looked_up_is_granted_exactly_where_no_rule_refuses() {
    let tags = COHERENT_CPU.with(Capabilities::MTE_PERM).with(Capabilities::NORMAL_NC);
    let platforms = [Capabilities::NONE, COHERENT_CPU.with(Capabilities::NORMAL_NC), tags];
    let programs = ContractFlags::GENERAL_PURPOSE;
    let contracts =
        [ContractFlags::NONE, ContractFlags::MTE, programs, programs.with(ContractFlags::MTE)];
    let requests = all_requests();
    assert_eq!(requests.len(), 2 * 3 * 4 * 8 * 3);
    let mut granted = 0;
    for (entry, capabilities) in all_kinds().flat_map(|e| platforms.map(|c| (e.clone(), c))) {
        let mut region = Region::new(entry, capabilities);
        for (hold, holders) in all_holds() {
            (region.hold, region.holders) = (hold, holders);
            for (contract, request) in
                contracts.iter().flat_map(|c| requests.iter().map(move |r| (*c, r)))
            {
                let applicant = Applicant { vm: Some(vm(0)), contract };
                let case = Case { region: &region, capabilities, applicant, request };
                let judged = case.judge();
                assert_eq!(
                    case.is_granted(),
                    judged.is_ok(),
                    "{judged:?} {contract:?} {request:?}"
                );
                granted += u64::from(judged.is_ok());
            }
        }
    }
    assert!(granted > 0, "a grid without grants says little");
}
