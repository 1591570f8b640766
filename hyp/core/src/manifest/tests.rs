use std::collections::BTreeSet;
use std::format;
use std::string::ToString;
use std::vec::Vec;

use pfnguard_shared::Rule;
use pfnguard_shared::manifest::Entry as WireEntry;
use zerocopy::IntoBytes;

use super::*;
use crate::addr::Pfn;

/// A change to one entry.
type Change = fn(&mut WireEntry);

fn name(text: &str) -> [u8; 32] {
    let mut name = [0; 32];
    name[..text.len()].copy_from_slice(text.as_bytes());
    name
}

fn mmio() -> WireEntry {
    WireEntry {
        name: name("edu"),
        base: 0x1000_0000,
        size: 0x10_0000,
        class: RegionClass::Mmio.raw(),
        modes: Modes::ALL.raw(),
        types: MemTypes::DEVICE.raw(),
        perms: Perms::READ.with(Perms::WRITE).raw(),
        max_vms: 1,
        blocks: BlockSizes::PAGE.raw(),
        ..WireEntry::zeroed()
    }
}

fn memory() -> WireEntry {
    WireEntry {
        name: name("gpu-mem"),
        base: 0x80_0000_0000,
        size: 0x20_0000,
        class: RegionClass::Memory.raw(),
        types: MemTypes::ALL.raw(),
        perms: Perms::ALL.raw(),
        max_vms: 8,
        flags: RegionFlags::CMO_BY_ADDRESS.with(RegionFlags::NC_SAFE).raw(),
        ..mmio()
    }
}

fn seal(entries: &[WireEntry], change: fn(&mut Header)) -> Vec<u8> {
    let length = size_of::<Header>() + size_of_val(entries);
    let mut header = Header {
        magic: wire::MAGIC,
        version: wire::VERSION,
        length: u32::try_from(length).unwrap(),
        entries: u32::try_from(entries.len()).unwrap(),
        ..Header::zeroed()
    };
    change(&mut header);
    let mut hash = Sha256::new();
    hash.update(&header.as_bytes()[..SHA256_OFFSET]);
    hash.update(&header.as_bytes()[SHA256_OFFSET + 32..]);
    hash.update(entries.as_bytes());
    header.sha256 = hash.finalize().into();
    [header.as_bytes(), entries.as_bytes()].concat()
}

fn pages(start: u64, pages: u64) -> [PfnRange; 1] {
    [PfnRange::new(Pfn(start), pages).unwrap()]
}

fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    Manifest::parse(bytes, &pages(0x4_0000, 0x4_0000), &pages(0x4_0200, 0x200))
}

/// Parses the two sound entries after a change to the second.
fn with_memory(change: Change) -> Option<Constraint> {
    let mut entries = [mmio(), memory()];
    change(&mut entries[1]);
    parse(&seal(&entries, |_| {})).err().map(|error| error.constraint)
}

/// Parses the two sound entries after a change to the first.
fn with_mmio(change: Change) -> Option<Constraint> {
    let mut entries = [mmio(), memory()];
    change(&mut entries[0]);
    parse(&seal(&entries, |_| {})).err().map(|error| error.constraint)
}

fn with_header(change: fn(&mut Header)) -> Option<Constraint> {
    parse(&seal(&[mmio(), memory()], change)).err().map(|error| error.constraint)
}

fn poll(entry: &mut WireEntry) {
    entry.reset = ResetKind::Poll.raw();
    entry.reset_addr = 0x1000_0008;
    entry.reset_width = 4;
    entry.reset_mask = 0x80;
    entry.reset_value = 0x80;
    entry.reset_bound = 1000;
}

#[test]
fn r50_a_sound_manifest_is_accepted_and_decoded() {
    let bytes = seal(&[mmio(), memory()], |_| {});
    let manifest = parse(&bytes).unwrap();
    assert_eq!(manifest.entries.len(), 2);
    assert_eq!(manifest.entries[1].name.text(), "gpu-mem");
    assert_eq!(manifest.entries[1].range, pages(0x800_0000, 0x200)[0]);
    assert_eq!(manifest.entries[0].reset, Reset::None);
    assert!(parse(&seal(&[], |_| {})).unwrap().entries.is_empty());
}

