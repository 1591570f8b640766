//! The map as one page for a browser: bars, a legend and the table. It loads nothing.

use std::collections::BTreeSet;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use pfnguard_shared::MemType;

use super::map::{Map, TITLES, addresses, size};
use super::owner::{Owner, Row};

/// Width of a bar in pixels, unless it has too many parts.
const WIDTH: u64 = 1000;
/// Least width of a part: a page among gigabytes is still there to be seen and pointed at.
const LEAST: u64 = 8;
/// Height of a bar.
const HEIGHT: u64 = 26;
/// Height of a bar with its title.
const PITCH: u64 = 58;

/// What the page may load: nothing but its own style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; }
figure { margin: 0; overflow-x: auto; }
svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
svg text.type { font-size: 11px; fill: #000; pointer-events: none; }
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .4em 1.5em; }
ul.legend svg { vertical-align: middle; margin-right: .4em; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .15em .8em; border-bottom: 1px solid #8884; }
td:nth-child(-n+2) { font-family: ui-monospace, monospace; }
td:nth-child(2) { text-align: right; }
.problems { color: #d00; }
";

/// Draws the page.
pub fn page(map: &Map) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { "pfnguard: who owns what" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Who owns what" }
                (problems(map))
                (legend(map))
                figure { (drawing(map)) }
                (table(map))
            }
        }
    };
    page.into_string()
}

fn problems(map: &Map) -> Markup {
    html! {
        @if !map.owners.problems.is_empty() {
            section.problems {
                h2 { "Contradictions" }
                ul { @for problem in &map.owners.problems { li { (problem) } } }
            }
        }
    }
}

fn legend(map: &Map) -> Markup {
    let owners: BTreeSet<&Owner> = map.owners.rows.iter().map(|row| &row.cell.owner).collect();
    html! {
        ul.legend {
            @for owner in owners { li { (swatch(&colour(owner))) (map.owner(owner)) } }
            @for mem_type in MemType::ALL {
                li { (swatch(&pattern(*mem_type))) (mem_type.name()) }
            }
        }
    }
}

fn swatch(fill: &str) -> Markup {
    html! {
        svg width="22" height="16" aria-hidden="true" {
            rect width="22" height="16" fill=(fill) stroke="#8888" {}
        }
    }
}

/// A bar of the drawing: a bank of RAM, a region, or what lies in neither.
struct Bar<'a> {
    title: String,
    rows: Vec<&'a Row>,
}

impl Bar<'_> {
    /// Width of the bar: parts never get less than their least.
    fn width(&self) -> u64 {
        WIDTH.max(LEAST.saturating_mul(count(&self.rows)))
    }

    /// Returns each part with its place and width. What the least widths leave is shared by size.
    fn parts(&self) -> Vec<(&Row, u64, u64)> {
        let spare = self.width().saturating_sub(LEAST.saturating_mul(count(&self.rows)));
        let total: u128 = self.rows.iter().map(|row| u128::from(row.pages.count())).sum();
        let mut x = 0u64;
        let mut parts = Vec::new();
        for &row in &self.rows {
            let share = u128::from(spare) * u128::from(row.pages.count()) / total.max(1);
            let width = LEAST.saturating_add(u64::try_from(share).unwrap_or(spare));
            parts.push((row, x, width));
            x = x.saturating_add(width);
        }
        parts
    }
}

fn count(rows: &[&Row]) -> u64 {
    u64::try_from(rows.len()).unwrap_or(u64::MAX)
}

fn bars(map: &Map) -> Vec<Bar<'_>> {
    let rows = |area| map.owners.rows.iter().filter(move |row| row.cell.area == area).collect();
    let areas = map.owners.areas.iter().enumerate().map(|(index, area)| {
        let title = format!("{}  {}  {}", area.name, addresses(area.pages), size(area.pages));
        Bar { title, rows: rows(Some(index)) }
    });
    let outside = Bar { title: "outside RAM and regions".to_owned(), rows: rows(None) };
    areas.chain([outside]).filter(|bar| !bar.rows.is_empty()).collect()
}

fn drawing(map: &Map) -> Markup {
    let bars = bars(map);
    let width = bars.iter().map(Bar::width).max().unwrap_or(WIDTH);
    let height = PITCH.saturating_mul(u64::try_from(bars.len()).unwrap_or(u64::MAX));
    let tops = (0u64..).map(|index| index.saturating_mul(PITCH));
    html! {
        svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="RAM and regions by owner"
            width=(width) height=(height) {
            (patterns())
            @for (bar, top) in bars.iter().zip(tops) {
                g transform=(format!("translate(0 {top})")) {
                    text x="0" y="16" { (bar.title) }
                    g transform="translate(0 22)" {
                        @for (row, x, width) in bar.parts() { (part(map, row, x, width)) }
                    }
                }
            }
        }
    }
}

