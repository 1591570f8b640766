//! Manifest to text: TOML that compiles to the same binary, and the table of `show`.

use std::fmt::Write as _;

use pfnguard_shared::manifest::{BlockSizes, Entry, Header, PlatformFlags, RegionFlags, ResetKind};
use pfnguard_shared::request::{MemTypes, Modes, Perms};

use super::range::{PhysRange, format_bytes};
use super::source::{Manifest, Region};
use super::text::{BLOCKS, CLASSES, FLAGS, MODES, PERMS, RESETS, TYPES};
use super::violation::{display_name, padded_text};

/// Writes a manifest as text, with `notes` as comments.
pub fn to_text(manifest: &Manifest, notes: &[String]) -> String {
    let mut text =
        String::from("# Derived from a device tree. Unlisted pages are refused (R01).\n");
    for note in notes {
        text.push_str(&format!("# {}\n", note.escape_debug()));
    }
    let normal_nc = match manifest.flags.contains(PlatformFlags::NORMAL_NC_FORBIDDEN) {
        true => "forbidden",
        false => "allowed",
    };
    let name = quoted(&manifest.platform);
    text.push_str(&format!("\n[platform]\nname = {name}\nnormal_nc = \"{normal_nc}\"\n"));
    for ram in &manifest.ram {
        let (base, size) = (ram.range.base, format_bytes(ram.range.bytes));
        text.push_str(&format!("\n[[ram]]\nbase = {base}\nsize = \"{size}\"\n"));
    }
    for region in &manifest.regions {
        region_text(&mut text, region).expect("a String takes every write");
    }
    text
}