#[test]
fn r51_the_hash_of_the_manifest_covers_every_byte() {
    let bytes = seal(&[mmio(), memory()], |_| {});
    let hash = parse(&bytes).unwrap().sha256;
    assert_eq!(bytes[SHA256_OFFSET..SHA256_OFFSET + 32], hash);
    // Miri takes a second for some hashes: a few will do there.
    let step = if cfg!(miri) { 97 } else { 1 };
    for position in (0..bytes.len()).step_by(step) {
        let mut bytes = bytes.clone();
        bytes[position] ^= 1;
        assert!(parse(&bytes).is_err(), "byte {position}");
    }
}

#[test]
fn r50_a_damaged_container_is_refused() {
    assert_eq!(with_header(|h| h.magic[0] = b'x'), Some(Constraint::Magic));
    assert_eq!(with_header(|h| h.version = 2), Some(Constraint::Version));
    assert_eq!(with_header(|h| h.length += 144), Some(Constraint::Length));
    assert_eq!(with_header(|h| h.entries = 1), Some(Constraint::Length));
    assert_eq!(with_header(|h| h.entries = 129), Some(Constraint::EntryCount));
    assert_eq!(with_header(|h| h.flags = 2), Some(Constraint::HeaderReserved));
    assert_eq!(with_header(|h| h.reserved = 1), Some(Constraint::HeaderReserved));
    let bytes = seal(&[mmio()], |_| {});
    for length in [0, 1, 63, 64, 65, bytes.len() - 1] {
        let error = parse(&bytes[..length]).unwrap_err();
        assert_eq!(error.constraint, Constraint::Length, "{length}");
    }
    let mut flipped = bytes;
    flipped[SHA256_OFFSET] ^= 1;
    assert_eq!(parse(&flipped).unwrap_err().constraint, Constraint::Checksum);
}

#[test]
fn r50_an_entry_has_an_identity_and_a_place() {
    assert_eq!(with_memory(|e| e.name = [0; 32]), Some(Constraint::Name));
    assert_eq!(with_memory(|e| e.name[31] = b'x'), Some(Constraint::Name));
    assert_eq!(with_memory(|e| e.name[0] = 0xff), Some(Constraint::Name));
    assert_eq!(with_memory(|e| e.name[0] = b'\n'), Some(Constraint::Name));
    assert_eq!(with_memory(|e| e.name = name("edu")), Some(Constraint::NameUnique));
    assert_eq!(with_memory(|e| e.base += 8), Some(Constraint::BaseAligned));
    assert_eq!(with_memory(|e| e.size = 0), Some(Constraint::Size));
    assert_eq!(with_memory(|e| e.size += 1), Some(Constraint::Size));
    assert_eq!(with_memory(|e| e.base = 1 << 52), Some(Constraint::AddressSpace));
    assert_eq!(with_memory(|e| e.size = 0u64.wrapping_sub(4096)), Some(Constraint::AddressSpace));
    assert_eq!(with_memory(|e| e.class = 0), Some(Constraint::Class));
}

#[test]
fn r45_what_is_closed_to_the_host_is_granted_to_nobody() {
    let granted = with_memory(|e| e.flags |= RegionFlags::HOST_CLOSED.raw());
    assert_eq!(granted, Some(Constraint::ClosedGrants));
    let inert = |e: &mut WireEntry| {
        e.flags = RegionFlags::HOST_CLOSED.raw();
        (e.modes, e.types, e.perms, e.max_vms) = (0, 0, 0, 0);
    };
    assert_eq!(with_memory(inert), None);
}

