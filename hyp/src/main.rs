//! The pfnguard payload: an arm64 Image that takes EL2, judges the manifest and starts the host, or
//! goes under a kernel that runs already.
//!
//! All unsafe code is in `pfnguard-arch`, all policy in `pfnguard-core`; this is the order in which
//! they are called.

#![no_std]
#![no_main]
// In the payload `{:?}` prints nothing (`-Zfmt-debug=none`): what a person is to read is `Display`.
#![warn(clippy::use_debug)]

use core::panic::PanicInfo;

use dtoolkit::fdt::Fdt;
use log::{error, info};
use pfnguard_arch::late::{Answer, LaunchInfo};
use pfnguard_arch::launch::{Boot, Mapped};
use pfnguard_arch::machine::Arm64;
use pfnguard_arch::{console, fault, firmware};
use pfnguard_core::Hypervisor;
use pfnguard_core::addr::PhysAddr;
use pfnguard_core::machine::MachineFacts;
use pfnguard_core::manifest::{Manifest, ManifestError};
use pfnguard_core::psci::{CpuState, HostEntry};
use pfnguard_core::region::RegionTable;
use pfnguard_device_tree::{self as device_tree, Found};
use spin::Once;

pfnguard_arch::entry!(payload_main);
pfnguard_arch::late_entry!(prepare);

/// The hypervisor: made once at launch, used by all CPUs.
static HYPERVISOR: Once<Hypervisor<Arm64>> = Once::new();

/// Runs on the boot CPU, MMU off.
fn payload_main(boot: Boot) -> ! {
    let dtb = boot.dtb();
    let found = find(&boot);
    match found.map(|found| (found.kernel, boot.map(found.facts))) {
        Ok((kernel, Ok(mapped))) => launch(mapped, HostEntry { entry: kernel.0, context: dtb.0 }),
        Ok((_, Err(why))) => refuse(&why),
        Err(()) => firmware::power_off(),
    }
}

/// Reads the device tree; the console works from here on if there is one.
fn find(boot: &Boot) -> Result<Found, ()> {
    let bytes = boot.device_tree().map_err(|why| error!("launch refused: {why}"))?;
    let tree = Fdt::new(bytes).map_err(|why| error!("launch refused: device tree: {why}"))?;
    if let Some(uart) = device_tree::uart(tree) {
        boot.add_uart(uart);
    }
    let dtb = (boot.dtb(), bytes.len());
    info!("pfnguard {} at {}", env!("CARGO_PKG_VERSION"), pfnguard_arch::layout::image_base());
    device_tree::find(tree, dtb).map_err(|why| error!("launch refused: device tree: {why}"))
}

/// Judges the manifest and starts the host.
fn launch(mapped: Mapped, entry: HostEntry) -> ! {
    match judge(&mapped) {
        Ok(regions) => mapped.start(&HYPERVISOR, regions, entry),
        // Before the host has run (R50): nothing has been given away.
        Err(why) => refuse(&format_args!("manifest: {why}")),
    }
}

/// Prepares a launch under a running kernel, MMU off.
fn prepare(boot: Boot, info: &LaunchInfo) -> Answer {
    let facts = match MachineFacts::from_info(info, pfnguard_arch::layout::image().start()) {
        Ok(facts) => facts,
        Err(why) => return Answer::refused(&why),
    };
    if let Some(uart) = facts.uart {
        boot.add_uart(uart);
    }
    let mapped = match boot.map(facts) {
        Ok(mapped) => mapped,
        Err(why) => return Answer::failed(&why),
    };
    match judge(&mapped) {
        Ok(regions) => {
            mapped.prepare(&HYPERVISOR, regions, CpuState::On);
            Answer::DONE
        }
        Err(why) => Answer::refused(&format_args!("manifest: {why}")),
    }
}

/// Judges the manifest: before the host has run (R50), or under a kernel that is still trusted.
fn judge(mapped: &Mapped) -> Result<RegionTable, ManifestError> {
    let own = [mapped.hypervisor_memory()];
    let features = mapped.platform().features;
    let manifest = Manifest::parse(mapped.manifest(), mapped.ram(), &own)?;
    manifest.check_reachable(features.pa_bits)?;
    let regions = RegionTable::new(&manifest, mapped.ram(), features.capabilities);
    banner(mapped, &regions);
    Ok(regions)
}

fn banner(mapped: &Mapped, regions: &RegionTable) {
    let features = mapped.platform().features;
    let own = mapped.hypervisor_memory();
    let (first, past) = (own.start().base(), own.end().base());
    let address = |end: Option<PhysAddr>| end.map_or(0, |addr| addr.0);
    info!("EL2 memory {:#x}..{:#x}", address(first), address(past));
    info!(
        "{} PA bits, {} guest IPA bits, {} VMID bits, capabilities {:#x}",
        features.pa_bits,
        features.guest_ipa_bits,
        features.vmid_bits,
        regions.capabilities().raw()
    );
    info!("manifest accepted: {} regions", regions.count());
}

fn refuse(why: &dyn core::fmt::Display) -> ! {
    error!("launch refused: {why}");
    firmware::power_off()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::begin_panic();
    match info.location() {
        Some(place) => error!("PANIC at {}:{}: {}", place.file(), place.line(), info.message()),
        None => error!("PANIC: {}", info.message()),
    }
    fault::back_trace_here();
    firmware::power_off()
}
