//! The table of regions: the only truth about PFNMAP pages. Page-table entries follow from it.
//!
//! The unit of ownership is the whole manifest entry. A binding may cover a part of it, page by
//! page; mode and memory type are the same for all bindings of a region, and while one VM owns it,
//! the host has no access to any of its pages.

#[cfg(test)]
pub(crate) mod fixture;

use arrayvec::ArrayVec;
use pfnguard_shared::info::{Capabilities, RegionState};
use pfnguard_shared::manifest::{MAX_ENTRIES, PlatformFlags, RegionClass, RegionFlags};
use pfnguard_shared::request::{MemTypes, RequestFlags};
use pfnguard_shared::{MemType, Mode, Perms};

use crate::addr::{IpaPfn, IpaRange, PFN_LIMIT, Pfn, PfnRange};
use crate::decide::Answers;
use crate::error::HcallError;
use crate::hypervisor::MAX_VMS;
use crate::machine::{Stage2Attrs, Stage2Type, TagAccess};
use crate::manifest::{Entry, Label, Manifest};
use crate::vm::{VmId, VmSet};

/// Most bindings of all VMs together.
pub const MAX_BINDINGS: usize = 128;
/// Most bindings of one VM: as many as a migration descriptor holds (R33).
pub const MAX_VM_BINDINGS: usize = pfnguard_shared::migration::MAX_ITEMS;
/// Most separate ranges of RAM.
pub const MAX_RAM_RANGES: usize = 32;

/// Index of a region: its place in the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegionId(u8);

impl RegionId {
    /// Decodes a region index.
    ///
    /// # Errors
    /// `HcallError::NoObject` where no manifest can have it.
    pub fn from_raw(raw: u64) -> Result<Self, HcallError> {
        let limit = u64::try_from(MAX_ENTRIES).unwrap_or(u64::MAX);
        u8::try_from(raw)
            .ok()
            .filter(|&id| usize::from(id) < MAX_ENTRIES)
            .map(Self)
            .ok_or(HcallError::NoObject { number: raw, limit })
    }

    /// Returns the index as it crosses the ABI.
    pub fn raw(self) -> u64 {
        u64::from(self.0)
    }

    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Who holds a region, with what mode and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The host's alone.
    Free,
    /// Lent to one or more VMs, all with this type.
    Shared(MemType),
    /// Owned by one VM.
    Donated(VmId, MemType),
    /// Nobody's until its reset is reported (R41).
    Quarantined,
    /// Nobody's for good (R42).
    Lost,
}

impl Hold {
    /// Returns the state as it crosses the ABI.
    pub fn state(self) -> RegionState {
        match self {
            Self::Free => RegionState::Free,
            Self::Shared(_) => RegionState::Shared,
            Self::Donated(..) => RegionState::Donated,
            Self::Quarantined => RegionState::Quarantined,
            Self::Lost => RegionState::Lost,
        }
    }
}

/// One region.
#[derive(Clone, Debug)]
pub struct Region {
    /// What the manifest says of it; sealed (R51).
    pub entry: Entry,
    /// Who holds it.
    pub hold: Hold,
    /// The VMs with a binding of it.
    pub holders: VmSet,
    /// What the rules say of every use of it while it is free.
    pub(crate) answers: Answers,
}

impl Region {
    pub(crate) fn new(entry: Entry, capabilities: Capabilities) -> Self {
        let (hold, holders) = (Hold::Free, VmSet::NONE);
        let mut region = Self { entry, hold, holders, answers: Answers::NONE };
        region.answers = Answers::ask(&region, capabilities);
        region
    }
}

/// The pages from the end of one region up to the end of the next, which a search found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot<'a> {
    /// End of the region before; 0 where there is none.
    from: Pfn,
    /// First page past the next region, or past everything.
    past: Pfn,
    /// The next region.
    region: Option<(RegionId, &'a Region)>,
}

impl<'a> Spot<'a> {
    /// No page.
    pub const NOWHERE: Self = Self { from: Pfn(0), past: Pfn(0), region: None };

    /// Returns whether a search for `pfn` would end here.
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.from <= pfn && pfn < self.past
    }

    /// Returns the region that ends here.
    pub fn region(&self) -> Option<(RegionId, &'a Region)> {
        self.region
    }
}

/// Whether a binding's translations are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindingState {
    /// Announced; the first guest access or a MAP call installs it from this many reserved tables.
    Announced {
        /// Table pages that nothing else may take (R30).
        reserved: u64,
    },
    /// Installed.
    Mapped,
}

