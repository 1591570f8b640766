//! What is found in device trees, and which are refused.

use dtoolkit::ToPropertyValue;
use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use pfnguard_core::addr::{Pfn, PfnRange, PhysAddr};
use pfnguard_core::machine::MachineFacts;
use pfnguard_device_tree::{Unusable, find, uart};

const DTB: (PhysAddr, usize) = (PhysAddr(0x4000_0000), 0x2000);

fn set(tree: &mut DeviceTree, path: &str, name: &str, value: impl ToPropertyValue) {
    let node = tree.find_node_mut(path).unwrap();
    node.add_property(DeviceTreeProperty::new(name, value).unwrap());
}

fn add(tree: &mut DeviceTree, parent: &str, name: &str) -> String {
    tree.find_node_mut(parent).unwrap().add_child(DeviceTreeNode::new(name).unwrap());
    format!("{}/{name}", parent.trim_end_matches('/'))
}

/// Pairs of two cells.
fn reg(pairs: &[(u64, u64)]) -> Vec<u8> {
    pairs
        .iter()
        .flat_map(|(base, size)| [base.to_be_bytes(), size.to_be_bytes()].concat())
        .collect()
}

fn cells(tree: &mut DeviceTree, path: &str, address: u32, size: u32) {
    set(tree, path, "#address-cells", address);
    set(tree, path, "#size-cells", size);
}

fn module(tree: &mut DeviceTree, kind: &str, base: u64, size: u64) {
    let path = add(tree, "/chosen", &format!("module@{base:x}"));
    set(tree, &path, "compatible", format!("multiboot,module\0{kind}").as_str());
    set(tree, &path, "reg", reg(&[(base, size)]));
}

/// A machine with 256 MiB, two CPUs, a console and both modules.
fn usual() -> DeviceTree {
    let mut tree = DeviceTree::new();
    cells(&mut tree, "/", 2, 2);
    let memory = add(&mut tree, "/", "memory@40000000");
    set(&mut tree, &memory, "device_type", "memory");
    set(&mut tree, &memory, "reg", reg(&[(0x4000_0000, 0x1000_0000)]));
    let psci = add(&mut tree, "/", "psci");
    set(&mut tree, &psci, "method", "smc");
    let cpus = add(&mut tree, "/", "cpus");
    cells(&mut tree, &cpus, 1, 0);
    for cpu in [0u32, 0x100] {
        let path = add(&mut tree, &cpus, &format!("cpu@{cpu:x}"));
        set(&mut tree, &path, "reg", cpu);
    }
    let uart = add(&mut tree, "/", "pl011@9000000");
    set(&mut tree, &uart, "compatible", "arm,pl011");
    set(&mut tree, &uart, "reg", reg(&[(0x900_0000, 0x1000)]));
    let chosen = add(&mut tree, "/", "chosen");
    set(&mut tree, &chosen, "stdout-path", "/pl011@9000000:115200");
    module(&mut tree, "multiboot,ramdisk", 0x4800_0000, 0x1001);
    module(&mut tree, "multiboot,kernel", 0x4900_0000, 0x8000);
    tree
}

fn facts(tree: &DeviceTree) -> Result<MachineFacts, Unusable> {
    let bytes = tree.to_dtb();
    find(Fdt::new(&bytes).unwrap(), DTB).map(|found| found.facts)
}

fn pages(first: u64, pages: u64) -> PfnRange {
    PfnRange::new(Pfn(first), pages).unwrap()
}

/// Both modules lie in a bank of their own.
const MODULES: (u64, u64) = (0x4800_0000, 0x100_8000);

fn with_memory(banks: &[(u64, u64)]) -> DeviceTree {
    let mut tree = usual();
    set(&mut tree, "/memory@40000000", "reg", reg(&[&[MODULES], banks].concat()));
    tree
}

/// RAM but for the modules' bank.
fn ram(tree: &DeviceTree) -> Vec<PfnRange> {
    let ram = facts(tree).unwrap().ram;
    let modules = pages(MODULES.0 >> 12, MODULES.1 >> 12);
    assert!(ram.contains(&modules));
    ram.into_iter().filter(|bank| *bank != modules).collect()
}

