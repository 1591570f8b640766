//! Where does the request lie? R01, R14, R15.

use std::ops::Range;

use pfnguard_shared::manifest::Entry;
use pfnguard_shared::{PAGE_SHIFT, Rule, Status, Subject};

use crate::{Platform, Refused, Wish};

/// Entry number of a page that lies in no entry.
const NO_ENTRY: u64 = u64::MAX;

/// Finds the one entry that holds every page.
pub(crate) fn entry_of(
    platform: &Platform,
    entries: &[Entry],
    wish: &Wish,
) -> Result<usize, Refused> {
    let wanted = &wish.pages;
    if let Some(number) = entries.iter().position(|entry| within(wanted, &pages(entry))) {
        return Ok(number);
    }
    let regions = entries.iter().map(pages).filter(|region| touch(wanted, region));
    let ram = platform.ram.iter().map(ram_pages).filter(|ram| touch(wanted, ram));
    let first_ram = ram.map(|ram| ram.start.max(wanted.start)).min();
    let first_region = regions.min_by_key(|region| region.start);
    Err(match (first_region, first_ram) {
        // R14: parts of it lie in an entry, parts in another, in RAM or nowhere.
        (Some(region), _) => straddling(entries, wanted, &region),
        // R15: RAM is not PFNMAP.
        (None, Some(page)) => refuse(Status::Denied, Rule::R15, Subject::None, page, 0, 0),
        // R01: default deny.
        (None, None) => {
            let count = wanted.end - wanted.start;
            refuse(Status::Denied, Rule::R01, Subject::Pages, wanted.start, count, 0)
        }
    })
}

/// The offending page is the first at which the range leaves or enters an entry; the values are
/// the entries of its first and last page.
fn straddling(entries: &[Entry], wanted: &Range<u64>, first: &Range<u64>) -> Refused {
    let starts_inside = first.contains(&wanted.start);
    let page = if starts_inside { first.end } else { first.start };
    let from = number_of(entries, wanted.start);
    let to = number_of(entries, wanted.end - 1);
    refuse(Status::Unsupported, Rule::R14, Subject::Entry, page, from, to)
}

fn number_of(entries: &[Entry], page: u64) -> u64 {
    let found = entries.iter().zip(0..).find(|(entry, _)| pages(entry).contains(&page));
    found.map_or(NO_ENTRY, |(_, number)| number)
}

fn refuse(
    status: Status,
    rule: Rule,
    subject: Subject,
    page: u64,
    requested: u64,
    granted: u64,
) -> Refused {
    Refused { status, rule: Some(rule), subject, pfn: Some(page), requested, granted }
}

fn pages(entry: &Entry) -> Range<u64> {
    entry.base >> PAGE_SHIFT..(entry.base + entry.size) >> PAGE_SHIFT
}

fn ram_pages(bytes: &Range<u64>) -> Range<u64> {
    bytes.start >> PAGE_SHIFT..bytes.end >> PAGE_SHIFT
}

fn touch(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn within(inner: &Range<u64>, outer: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}
