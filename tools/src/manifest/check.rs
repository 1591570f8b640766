//! The checker: every constraint of a manifest, over the header and the entries as they are in
//! the binary. Text is compiled to the same entries first, so there is one truth.

use std::collections::{BTreeMap, BTreeSet};

use pfnguard_shared::manifest::{
    BlockSizes, Entry, Header, MAX_ENTRIES, MAX_HOLDERS, PlatformFlags, RegionClass, RegionFlags,
    ResetKind,
};
use pfnguard_shared::request::{MemTypes, Modes, Perms};

use super::check_reset::check_reset;
use super::constraint::Constraint;
use super::range::{ADDRESS_BITS, PhysRange, format_bytes};
use super::violation::{Field, Place, Violation, display_name, padded_text};

/// Returns every constraint that a manifest of this header and these entries breaks.
///
/// The container (magic, version, length, checksum) is the business of `parse_binary`.
pub fn check(header: &Header, entries: &[Entry]) -> Vec<Violation> {
    let mut found = Vec::new();
    check_header(header, entries, &mut found);
    for (index, entry) in entries.iter().enumerate() {
        let mut judge = Judge { index, entry, entries, found: &mut found };
        check_identity(&mut judge);
        check_place(&mut judge);
        check_grants(&mut judge);
        check_types(&mut judge, header);
        check_properties(&mut judge);
        check_reset(&mut judge);
    }
    check_pairs(entries, &mut found);
    check_streams(entries, &mut found);
    found
}

/// Returns the entries that overlap a range of RAM (R15).
///
/// The binary does not carry RAM: the text may, the device tree does, and the hypervisor knows.
pub fn check_ram(entries: &[Entry], ram: &[PhysRange]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let mut judge = Judge { index, entry, entries, found: &mut found };
        for hit in ram.iter().filter(|ram| ram.overlaps(PhysRange::of(entry))) {
            judge.refuse(
                Constraint::Ram,
                &[Field::Base, Field::Size],
                format!("{} overlaps RAM {hit}", PhysRange::of(entry)),
            );
        }
    }
    found
}

/// One entry under examination, and what was found so far.
pub(super) struct Judge<'a> {
    index: usize,
    /// The entry.
    pub(super) entry: &'a Entry,
    /// Every entry of the manifest.
    pub(super) entries: &'a [Entry],
    found: &'a mut Vec<Violation>,
}

impl Judge<'_> {
    /// Notes that `constraint` does not hold; `fields` are the one to change, then its opponents.
    pub(super) fn refuse(&mut self, constraint: Constraint, fields: &[Field], fact: String) {
        let fact = format!("region `{}`: {fact}", display_name(self.entry));
        let places = fields.iter().map(|&field| Place { entry: self.index, field }).collect();
        self.found.push(Violation { constraint, fact, places });
    }

    fn require(&mut self, holds: Option<()>, constraint: Constraint, fields: &[Field], fact: &str) {
        if holds.is_none() {
            self.refuse(constraint, fields, fact.to_owned());
        }
    }

    fn has(&self, flag: RegionFlags) -> bool {
        self.entry.flags & flag.raw() != 0
    }

    fn grants_type(&self, mem_type: MemTypes) -> bool {
        self.entry.types & mem_type.raw() != 0
    }

    fn permits(&self, perm: Perms) -> bool {
        self.entry.perms & perm.raw() != 0
    }
}

fn check_header(header: &Header, entries: &[Entry], found: &mut Vec<Violation>) {
    if entries.len() > MAX_ENTRIES {
        let fact = format!("there are {} entries, at most {MAX_ENTRIES} fit", entries.len());
        found.push(Violation::of_file(Constraint::EntryCount, fact));
    }
    if PlatformFlags::from_raw(header.flags).is_none() || header.reserved != 0 {
        let fact = format!("flags {:#x}, reserved {:#x}", header.flags, header.reserved);
        found.push(Violation::of_file(Constraint::HeaderReserved, fact));
    }
}

fn check_identity(judge: &mut Judge<'_>) {
    let entry = judge.entry;
    let name = padded_text(&entry.name)
        .filter(|name| !name.is_empty() && !name.contains(char::is_control));
    judge.require(name.map(drop), Constraint::Name, &[Field::Name], "the name is empty or garbled");
    let class = RegionClass::from_raw(entry.class);
    if class.is_none() {
        judge.refuse(Constraint::Class, &[Field::Class], format!("class {}", entry.class));
    }
    let known = [
        (RegionFlags::from_raw(entry.flags).map(drop), Field::Reserved, "flags"),
        (Modes::from_raw(entry.modes).map(drop), Field::Modes, "modes"),
        (MemTypes::from_raw(entry.types).map(drop), Field::Types, "types"),
        (Perms::from_raw(entry.perms).map(drop), Field::Perms, "perms"),
        (BlockSizes::from_raw(entry.blocks).map(drop), Field::Blocks, "blocks"),
    ];
    for (decoded, field, what) in known {
        let fact = format!("{what} has a bit that this version does not define");
        judge.require(decoded, Constraint::UnknownBits, &[field], &fact);
    }
    if entry.reserved != [0; 3] || entry.reserved2 != 0 {
        let fact = "reserved bytes are not zero".to_owned();
        judge.refuse(Constraint::UnknownBits, &[Field::Reserved], fact);
    }
    check_quirk(judge);
}

