//! Which devices the platform needs for itself: nobody may ever get them.

use dtoolkit::Node;
use dtoolkit::fdt::FdtNode;
use dtoolkit::standard::NodeStandard;

/// Names and reasons of the register blocks of a GICv2, in the order of its `reg`. The last is the
/// known counter-example to a bus-wide belief in Normal-NC (R04).
const GIC_V2: [(&str, &str); 4] = [
    ("gicd", "interrupt controller"),
    ("gicc", "interrupt controller"),
    ("gich", "GICv2 hypervisor interface"),
    ("gicv", "GICv2 virtual-CPU interface"),
];

/// Compatible strings of a GICv2.
const GIC_V2_COMPATIBLE: [&str; 6] = [
    "arm,gic-400",
    "arm,cortex-a15-gic",
    "arm,cortex-a9-gic",
    "arm,cortex-a7-gic",
    "arm,eb11mp-gic",
    "arm,arm1176jzf-devchip-gic",
];

/// Parts of compatible strings, and why such a device is blocked.
const FACILITIES: [(&str, &str); 12] = [
    ("gic-v3-its", "interrupt translation (MSI)"),
    ("gic-v2m-frame", "MSI frame"),
    ("smmu", "IOMMU"),
    ("iommu", "IOMMU"),
    ("mmu-500", "IOMMU"),
    ("timer", "timer"),
    ("arm,sp804", "timer"),
    ("flash", "firmware flash"),
    ("fw-cfg", "firmware interface with DMA"),
    ("pci-host", "PCI configuration space"),
    ("watchdog", "watchdog"),
    ("sbsa-gwdt", "watchdog"),
];

/// Returns a better name than the node's for register block `index` of `node`, and the reason why
/// the block can never be assigned; `None` for an ordinary device.
pub fn blocked_reason(
    node: &FdtNode<'_>,
    index: usize,
) -> (Option<&'static str>, Option<&'static str>) {
    if GIC_V2_COMPATIBLE.iter().any(|name| node.is_compatible(name)) {
        return match GIC_V2.get(index) {
            Some(&(name, reason)) => (Some(name), Some(reason)),
            None => (None, Some("interrupt controller")),
        };
    }
    if node.is_compatible("arm,gic-v3") {
        return gic_v3_block(node, index);
    }
    (None, facility(node))
}

// Distributor, redistributor regions, then the interfaces that GICv2 guests use.
fn gic_v3_block(node: &FdtNode<'_>, index: usize) -> (Option<&'static str>, Option<&'static str>) {
    use dtoolkit::Property;
    let regions = node.property("#redistributor-regions");
    let regions = regions.and_then(|value| value.value_as::<u32>().ok()).unwrap_or(1);
    let regions = usize::try_from(regions).unwrap_or(usize::MAX);
    let Some(after_distributor) = index.checked_sub(1) else {
        return (Some("gicd"), Some("interrupt controller"));
    };
    // GICC, GICH, GICV keep their places in `GIC_V2`, which the distributor precedes.
    let legacy = after_distributor.checked_sub(regions).and_then(|after| after.checked_add(1));
    match legacy.and_then(|place| GIC_V2.get(place)) {
        Some(&(name, reason)) => (Some(name), Some(reason)),
        None => (Some("gicr"), Some("interrupt controller")),
    }
}

fn facility(node: &FdtNode<'_>) -> Option<&'static str> {
    let known = FACILITIES.iter().find(|(part, _)| {
        node.compatible().is_some_and(|mut list| list.any(|compatible| compatible.contains(part)))
    });
    let by_property = [
        ("#iommu-cells", "IOMMU"),
        ("interrupt-controller", "interrupt controller"),
        ("msi-controller", "MSI controller"),
    ];
    known.map(|&(_, reason)| reason).or_else(|| {
        by_property
            .iter()
            .find(|(property, _)| node.property(property).is_some())
            .map(|&(_, reason)| reason)
    })
}
