//! Text to manifest: the TOML dialect of `docs/manifest.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pfnguard_shared::manifest::{
    BlockSizes, Entry, MAX_STREAMS, PlatformFlags, RegionClass, RegionFlags, ResetKind,
};
use pfnguard_shared::request::{MemTypes, Modes, Perms};
use toml::de::DeTable;

use super::constraint::Constraint;
use super::fault::Fault;
use super::range::PhysRange;
use super::source::{Manifest, Ram, Region};
use super::value::{Fields, Value, boolean, list, number, string, word, word_set};
use super::violation::Field;

/// Words of `class`.
pub const CLASSES: [(&str, u8); 2] =
    [("mmio", RegionClass::Mmio.raw()), ("memory", RegionClass::Memory.raw())];
/// Words of `modes`.
pub const MODES: [(&str, u8); 2] = [("share", Modes::SHARE.raw()), ("donate", Modes::DONATE.raw())];
/// Words of `types`.
pub const TYPES: [(&str, u8); 3] = [
    ("device", MemTypes::DEVICE.raw()),
    ("any-uncached", MemTypes::ANY_UNCACHED.raw()),
    ("cacheable", MemTypes::CACHEABLE.raw()),
];
/// Words of `blocks`.
pub const BLOCKS: [(&str, u8); 3] = [
    ("4K", BlockSizes::PAGE.raw()),
    ("2M", BlockSizes::BLOCK_2M.raw()),
    ("1G", BlockSizes::BLOCK_1G.raw()),
];
/// Letters of `perms`.
pub const PERMS: [(char, u8); 3] =
    [('r', Perms::READ.raw()), ('w', Perms::WRITE.raw()), ('x', Perms::EXEC.raw())];
/// Words of `reset.kind`.
pub const RESETS: [(&str, u8); 4] = [
    ("none", ResetKind::None.raw()),
    ("readback", ResetKind::Readback.raw()),
    ("poll", ResetKind::Poll.raw()),
    ("external", ResetKind::External.raw()),
];
/// Flags that are a boolean field each.
pub const FLAGS: [(Field, RegionFlags); 7] = [
    (Field::NcSafe, RegionFlags::NC_SAFE),
    (Field::Closed, RegionFlags::HOST_CLOSED),
    (Field::CmoByAddress, RegionFlags::CMO_BY_ADDRESS),
    (Field::Tags, RegionFlags::TAGS),
    (Field::Exclusives, RegionFlags::EXCLUSIVES),
    (Field::Atomics, RegionFlags::ATOMICS),
    (Field::ZeroOnReturn, RegionFlags::ZERO_ON_RETURN),
];
const NORMAL_NC: [(&str, PlatformFlags); 2] =
    [("allowed", PlatformFlags::NONE), ("forbidden", PlatformFlags::NORMAL_NC_FORBIDDEN)];

/// Reads `text` as far as it can be read; returns the manifest and every fault of the text.
///
/// The constraints on what was read are [`Manifest::judge`]'s business.
pub fn parse(text: &str) -> (Manifest, Vec<Fault>) {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut faults = Vec::new();
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let message = format!("not TOML: {}", error.message());
        let fault = Fault::at(Constraint::Syntax, span.clone(), message);
        // The first error of a line is the reason for the others.
        let previous = faults.last().map(Fault::position);
        let same_line = previous.and_then(|start| text.get(start..span.start));
        if same_line.is_none_or(|between| between.contains('\n')) {
            faults.push(fault);
        }
    }
    // What the parser recovers from broken text would only cause errors about errors.
    if !faults.is_empty() {
        return (Manifest::default(), faults);
    }
    let mut manifest = Manifest::default();
    let mut top = Fields::new(document.get_ref(), 0..0, "a manifest");
    if let Some(value) = top.require("platform", &mut faults) {
        read_platform(value, &mut manifest, &mut faults);
    }
    let ram = top.get("ram").and_then(|value| list(value, "ram", &mut faults));
    manifest.ram =
        ram.unwrap_or_default().iter().filter_map(|v| read_ram(v, &mut faults)).collect();
    let regions = top.get("region").and_then(|value| list(value, "region", &mut faults));
    for value in regions.unwrap_or_default() {
        manifest.regions.extend(read_region(value, &mut faults));
    }
    top.finish(&mut faults);
    (manifest, faults)
}

fn read_platform(value: &Value<'_>, manifest: &mut Manifest, faults: &mut Vec<Fault>) {
    let Some(mut fields) = Fields::of(value, "[platform]", faults) else { return };
    let name = fields.require("name", faults).and_then(|value| string(value, "name", faults));
    manifest.platform = name.unwrap_or_default().to_owned();
    let normal_nc = fields
        .require("normal_nc", faults)
        .and_then(|value| word(value, "normal_nc", &NORMAL_NC, faults));
    manifest.flags = normal_nc.unwrap_or_default();
    fields.finish(faults);
}

