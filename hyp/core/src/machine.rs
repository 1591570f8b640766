//! What the core asks of the machine: small roles, each with a written contract.
//!
//! The aarch64 implementations live in `pfnguard-arch`. The fakes in `fake.rs` look nothing
//! like VMSA: they are maps from page to page.

use arrayvec::ArrayVec;
use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::BlockSizes;
use pfnguard_shared::{MemType, PAGE_SHIFT, Perms};

use crate::addr::{IpaPfn, IpaRange, Pfn, PfnRange, PhysAddr};
use crate::hypervisor::MAX_CPUS;
use crate::vcpu::VcpuContext;
use crate::vmemmap::MAX_BANKS;

/// The machine: one type per role.
pub trait Machine: Sized + 'static {
    /// The host's stage 2.
    type HostStage2: HostStage2;
    /// A guest's stage 2.
    type GuestStage2: GuestStage2;
    /// The hypervisor's own stage 1.
    type El2Stage1: El2Stage1;
    /// What one CPU can do for the core.
    type Cpu: Frames + ArgWindow + Firmware + World + Clock;

    /// Makes an empty guest stage 2 for `vmid` in `tables`, which are the hypervisor's, mapped at
    /// EL2 and zero. Uses one of them as the root; the others form the pool.
    fn new_guest_stage2(vmid: Vmid, tables: PfnRange) -> Self::GuestStage2;
}

/// What the device tree says about the machine.
#[derive(Clone, Debug)]
pub struct MachineFacts {
    /// RAM, ascending and disjoint, without memory that nobody may map.
    pub ram: ArrayVec<PfnRange, MAX_BANKS>,
    /// Memory that something else has: the loader's modules, the device tree, reservations.
    pub taken: ArrayVec<PfnRange, { 2 * MAX_BANKS }>,
    /// The console's PL011.
    pub uart: Option<PhysAddr>,
    /// Affinity of every CPU, in the order of the device tree.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// Address and bytes of the manifest.
    pub manifest: (PhysAddr, usize),
}

/// What CPUs and platform can do; sealed at launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Abilities that all CPUs share.
    pub capabilities: Capabilities,
    /// Implemented physical address bits.
    pub pa_bits: u32,
    /// Bits of a guest's intermediate physical address.
    pub guest_ipa_bits: u32,
    /// Bits of a VMID.
    pub vmid_bits: u32,
}

impl Features {
    /// Returns the first page number past a guest's address space.
    pub fn guest_ipa_limit(&self) -> IpaPfn {
        let shift = self.guest_ipa_bits.saturating_sub(PAGE_SHIFT);
        IpaPfn(1u64.checked_shl(shift).unwrap_or(u64::MAX))
    }
}

/// A virtual machine identifier; 0 is the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vmid(pub u16);

/// What stage 2 forces on an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Type {
    /// Whatever stage 1 says: the host's own memory that nobody else has.
    AsStage1,
    /// One of the three types that a PFNMAP request can name; RAM of a guest is `Cacheable`.
    Forced(MemType),
}

/// Whether a cacheable mapping may touch MTE allocation tags (R20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagAccess {
    /// As stage 1 says.
    Allowed,
    /// Stage 2 forbids it (FEAT_MTE_PERM, NoTagAccess).
    Forbidden,
}

/// Attributes of a stage-2 translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Attrs {
    /// Memory type.
    pub mem: Stage2Type,
    /// Permissions.
    pub perms: Perms,
    /// Tag access.
    pub tags: TagAccess,
}

/// The host's stage 2: an identity map, built lazily, never a record of ownership.
pub trait HostStage2: Send {
    /// Installs identity translations for `range`, of which no page has one, in the largest blocks
    /// that fit. Cannot fail: translations of memory outside RAM are dropped when tables run out,
    /// and tables for all of RAM were reserved at launch.
    fn map(&mut self, range: PfnRange, attrs: Stage2Attrs);

    /// Removes every translation of a page of `range`. Neighbours that share a block lose theirs
    /// too and fault back lazily. No stale TLB entry remains on any CPU on return.
    fn unmap(&mut self, range: PfnRange);

