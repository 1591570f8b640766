//! Manifests from device trees: written here, and dumped by QEMU.

use std::process::Command;
use std::sync::OnceLock;

use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use pfnguard_shared::manifest::{Entry, MAX_ENTRIES, RegionFlags};
use pfnguard_tools::manifest::{
    Constraint, Refusal, compile, derive, derive_from_dtb, parse_binary, to_text,
};
use pfnguard_tools::progress::Progress;
use pfnguard_tools::setup::{self, Version};

/// Constraints that only a derivation can break, each with a test in this file.
pub const TESTED_APART: [Constraint; 3] =
    [Constraint::DeviceTree, Constraint::GrantBlocked, Constraint::GrantPlace];

const GRANTS: &str = "[platform]\nname = \"test\"\nnormal_nc = \"allowed\"\n";

struct Node(DeviceTreeNode);

impl Node {
    fn new(name: &str) -> Self {
        Self(DeviceTreeNode::new(name).expect("a node name"))
    }

    fn with(mut self, name: &str, value: impl ToPropertyValue) -> Self {
        self.0.add_property(DeviceTreeProperty::new(name, value).expect("a property name"));
        self
    }

    fn reg(self, reg: &[(u64, u64)]) -> Self {
        let halves = |value: u64| [value >> 32, value & 0xffff_ffff];
        let cells = reg.iter().flat_map(|&(base, size)| [halves(base), halves(size)].concat());
        let cells: Vec<u32> = cells.map(|cell| u32::try_from(cell).expect("a half")).collect();
        self.with("reg", cells)
    }

    fn compatible(self, value: &str) -> Self {
        self.with("compatible", value)
    }

    fn child(mut self, child: Node) -> Self {
        self.0.add_child(child.0);
        self
    }

    fn cells(self) -> Self {
        self.with("#address-cells", 2u32).with("#size-cells", 2u32)
    }
}

fn virt() -> Node {
    Node::new("")
        .cells()
        .with("model", "tiny board")
        .child(
            Node::new("memory@40000000")
                .with("device_type", "memory")
                .reg(&[(0x4000_0000, 0x1000_0000)]),
        )
        .child(
            Node::new("pcie@10000000")
                .compatible("pci-host-ecam-generic")
                .with("device_type", "pci")
                .with("#address-cells", 3u32)
                .with("#size-cells", 2u32)
                .reg(&[(0x40_1000_0000, 0x1000_0000)])
                .with(
                    "ranges",
                    vec![
                        0x0100_0000u32,
                        0,
                        0,
                        0,
                        0x3eff_0000,
                        0,
                        0x1_0000, //
                        0x0200_0000,
                        0,
                        0x1000_0000,
                        0,
                        0x1000_0000,
                        0,
                        0x2eff_0000, //
                        0x4300_0000,
                        0x80,
                        0,
                        0x80,
                        0,
                        0x80,
                        0,
                    ],
                ),
        )
}

fn gic_v2() -> Node {
    Node::new("intc@8000000")
        .compatible("arm,cortex-a15-gic")
        .cells()
        .with("ranges", Vec::<u8>::new())
        .reg(&[
            (0x800_0000, 0x1_0000),
            (0x801_0000, 0x1_0000),
            (0x803_0000, 0x1_0000),
            (0x804_0000, 0x1_0000),
        ])
        .child(
            Node::new("v2m@8020000").compatible("arm,gic-v2m-frame").reg(&[(0x802_0000, 0x1000)]),
        )
}

fn dtb(root: Node) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    tree.root = root.0;
    tree.to_dtb()
}

fn entries(root: Node, grants: &str) -> Vec<Entry> {
    let binary = derive_from_dtb(&dtb(root), "grants.toml", grants)
        .unwrap_or_else(|report| panic!("{report:?}"));
    parse_binary(&binary).expect("just derived").1
}

fn text_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8").trim_end_matches('\0')
}

fn find<'e>(entries: &'e [Entry], name: &str) -> &'e Entry {
    let names: Vec<_> = entries.iter().map(|entry| text_of(&entry.name)).collect();
    let found = entries.iter().find(|entry| text_of(&entry.name) == name);
    found.unwrap_or_else(|| panic!("no {name} in {names:?}"))
}

