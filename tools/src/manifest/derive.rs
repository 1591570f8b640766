//! Device tree and grants to manifest: everything unsafe or unknown gets no grant.

use miette::{Result, miette};
use pfnguard_shared::manifest::{
    BlockSizes, Entry, MAX_ENTRIES, PlatformFlags, RegionClass, RegionFlags,
};

use super::binary::{BinaryRefusal, write_binary};
use super::constraint::Constraint;
use super::fault::{Fault, Refusal};
use super::range::{PhysRange, format_bytes};
use super::source::{Manifest, Ram, Region};
use super::text::{padded, parse};
use super::tree::{Device, Machine, WindowKind, read_tree};
use super::violation::{Field, display_name};

/// A derived manifest, with what was left out of it and why.
#[derive(Debug)]
pub struct Derived {
    /// The manifest.
    pub manifest: Manifest,
    /// For the reader of the text.
    pub notes: Vec<String>,
}

impl Derived {
    /// Returns the binary.
    ///
    /// # Errors
    ///
    /// Returns the violations; there are none where `derive` succeeded.
    pub fn binary(&self) -> std::result::Result<Vec<u8>, BinaryRefusal> {
        write_binary(self.manifest.flags.raw(), &self.manifest.entries())
    }
}

/// Derives a binary manifest from a device tree and the grants text of file `grants_name`.
///
/// A grants text without any TOML in it grants nothing.
///
/// # Errors
///
/// Returns a [`Refusal`] with the places of what is wrong with the grants, or what is wrong with
/// the device tree.
pub fn derive_from_dtb(dtb: &[u8], grants_name: &str, grants_toml: &str) -> Result<Vec<u8>> {
    Ok(derive(dtb, grants_name, grants_toml)?.binary()?)
}

/// Derives a manifest; see [`derive_from_dtb`].
///
/// # Errors
///
/// As [`derive_from_dtb`].
pub fn derive(dtb: &[u8], grants_name: &str, grants_toml: &str) -> Result<Derived> {
    let machine = read_tree(dtb).map_err(|fact| {
        let constraint = Constraint::DeviceTree;
        let (code, help) = (constraint.to_string(), constraint.hint());
        miette!(code = code, help = help, "the device tree cannot be used: {fact}")
    })?;
    let (mut manifest, mut faults) = read_grants(grants_toml, &machine);
    let mut notes = notes(&machine);
    let devices = whole_pages(&machine, &mut notes);
    faults.extend(manifest.regions.iter().filter_map(|grant| misplaced(grant, &machine, &devices)));
    let room = MAX_ENTRIES.saturating_sub(manifest.regions.len());
    let derived = devices
        .into_iter()
        .filter(|device| manifest.regions.iter().all(|grant| grant.range() != device.range));
    let derived = most_important(derived.collect(), room, &mut notes);
    manifest.regions.extend(derived.iter().map(region_of));
    manifest.ram.extend(machine.ram.iter().map(|&range| Ram { range, span: None }));
    manifest.sort();
    faults.extend(new_faults(&manifest, &faults));
    match faults.is_empty() {
        true => Ok(Derived { manifest, notes }),
        false => Err(Refusal::new(grants_name, grants_toml, faults).into()),
    }
}

fn read_grants(text: &str, machine: &Machine) -> (Manifest, Vec<Fault>) {
    let blank = text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#'));
    let (mut manifest, faults) = if blank {
        // Nothing is granted, so the careful answer costs nothing.
        let flags = PlatformFlags::NORMAL_NC_FORBIDDEN;
        (Manifest { flags, ..Manifest::default() }, Vec::new())
    } else {
        parse(text)
    };
    if manifest.platform.is_empty() {
        manifest.platform.clone_from(&machine.model);
    }
    (manifest, faults)
}

// An overlap with a blocked device is reported once, as what it is.
fn new_faults(manifest: &Manifest, old: &[Fault]) -> Vec<Fault> {
    let mut found = manifest.judge();
    found.retain(|new| {
        let same_place = |old: &Fault| old.position() == new.position();
        let blocked = |old: &Fault| old.constraint == Constraint::GrantBlocked;
        new.constraint != Constraint::Overlap
            || !old.iter().any(|old| blocked(old) && same_place(old))
    });
    found
}

/// Returns why a granted region is in the wrong place, if it is.
fn misplaced(grant: &Region, machine: &Machine, devices: &[Device]) -> Option<Fault> {
    let unreadable = [Field::Base, Field::Size].iter().any(|field| grant.unread.contains(field));
    if unreadable || grant.range().bytes == 0 {
        return None;
    }
    let (range, name) = (grant.range(), display_name(&grant.entry));
    let label = grant.label(Field::Base)?;
    let fault =
        |constraint, message| Fault { constraint, message, hint: None, labels: vec![label] };
    let hit = devices.iter().find(|device| device.range.overlaps(range));
    if let Some((device, reason)) = hit.and_then(|device| Some((device, device.blocked?))) {
        let restated = device.range == range && grant.entry.modes == 0;
        let message =
            format!("region `{name}` {range} touches {} {} ({reason})", device.name, device.range);
        return (!restated).then(|| fault(Constraint::GrantBlocked, message));
    }
    let in_window = machine.windows.iter().any(|window| match window.kind {
        WindowKind::Io => false,
        WindowKind::Mem32 | WindowKind::Mem64 => window.range.contains(range),
    });
    // A partial overlap with a device, or with RAM, is the checker's finding.
    let in_ram = machine.ram.iter().any(|ram| ram.overlaps(range));
    if in_window || in_ram || hit.is_some() {
        return None;
    }
    let message = format!("region `{name}` {range} is in no PCI window and is no device");
    Some(fault(Constraint::GrantPlace, message))
}

