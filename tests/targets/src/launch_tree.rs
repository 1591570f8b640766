//! The device tree that the hypervisor itself reads at launch.

use std::ops::Range;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use pfnguard_core::addr::{PfnRange, PhysAddr};
use pfnguard_core::machine::MachineFacts;
use pfnguard_device_tree::find;
use pfnguard_shared::{PAGE_SHIFT, PAGE_SIZE};
use rangemap::RangeSet;

/// Where the tree is said to lie.
const DTB: u64 = 0x4000_0800;

/// Bytes are a flattened device tree.
///
/// # Panics
/// Where RAM or taken memory is not what the tree says.
pub fn run(data: &[u8]) {
    let Ok(tree) = Fdt::new(data) else { return };
    let Ok(found) = find(tree, (PhysAddr(DTB), data.len())) else { return };
    let facts = &found.facts;
    check_order(facts);
    let ram: RangeSet<u64> = facts.ram.iter().map(pages).collect();
    assert_eq!(ram, specified_ram(tree), "RAM");
    check_taken(facts, tree, data.len());
    for start in [found.kernel, facts.manifest.0] {
        assert!(ram.contains(&start.pfn().0), "a module in {start}, which is no RAM");
        assert!(facts.taken.iter().any(|range| range.contains(start.pfn())), "{start} is free");
    }
    let console = facts.uart.map(|uart| uart.pfn().0);
    assert!(console.is_none_or(|page| page != 0 && !ram.contains(&page)), "{console:x?}");
    assert!(!facts.cpus.is_empty(), "no CPU");
}

fn check_order(facts: &MachineFacts) {
    for pair in facts.ram.windows(2) {
        assert!(pair[0].end() <= pair[1].start(), "{pair:?}");
    }
}

/// Whole pages of memory nodes, without page 0 and without what must not be mapped.
fn specified_ram(tree: Fdt<'_>) -> RangeSet<u64> {
    let root = tree.root();
    let memory = root.children().filter(|node| {
        let is = |name: &str, values: &[&[u8]]| {
            node.property(name).map(|property| values.contains(&property.value()))
        };
        is("device_type", &[b"memory\0"]) == Some(true)
            && is("status", &[b"okay\0", b"ok\0"]) != Some(false)
    });
    let mut ram: RangeSet<u64> = memory.flat_map(|node| areas(&node)).filter_map(within).collect();
    ram.remove(0..1);
    for area in reserved(tree).iter().filter(|node| node.property("no-map").is_some()) {
        areas(area).into_iter().filter_map(around).for_each(|pages| ram.remove(pages));
    }
    ram
}

fn check_taken(facts: &MachineFacts, tree: Fdt<'_>, bytes: usize) {
    let taken: RangeSet<u64> = facts.taken.iter().map(pages).collect();
    let bytes = u64::try_from(bytes).expect("64 bits");
    let manifest = (facts.manifest.0.0, u64::try_from(facts.manifest.1).expect("64 bits"));
    let reservations = tree.memory_reservations().map(|area| (area.address(), area.size()));
    let nodes = reserved(tree).into_iter().flat_map(|node| areas(&node));
    for area in [(DTB, bytes), manifest].into_iter().chain(reservations).chain(nodes) {
        let Some(pages) = around(area) else { continue };
        assert!(taken.gaps(&pages).next().is_none(), "{area:x?} is not taken");
    }
}

fn reserved(tree: Fdt<'_>) -> Vec<FdtNode<'_>> {
    tree.find_node("/reserved-memory").map(|node| node.children().collect()).unwrap_or_default()
}

fn areas(node: &FdtNode<'_>) -> Vec<(u64, u64)> {
    let reg = node.reg().ok().flatten().into_iter().flatten();
    reg.map(|area| (area.address().expect("was read"), area.size().expect("was read"))).collect()
}

fn pages(range: &PfnRange) -> Range<u64> {
    range.start().0..range.end().0
}

/// Returns the pages that lie wholly in an area.
fn within((base, size): (u64, u64)) -> Option<Range<u64>> {
    let page = u64::try_from(PAGE_SIZE).expect("64 bits");
    let pages = base.div_ceil(page)..base.checked_add(size)? >> PAGE_SHIFT;
    (!pages.is_empty()).then_some(pages)
}

/// Returns the pages that an area touches.
fn around((base, size): (u64, u64)) -> Option<Range<u64>> {
    let page = u64::try_from(PAGE_SIZE).expect("64 bits");
    let pages = base >> PAGE_SHIFT..base.checked_add(size)?.div_ceil(page);
    (size > 0).then_some(pages)
}
