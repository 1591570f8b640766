//! What a device tree says about a machine: RAM, reserved memory, PCI windows, devices.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::{NodeStandard, Status};
use dtoolkit::{Node, Property};

use super::platform::blocked_reason;
use super::range::{PhysAddr, PhysRange};

/// A device's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name for the manifest, without address.
    pub name: String,
    /// Registers as the tree has them; may be smaller than a page.
    pub range: PhysRange,
    /// Why nobody may ever get it; `None` for an ordinary device.
    pub blocked: Option<&'static str>,
    /// First `compatible` string.
    pub compatible: String,
}

/// A window through which PCI devices are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What the bridge puts there.
    pub kind: WindowKind,
    /// Where the CPU sees it.
    pub range: PhysRange,
}

/// Address space of a PCI window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// I/O ports.
    Io,
    /// 32-bit memory.
    Mem32,
    /// 64-bit memory.
    Mem64,
}

/// A machine as its device tree describes it.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// `model` of the root, or its first `compatible`.
    pub model: String,
    /// RAM.
    pub ram: Vec<PhysRange>,
    /// Reserved memory, in RAM or not.
    pub reserved: Vec<(String, PhysRange)>,
    /// PCI windows.
    pub windows: Vec<Window>,
    /// Devices, in the order of the tree.
    pub devices: Vec<Device>,
    /// What could not be understood.
    pub notes: Vec<String>,
}

/// How the addresses of a bus become physical.
#[derive(Clone, Debug)]
enum Bus {
    /// They are physical.
    Identity,
    /// Each window of the bus and the physical address of its start.
    Windows(Vec<(PhysRange, PhysAddr)>),
    /// They are numbers of something else (CPUs, I2C devices).
    Opaque,
}

impl Bus {
    fn translate(&self, range: PhysRange) -> Option<PhysRange> {
        match self {
            Self::Identity => Some(range),
            Self::Windows(windows) => windows.iter().find_map(|&(window, base)| {
                let offset = range.base.0.checked_sub(window.base.0)?;
                let base = PhysAddr(base.0.checked_add(offset)?);
                window.contains(range).then_some(PhysRange { base, ..range })
            }),
            Self::Opaque => None,
        }
    }
}

/// Reads a device tree.
///
/// # Errors
///
/// Returns what is wrong with the blob, in words.
pub fn read_tree(dtb: &[u8]) -> Result<Machine, String> {
    let fdt = Fdt::new(dtb).map_err(|error| error.to_string())?;
    let root = fdt.root();
    let mut machine = Machine { model: model(&root), ..Machine::default() };
    let console = console_path(fdt);
    let console = console.as_deref().and_then(|path| fdt.find_node(path));
    let mut walk = Walk { machine: &mut machine, console };
    walk.children(root, &Bus::Identity);
    for reservation in fdt.memory_reservations() {
        let range = PhysRange::new(reservation.address(), reservation.size());
        machine.reserved.push(("memreserve".to_owned(), range));
    }
    if machine.ram.is_empty() {
        return Err("no memory node with status okay".to_owned());
    }
    Ok(machine)
}

fn model(root: &FdtNode<'_>) -> String {
    let model = root.model().ok().flatten();
    model.or_else(|| root.compatible()?.next()).unwrap_or("unnamed").to_owned()
}

// `stdout-path` may be an alias and may carry options after a colon.
fn console_path(fdt: Fdt<'_>) -> Option<String> {
    let chosen = fdt.find_node("/chosen")?;
    let value = chosen.property("stdout-path")?.value_as::<&str>().ok()?.to_owned();
    let path = value.split(':').next()?.to_owned();
    if path.starts_with('/') {
        return Some(path);
    }
    let aliases = fdt.find_node("/aliases")?;
    let target = aliases.property(&path)?.value_as::<&str>().ok()?.to_owned();
    Some(target)
}

struct Walk<'m, 'f> {
    machine: &'m mut Machine,
    console: Option<FdtNode<'f>>,
}