fn grant(name: &str, base: u64, size: u64) -> String {
    format!(
        "[[region]]\nname = \"{name}\"\nbase = {base:#x}\nsize = {size:#x}\nclass = \"mmio\"\n\
         modes = [\"share\"]\ntypes = [\"device\"]\nperms = \"rw\"\nmax_vms = 1\n"
    )
}

fn refused(root: Node, grants: &str) -> Vec<(Constraint, (usize, usize))> {
    let report = derive_from_dtb(&dtb(root), "grants.toml", grants).expect_err("bad grants");
    let refusal = report.downcast_ref::<Refusal>().unwrap_or_else(|| panic!("{report:?}"));
    refusal.faults().iter().map(|fault| (fault.constraint, refusal.line_column(fault))).collect()
}

#[test]
fn nothing_is_granted_without_grants() {
    let found = entries(virt().child(gic_v2()), "# nothing\n");
    assert!(found.iter().all(|entry| (entry.modes, entry.types, entry.max_vms) == (0, 0, 0)));
    assert_eq!(found.len(), 6);
}

#[test]
fn the_virtual_cpu_interface_of_a_gicv2_is_blocked_with_its_reason() {
    let found = entries(virt().child(gic_v2()), "");
    for (name, reason) in [
        ("gicd@8000000", "interrupt controller"),
        ("gicc@8010000", "interrupt controller"),
        ("v2m@8020000", "MSI frame"),
        ("gich@8030000", "GICv2 hypervisor interface"),
        ("gicv@8040000", "GICv2 virtual-CPU interface"),
    ] {
        let entry = find(&found, name);
        assert_eq!(text_of(&entry.quirk), reason);
        assert_ne!(entry.flags & RegionFlags::QUIRKED.raw(), 0);
    }
}

#[test]
fn windows_are_left_out_and_the_configuration_space_is_blocked() {
    let found = entries(virt(), "");
    let [ecam] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((ecam.base, ecam.size), (0x40_1000_0000, 0x1000_0000));
    assert_eq!(text_of(&ecam.quirk), "PCI configuration space");
}

#[test]
fn grants_inside_memory_windows_are_taken_over() {
    let text = format!(
        "{GRANTS}{}{}",
        grant("a", 0x1000_0000, 0x1000),
        grant("b", 0x80_0000_0000, 0x1000)
    );
    let found = entries(virt(), &text);
    assert_eq!((find(&found, "a").modes, find(&found, "b").modes), (1, 1));
    assert_eq!(found.len(), 3);
}

#[test]
fn a_grant_of_exactly_one_device_replaces_it() {
    let root = || virt().child(Node::new("rtc@9010000").reg(&[(0x901_0000, 0x1000)]));
    let found = entries(root(), &format!("{GRANTS}{}", grant("clock", 0x901_0000, 0x1000)));
    assert_eq!(find(&found, "clock").modes, 1);
    let partial = format!("{GRANTS}{}", grant("clock", 0x901_0000, 0x2000));
    assert_eq!(refused(root(), &partial), [(Constraint::Overlap, (6, 8))]);
}

#[test]
fn a_grant_of_what_the_platform_needs_is_refused() {
    let text = format!("{GRANTS}{}", grant("gicv", 0x804_0000, 0x1_0000));
    assert_eq!(refused(virt().child(gic_v2()), &text), [(Constraint::GrantBlocked, (6, 8))]);
    let text = format!("{GRANTS}{}", grant("ecam", 0x40_1000_0000, 0x1000));
    assert_eq!(refused(virt(), &text), [(Constraint::GrantBlocked, (6, 8))]);
}

#[test]
fn a_grant_where_the_tree_knows_nothing_is_refused() {
    for base in [0x3eff_0000, 0x3000, 0x100_0000_0000] {
        let text = format!("{GRANTS}{}", grant("nowhere", base, 0x1000));
        assert_eq!(refused(virt(), &text), [(Constraint::GrantPlace, (6, 8))]);
    }
}

#[test]
fn a_grant_of_ram_is_refused() {
    let text = format!("{GRANTS}{}", grant("ram", 0x4000_0000, 0x1000));
    assert_eq!(refused(virt(), &text), [(Constraint::Ram, (6, 8))]);
}

#[test]
fn small_devices_are_rounded_out_and_merged() {
    let mut root = virt();
    for index in 0..16 {
        let base = 0xa00_0000 + index * 0x200;
        let node = Node::new(&format!("virtio_mmio@{base:x}")).compatible("virtio,mmio");
        root = root.child(node.reg(&[(base, 0x200)]));
    }
    let found = entries(root, "");
    assert_eq!(find(&found, "virtio_mmio@a000000").size, 0x2000);
    assert_eq!(found.len(), 2);
}