fn check_quirk(judge: &mut Judge<'_>) {
    let reason = padded_text(&judge.entry.quirk);
    let fact = match (judge.has(RegionFlags::QUIRKED), reason) {
        (true, Some(text)) if !text.is_empty() && !text.contains(char::is_control) => return,
        (false, Some("")) => return,
        (true, Some("")) => "it is blocked without a reason",
        (true, Some(_) | None) => "the reason is garbled",
        (false, Some(_) | None) => "it has a reason but is not blocked",
    };
    judge.refuse(Constraint::QuirkReason, &[Field::Quirk], fact.to_owned());
}

fn check_place(judge: &mut Judge<'_>) {
    let range = PhysRange::of(judge.entry);
    if !range.base.is_page_aligned() {
        let fact = format!("base {} is not a multiple of 4K", range.base);
        judge.refuse(Constraint::BaseAligned, &[Field::Base], fact);
    }
    let size = format_bytes(range.bytes);
    if range.bytes == 0 {
        judge.refuse(Constraint::Size, &[Field::Size], "the size is zero".to_owned());
    } else if !range.bytes.is_multiple_of(super::range::PAGE_BYTES) {
        let fact = format!("size {size} is not a multiple of 4K");
        judge.refuse(Constraint::Size, &[Field::Size], fact);
    }
    if !range.fits() {
        let fact = format!("it ends at {:#x}, past 2^{ADDRESS_BITS}", range.end());
        judge.refuse(Constraint::AddressSpace, &[Field::Size, Field::Base], fact);
    }
    if judge.entry.blocks & BlockSizes::PAGE.raw() == 0 {
        judge.refuse(Constraint::PageBlock, &[Field::Blocks], "`blocks` lacks \"4K\"".to_owned());
    }
}

fn check_grants(judge: &mut Judge<'_>) {
    let entry = judge.entry;
    if entry.modes == 0 {
        let grants = [
            (entry.types, Field::Types),
            (entry.perms, Field::Perms),
            (entry.max_vms, Field::MaxVms),
        ];
        let set = grants.into_iter().filter(|&(value, _)| value != 0).map(|(_, field)| field);
        let mut fields: Vec<Field> = set.collect();
        if let Some(first) = fields.first() {
            let fact = format!("`{}` grants something, but no mode does", first.key());
            fields.push(Field::Modes);
            judge.refuse(Constraint::NothingGranted, &fields, fact);
        }
        return;
    }
    if !judge.grants_type(MemTypes::DEVICE) {
        let fact = "`types` lacks \"device\"".to_owned();
        judge.refuse(Constraint::DevicePresent, &[Field::Types], fact);
    }
    if entry.perms == 0 {
        let fact = "it has modes, but no permission".to_owned();
        judge.refuse(Constraint::SomePermission, &[Field::Perms, Field::Modes], fact);
    }
    if !(1..=MAX_HOLDERS).contains(&entry.max_vms) {
        let fact = format!("max_vms is {}, not 1 to {MAX_HOLDERS}", entry.max_vms);
        judge.refuse(Constraint::Holders, &[Field::MaxVms], fact);
    } else if entry.modes == Modes::DONATE.raw() && entry.max_vms != 1 {
        let fact = format!("it can only be donated, but max_vms is {}", entry.max_vms);
        judge.refuse(Constraint::DonateOnly, &[Field::MaxVms, Field::Modes], fact);
    }
}

fn check_types(judge: &mut Judge<'_>, header: &Header) {
    let class = RegionClass::from_raw(judge.entry.class);
    if judge.entry.perms != 0 && !judge.permits(Perms::READ) {
        let fact = "`perms` writes or executes without reading".to_owned();
        judge.refuse(Constraint::ReadFirst, &[Field::Perms], fact);
    }
    let cacheable = judge.grants_type(MemTypes::CACHEABLE);
    if judge.permits(Perms::EXEC) && !cacheable {
        let fact = "`x` is granted, but no cacheable type to execute from".to_owned();
        judge.refuse(Constraint::ExecCacheable, &[Field::Perms, Field::Types], fact);
    }
    if cacheable && class == Some(RegionClass::Mmio) {
        let fact = "\"cacheable\" is granted on MMIO".to_owned();
        judge.refuse(Constraint::CacheableMemory, &[Field::Types, Field::Class], fact);
    }
    let cleaned =
        judge.has(RegionFlags::CMO_BY_ADDRESS) || judge.entry.reset == ResetKind::External.raw();
    if cacheable && class == Some(RegionClass::Memory) && !cleaned {
        let fact = "\"cacheable\" is granted, but nothing cleans the caches afterwards".to_owned();
        let fields = [Field::Types, Field::CmoByAddress, Field::Reset];
        judge.refuse(Constraint::CacheableReturn, &fields, fact);
    }
    if !judge.grants_type(MemTypes::ANY_UNCACHED) {
        return;
    }
    if !judge.has(RegionFlags::NC_SAFE) {
        let fact = "\"any-uncached\" is granted, but nothing says that it is safe".to_owned();
        judge.refuse(Constraint::NcSafe, &[Field::Types, Field::NcSafe], fact);
    }
    if header.flags & PlatformFlags::NORMAL_NC_FORBIDDEN.raw() != 0 {
        let fact = "\"any-uncached\" is granted, but the platform forbids Normal-NC".to_owned();
        judge.refuse(Constraint::NormalNcForbidden, &[Field::Types], fact);
    }
}

