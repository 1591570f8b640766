//! What the device tree says of this machine.

use core::ptr::with_exposed_provenance;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{FdtStringListIterator, Node, Property};

/// Where PCI configuration space and the windows for BARs lie when the tree does not say.
const NO_ECAM: u64 = 0;

/// What the host needs to know.
#[derive(Clone, Copy)]
pub struct Machine {
    tree: Fdt<'static>,
    /// First byte of PCI configuration space.
    pub ecam: u64,
}

impl Machine {
    /// Reads the tree at `address`.
    ///
    /// # Panics
    /// Where there is none: without it the host knows nothing.
    pub fn read(address: u64) -> Self {
        let address = usize::try_from(address).unwrap_or(0);
        // SAFETY: The boot protocol says that a device tree lies there; it is never written.
        let tree = unsafe { Fdt::from_raw(with_exposed_provenance::<u8>(address)) };
        let tree = tree.expect("no device tree where x0 says");
        let bridge = tree.root().children().find(|node| is(node, "pci-host-ecam-generic"));
        let ecam = bridge.and_then(|node| first_address(&node)).unwrap_or(NO_ECAM);
        Self { tree, ecam }
    }

    /// Returns the arguments that the boot chain passes to this kernel.
    pub fn bootargs(&self) -> &'static str {
        let Some(chosen) = self.tree.find_node("/chosen") else { return "" };
        let module = chosen.children().find(|node| is(node, "multiboot,kernel"));
        let text = |node: &FdtNode<'static>| text_of(node, "bootargs");
        module.as_ref().and_then(text).or_else(|| text(&chosen)).unwrap_or("")
    }

    /// Returns the MPIDR of the second CPU, if there is one.
    pub fn second_cpu(&self) -> Option<u64> {
        let cpus = self.tree.find_node("/cpus")?;
        let mut cores = cpus.children().filter(|node| text_of(node, "device_type") == Some("cpu"));
        let second = cores.nth(1)?;
        let reg = second.property("reg")?;
        Some(reg.value().iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }
}

fn is(node: &FdtNode<'static>, compatible: &str) -> bool {
    let property = node.property("compatible");
    let list = property.and_then(|p| p.value_as::<FdtStringListIterator<'static>>().ok());
    list.is_some_and(|mut names| names.any(|name| name == compatible))
}

fn text_of(node: &FdtNode<'static>, name: &str) -> Option<&'static str> {
    node.property(name)?.value_as::<&'static str>().ok()
}

/// Returns the first address of `reg`, which has two cells on this machine.
fn first_address(node: &FdtNode<'static>) -> Option<u64> {
    let property = node.property("reg")?;
    let bytes = property.value().first_chunk::<8>()?;
    Some(u64::from_be_bytes(*bytes))
}