#[test]
fn r50_unknown_bits_are_refused() {
    assert_eq!(with_memory(|e| e.flags |= 1 << 8), Some(Constraint::UnknownBits));
    assert_eq!(with_memory(|e| e.modes |= 4), Some(Constraint::UnknownBits));
    assert_eq!(with_memory(|e| e.types |= 8), Some(Constraint::UnknownBits));
    assert_eq!(with_memory(|e| e.perms |= 8), Some(Constraint::UnknownBits));
    assert_eq!(with_memory(|e| e.blocks |= 8), Some(Constraint::UnknownBits));
    assert_eq!(with_memory(|e| e.reserved[2] = 1), Some(Constraint::UnknownBits));
    assert_eq!(with_memory(|e| e.reserved2 = 1), Some(Constraint::UnknownBits));
}

#[test]
fn r50_entries_are_sorted_and_apart() {
    assert_eq!(with_memory(|e| e.base = 0xfff_f000), Some(Constraint::Sorted));
    assert_eq!(with_memory(|e| e.base = 0x100f_f000), Some(Constraint::Overlap));
    assert_eq!(with_memory(|e| e.base = 0x1000_0000), Some(Constraint::Overlap));
    assert_eq!(with_memory(|e| e.base = 0x1010_0000), None);
}

#[test]
fn r15_an_entry_that_overlaps_ram_fails_the_launch() {
    assert_eq!(with_memory(|e| e.base = 0x7fff_f000), Some(Constraint::Ram));
    assert_eq!(with_memory(|e| e.base = 0x8000_0000), None);
}

#[test]
fn r50_an_entry_that_overlaps_the_hypervisor_is_refused() {
    assert_eq!(with_memory(|e| e.base = 0x4020_0000), Some(Constraint::Hypervisor));
}

#[test]
fn r02_grants_are_coherent() {
    assert_eq!(with_memory(|e| e.modes = 0), Some(Constraint::NothingGranted));
    let nothing: Change = |e| (e.modes, e.types, e.perms, e.max_vms) = (0, 0, 0, 0);
    assert_eq!(with_memory(nothing), None);
    let something: [Change; 3] = [
        |e| (e.modes, e.types, e.perms, e.max_vms) = (0, 1, 0, 0),
        |e| (e.modes, e.types, e.perms, e.max_vms) = (0, 0, 1, 0),
        |e| (e.modes, e.types, e.perms, e.max_vms) = (0, 0, 0, 1),
    ];
    for change in something {
        assert_eq!(with_memory(change), Some(Constraint::NothingGranted));
    }
    assert_eq!(with_memory(|e| e.perms = 0), Some(Constraint::SomePermission));
    assert_eq!(with_memory(|e| e.perms = Perms::WRITE.raw()), Some(Constraint::ReadFirst));
    assert_eq!(with_memory(|e| e.max_vms = 0), Some(Constraint::Holders));
    assert_eq!(with_memory(|e| e.max_vms = 9), Some(Constraint::Holders));
    assert_eq!(with_memory(|e| e.modes = Modes::DONATE.raw()), Some(Constraint::DonateOnly));
    assert_eq!(with_memory(|e| e.blocks = 2), Some(Constraint::PageBlock));
}

#[test]
fn r03_a_grant_without_device_is_refused() {
    assert_eq!(with_memory(|e| e.types &= !1), Some(Constraint::DevicePresent));
}

#[test]
fn r04_any_uncached_needs_a_safe_device_on_a_safe_platform() {
    let unsafe_nc: Change = |e| e.flags = RegionFlags::CMO_BY_ADDRESS.raw();
    assert_eq!(with_memory(unsafe_nc), Some(Constraint::NcSafe));
    let forbidden = |h: &mut Header| h.flags = PlatformFlags::NORMAL_NC_FORBIDDEN.raw();
    assert_eq!(with_header(forbidden), Some(Constraint::NormalNcForbidden));
    assert!(parse(&seal(&[mmio()], forbidden)).is_ok());
}

#[test]
fn r06_cacheable_mmio_is_an_impossible_grant() {
    assert_eq!(with_mmio(|e| e.types |= 4), Some(Constraint::CacheableMemory));
}