fn check_properties(judge: &mut Judge<'_>) {
    if judge.has(RegionFlags::HOST_CLOSED) && judge.entry.modes != 0 {
        let fact = "it is closed to the host, but VMs may get it".to_owned();
        judge.refuse(Constraint::ClosedGrants, &[Field::Closed, Field::Modes], fact);
    }
    if RegionClass::from_raw(judge.entry.class) != Some(RegionClass::Mmio) {
        return;
    }
    let memory_only = [
        (RegionFlags::TAGS, Constraint::TagsMemory, Field::Tags),
        (RegionFlags::EXCLUSIVES, Constraint::AtomicsMemory, Field::Exclusives),
        (RegionFlags::ATOMICS, Constraint::AtomicsMemory, Field::Atomics),
        (RegionFlags::ZERO_ON_RETURN, Constraint::ZeroMemory, Field::ZeroOnReturn),
        (RegionFlags::CMO_BY_ADDRESS, Constraint::CmoMemory, Field::CmoByAddress),
    ];
    for (flag, constraint, field) in memory_only {
        if judge.has(flag) {
            let fact = format!("`{}` is set on MMIO", field.key());
            judge.refuse(constraint, &[field, Field::Class], fact);
        }
    }
}

fn check_pairs(entries: &[Entry], found: &mut Vec<Violation>) {
    let mut names = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        if let Some(first) = names.insert(entry.name, index) {
            let places = [index, first].map(|entry| Place { entry, field: Field::Name });
            let fact = format!("two regions are named `{}`", display_name(entry));
            let constraint = Constraint::NameUnique;
            found.push(Violation { constraint, fact, places: places.to_vec() });
        }
        for (other_index, other) in entries.iter().enumerate().take(index) {
            let pair = [(index, entry), (other_index, other)];
            if PhysRange::of(entry).overlaps(PhysRange::of(other)) {
                found.push(pair_violation(Constraint::Overlap, "overlaps", pair));
            }
        }
        if let Some((previous, before)) =
            index.checked_sub(1).zip(entries.get(index.wrapping_sub(1)))
            && before.base > entry.base
        {
            let pair = [(index, entry), (previous, before)];
            found.push(pair_violation(Constraint::Sorted, "comes after", pair));
        }
    }
}

fn pair_violation(
    constraint: Constraint,
    verb: &str,
    [(first, one), (second, other)]: [(usize, &Entry); 2],
) -> Violation {
    let fact = format!(
        "region `{}` {} {verb} region `{}` {}",
        display_name(one),
        PhysRange::of(one),
        display_name(other),
        PhysRange::of(other)
    );
    // Both sizes matter too: an unreadable one must silence the finding.
    let places =
        [(first, Field::Base), (second, Field::Base), (first, Field::Size), (second, Field::Size)];
    let places = places.map(|(entry, field)| Place { entry, field }).to_vec();
    Violation { constraint, fact, places }
}

/// A device's regions all name its streams, so only repetition within one entry is an error.
fn check_streams(entries: &[Entry], found: &mut Vec<Violation>) {
    for (index, entry) in entries.iter().enumerate() {
        let count = usize::from(entry.stream_count);
        let mut judge = Judge { index, entry, entries, found };
        let Some((used, unused)) = entry.streams.split_at_checked(count) else {
            let fact = format!("it names {count} streams, at most {} fit", entry.streams.len());
            judge.refuse(Constraint::StreamCount, &[Field::Streams], fact);
            continue;
        };
        if unused.iter().any(|&stream| stream != 0) {
            let fact = "an unused stream slot is not zero".to_owned();
            judge.refuse(Constraint::StreamCount, &[Field::Streams], fact);
        }
        let mut seen = BTreeSet::new();
        for stream in used.iter().filter(|&&stream| !seen.insert(stream)) {
            let fact = format!("stream {stream:#x} is listed twice");
            judge.refuse(Constraint::StreamUnique, &[Field::Streams], fact);
        }
    }
}