fn notes(machine: &Machine) -> Vec<String> {
    let windows = machine.windows.iter().map(|window| {
        let kind = match window.kind {
            WindowKind::Io => "I/O ports",
            WindowKind::Mem32 => "32-bit memory",
            WindowKind::Mem64 => "64-bit memory",
        };
        format!(
            "PCI window {}, {kind}: left out, only its granted parts are listed (R01)",
            window.range
        )
    });
    let reserved = machine.reserved.iter().filter_map(|(name, range)| {
        let in_ram = machine.ram.iter().any(|ram| ram.contains(*range));
        in_ram.then(|| format!("reserved memory `{name}` {range}: RAM, and so no region (R15)"))
    });
    let notes = windows.chain(reserved);
    notes.chain(machine.notes.iter().map(|note| format!("not understood: {note}"))).collect()
}

/// Rounds devices out to pages; devices that share a page, and small neighbours of the same kind,
/// become one.
fn whole_pages(machine: &Machine, notes: &mut Vec<String>) -> Vec<Device> {
    let mut devices = machine.devices.clone();
    devices.extend(reserved_outside_ram(machine));
    devices.sort_by_key(|device| device.range);
    let mut merged: Vec<Device> = Vec::new();
    for mut device in devices {
        let Some(range) = device.range.rounded_to_pages().filter(|range| range.fits()) else {
            notes.push(format!("{} {}: past the address space", device.name, device.range));
            continue;
        };
        let was = std::mem::replace(&mut device.range, range);
        match merged.last_mut() {
            Some(last) if belongs_to(last, &device, was) => absorb(last, &device),
            Some(_) | None => merged.push(device),
        }
    }
    merged
}

// `unrounded` are the registers of `next` as the tree has them.
fn belongs_to(last: &Device, next: &Device, unrounded: PhysRange) -> bool {
    let adjacent = last.range.end() == u128::from(next.range.base.0);
    let small = unrounded.bytes != next.range.bytes;
    let same_kind = last.compatible == next.compatible && !last.compatible.is_empty();
    last.range.overlaps(next.range) || (adjacent && small && same_kind)
}

// Two devices in one page cannot be told apart by stage 2: the more careful answer holds for both.
fn absorb(last: &mut Device, next: &Device) {
    let end = last.range.end().max(next.range.end());
    let bytes = end.saturating_sub(u128::from(last.range.base.0));
    last.range.bytes = u64::try_from(bytes).unwrap_or(last.range.bytes);
    last.blocked = last.blocked.or(next.blocked);
    if last.compatible != next.compatible {
        last.compatible = format!("{} + {}", last.compatible, next.compatible);
    }
}

fn reserved_outside_ram(machine: &Machine) -> Vec<Device> {
    let mut found = Vec::new();
    for (name, range) in &machine.reserved {
        let mut parts = vec![*range];
        for ram in &machine.ram {
            parts = parts.into_iter().flat_map(|part| part.without(*ram)).collect();
        }
        found.extend(parts.into_iter().map(|range| Device {
            name: name.clone(),
            range,
            blocked: Some("reserved memory"),
            compatible: String::new(),
        }));
    }
    found
}

/// Keeps at most `room` devices: the blocked ones first, because they carry a reason.
fn most_important(devices: Vec<Device>, room: usize, notes: &mut Vec<String>) -> Vec<Device> {
    let (blocked, plain): (Vec<_>, Vec<_>) =
        devices.into_iter().partition(|device| device.blocked.is_some());
    let mut kept = [blocked, plain].concat();
    let dropped = kept.split_off(room.min(kept.len()));
    notes.extend(dropped.iter().map(|device| {
        format!("{} {}: left out, the manifest is full (R01 refuses it)", device.name, device.range)
    }));
    kept
}

/// Its command queue makes it write to any address, past every stage 2 and every SMMU.
const ITS: &str = "gic-v3-its";

fn region_of(device: &Device) -> Region {
    let mut entry = Entry::zeroed();
    entry.name = entry_name(&device.name, device.range);
    entry.base = device.range.base.0;
    entry.size = device.range.bytes;
    entry.class = RegionClass::Mmio.raw();
    entry.blocks = BlockSizes::PAGE.raw();
    if let Some(reason) = device.blocked {
        entry.flags = RegionFlags::QUIRKED.raw();
        entry.quirk = padded(reason).expect("reasons are short");
    }
    if device.compatible.contains(ITS) {
        entry.flags |= RegionFlags::HOST_CLOSED.raw();
    }
    let size = format_bytes(device.range.bytes);
    Region::without_text(entry, format!("{} ({size})", device.compatible).trim_start().to_owned())
}

// Unique because the address is; the name part gives way where both do not fit.
fn entry_name(name: &str, range: PhysRange) -> [u8; 32] {
    let suffix = format!("@{:x}", range.base.0);
    let clean: String = name.chars().map(|c| if c.is_ascii_graphic() { c } else { '-' }).collect();
    let room = clean.len().min(32usize.saturating_sub(suffix.len()));
    let head = clean.get(..room).unwrap_or_default();
    padded(&format!("{head}{suffix}")).expect("cut to fit")
}
