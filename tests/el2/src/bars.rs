//! BARs as the hypervisor knows them: which region of the manifest each one is.

use pfnguard_host_interface::{Pages, Pfn, RegionIndex};
use pfnguard_shared::info::{InfoSelector, RegionInfo, RegionState};
use pfnguard_shared::request::{HostAlias, MemType, Mode, Modes, Perms, Request, RequestFlags};
use pfnguard_shared::{PAGE_SHIFT, PAGE_SIZE};

use crate::Hyp;
use crate::frames;
use crate::outcome::Failure;
use crate::pci::{Bar, Function, Functions};
use crate::vm::args;

/// A BAR that the manifest grants something of.
#[derive(Clone, Copy)]
pub struct Granted {
    /// The BAR.
    pub bar: Bar,
    /// Its region.
    pub region: RegionIndex,
    /// What the hypervisor says of the region.
    pub info: RegionInfo,
}

/// Returns the pages of a BAR; one that is smaller than a page is asked for as one page.
pub fn pages(bar: &Bar) -> Pages {
    let bytes = bar.size.max(u64::try_from(PAGE_SIZE).unwrap_or(u64::MAX));
    Pages::new(Pfn(bar.base >> PAGE_SHIFT), bytes >> PAGE_SHIFT)
}

/// Finds the region that holds `pfn`.
pub fn region_of(pfn: Pfn) -> Option<(RegionIndex, RegionInfo)> {
    let [_, _, regions, _] = Hyp::info(InfoSelector::Limits).ok()?;
    (0..u16::try_from(regions).ok()?).map(RegionIndex).find_map(|index| {
        let info = args(|page| Hyp::region_info(page, index)).ok()?;
        let inside = info.pfn <= pfn.0 && pfn.0 < info.pfn.checked_add(info.pages)?;
        inside.then_some((index, info))
    })
}

/// Finds a BAR of `functions` whose region allows `mode` with `mem_type` and is free.
///
/// # Errors
/// Skips the test where the machine or its manifest has none.
pub fn find(
    functions: &Functions,
    wanted: impl Fn(&Function, &RegionInfo) -> bool,
) -> Result<Granted, Failure> {
    let mut bars =
        functions.iter().flat_map(|function| function.bars.iter().map(move |bar| (function, bar)));
    bars.find_map(|(function, bar)| {
        let (region, info) = region_of(pages(bar).start)?;
        let free = info.state == RegionState::Free.raw();
        (free && wanted(function, &info)).then_some(Granted { bar: *bar, region, info })
    })
    .ok_or(Failure::Skip("no BAR with such a grant"))
}

/// Returns whether a region may be held in `mode` with `mem_type`.
pub fn allows(info: &RegionInfo, mode: Mode, mem_type: MemType) -> bool {
    let modes = Modes::from_raw(info.modes).unwrap_or(Modes::NONE);
    let types = pfnguard_shared::request::MemTypes::from_raw(info.types);
    modes.contains(mode.into()) && types.is_some_and(|types| types.contains(mem_type.into()))
}

/// Returns a request for the first page of a BAR at page `ipa`, readable and writable, at once.
pub fn request(vm: u16, bar: &Bar, ipa: u64, mode: Mode, mem_type: MemType) -> Request {
    let mut request = Request::zeroed();
    request.vm = vm;
    request.mode = mode.raw();
    request.mem_type = mem_type.raw();
    request.perms = Perms::READ.with(Perms::WRITE).raw();
    request.flags = RequestFlags::MAP_NOW.raw();
    request.alias = HostAlias::None.raw();
    request.pfn = pages(bar).start.0;
    request.ipa_pfn = ipa;
    request.pages = pages(bar).count;
    request
}

/// Brings a region back to the host, whatever its reset contract.
pub fn settle(region: RegionIndex, state: Option<RegionState>) {
    if state == Some(RegionState::Quarantined) {
        // The device has no driver here: saying that it was reset is all there is to do. What the
        // hypervisor answers shows in the next decision on this region.
        let _ = Hyp::pfnmap_reset(region);
    }
}

/// Returns the address of a BAR's first byte.
pub fn address(bar: &Bar) -> u64 {
    frames::address(pages(bar).start)
}