fn reserve(tree: &mut DeviceTree, base: u64, size: u64, no_map: bool) {
    if tree.find_node("/reserved-memory").is_none() {
        let parent = add(tree, "/", "reserved-memory");
        cells(tree, &parent, 2, 2);
    }
    let area = add(tree, "/reserved-memory", &format!("area@{base:x}"));
    set(tree, &area, "reg", reg(&[(base, size)]));
    if no_map {
        set(tree, &area, "no-map", Vec::<u8>::new());
    }
}

#[test]
fn a_usual_machine_is_found() {
    let bytes = usual().to_dtb();
    let found = find(Fdt::new(&bytes).unwrap(), DTB).unwrap();
    assert_eq!(found.kernel, PhysAddr(0x4900_0000));
    let facts = found.facts;
    assert_eq!(facts.ram.as_slice(), [pages(0x4_0000, 0x1_0000)]);
    let taken = [pages(0x4_0000, 2), pages(0x4_8000, 2), pages(0x4_9000, 8)];
    assert_eq!(facts.taken.as_slice(), taken);
    assert_eq!(facts.uart, Some(PhysAddr(0x900_0000)));
    assert_eq!(facts.cpus.as_slice(), [0, 0x100]);
    assert_eq!(facts.manifest, (PhysAddr(0x4800_0000), 0x1001));
}

#[test]
fn banks_are_sorted_and_adjacent_ones_merged() {
    let tree = with_memory(&[
        (0x8000_0000, 0x2000),
        (0x4000_1000, 0x1000),
        (0x4000_0000, 0x1000),
        (0x6000_0000, 0x800),
    ]);
    assert_eq!(ram(&tree), [pages(0x4_0000, 2), pages(0x8_0000, 2)]);
}

#[test]
fn only_whole_pages_are_ram_and_any_part_is_taken() {
    let mut tree = with_memory(&[(0x4000_0800, 0x2000)]);
    tree.memory_reservations.push(MemoryReservation::new(0x4000_1fff, 2));
    assert_eq!(ram(&tree), [pages(0x4_0001, 1)]);
    assert_eq!(facts(&tree).unwrap().taken[1], pages(0x4_0001, 2));
}

#[test]
fn page_0_stays_the_hosts() {
    assert_eq!(ram(&with_memory(&[(0, 0x4000)])), [pages(1, 3)]);
}

#[test]
fn overlapping_banks_are_refused() {
    let tree = with_memory(&[(0x4000_0000, 0x2000), (0x4000_1000, 0x2000)]);
    assert_eq!(facts(&tree).unwrap_err(), Unusable::Property("/memory: banks overlap"));
}

#[test]
fn a_bank_past_the_last_address_is_refused() {
    for (base, size) in [(u64::MAX - 0xfff, 0x2000), (1 << 52, 0x1000), (0x6000_0000, 1 << 52)] {
        let tree = with_memory(&[(base, size)]);
        assert_eq!(facts(&tree).unwrap_err(), Unusable::Property("reg of /memory"));
    }
    let last = (1 << 52) - 0x1000;
    assert_eq!(ram(&with_memory(&[(last, 0x1000)])), [pages(last >> 12, 1)]);
}

#[test]
fn memory_that_linux_would_not_use_is_no_ram() {
    let mut tree = usual();
    let secure = add(&mut tree, "/", "memory@50000000");
    set(&mut tree, &secure, "reg", reg(&[(0x5000_0000, 0x1000)]));
    assert_eq!(facts(&tree).unwrap().ram.len(), 1, "no device_type");
    set(&mut tree, &secure, "device_type", "memory");
    set(&mut tree, &secure, "status", "disabled");
    assert_eq!(facts(&tree).unwrap().ram.as_slice(), [pages(0x4_0000, 0x1_0000)]);
    set(&mut tree, &secure, "status", "okay");
    assert_eq!(facts(&tree).unwrap().ram.as_slice(), [pages(0x4_0000, 0x1_0001)]);
}

/// Whatever else a module says of itself.
#[test]
fn manifest_and_kernel_are_taken_where_they_are_no_modules_in_general() {
    let mut tree = usual();
    set(&mut tree, "/chosen/module@48000000", "compatible", "multiboot,ramdisk");
    set(&mut tree, "/chosen/module@49000000", "compatible", "multiboot,kernel");
    assert_eq!(facts(&tree).unwrap().taken[1..], [pages(0x4_8000, 2), pages(0x4_9000, 8)]);
}