/// A part of a region in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The region.
    pub region: RegionId,
    /// The VM.
    pub vm: VmId,
    /// Where it is in the guest.
    pub ipa: IpaRange,
    /// Which pages.
    pub pfns: PfnRange,
    /// Mode.
    pub mode: Mode,
    /// Memory type.
    pub mem_type: MemType,
    /// Permissions.
    pub perms: Perms,
    /// Tag access.
    pub tags: TagAccess,
    /// Flags of the request.
    pub flags: RequestFlags,
    /// Whether it is installed.
    pub state: BindingState,
}

impl Binding {
    /// Returns how the guest's stage 2 maps it.
    pub fn attrs(&self) -> Stage2Attrs {
        let mem = Stage2Type::Forced(self.mem_type);
        Stage2Attrs { mem, perms: self.perms, tags: self.tags }
    }

    fn reserved(&self) -> u64 {
        match self.state {
            BindingState::Announced { reserved } => reserved,
            BindingState::Mapped => 0,
        }
    }
}

/// What lies at a page, and what the host may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostView {
    /// A region.
    Region {
        /// All of it.
        range: PfnRange,
        /// How the host's stage 2 maps it, or why it does not.
        attrs: Result<Stage2Attrs, RegionState>,
    },
    /// No region. The range reaches up to the neighbouring regions; RAM may lie in it.
    Outside {
        /// Largest range around the page that holds no page of a region.
        range: PfnRange,
    },
}

/// What the bindings of one VM add up to.
#[derive(Clone, Copy, Debug)]
struct Total {
    bindings: usize,
    /// Table pages of its pool that announced ones will take.
    reserved_tables: u64,
}

/// Regions and bindings.
#[derive(Debug)]
pub struct RegionTable {
    regions: ArrayVec<Region, MAX_ENTRIES>,
    bindings: ArrayVec<Binding, MAX_BINDINGS>,
    /// What the bindings of each VM add up to.
    totals: [Total; MAX_VMS],
    /// In ascending order.
    ram: ArrayVec<PfnRange, MAX_RAM_RANGES>,
    capabilities: Capabilities,
    sha256: [u8; 32],
}

impl RegionTable {
    /// Makes the table of a checked manifest. `ram` is all RAM known at launch; `capabilities` what
    /// the CPUs can do.
    ///
    /// # Panics
    /// Where RAM comes in more than [`MAX_RAM_RANGES`] pieces: the launch has to merge them.
    pub fn new(manifest: &Manifest, ram: &[PfnRange], capabilities: Capabilities) -> Self {
        let capabilities = effective(capabilities, manifest.platform);
        let entries = manifest.entries.iter().cloned();
        let mut ram: ArrayVec<_, MAX_RAM_RANGES> = ram.iter().copied().collect();
        ram.sort_unstable_by_key(PfnRange::start);
        Self {
            regions: entries.map(|entry| Region::new(entry, capabilities)).collect(),
            bindings: ArrayVec::new(),
            totals: [Total { bindings: 0, reserved_tables: 0 }; MAX_VMS],
            ram,
            capabilities,
            sha256: manifest.sha256,
        }
    }

    /// Returns what CPUs and platform can do; `NORMAL_NC` is what the manifest says (R04, R31).
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Returns the manifest's SHA-256 (R51).
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// Returns the number of regions.
    pub fn count(&self) -> u64 {
        u64::try_from(self.regions.len()).unwrap_or(u64::MAX)
    }

    /// Returns a region.
    ///
    /// # Errors
    /// `HcallError::NoObject` where the manifest has no such entry.
    pub fn get(&self, id: RegionId) -> Result<&Region, HcallError> {
        let missing = HcallError::NoObject { number: id.raw(), limit: self.count() };
        self.regions.get(id.index()).ok_or(missing)
    }

    /// Returns the region of this name.
    pub fn find(&self, name: &Label) -> Option<&Region> {
        self.regions.iter().find(|region| region.entry.name == *name)
    }

    /// Returns the region that holds `pfn`.
    pub fn lookup(&self, pfn: Pfn) -> Option<(RegionId, &Region)> {
        self.spot(pfn).region.filter(|(_, region)| region.entry.range.contains(pfn))
    }

    /// Returns the first region that shares a page with `range`.
    pub fn first_in(&self, range: &PfnRange) -> Option<(RegionId, &Region)> {
        self.spot(range.start()).region.filter(|(_, region)| region.entry.range.overlaps(range))
    }

    /// Returns the first page of RAM in `range`.
    pub fn first_ram(&self, range: &PfnRange) -> Option<Pfn> {
        let next = self.ram.iter().find(|ram| range.start() < ram.end())?;
        next.intersection(range).map(|part| part.start())
    }