/// A part of a bar: coloured by owner, hatched by type, with everything in its tooltip.
fn part(map: &Map, row: &Row, x: u64, width: u64) -> Markup {
    let [range, size, owner, types, perms, name] = map.cells(row);
    let tooltip =
        format!("{name}\n{range}\n{size}\nowner: {owner}\ntype: {types}\nVM may: {perms}");
    let middle = x.saturating_add(width / 2);
    let colour = colour(&row.cell.owner);
    html! {
        g {
            title { (tooltip) }
            rect x=(x) width=(width) height=(HEIGHT) fill=(colour) stroke="#0008" {}
            @for mem_type in &row.cell.types {
                rect x=(x) width=(width) height=(HEIGHT) fill=(pattern(*mem_type)) {}
            }
            @if !row.cell.types.is_empty() && width > 90 {
                text.type x=(middle) y="17" text-anchor="middle" { (types) }
            }
        }
    }
}

/// Hatches by memory type.
fn patterns() -> Markup {
    html! {
        defs {
            @for mem_type in MemType::ALL {
                pattern id=(mem_type.name()) width="8" height="8" patternUnits="userSpaceOnUse" {
                    path d=(hatch(*mem_type)) stroke="#0007" fill="none" {}
                }
            }
        }
    }
}

/// Fills with the hatch of a type.
fn pattern(mem_type: MemType) -> String {
    format!("url(#{})", mem_type.name())
}

fn hatch(mem_type: MemType) -> &'static str {
    match mem_type {
        MemType::Device => "M0 8L8 0",
        MemType::AnyUncached => "M0 8L8 0M0 0L8 8",
        MemType::Cacheable => "M0 4H8",
    }
}

fn colour(owner: &Owner) -> String {
    match owner {
        Owner::Host => "#a9c1d4".to_owned(),
        Owner::Hyp => "#7b5ea7".to_owned(),
        Owner::Vm(vm) => format!("hsl({} 65% 55%)", hue(*vm)),
        Owner::Shared(vms) => {
            // Paler than the VM's own; several VMs have the hue of their sum.
            let sum = vms.iter().fold(0u16, |sum, vm| sum.wrapping_mul(7).wrapping_add(*vm));
            format!("hsl({} 60% 80%)", hue(sum))
        }
        Owner::Quarantine => "#e0a100".to_owned(),
        Owner::Lost => "#8c4b00".to_owned(),
        Owner::Closed => "#555".to_owned(),
        Owner::Contradiction => "#e00000".to_owned(),
    }
}

/// Neighbouring numbers are far apart on the wheel: 137.5 degrees is the golden angle.
fn hue(vm: u16) -> u32 {
    u32::from(vm).wrapping_mul(137).wrapping_add(100) % 360
}

fn table(map: &Map) -> Markup {
    html! {
        h2 { "All of it" }
        table {
            thead { tr { @for title in TITLES { th { (title) } } } }
            tbody {
                @for row in &map.owners.rows {
                    tr { @for cell in map.cells(row) { td { (cell) } } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::viewer::snapshot::Snapshot;
    use crate::viewer::testing::SNAPSHOT;

    fn map(text: &str) -> Map {
        Map::new(&Snapshot::read("map", text).unwrap())
    }

    #[test]
    fn names_are_escaped_and_nothing_is_loaded() {
        let evil = "<script>alert('x')</script>&\"";
        let text = SNAPSHOT
            .replace("name=edu-bar0", &format!("name={evil}"))
            .replace("comm=demo", "comm=<b>");
        let page = page(&map(&text));
        assert!(page.contains("&lt;script&gt;alert('x')&lt;/script&gt;&amp;&quot;"));
        assert!(!page.contains("<script") && !page.contains("<b>"));
        let urls = page.match_indices("://").count();
        assert_eq!(urls, page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
        assert!(!page.contains("src=\"") && !page.contains("href"));
    }

    #[test]
    fn every_row_is_drawn_with_a_tooltip_and_listed() {
        let map = map(SNAPSHOT);
        let page = page(&map);
        let rows = map.owners.rows.len();
        assert_eq!(page.matches("<g><title>").count(), rows);
        assert_eq!(page.matches("<tr>").count(), rows + 1);
        assert!(
            page.contains("owner: host + VM 0 (demo/123)\ntype: AnyUncached\nVM may: RW</title>")
        );
        assert!(!page.contains("Contradictions"));
    }

    #[test]
    fn a_page_among_gigabytes_is_wide_enough_to_be_seen() {
        let map = map("ram pfn=0x0 pages=0x4000000\nhyp pfn=0x5 pages=0x1\n");
        let bars = bars(&map);
        let parts: Vec<(u64, u64)> =
            bars[0].parts().iter().map(|&(_, x, width)| (x, width)).collect();
        assert_eq!(parts.len(), 3);
        assert!(parts.iter().all(|&(_, width)| width >= LEAST));
        let (x, width) = parts[2];
        assert!(x + width <= WIDTH && x + width > WIDTH - 3);
    }

    #[test]
    fn a_bar_with_many_parts_grows() {
        let lines: String = (0..400).map(|n| format!("hyp pfn={} pages=1\n", n * 2)).collect();
        let map = map(&format!("ram pfn=0x0 pages=0x1000\n{lines}"));
        assert_eq!(bars(&map)[0].width(), 800 * LEAST);
    }

    #[test]
    fn contradictions_and_what_lies_nowhere_are_on_the_page() {
        let page = page(&map("given vm=0x3 ipa=0x0 pfn=0x1 pages=0x1 perms=0x1\n"));
        assert!(page.contains("Contradictions") && page.contains("there is no VM 3"));
        assert!(page.contains("outside RAM and regions") && page.contains("CONTRADICTION"));
    }
}