    /// Returns the attributes of the translation of `pfn`, if it has one.
    fn lookup(&self, pfn: Pfn) -> Option<Stage2Attrs>;

    /// Returns the number of free table pages.
    fn tables_free(&self) -> u64;
}

/// Where a guest page leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLeaf {
    /// The frame.
    pub pfn: Pfn,
    /// How it is mapped.
    pub attrs: Stage2Attrs,
}

/// A mapping of guest pages that was checked: making it cannot fail once the pool covers
/// [`Self::tables`].
#[must_use]
pub trait PlannedMap {
    /// Returns the most table pages that it takes.
    fn tables(&self) -> u64;

    /// Makes it.
    fn commit(self, attrs: Stage2Attrs);
}

/// A removal of guest pages that was checked: it cannot fail once the pool covers
/// [`Self::tables`].
#[must_use]
pub trait PlannedUnmap {
    /// Returns the most table pages that it takes (splitting of blocks).
    fn tables(&self) -> u64;

    /// Removes the translations, with the TLB's as [`GuestStage2::unmap`] does.
    fn commit(self);
}

/// A guest's stage 2 with its pool of table pages.
pub trait GuestStage2: Send {
    /// What [`Self::plan_map`] found: nothing changes while it lives.
    type Map<'a>: PlannedMap
    where
        Self: 'a;

    /// What [`Self::plan_unmap`] found: nothing changes while it lives.
    type Unmap<'a>: PlannedUnmap
    where
        Self: 'a;

    /// Checks that nothing is mapped where `pfns` are to be, from `ipa` on.
    ///
    /// # Errors
    /// The first page that is mapped.
    fn plan_map(
        &mut self,
        ipa: IpaPfn,
        pfns: PfnRange,
        blocks: BlockSizes,
    ) -> Result<Self::Map<'_>, IpaPfn>;

    /// Checks that the pages from `ipa` on lead to `pfns`, each to its own.
    ///
    /// # Errors
    /// The first page that does not.
    fn plan_unmap(&mut self, ipa: IpaPfn, pfns: PfnRange) -> Result<Self::Unmap<'_>, IpaPfn>;

    /// Adds `range` (the hypervisor's, mapped at EL2, zero) to the pool.
    fn add_tables(&mut self, range: PfnRange);

    /// Takes one page out of the pool, or `None` where it is empty.
    fn take_table(&mut self) -> Option<Pfn>;

    /// Returns the number of table pages in the pool.
    fn tables_free(&self) -> u64;

    /// Returns the most table pages that [`Self::map`] with the same arguments can take.
    fn tables_to_map(&self, ipa: IpaPfn, pfns: PfnRange, blocks: BlockSizes) -> u64;

    /// Returns [`Self::tables_to_map`] where a glance shows that nothing is mapped there; `None`
    /// says nothing.
    fn tables_if_vacant(&self, ipa: IpaPfn, pfns: PfnRange, blocks: BlockSizes) -> Option<u64>;

    /// Returns the most table pages that unmapping `ipa` can take (splitting of blocks).
    fn tables_to_unmap(&self, ipa: IpaRange) -> u64;

    /// Returns the translation of `ipa`, if there is one.
    fn lookup(&self, ipa: IpaPfn) -> Option<GuestLeaf>;

    /// Returns the first page of `ipa` that has a translation.
    fn first_mapped(&self, ipa: IpaRange) -> Option<IpaPfn>;

    /// Maps `pfns` from `ipa` on. The caller has checked that nothing is mapped there and that the
    /// pool covers [`Self::tables_to_map`]; this cannot fail.
    fn map(&mut self, ipa: IpaPfn, pfns: PfnRange, attrs: Stage2Attrs, blocks: BlockSizes);

    /// Removes all translations of `ipa`; holes are allowed. The caller has checked that the pool
    /// covers [`Self::tables_to_unmap`]. No stale TLB entry remains on any CPU on return, neither
    /// of stage 2 nor of both stages combined.
    fn unmap(&mut self, ipa: IpaRange);