fn read_ram(value: &Value<'_>, faults: &mut Vec<Fault>) -> Option<Ram> {
    let mut fields = Fields::of(value, "[[ram]]", faults)?;
    let base_value = fields.require("base", faults);
    let base = base_value.and_then(|value| number(value, "base", faults));
    let size_value = fields.require("size", faults);
    let size = size_value.and_then(|value| number(value, "size", faults));
    fields.finish(faults);
    let (range, span) = (PhysRange::new(base?, size?), base_value?.span());
    if range.bytes == 0 || !range.fits() {
        let message = format!("RAM {range} is empty or ends past 2^52");
        faults.push(Fault::at(Constraint::BadValue, size_value?.span(), message));
        return None;
    }
    Some(Ram { range, span: Some(span) })
}

/// One region while it is read.
struct RegionReader<'f> {
    entry: Entry,
    spans: BTreeMap<Field, Range<usize>>,
    unread: BTreeSet<Field>,
    faults: &'f mut Vec<Fault>,
}

impl<'f> RegionReader<'f> {
    /// Notes the place of `value`, reads it, and marks the field as unread if that fails.
    fn read<'t, T>(
        &mut self,
        field: Field,
        value: Option<&'t Value<'t>>,
        reader: impl FnOnce(&'t Value<'t>, &str, &mut Vec<Fault>) -> Option<T>,
    ) -> Option<T> {
        let value = value?;
        self.spans.insert(field, value.span());
        let read = reader(value, field.key(), self.faults);
        if read.is_none() {
            self.unread.insert(field);
        }
        read
    }

    fn require<'t, T>(
        &mut self,
        field: Field,
        fields: &mut Fields<'t>,
        reader: impl FnOnce(&'t Value<'t>, &str, &mut Vec<Fault>) -> Option<T>,
    ) -> Option<T> {
        let value = fields.require(field.key(), self.faults);
        if value.is_none() {
            self.unread.insert(field);
        }
        self.read(field, value, reader)
    }

    fn identity(&mut self, fields: &mut Fields<'_>) {
        let name = self.require(Field::Name, fields, |v, what, faults| {
            fixed_text(v, what, Constraint::Name, faults)
        });
        self.entry.name = name.unwrap_or_default();
        self.entry.base = self.require(Field::Base, fields, number).unwrap_or_default();
        self.entry.size = self.require(Field::Size, fields, number).unwrap_or_default();
        let class = self.require(Field::Class, fields, |v, what, f| word(v, what, &CLASSES, f));
        self.entry.class = class.unwrap_or_default();
        let reason = self.read(Field::Quirk, fields.get("quirk"), |v, what, faults| {
            fixed_text(v, what, Constraint::QuirkReason, faults)
        });
        if let Some(reason) = reason {
            self.entry.quirk = reason;
            self.entry.flags |= RegionFlags::QUIRKED.raw();
        }
    }

    fn grants(&mut self, fields: &mut Fields<'_>) {
        let modes =
            self.read(Field::Modes, fields.get("modes"), |v, w, f| word_set(v, w, &MODES, f));
        self.entry.modes = modes.unwrap_or_default();
        let types =
            self.read(Field::Types, fields.get("types"), |v, w, f| word_set(v, w, &TYPES, f));
        self.entry.types = types.unwrap_or_default();
        self.entry.perms =
            self.read(Field::Perms, fields.get("perms"), permissions).unwrap_or_default();
        let holders = self.read(Field::MaxVms, fields.get("max_vms"), |v, what, faults| {
            narrow(v, what, Constraint::Holders, faults)
        });
        self.entry.max_vms = holders.unwrap_or_default();
        let blocks =
            self.read(Field::Blocks, fields.get("blocks"), |v, w, f| word_set(v, w, &BLOCKS, f));
        self.entry.blocks = blocks.unwrap_or(BlockSizes::PAGE.raw());
    }

    fn flags(&mut self, fields: &mut Fields<'_>) {
        for (field, flag) in FLAGS {
            if self.read(field, fields.get(field.key()), boolean) == Some(true) {
                self.entry.flags |= flag.raw();
            }
        }
    }

    fn streams(&mut self, fields: &mut Fields<'_>) {
        let streams = self.read(Field::Streams, fields.get("streams"), stream_list);
        let streams = streams.unwrap_or_default();
        for (slot, stream) in self.entry.streams.iter_mut().zip(&streams) {
            *slot = *stream;
        }
        self.entry.stream_count = u8::try_from(streams.len()).unwrap_or_default();
    }

    fn reset(&mut self, fields: &mut Fields<'_>) {
        let Some(value) = fields.get("reset") else { return };
        let Some(mut reset) = self.read(Field::Reset, Some(value), |value, what, faults| {
            Fields::of(value, &format!("`{what}`"), faults)
        }) else {
            return;
        };
        let kind = reset.require("kind", self.faults);
        let kind = kind.and_then(|value| word(value, "kind", &RESETS, self.faults));
        if kind.is_none() {
            self.unread.insert(Field::Reset);
        }
        self.entry.reset = kind.unwrap_or_default();
        self.reset_register(&mut reset);
        reset.finish(self.faults);
    }

    fn reset_register(&mut self, reset: &mut Fields<'_>) {
        let register = self.read(Field::ResetRegister, reset.get("register"), number);
        self.entry.reset_addr = register.unwrap_or_default();
        let width = self.read(Field::ResetWidth, reset.get("width"), |v, what, faults| {
            narrow(v, what, Constraint::ResetWidth, faults)
        });
        self.entry.reset_width = width.unwrap_or_default();
        let mask = self.read(Field::ResetMask, reset.get("mask"), number);
        self.entry.reset_mask = mask.unwrap_or_default();
        let value = self.read(Field::ResetValue, reset.get("value"), number);
        self.entry.reset_value = value.unwrap_or_default();
        let bound = self.read(Field::ResetBound, reset.get("bound"), |v, what, faults| {
            narrow(v, what, Constraint::PollBound, faults)
        });
        self.entry.reset_bound = bound.unwrap_or_default();
    }
}