#[test]
fn r11_execute_needs_a_cacheable_grant() {
    assert_eq!(with_memory(|e| e.types = 1), Some(Constraint::ExecCacheable));
}

#[test]
fn r40_cacheable_needs_a_way_to_be_cleaned() {
    assert_eq!(
        with_memory(|e| e.flags = RegionFlags::NC_SAFE.raw()),
        Some(Constraint::CacheableReturn)
    );
    let external: Change =
        |e| (e.flags, e.reset) = (RegionFlags::NC_SAFE.raw(), ResetKind::External.raw());
    assert_eq!(with_memory(external), None);
}

#[test]
fn r20_r22_r40_mmio_promises_nothing_that_only_memory_has() {
    assert_eq!(with_mmio(|e| e.flags = RegionFlags::TAGS.raw()), Some(Constraint::TagsMemory));
    for flag in [RegionFlags::EXCLUSIVES, RegionFlags::ATOMICS] {
        let mut entry = mmio();
        entry.flags = flag.raw();
        let error = parse(&seal(&[entry], |_| {})).unwrap_err();
        assert_eq!(error.constraint, Constraint::AtomicsMemory);
    }
    let zero: Change = |e| e.flags = RegionFlags::ZERO_ON_RETURN.raw();
    assert_eq!(with_mmio(zero), Some(Constraint::ZeroMemory));
    let cmo: Change = |e| e.flags = RegionFlags::CMO_BY_ADDRESS.raw();
    assert_eq!(with_mmio(cmo), Some(Constraint::CmoMemory));
}

#[test]
fn r43_a_quirk_has_a_reason_and_a_reason_a_quirk() {
    let quirked = RegionFlags::QUIRKED.raw();
    assert_eq!(with_mmio(|e| e.quirk = name("hangs")), Some(Constraint::QuirkReason));
    let mut entry = WireEntry { flags: quirked, ..mmio() };
    let error = parse(&seal(&[entry], |_| {})).unwrap_err();
    assert_eq!(error.constraint, Constraint::QuirkReason);
    entry.quirk = name("hangs");
    assert!(parse(&seal(&[entry], |_| {})).is_ok());
}

#[test]
fn r41_a_reset_reads_a_listed_register_and_gives_no_more() {
    assert_eq!(with_memory(poll), None);
    assert_eq!(with_mmio(poll), None);
    assert_eq!(with_memory(|e| e.reset = 4), Some(Constraint::ResetKind));
    let unused: [Change; 5] = [
        |e| e.reset_addr = 8,
        |e| e.reset_width = 4,
        |e| e.reset_mask = 1,
        |e| e.reset_value = 1,
        |e| e.reset_bound = 1,
    ];
    for change in unused {
        assert_eq!(with_memory(change), Some(Constraint::ResetUnused));
    }
    let readback: Change = |e| {
        poll(e);
        e.reset = ResetKind::Readback.raw();
    };
    assert_eq!(with_memory(readback), Some(Constraint::ResetUnused));
    let changed = |change: Change| {
        let mut entry = memory();
        poll(&mut entry);
        change(&mut entry);
        parse(&seal(&[mmio(), entry], |_| {})).err().map(|error| error.constraint)
    };
    assert_eq!(changed(|e| e.reset_width = 2), Some(Constraint::ResetWidth));
    assert_eq!(changed(|e| e.reset_addr += 2), Some(Constraint::ResetAligned));
    assert_eq!(changed(|e| e.reset_addr = 0x1010_0000), Some(Constraint::ResetInside));
    assert_eq!(changed(|e| e.reset_addr = e.base), Some(Constraint::ResetInside));
    assert_eq!(changed(|e| e.reset_addr = u64::MAX - 3), Some(Constraint::ResetInside));
}