fn region_text(text: &mut String, region: &Region) -> std::fmt::Result {
    let entry = &region.entry;
    writeln!(text)?;
    if !region.comment.is_empty() {
        writeln!(text, "# {}", region.comment.escape_debug())?;
    }
    writeln!(text, "[[region]]\nname = {}", quoted(padded_text(&entry.name).unwrap_or_default()))?;
    writeln!(text, "base = {:#x}\nsize = \"{}\"", entry.base, format_bytes(entry.size))?;
    writeln!(text, "class = \"{}\"", word(&CLASSES, entry.class))?;
    if entry.modes != 0 {
        writeln!(text, "modes = [{}]", quoted_words(&MODES, entry.modes))?;
        writeln!(text, "types = [{}]", quoted_words(&TYPES, entry.types))?;
        writeln!(text, "perms = \"{}\"", letters(entry.perms))?;
        writeln!(text, "max_vms = {}", entry.max_vms)?;
    }
    if entry.blocks != BlockSizes::PAGE.raw() {
        writeln!(text, "blocks = [{}]", quoted_words(&BLOCKS, entry.blocks))?;
    }
    for (field, flag) in FLAGS {
        if entry.flags & flag.raw() != 0 {
            writeln!(text, "{} = true", field.key())?;
        }
    }
    if entry.flags & RegionFlags::QUIRKED.raw() != 0 {
        writeln!(text, "quirk = {}", quoted(padded_text(&entry.quirk).unwrap_or_default()))?;
    }
    if entry.reset != ResetKind::None.raw() {
        writeln!(text, "reset = {{ {} }}", reset_fields(entry))?;
    }
    if entry.stream_count != 0 {
        writeln!(text, "streams = [{}]", streams(entry))?;
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn word(words: &[(&'static str, u8)], value: u8) -> &'static str {
    words.iter().find(|(_, known)| *known == value).map_or("?", |(word, _)| word)
}

fn words(all: &[(&'static str, u8)], set: u8) -> Vec<&'static str> {
    all.iter().filter(|(_, bit)| set & bit != 0).map(|(word, _)| *word).collect()
}

fn quoted_words(all: &[(&'static str, u8)], set: u8) -> String {
    words(all, set).iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

fn letters(perms: u8) -> String {
    PERMS.iter().filter(|(_, bit)| perms & bit != 0).map(|(letter, _)| letter).collect()
}

fn streams(entry: &Entry) -> String {
    let used = entry.streams.iter().take(usize::from(entry.stream_count));
    used.map(|stream| format!("{stream:#x}")).collect::<Vec<_>>().join(", ")
}

fn reset_fields(entry: &Entry) -> String {
    let kind = format!("kind = \"{}\"", word(&RESETS, entry.reset));
    let register = format!("register = {:#x}, width = {}", entry.reset_addr, entry.reset_width);
    // TOML integers have 63 bits; strings take the top one too.
    let poll = format!(
        "mask = \"{:#x}\", value = \"{:#x}\", bound = {}",
        entry.reset_mask, entry.reset_value, entry.reset_bound
    );
    match ResetKind::from_raw(entry.reset) {
        Some(ResetKind::None | ResetKind::External) | None => kind,
        Some(ResetKind::Readback) => format!("{kind}, {register}"),
        Some(ResetKind::Poll) => format!("{kind}, {register}, {poll}"),
    }
}

const COLUMNS: [&str; 11] = [
    "name", "range", "size", "class", "modes", "types", "perms", "vms", "blocks", "reset", "flags",
];

/// Writes the table that `show` prints.
pub fn to_table(header: &Header, entries: &[Entry]) -> String {
    let hash: String = header.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    let forbidden = header.flags & PlatformFlags::NORMAL_NC_FORBIDDEN.raw() != 0;
    let normal_nc =
        if forbidden { "forbidden everywhere (R04)" } else { "where an entry grants it" };
    let mut text = format!(
        "sha256    {hash}\nversion   {}\nentries   {}\nnormal-nc {normal_nc}\n\n",
        header.version,
        entries.len()
    );
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(entries.iter().map(row));
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
        .collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push_str("\ntypes: dev = Device-nGnRE, nc = AnyUncached (Normal-NC), wb = Cacheable\n");
    text
}

fn row(entry: &Entry) -> [String; 11] {
    const SHORT_MODES: [(&str, u8); 2] =
        [("share", Modes::SHARE.raw()), ("donate", Modes::DONATE.raw())];
    const SHORT_TYPES: [(&str, u8); 3] = [
        ("dev", MemTypes::DEVICE.raw()),
        ("nc", MemTypes::ANY_UNCACHED.raw()),
        ("wb", MemTypes::CACHEABLE.raw()),
    ];
    let perms = Perms::from_raw(entry.perms).map_or_else(|| "?".to_owned(), |p| letters(p.raw()));
    [
        display_name(entry),
        PhysRange::of(entry).to_string(),
        format_bytes(entry.size),
        word(&CLASSES, entry.class).to_owned(),
        or_dash(words(&SHORT_MODES, entry.modes).join("+")),
        or_dash(words(&SHORT_TYPES, entry.types).join(" ")),
        or_dash(perms),
        or_dash(Some(entry.max_vms).filter(|&n| n != 0).map(|n| n.to_string()).unwrap_or_default()),
        words(&BLOCKS, entry.blocks).join(" "),
        reset_cell(entry),
        or_dash(flags_cell(entry)),
    ]
}

fn or_dash(cell: String) -> String {
    if cell.is_empty() { "-".to_owned() } else { cell }
}

fn reset_cell(entry: &Entry) -> String {
    let kind = word(&RESETS, entry.reset);
    match ResetKind::from_raw(entry.reset) {
        Some(ResetKind::None) => "-".to_owned(),
        Some(ResetKind::Readback) => {
            format!("{kind} {:#x}/{}", entry.reset_addr, entry.reset_width)
        }
        Some(ResetKind::Poll) => format!(
            "{kind} {:#x}/{} & {:#x} == {:#x}, {} reads",
            entry.reset_addr,
            entry.reset_width,
            entry.reset_mask,
            entry.reset_value,
            entry.reset_bound
        ),
        Some(ResetKind::External) | None => kind.to_owned(),
    }
}

fn flags_cell(entry: &Entry) -> String {
    let mut cells: Vec<String> = FLAGS
        .iter()
        .filter(|(_, flag)| entry.flags & flag.raw() != 0)
        .map(|(field, _)| field.key().to_owned())
        .collect();
    if entry.stream_count != 0 {
        cells.push(format!("streams {}", streams(entry)));
    }
    if entry.flags & RegionFlags::QUIRKED.raw() != 0 {
        cells.push(format!("BLOCKED: {}", padded_text(&entry.quirk).unwrap_or("?")));
    }
    cells.join(", ")
}