#[test]
fn a_page_that_holds_a_blocked_device_is_blocked() {
    let root = virt().child(Node::new("led@9000800").reg(&[(0x900_0800, 0x10)])).child(
        Node::new("watchdog@9000000").compatible("arm,sp805-watchdog").reg(&[(0x900_0000, 0x20)]),
    );
    let found = entries(root, "");
    assert_eq!(text_of(&find(&found, "watchdog@9000000").quirk), "watchdog");
    assert_eq!(found.len(), 2);
}

#[test]
fn buses_translate_and_buses_without_ranges_are_opaque() {
    let bus = Node::new("soc")
        .with("#address-cells", 1u32)
        .with("#size-cells", 1u32)
        .with("ranges", vec![0x1000_0000u32, 0, 0x900_0000, 0x10_0000])
        .child(Node::new("gpio@10002000").with("reg", vec![0x1000_2000u32, 0x1000]))
        .child(
            Node::new("i2c@10003000")
                .with("reg", vec![0x1000_3000u32, 0x1000])
                .with("#address-cells", 1u32)
                .with("#size-cells", 0u32)
                .child(Node::new("eeprom@50").with("reg", 0x50u32)),
        );
    let found = entries(virt().child(bus), "");
    assert_eq!(find(&found, "gpio@9002000").size, 0x1000);
    assert_eq!(find(&found, "i2c@9003000").size, 0x1000);
    assert_eq!(found.len(), 3);
}

#[test]
fn disabled_devices_are_left_out() {
    let root = virt()
        .child(Node::new("off@9000000").with("status", "disabled").reg(&[(0x900_0000, 0x1000)]));
    assert_eq!(entries(root, "").len(), 1);
}

#[test]
fn the_console_is_blocked_under_an_alias_too() {
    let root = virt()
        .child(Node::new("uart@9000000").compatible("arm,pl011").reg(&[(0x900_0000, 0x1000)]))
        .child(Node::new("aliases").with("serial0", "/uart@9000000"))
        .child(Node::new("chosen").with("stdout-path", "serial0:115200n8"));
    assert_eq!(text_of(&find(&entries(root, ""), "uart@9000000").quirk), "console");
}

#[test]
fn iommus_and_timers_are_blocked() {
    let root = virt()
        .child(Node::new("iommu@9050000").compatible("arm,smmu-v3").reg(&[(0x905_0000, 0x2_0000)]))
        .child(
            Node::new("timer@2a810000")
                .compatible("arm,armv7-timer-mem")
                .reg(&[(0x2a81_0000, 0x1000)]),
        )
        .child(Node::new("dma@9090000").with("#iommu-cells", 1u32).reg(&[(0x909_0000, 0x1000)]));
    let found = entries(root, "");
    assert_eq!(text_of(&find(&found, "iommu@9050000").quirk), "IOMMU");
    assert_eq!(text_of(&find(&found, "timer@2a810000").quirk), "timer");
    assert_eq!(text_of(&find(&found, "dma@9090000").quirk), "IOMMU");
}

#[test]
fn reserved_memory_outside_ram_is_blocked_and_inside_it_is_ram() {
    let reserved = Node::new("reserved-memory")
        .cells()
        .with("ranges", Vec::<u8>::new())
        .child(Node::new("inside@41000000").reg(&[(0x4100_0000, 0x1000)]))
        .child(Node::new("across@4ffff000").reg(&[(0x4fff_f000, 0x2000)]));
    let found = entries(virt().child(reserved), "");
    let entry = find(&found, "across@50000000");
    assert_eq!((entry.size, text_of(&entry.quirk)), (0x1000, "reserved memory"));
    assert_eq!(found.len(), 2);
}

#[test]
fn a_machine_with_too_many_devices_keeps_the_blocked_ones() {
    let mut root = virt().child(gic_v2());
    for index in 0..200 {
        let base = 0x6000_0000u64 + index * 0x2000;
        let node = Node::new(&format!("a-device-with-a-very-long-name@{base:x}"));
        root = root.child(node.reg(&[(base, 0x1000)]));
    }
    let found = entries(root, "");
    assert_eq!(found.len(), MAX_ENTRIES);
    assert_eq!(find(&found, "gicv@8040000").size, 0x1_0000);
    assert_eq!(text_of(&find(&found, "a-device-with-a-very-lo@60000000").name).len(), 32);
}