    /// Returns where `pfn` lies: up to the end of the first region that ends past it.
    pub(crate) fn spot(&self, pfn: Pfn) -> Spot<'_> {
        let index = self.regions.partition_point(|region| region.entry.range.end() <= pfn);
        let id = u8::try_from(index).expect("more regions than a manifest holds: hypervisor bug");
        let before = index.checked_sub(1).and_then(|before| self.regions.get(before));
        let region = self.regions.get(index);
        Spot {
            from: before.map_or(Pfn(0), |region| region.entry.range.end()),
            past: region.map_or(Pfn(u64::MAX), |region| region.entry.range.end()),
            region: region.map(|region| (RegionId(id), region)),
        }
    }

    /// Returns what lies at `pfn`, or `None` past the physical address space.
    pub fn host_view(&self, pfn: Pfn) -> Option<HostView> {
        let spot = self.spot(pfn);
        let after = spot.region.map(|(_, region)| region);
        if let Some(region) = after.filter(|region| region.entry.range.contains(pfn)) {
            let attrs = host_attrs(region, self.capabilities);
            return Some(HostView::Region { range: region.entry.range, attrs });
        }
        let end = after.map_or(Pfn(PFN_LIMIT), |region| region.entry.range.start());
        let pages = end.0.checked_sub(spot.from.0).filter(|_| pfn < end)?;
        PfnRange::new(spot.from, pages).map(|range| HostView::Outside { range })
    }
}

/// Bindings.
impl RegionTable {
    /// Returns the binding of `vm` that holds the page `ipa`.
    pub fn binding_at(&self, vm: VmId, ipa: IpaPfn) -> Option<&Binding> {
        self.vm_bindings(vm).find(|binding| binding.ipa.contains(ipa))
    }

    /// Returns whether a binding of `vm` shares a page with `ipa`.
    pub fn binding_overlaps(&self, vm: VmId, ipa: &IpaRange) -> bool {
        self.first_bound(vm, ipa).is_some()
    }

    /// Returns the first page of `ipa` that a binding of `vm` holds.
    #[inline]
    pub fn first_bound(&self, vm: VmId, ipa: &IpaRange) -> Option<IpaPfn> {
        let parts = self.vm_bindings(vm).filter_map(|binding| binding.ipa.intersection(ipa));
        parts.map(|part| part.start()).min()
    }

    /// Returns whether `vm` has any binding.
    #[inline]
    pub fn has_bindings(&self, vm: VmId) -> bool {
        self.totals[vm.index()].bindings != 0
    }

    /// Returns the bindings of one VM.
    pub fn vm_bindings(&self, vm: VmId) -> impl Iterator<Item = &Binding> {
        self.bindings.iter().filter(move |binding| binding.vm == vm)
    }

    /// Returns the bindings of one region.
    pub fn region_bindings(&self, region: RegionId) -> impl Iterator<Item = &Binding> {
        self.bindings.iter().filter(move |binding| binding.region == region)
    }

    /// Returns the number of VMs that hold a region.
    pub fn holders(&self, region: RegionId) -> u64 {
        self.regions.get(region.index()).map_or(0, |region| region.holders.count())
    }

    /// Returns how many of the `free` table pages of `vm` other operations may take: announced
    /// bindings have the rest reserved (R30).
    #[inline]
    pub fn tables_left(&self, vm: VmId, free: u64) -> u64 {
        free.saturating_sub(self.totals[vm.index()].reserved_tables)
    }

    /// Checks that one more binding of `vm` fits.
    ///
    /// # Errors
    /// `HcallError::Full` where the VM or the table has as many as it can.
    #[inline]
    pub(crate) fn check_room(&self, vm: VmId) -> Result<(), HcallError> {
        let full = |limit| HcallError::Full { limit: u64::try_from(limit).unwrap_or(u64::MAX) };
        if self.totals[vm.index()].bindings >= MAX_VM_BINDINGS {
            return Err(full(MAX_VM_BINDINGS));
        }
        if self.bindings.is_full() {
            return Err(full(MAX_BINDINGS));
        }
        Ok(())
    }

    /// Adds a binding; room was checked.
    pub(crate) fn add(&mut self, binding: Binding) {
        self.totals[binding.vm.index()].add(&binding);
        let holders = &mut self.region_mut(binding.region).holders;
        *holders = holders.with(binding.vm);
        self.bindings.push(binding);
    }