fn read_region(value: &Value<'_>, faults: &mut Vec<Fault>) -> Option<Region> {
    let table = value.get_ref().as_table()?;
    let name = table.iter().find(|(key, _)| key.get_ref() == "name");
    let title = match name.and_then(|(_, value)| value.get_ref().as_str()) {
        Some(name) => format!("region `{name}`"),
        None => "[[region]]".to_owned(),
    };
    let mut fields = Fields::of(value, &title, faults)?;
    let mut reader = RegionReader {
        entry: Entry::zeroed(),
        spans: BTreeMap::new(),
        unread: BTreeSet::new(),
        faults,
    };
    reader.identity(&mut fields);
    reader.grants(&mut fields);
    reader.flags(&mut fields);
    reader.streams(&mut fields);
    reader.reset(&mut fields);
    let RegionReader { entry, spans, unread, faults } = reader;
    fields.finish(faults);
    let start = Some(value.span());
    Some(Region { entry, spans, start, unread, comment: String::new() })
}

fn fixed_text(
    value: &Value<'_>,
    what: &str,
    constraint: Constraint,
    faults: &mut Vec<Fault>,
) -> Option<[u8; 32]> {
    let text = string(value, what, faults)?;
    let fixed = padded(text).filter(|_| !text.contains(char::is_control));
    if fixed.is_none() {
        let message = format!("`{what}` is longer than 32 bytes or has control characters");
        faults.push(Fault::at(constraint, value.span(), message));
    }
    fixed
}

/// Returns `text` zero-padded, or `None` if it is longer than 32 bytes.
pub fn padded(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(bytes)
}

fn narrow<T: TryFrom<u64>>(
    value: &Value<'_>,
    what: &str,
    constraint: Constraint,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    let wide = number(value, what, faults)?;
    let narrow = T::try_from(wide).ok();
    if narrow.is_none() {
        let message = format!("`{what}` is {wide}, far too large");
        faults.push(Fault::at(constraint, value.span(), message));
    }
    narrow
}

fn stream_list(value: &Value<'_>, what: &str, faults: &mut Vec<Fault>) -> Option<Vec<u32>> {
    let items = list(value, what, faults)?;
    let mut numbers = Some(Vec::new());
    for item in items {
        let number = narrow(item, what, Constraint::BadValue, faults);
        numbers = numbers.zip(number).map(|(numbers, number)| [numbers, vec![number]].concat());
    }
    if items.len() > MAX_STREAMS {
        let message = format!("{} streams, at most {MAX_STREAMS} fit", items.len());
        faults.push(Fault::at(Constraint::StreamCount, value.span(), message));
        return None;
    }
    numbers
}

fn permissions(value: &Value<'_>, what: &str, faults: &mut Vec<Fault>) -> Option<u8> {
    let text = string(value, what, faults)?;
    let mut set = 0;
    for letter in text.chars() {
        let bit = PERMS.iter().find(|(known, _)| *known == letter).map(|&(_, bit)| bit);
        let fault = match bit {
            Some(bit) if set & bit == 0 => {
                set |= bit;
                continue;
            }
            Some(_) => (Constraint::Repeated, format!("`{what}` repeats `{letter}`")),
            None => (Constraint::BadValue, format!("`{what}` does not know `{letter}`")),
        };
        let mut fault = Fault::at(fault.0, value.span(), fault.1);
        fault.hint = Some("write \"r\", \"rw\", \"rx\" or \"rwx\"".to_owned());
        faults.push(fault);
        return None;
    }
    Some(set)
}