#[test]
fn what_is_no_device_tree_is_refused() {
    for blob in [Vec::new(), vec![0; 64], dtb(Node::new("").cells())] {
        let report = derive_from_dtb(&blob, "none", "").expect_err("no device tree");
        let code = report.code().map(|code| code.to_string());
        assert_eq!(code.as_deref(), Some(Constraint::DeviceTree.to_string().as_str()));
    }
}

#[test]
fn no_changed_byte_of_a_device_tree_makes_the_derivation_panic() {
    let good = dtb(virt().child(gic_v2()));
    for index in 0..good.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[index] = value;
            let _ = derive_from_dtb(&bytes, "none", "");
        }
    }
}

#[test]
fn derived_text_compiles_to_the_derived_binary() {
    let grants = format!(
        "{GRANTS}{}nc_safe = true\nblocks = [\"4K\", \"2M\"]\nstreams = [3, 9]\n\
         reset = {{ kind = \"poll\", register = 0x1000_0008, width = 8, \
         mask = \"0x8000000000000000\", value = 0, bound = 7 }}\n",
        grant("a \\\"quoted\\\" name", 0x1000_0000, 0x1000)
    );
    let derived = derive(&dtb(virt().child(gic_v2())), "grants.toml", &grants)
        .unwrap_or_else(|report| panic!("{report:?}"));
    let text = to_text(&derived.manifest, &derived.notes);
    let again = compile("derived.toml", &text).unwrap_or_else(|report| panic!("{report:?}"));
    assert_eq!(derived.binary().expect("derived"), again);
}

fn qemu_tree(machine: &str) -> Vec<u8> {
    static READY: OnceLock<Version> = OnceLock::new();
    READY.get_or_init(|| setup::ensure(Progress::Plain).expect("QEMU is there or installed"));
    let name = machine.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.dtb"));
    let status = Command::new("qemu-system-aarch64")
        .arg("-M")
        .arg(format!("{machine},dumpdtb={}", file.display()))
        .args(["-m", "1G", "-cpu", "cortex-a72", "-display", "none", "-nic", "none"])
        .status()
        .expect("QEMU starts");
    assert!(status.success(), "qemu-system-aarch64 -M {machine}: {status}");
    std::fs::read(&file).expect("QEMU wrote it")
}

#[test]
fn qemus_own_tree_and_the_demos_grants_give_the_worked_manifest() {
    let tree = qemu_tree("virt,virtualization=on,gic-version=3");
    let grants = super::worked("qemu-virt-demo.grants.toml");
    let binary = derive_from_dtb(&tree, "qemu-virt-demo.grants.toml", &grants)
        .unwrap_or_else(|report| panic!("{report:?}"));
    let (_, found) = parse_binary(&binary).expect("just derived");
    let whole = compile("qemu-virt.toml", &super::worked("qemu-virt.toml")).expect("worked");
    let (_, worked) = parse_binary(&whole).expect("just compiled");
    // Other releases of QEMU may have other devices; what matters must be there in each.
    for entry in worked.iter().filter(|e| e.modes != 0 || e.flags & RegionFlags::QUIRKED.raw() != 0)
    {
        assert_eq!(find(&found, text_of(&entry.name)), entry);
    }
}

#[test]
fn qemus_gicv2_machine_blocks_the_virtual_cpu_interface() {
    let tree = qemu_tree("virt,virtualization=on,gic-version=2");
    let binary = derive_from_dtb(&tree, "none", "").unwrap_or_else(|report| panic!("{report:?}"));
    let (_, found) = parse_binary(&binary).expect("just derived");
    assert_eq!(text_of(&find(&found, "gicv@8040000").quirk), "GICv2 virtual-CPU interface");
}

#[test]
fn qemus_smmu_is_blocked() {
    let tree = qemu_tree("virt,virtualization=on,gic-version=3,iommu=smmuv3");
    let binary = derive_from_dtb(&tree, "none", "").unwrap_or_else(|report| panic!("{report:?}"));
    let (_, found) = parse_binary(&binary).expect("just derived");
    assert_eq!(text_of(&find(&found, "smmuv3@9050000").quirk), "IOMMU");
}