#[test]
fn r42_a_poll_can_succeed_and_ends() {
    let changed = |change: Change| {
        let mut entry = memory();
        poll(&mut entry);
        change(&mut entry);
        parse(&seal(&[mmio(), entry], |_| {})).err().map(|error| error.constraint)
    };
    assert_eq!(changed(|e| e.reset_mask = 0), Some(Constraint::PollMask));
    assert_eq!(changed(|e| e.reset_mask = 1 << 32), Some(Constraint::PollMask));
    assert_eq!(changed(|e| e.reset_value = 1), Some(Constraint::PollValue));
    assert_eq!(changed(|e| e.reset_bound = 0), Some(Constraint::PollBound));
    assert_eq!(changed(|e| e.reset_bound = 1_000_001), Some(Constraint::PollBound));
}

#[test]
fn r45_streams_are_counted_and_unique_in_an_entry() {
    assert_eq!(with_memory(|e| e.stream_count = 5), Some(Constraint::StreamCount));
    assert_eq!(with_memory(|e| e.streams[0] = 1), Some(Constraint::StreamCount));
    assert_eq!(with_memory(|e| e.stream_count = 2), Some(Constraint::StreamUnique));
}

#[test]
fn r45_regions_of_one_device_may_name_the_same_stream() {
    let mut entries = [mmio(), memory()];
    for entry in &mut entries {
        (entry.stream_count, entry.streams[0]) = (1, 0x100);
    }
    assert!(parse(&seal(&entries, |_| {})).is_ok());
}

#[test]
fn r50_a_refusal_names_the_entry_the_reason_and_the_rule_in_one_line() {
    let mut entries = [mmio(), memory()];
    entries[1].class = RegionClass::Mmio.raw();
    entries[1].perms = Perms::READ.raw();
    let error = parse(&seal(&entries, |_| {})).unwrap_err();
    let line = "entry 1 \"gpu-mem\": cacheable granted but class is mmio (R06, M22)";
    assert_eq!(error.to_string(), line);
    let error = parse(&[]).unwrap_err();
    assert!(error.to_string().starts_with("the length"), "{error}");
}

#[test]
fn constraints_have_distinct_numbers() {
    let mut ids = BTreeSet::new();
    for constraint in Constraint::ALL {
        assert!(ids.insert(constraint.id()), "{} is given twice", constraint.id());
        assert_ne!(constraint.rule(), Rule::R01);
    }
}

#[test]
fn no_bytes_panic() {
    let bytes = seal(&[mmio(), memory()], |_| {});
    for length in 0..bytes.len() {
        assert!(parse(&bytes[..length]).is_err());
    }
}

#[test]
#[cfg_attr(miri, ignore = "hashes 50 KiB")]
fn r50_a_manifest_may_be_full_and_not_fuller() {
    let with = |count: u64| {
        let entry = |number: u64| {
            let mut entry = mmio();
            entry.base += number * entry.size;
            entry.name[..4].copy_from_slice(format!("n{number:03}").as_bytes());
            entry
        };
        parse(&seal(&(0..count).map(entry).collect::<Vec<_>>(), |_| {}))
    };
    assert_eq!(with(128).unwrap().entries.len(), 128);
    assert_eq!(with(129).unwrap_err().constraint, Constraint::EntryCount);
}

/// What descriptors have no bits for would lead elsewhere.
#[test]
fn r50_a_region_past_the_machines_address_bits_is_refused() {
    let manifest = parse(&seal(&[mmio(), memory()], |_| {})).unwrap();
    let end = manifest.entries[1].range.end().0 << 12;
    // Exactly at the end, too.
    let mut entries = [mmio(), memory()];
    entries[1].size = (1 << 40) - entries[1].base;
    let exact = parse(&seal(&entries, |_| {})).unwrap();
    assert_eq!(exact.check_reachable(40), Ok(()));
    let bits = u64::BITS - (end - 1).leading_zeros();
    assert_eq!(manifest.check_reachable(bits), Ok(()));
    let error = manifest.check_reachable(bits - 1).unwrap_err();
    assert_eq!(error.constraint, Constraint::AddressSpace);
    assert_eq!(error.fact, Fact::Beside(end >> 12, 1 << (bits - 1 - 12)));
}