    /// Removes all translations and returns every table, the root included, to the pool. No stale
    /// TLB entry of this VMID remains on any CPU on return. Only `add_tables`, `take_table` and
    /// `tables_free` may follow.
    fn destroy(&mut self);

    /// Returns the value of `VTTBR_EL2` for this guest.
    fn vttbr(&self) -> u64;
}

/// The hypervisor's own stage 1.
pub trait El2Stage1: Send {
    /// Maps `range`, newly the hypervisor's, readable and writable, never executable. Cannot fail:
    /// tables for all of RAM were reserved at launch.
    fn map(&mut self, range: PfnRange);

    /// Removes `range`. No stale TLB entry remains on any CPU on return.
    fn unmap(&mut self, range: PfnRange);

    /// Returns the number of pages mapped through [`Self::map`].
    fn pages(&self) -> u64;
}

/// Contents of frames, reached through this CPU's on-demand mapping.
pub trait Frames {
    /// Zeroes RAM and cleans it to the point of coherency.
    fn zero(&mut self, range: PfnRange);

    /// As [`Self::zero`], for RAM that EL2 maps itself ([`El2Stage1::map`]): no window is opened.
    fn zero_own(&mut self, range: PfnRange);

    /// Zeroes device-attached memory (class Memory) and cleans it to the point of coherency.
    fn zero_device(&mut self, range: PfnRange);

    /// Cleans and invalidates every line of `range`, memory-like, to the point of coherency.
    fn clean_invalidate(&mut self, range: PfnRange);

    /// Makes every CPU forget instructions that it fetched: what is executed next comes from
    /// memory as it is. Needed only where instruction caches do not follow data (no DIC).
    fn forget_instructions(&mut self);

    /// Reads a device register, aligned to `width`, after all earlier writes; `None` where nothing
    /// answers (synchronous external abort): the host may have switched the device off.
    fn read_register(&mut self, addr: PhysAddr, width: RegisterWidth) -> Option<u64>;
}

/// A view of this CPU's argument page that stays from call to call.
pub trait ArgWindow {
    /// Shows `pfn`: RAM that is lent to the hypervisor and stays so until [`Self::hide`] returns.
    /// Nothing is shown yet.
    fn show(&mut self, pfn: Pfn);

    /// Ends it. No CPU reaches the page through the window on return.
    fn hide(&mut self);

    /// Copies `words` of the page that is shown from word number `first` on, each read once: the
    /// host may write at any moment.
    fn load(&self, first: usize, words: &mut [u64]);

    /// Writes `words` to the page that is shown from word number `first` on.
    fn store(&mut self, first: usize, words: &[u64]);
}

/// Width of a device register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterWidth {
    /// 32 bits.
    Word,
    /// 64 bits.
    Doubleword,
}

/// Calls to EL3.
pub trait Firmware {
    /// Makes the SMC with `x0..=x3` and returns the results in the same registers.
    fn smc(&mut self, regs: [u64; 4]) -> [u64; 4];

    /// Returns the physical address at which a CPU that PSCI starts enters the hypervisor.
    fn cpu_entry(&self) -> PhysAddr;
}

/// Entering a guest.
pub trait World {
    /// Runs the guest in `vttbr` until something needs the hypervisor. No lock may be held. The
    /// host's EL1 state is as before on return.
    fn run(&mut self, context: &mut VcpuContext, vttbr: u64) -> GuestExit;

    /// Returns `PAR_EL1` of `AT S12E1R` for `ipa` in `vttbr`, through a stage 1 that says
    /// write-back. The host's EL1 state is as before on return.
    fn probe(&mut self, ipa: IpaPfn, vttbr: u64) -> u64;
}

/// Why a guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestExit {
    /// A synchronous exception.
    Sync {
        /// `ESR_EL2`.
        esr: u64,
        /// `FAR_EL2`.
        far: u64,
        /// `HPFAR_EL2`.
        hpfar: u64,
    },
    /// A physical interrupt.
    Interrupt,
    /// A physical SError.
    SError,
}

/// Time.
pub trait Clock {
    /// Returns `CNTVCT_EL0`.
    fn now(&self) -> u64;
}