#[test]
fn everything_that_the_loader_placed_is_taken() {
    let mut tree = usual();
    module(&mut tree, "multiboot,ramdisk", 0x4a00_0000, 0x1000);
    set(&mut tree, "/chosen", "linux,initrd-start", 0x4b00_0000u32);
    assert!(facts(&tree).is_err(), "no end");
    set(&mut tree, "/chosen", "linux,initrd-end", 0x4b00_1800u32);
    let found = facts(&tree).unwrap();
    assert_eq!(found.taken[1], pages(0x4_b000, 2));
    assert_eq!(found.taken.last(), Some(&pages(0x4_a000, 1)));
    assert_eq!(found.manifest.0, PhysAddr(0x4800_0000), "the first one");
    // The first ends before it starts; of the second, what lies in RAM would be used.
    for end in [0x4aff_ffff, 1 << 60] {
        set(&mut tree, "/chosen", "linux,initrd-end", u64::to_be_bytes(end).to_vec());
        let wrong = Unusable::Property("linux,initrd-start or -end");
        assert_eq!(facts(&tree).unwrap_err(), wrong, "{end:#x}");
    }
}

#[test]
fn more_banks_than_fit_are_refused() {
    let banks: Vec<_> = (1..=16).map(|bank| (bank << 24, 0x1000)).collect();
    assert_eq!(facts(&with_memory(&banks[1..])).unwrap().ram.len(), 16);
    assert_eq!(facts(&with_memory(&banks)).unwrap_err(), Unusable::TooMany("banks of RAM"));
}

#[test]
fn reserved_memory_is_taken_and_no_map_is_no_ram() {
    let mut tree = usual();
    reserve(&mut tree, 0x4100_0000, 0x3000, false);
    reserve(&mut tree, 0x4200_0000, 0x3000, true);
    let facts = facts(&tree).unwrap();
    assert_eq!(facts.taken[1..3], [pages(0x4_1000, 3), pages(0x4_2000, 3)]);
    assert_eq!(facts.ram.as_slice(), [pages(0x4_0000, 0x2000), pages(0x4_2003, 0xdffd)]);
}

#[test]
fn a_reserved_area_that_leaves_the_address_space_is_refused() {
    for (base, size) in [(0x4100_0000, u64::MAX), (0x4100_0000, 1 << 60), (1 << 56, 0x1000)] {
        let mut tree = usual();
        reserve(&mut tree, base, size, true);
        assert_eq!(facts(&tree).unwrap_err(), Unusable::Property("reserved-memory"));
        let mut tree = usual();
        tree.memory_reservations.push(MemoryReservation::new(base, size));
        assert_eq!(facts(&tree).unwrap_err(), Unusable::Property("/memreserve/"));
    }
    let mut tree = usual();
    reserve(&mut tree, 0x4100_0000, 0, true);
    assert_eq!(facts(&tree).unwrap().ram.as_slice(), [pages(0x4_0000, 0x1_0000)]);
}

#[test]
fn modules_lie_in_ram() {
    for (module, what) in [("48000000", "manifest module"), ("49000000", "kernel module")] {
        for (base, size) in
            [(0x3000_0000, 0x1000), (0x4fff_f000, 0x1001), (1 << 56, 1), (0x4800_0800, 0)]
        {
            let mut tree = usual();
            set(&mut tree, &format!("/chosen/module@{module}"), "reg", reg(&[(base, size)]));
            let leaves = size > 0 && base + size > 1 << 52;
            let error = if leaves {
                Unusable::Property("reg of a module")
            } else {
                Unusable::NotInRam(what)
            };
            assert_eq!(facts(&tree).unwrap_err(), error, "{base:#x}");
        }
        let mut tree = usual();
        let base = u64::from_str_radix(module, 16).unwrap();
        reserve(&mut tree, base, 0x1000, true);
        assert_eq!(facts(&tree).unwrap_err(), Unusable::NotInRam(what), "no-map");
    }
}

#[test]
fn psci_is_called_with_smc_or_not_at_all() {
    let mut tree = usual();
    set(&mut tree, "/psci", "method", "hvc");
    assert_eq!(facts(&tree).unwrap_err(), Unusable::Conduit);
    tree.root.remove_child("psci");
    assert_eq!(facts(&tree).unwrap_err(), Unusable::Missing("/psci"));
}

