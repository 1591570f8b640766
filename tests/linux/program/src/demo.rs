//! The main job on real input: every combination of mode, type and permissions on every BAR that
//! vfio-pci has, through `/dev/pfnguard`, and what is decided.

use std::io;

use pfnguard_lines::{Ask, Maybe, Verdict};
use pfnguard_shared::PAGE_SHIFT;
use pfnguard_shared::device::BindArgs;
use pfnguard_shared::info::{InfoSelector, RegionState};
use pfnguard_shared::request::{Decision, MemType, Mode, Perms, Request, RequestFlags};
use pfnguard_shared::vm::ContractFlags;

use crate::device::{Device, Failed, Vm};
use crate::outcome::Outcome;
use crate::pci::{self, Bar};
use crate::vfio::{self, Mapping};

/// Where every request wants its BAR: 2 GiB, aligned for the largest block.
const GUEST: u64 = 0x8000_0000;
/// Table memory of the VM in pages.
const TABLES: u32 = 24;
/// The permissions that are asked for.
const PERMS: [Perms; 3] =
    [Perms::READ, Perms::READ.with(Perms::WRITE), Perms::READ.with(Perms::EXEC)];

/// Requests whose two decisions agreed and did not.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

/// A BAR that is tried.
struct Target<'a> {
    bdf: &'a str,
    bar: Bar,
    mapping: Mapping,
    function: &'a vfio::Function,
}

/// Runs the main job and prints its `@end` line.
pub fn run() -> Outcome {
    let device = Device::open()?;
    let [capabilities, ..] = device.info(InfoSelector::Platform)?;
    println!("@caps value={capabilities:#x}");
    let vm = device.create_vm(ContractFlags::NONE, TABLES)?;
    let mut count = Count::default();
    for function in pci::functions()? {
        println!("{function}");
        let opened = vfio::Function::open(&function.slot)?;
        for &bar in &function.bars {
            let mapping = opened.map(bar.index, bar.whole_pages())?;
            if function.virtio_bar() == Some(bar.index) {
                // The kernel has greeted the device, and nobody has reset it since.
                mapping.reset_virtio();
            }
            let target = Target { bdf: function.bdf(), bar, mapping, function: &opened };
            target.judge(&device, &vm, &mut count)?;
        }
    }
    println!("@end passed={} failed={}", count.passed, count.failed);
    Ok(())
}

/// Returns what a call answered as a verdict; a failure that is nobody's verdict is an error.
fn verdict(answer: Result<(), Failed>) -> io::Result<Verdict> {
    match answer {
        Ok(()) => Ok(Verdict::from(Decision::zeroed())),
        Err(Failed { decision, .. }) if decision.status != 0 => Ok(Verdict::from(decision)),
        Err(failed) => Err(failed.into()),
    }
}

impl Target<'_> {
    fn requests(&self) -> Vec<BindArgs> {
        let modes = Mode::ALL.iter();
        let pairs = modes.flat_map(|mode| MemType::ALL.iter().map(move |t| (mode, t)));
        let triples = pairs.flat_map(|pair| PERMS.iter().map(move |perms| (pair, perms)));
        let request = |((mode, mem_type), perms): ((&Mode, &MemType), &Perms)| BindArgs {
            address: self.mapping.address(),
            size: self.bar.whole_pages(),
            guest: GUEST,
            mode: mode.raw(),
            mem_type: mem_type.raw(),
            perms: perms.raw(),
            flags: RequestFlags::MAP_NOW.raw(),
            ..BindArgs::zeroed()
        };
        triples.map(request).collect()
    }

    /// Checks all requests at once, then binds each and compares.
    fn judge(&self, device: &Device, vm: &Vm, count: &mut Count) -> io::Result<()> {
        let mut checked = self.requests();
        vm.check(&mut checked)?;
        for item in &checked {
            let (bound, checked) = (self.bind(device, vm, item)?, Verdict::from(item.decision));
            if bound == checked {
                count.passed += 1;
            } else {
                count.failed += 1;
                println!("@mismatch {} bind[{bound}] check[{checked}]", self.ask(item));
            }
        }
        Ok(())
    }

    fn ask(&self, args: &BindArgs) -> Ask<&str> {
        let request = Request {
            mode: args.mode,
            mem_type: args.mem_type,
            perms: args.perms,
            pfn: self.bar.base >> PAGE_SHIFT,
            pages: args.size >> PAGE_SHIFT,
            ..Request::zeroed()
        };
        Ask { bdf: self.bdf, bar: self.bar.index.into(), request }
    }

    /// Binds, probes, prints and unbinds.
    fn bind(&self, device: &Device, vm: &Vm, args: &BindArgs) -> io::Result<Verdict> {
        let verdict = verdict(vm.bind(*args))?;
        let par = if verdict.is_granted() { vm.probe(GUEST).ok() } else { None };
        println!("@decision {} {verdict} par={}", self.ask(args), Maybe(par));
        if verdict.is_granted() {
            let state = vm.unbind(GUEST)?;
            if state == RegionState::Quarantined.raw().into() {
                self.settle(device)?;
            }
        }
        Ok(verdict)
    }

    /// Resets the device, as its driver would, and says so.
    fn settle(&self, device: &Device) -> io::Result<()> {
        // Not every device has a reset; what it has held is zeroed by the hypervisor.
        let _ = self.function.reset();
        let pfn = self.bar.base >> PAGE_SHIFT;
        for index in 0.. {
            let found = device.region(index)?.info;
            if found.pfn <= pfn && pfn < found.pfn + found.pages {
                device.region_reset(index)?;
                break;
            }
        }
        Ok(())
    }
}