    /// Marks the binding of `vm` at `ipa` as installed: its reserved tables are in use now.
    pub(crate) fn set_mapped(&mut self, vm: VmId, ipa: IpaPfn) {
        let found = self.bindings.iter_mut().find(|b| b.vm == vm && b.ipa.contains(ipa));
        let binding = found.expect("mapped a binding that is not there: hypervisor bug");
        let reserved = binding.reserved();
        binding.state = BindingState::Mapped;
        self.totals[vm.index()].unreserve(reserved);
    }

    /// Takes the binding of `vm` at `ipa` out, with its reservation.
    pub(crate) fn remove(&mut self, vm: VmId, ipa: IpaPfn) -> Option<Binding> {
        let index = self.bindings.iter().position(|b| b.vm == vm && b.ipa.contains(ipa))?;
        let binding = self.bindings.swap_remove(index);
        self.totals[vm.index()].remove(&binding);
        if !self.region_bindings(binding.region).any(|other| other.vm == vm) {
            let holders = &mut self.region_mut(binding.region).holders;
            *holders = holders.without(vm);
        }
        Some(binding)
    }

    /// Takes any binding of `vm` out.
    pub(crate) fn remove_any(&mut self, vm: VmId) -> Option<Binding> {
        let start = self.vm_bindings(vm).next()?.ipa.start();
        self.remove(vm, start)
    }

    /// Changes who holds a region and returns who held it.
    pub(crate) fn set_hold(&mut self, id: RegionId, hold: Hold) -> Hold {
        core::mem::replace(&mut self.region_mut(id).hold, hold)
    }

    fn region_mut(&mut self, id: RegionId) -> &mut Region {
        let region = self.regions.get_mut(id.index());
        region.expect("region index out of the table: hypervisor bug")
    }
}

impl Total {
    fn add(&mut self, binding: &Binding) {
        self.bindings += 1;
        self.reserved_tables += binding.reserved();
    }

    fn remove(&mut self, binding: &Binding) {
        let left = self.bindings.checked_sub(1);
        self.bindings = left.expect("binding count underflow: hypervisor bug");
        self.unreserve(binding.reserved());
    }

    fn unreserve(&mut self, tables: u64) {
        let left = self.reserved_tables.checked_sub(tables);
        self.reserved_tables = left.expect("table reservation underflow: hypervisor bug");
    }
}

fn effective(capabilities: Capabilities, platform: PlatformFlags) -> Capabilities {
    if platform.contains(PlatformFlags::NORMAL_NC_FORBIDDEN) {
        capabilities.without(Capabilities::NORMAL_NC)
    } else {
        capabilities.with(Capabilities::NORMAL_NC)
    }
}

/// What the host's stage 2 forces on a region: never execution, and no cache line that a later
/// owner would have to fear.
fn host_attrs(region: &Region, capabilities: Capabilities) -> Result<Stage2Attrs, RegionState> {
    if region.entry.flags.contains(RegionFlags::HOST_CLOSED) {
        return Err(region.hold.state());
    }
    let mem = match region.hold {
        Hold::Free => free_type(&region.entry, capabilities),
        Hold::Shared(mem_type) => Stage2Type::Forced(mem_type),
        Hold::Donated(..) | Hold::Quarantined | Hold::Lost => return Err(region.hold.state()),
    };
    let tags = host_tags(&region.entry, capabilities);
    Ok(Stage2Attrs { mem, perms: Perms::READ.with(Perms::WRITE), tags })
}

/// The type of a region that is the host's alone. As its stage 1 says only where the host's lines
/// can be cleaned before somebody else gets the memory; uncached otherwise (R40).
fn free_type(entry: &Entry, capabilities: Capabilities) -> Stage2Type {
    let memory = entry.class == RegionClass::Memory;
    let cleanable = entry.flags.contains(RegionFlags::CMO_BY_ADDRESS);
    if memory && cleanable && entry.types.contains(MemTypes::CACHEABLE) {
        return Stage2Type::AsStage1;
    }
    let normal_nc = capabilities.contains(Capabilities::NORMAL_NC);
    if normal_nc && entry.types.contains(MemTypes::ANY_UNCACHED) {
        return Stage2Type::Forced(MemType::AnyUncached);
    }
    Stage2Type::Forced(MemType::Device)
}

/// A tagged access where there is no tag storage may hit other memory (R20): forbidden where
/// stage 2 can.
fn host_tags(entry: &Entry, capabilities: Capabilities) -> TagAccess {
    let can_forbid = Capabilities::MTE_PERM.with(Capabilities::FWB);
    if capabilities.contains(can_forbid) && !entry.flags.contains(RegionFlags::TAGS) {
        TagAccess::Forbidden
    } else {
        TagAccess::Allowed
    }
}

#[cfg(test)]
mod tests;