impl<'f> Walk<'_, 'f> {
    fn children(&mut self, node: FdtNode<'f>, bus: &Bus) {
        for child in node.children() {
            // A disabled device is no business of ours: its pages stay unlisted, so R01 holds.
            if child.status() == Ok(Status::Okay) {
                self.node(child, bus);
            }
        }
    }

    fn node(&mut self, node: FdtNode<'f>, bus: &Bus) {
        let device_type = text(&node, "device_type").unwrap_or_default();
        match (device_type, node.name_without_address()) {
            ("memory", _) => {
                let ram = self.regs(node, bus);
                self.machine.ram.extend(ram);
            }
            ("pci", _) => {
                self.devices(node, bus);
                self.windows(node, bus);
            }
            (_, "reserved-memory") => {
                for child in node.children() {
                    // The binding wants an empty `ranges`; a tree that forgot it means the same.
                    for range in self.regs(child, bus) {
                        let name = child.name_without_address().to_owned();
                        self.machine.reserved.push((name, range));
                    }
                }
            }
            (_, "cpus" | "chosen" | "aliases") => {}
            (_, _) => {
                self.devices(node, bus);
                let inner = self.inner_bus(node, bus);
                self.children(node, &inner);
            }
        }
    }

    fn regs(&mut self, node: FdtNode<'f>, bus: &Bus) -> Vec<PhysRange> {
        let mut ranges = Vec::new();
        let Ok(Some(regs)) = node.reg() else { return ranges };
        for reg in regs {
            let range = reg
                .address::<u64>()
                .ok()
                .zip(reg.size::<u64>().ok())
                .map(|(base, bytes)| PhysRange::new(base, bytes))
                .and_then(|range| bus.translate(range))
                .filter(|range| range.bytes != 0);
            match range {
                Some(range) => ranges.push(range),
                None => self.note(format!("`reg` of {} is no physical address", node.name())),
            }
        }
        ranges
    }

    fn devices(&mut self, node: FdtNode<'f>, bus: &Bus) {
        // Only a bus with physical addresses has registers that a CPU can reach.
        if matches!(bus, Bus::Opaque) {
            return;
        }
        let is_console = self.console.is_some_and(|console| console.name() == node.name());
        let compatible = node.compatible().and_then(|mut list| list.next()).unwrap_or_default();
        for (index, range) in self.regs(node, bus).into_iter().enumerate() {
            let (name, blocked) = blocked_reason(&node, index);
            let console = is_console.then_some("console");
            self.machine.devices.push(Device {
                name: name.unwrap_or(node.name_without_address()).to_owned(),
                range,
                blocked: blocked.or(console),
                compatible: compatible.to_owned(),
            });
        }
    }

    fn inner_bus(&mut self, node: FdtNode<'f>, bus: &Bus) -> Bus {
        let Some(property) = node.property("ranges") else { return Bus::Opaque };
        if property.value().is_empty() {
            return bus.clone();
        }
        let mut windows = Vec::new();
        if let Ok(Some(ranges)) = node.ranges() {
            for range in ranges {
                let window = range
                    .child_bus_address::<u64>()
                    .ok()
                    .zip(range.length::<u64>().ok())
                    .map(|(base, bytes)| PhysRange::new(base, bytes));
                let parent = range.parent_bus_address::<u64>().ok();
                let physical = window.zip(parent).and_then(|(window, parent)| {
                    bus.translate(PhysRange::new(parent, window.bytes))
                });
                windows.extend(window.zip(physical.map(|range| range.base)));
            }
        }
        if windows.is_empty() {
            self.note(format!("`ranges` of {} could not be read", node.name()));
        }
        Bus::Windows(windows)
    }

    fn windows(&mut self, node: FdtNode<'f>, bus: &Bus) {
        let Ok(Some(ranges)) = node.ranges() else {
            self.note(format!("`ranges` of {} could not be read", node.name()));
            return;
        };
        for range in ranges {
            // phys.hi of the PCI binding: bits 25:24 are the space.
            let space =
                range.child_bus_address.as_ref().first().map(|cell| (cell.get() >> 24) & 0b11);
            let kind = match space {
                Some(1) => WindowKind::Io,
                Some(2) => WindowKind::Mem32,
                Some(3) => WindowKind::Mem64,
                Some(_) | None => continue,
            };
            let window = range
                .parent_bus_address::<u64>()
                .ok()
                .zip(range.length::<u64>().ok())
                .and_then(|(base, bytes)| bus.translate(PhysRange::new(base, bytes)));
            match window {
                Some(range) => self.machine.windows.push(Window { kind, range }),
                None => self.note(format!("a window of {} is no physical address", node.name())),
            }
        }
    }

    fn note(&mut self, note: String) {
        if !self.machine.notes.contains(&note) {
            self.machine.notes.push(note);
        }
    }
}

/// Returns a string property.
fn text<'a>(node: &FdtNode<'a>, name: &str) -> Option<&'a str> {
    node.property(name)?.value_as::<&'a str>().ok()
}