#[test]
fn what_is_missing_is_named() {
    for (path, missing) in [
        ("/chosen/module@48000000", "manifest module"),
        ("/chosen/module@49000000", "kernel module"),
        ("/memory@40000000", "/memory"),
        ("/cpus", "/cpus"),
    ] {
        let mut tree = usual();
        let (parent, name) = path.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() { "/" } else { parent };
        tree.find_node_mut(parent).unwrap().remove_child(name).unwrap();
        assert_eq!(facts(&tree).unwrap_err(), Unusable::Missing(missing));
    }
    let mut tree = usual();
    tree.find_node_mut("/cpus").unwrap().remove_child("cpu@0");
    tree.find_node_mut("/cpus").unwrap().remove_child("cpu@100");
    assert_eq!(facts(&tree).unwrap_err(), Unusable::Missing("CPUs"));
}

#[test]
fn more_cpus_than_fit_are_refused() {
    let mut tree = usual();
    for cpu in 1u32..=15 {
        let path = add(&mut tree, "/cpus", &format!("cpu@{cpu:x}"));
        set(&mut tree, &path, "reg", cpu);
    }
    assert_eq!(facts(&tree).unwrap_err(), Unusable::TooMany("CPUs"));
}

#[test]
fn malformed_properties_are_named() {
    for (path, value, what) in [
        ("/cpus/cpu@0", vec![0u8; 3], "reg of a CPU"),
        ("/cpus/cpu@0", vec![0u8; 12], "reg of a CPU"),
        ("/memory@40000000", vec![0u8; 7], "reg of /memory"),
        ("/chosen/module@48000000", vec![0u8; 12], "reg of a module"),
    ] {
        let mut tree = usual();
        set(&mut tree, path, "reg", value);
        assert_eq!(facts(&tree).unwrap_err(), Unusable::Property(what), "{path}");
    }
}

#[test]
fn modules_may_have_short_cells() {
    let mut tree = usual();
    let short: Vec<u8> =
        [0x4800_0000u32, 0x1001].iter().flat_map(|cell| cell.to_be_bytes()).collect();
    set(&mut tree, "/chosen/module@48000000", "reg", short);
    assert_eq!(facts(&tree).unwrap().manifest, (PhysAddr(0x4800_0000), 0x1001));
}

#[test]
fn a_console_may_be_an_alias_and_must_be_a_pl011() {
    let mut tree = usual();
    let aliases = add(&mut tree, "/", "aliases");
    set(&mut tree, &aliases, "serial0", "/pl011@9000000");
    set(&mut tree, "/chosen", "stdout-path", "serial0:115200n8");
    let console = |tree: &DeviceTree| uart(Fdt::new(&tree.to_dtb()).unwrap());
    assert_eq!(console(&tree), Some(PhysAddr(0x900_0000)));
    set(&mut tree, "/pl011@9000000", "compatible", "ns16550a");
    assert_eq!(console(&tree), None);
    set(&mut tree, "/chosen", "stdout-path", "nowhere");
    assert_eq!(console(&tree), None);
}

/// EL2 writes there before anything is judged.
#[test]
fn a_console_is_no_memory_and_has_the_address_that_it_says() {
    let console = |tree: &DeviceTree| uart(Fdt::new(&tree.to_dtb()).unwrap());
    for base in [0, 0x900_0004, 0x4200_0000, 1 << 60] {
        let mut tree = usual();
        set(&mut tree, "/pl011@9000000", "reg", reg(&[(base, 0x1000)]));
        assert_eq!(console(&tree), None, "{base:#x}");
    }
    let mut tree = usual();
    reserve(&mut tree, 0x900_0000, 0x1000, true);
    assert_eq!(console(&tree), None, "reserved");
    let mut tree = usual();
    let bus = add(&mut tree, "/", "soc");
    cells(&mut tree, &bus, 2, 2);
    let uart = add(&mut tree, &bus, "pl011@9000000");
    set(&mut tree, &uart, "compatible", "arm,pl011");
    set(&mut tree, &uart, "reg", reg(&[(0x900_0000, 0x1000)]));
    set(&mut tree, "/chosen", "stdout-path", "/soc/pl011@9000000");
    assert_eq!(console(&tree), None, "behind a bus");
}
