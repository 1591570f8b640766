//! Callers of the host kernel, in the order of the ABI. Each method names its HVC function.

use core::marker::PhantomData;

use pfnguard_shared::info::{InfoSelector, RegionInfo, RegionState};
use pfnguard_shared::request::{Request, RequestWord};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{HostFunction, Perms};

use crate::{
    ArgumentPage, Exit, GuestValue, Hypercall, IpaPfn, Pages, Pfn, Refused, RegionIndex, VcpuId,
    VmId,
};

/// The calls of the host kernel, over the conduit `H`.
#[derive(Clone, Copy, Debug)]
pub struct Host<H: Hypercall>(PhantomData<H>);

impl<H: Hypercall> Host<H> {
    /// Makes any call of the host interface: `x1..=x7` in, `x1..=x7` out.
    ///
    /// # Errors
    /// The refusal. Not for [`HostFunction::Uid`] and [`HostFunction::Revision`], which have no
    /// status.
    pub fn invoke(function: HostFunction, args: [u64; 7]) -> Result<[u64; 7], Refused> {
        Refused::from_registers(Self::raw(function, args))
    }

    fn raw(function: HostFunction, args: [u64; 7]) -> [u64; 8] {
        let [a, b, c, d, e, f, g] = args;
        H::call([u64::from(function.raw()), a, b, c, d, e, f, g])
    }

    /// As [`Self::invoke`], for at most five arguments; the other registers are zero.
    fn ask(function: HostFunction, args: [u64; 5]) -> Result<[u64; 7], Refused> {
        let [a, b, c, d, e] = args;
        Self::invoke(function, [a, b, c, d, e, 0, 0])
    }

    /// `Uid`: returns the service's UID, [`HOST_UID`](pfnguard_shared::call::HOST_UID) if it is
    /// pfnguard's; another hypervisor answers something else.
    pub fn uid() -> [u64; 4] {
        let [a, b, c, d, ..] = Self::raw(HostFunction::Uid, [0; 7]);
        [a, b, c, d]
    }

    /// `Revision`: returns the ABI's major and minor version.
    pub fn revision() -> (u64, u64) {
        let [major, minor, ..] = Self::raw(HostFunction::Revision, [0; 7]);
        (major, minor)
    }

    /// `Info`: returns what `selector` documents.
    ///
    /// # Errors
    /// None for the selectors of this ABI version.
    pub fn info(selector: InfoSelector) -> Result<[u64; 4], Refused> {
        let [a, b, c, d, ..] = Self::ask(HostFunction::Info, [selector.raw(), 0, 0, 0, 0])?;
        Ok([a, b, c, d])
    }

    /// `RegionInfo`: describes a region of the manifest. `page` is this CPU's argument page.
    ///
    /// # Errors
    /// `NotFound` past the last region; `WrongState` without an argument page.
    pub fn region_info(
        page: &mut ArgumentPage,
        region: RegionIndex,
    ) -> Result<RegionInfo, Refused> {
        Self::ask(HostFunction::RegionInfo, [region.into(), 0, 0, 0, 0])?;
        Ok(page.region_info())
    }

    /// `ArgPageSet`: makes `page`, shared with the hypervisor before, this CPU's argument page.
    ///
    /// # Errors
    /// `WrongState` where the page is not shared with the hypervisor.
    pub fn arg_page_set(page: Pfn) -> Result<(), Refused> {
        Self::ask(HostFunction::ArgPageSet, [page.0, 0, 0, 0, 0]).map(drop)
    }

    /// `ArgPageClear`: forgets this CPU's argument page.
    ///
    /// # Errors
    /// `WrongState` where there is none.
    pub fn arg_page_clear() -> Result<(), Refused> {
        Self::ask(HostFunction::ArgPageClear, [0; 5]).map(drop)
    }

    /// `TraceInfo`: returns the pages of a CPU's trace ring, which the host may read.
    ///
    /// # Errors
    /// `NotFound` where there is no such CPU.
    pub fn trace_info(cpu: u64) -> Result<Pages, Refused> {
        let [start, count, ..] = Self::ask(HostFunction::TraceInfo, [cpu, 0, 0, 0, 0])?;
        Ok(Pages::new(Pfn(start), count))
    }

    /// `HostShareHyp`: lets the hypervisor access host pages.
    ///
    /// # Errors
    /// `WrongState` where a page is not the host's alone.
    pub fn share_hyp(pages: Pages) -> Result<(), Refused> {
        Self::ask(HostFunction::HostShareHyp, [pages.start.0, pages.count, 0, 0, 0]).map(drop)
    }

    /// `HostUnshareHyp`: takes that back.
    ///
    /// # Errors
    /// `WrongState` where a page is not shared; `Busy` where one is an argument page.
    pub fn unshare_hyp(pages: Pages) -> Result<(), Refused> {
        Self::ask(HostFunction::HostUnshareHyp, [pages.start.0, pages.count, 0, 0, 0]).map(drop)
    }

    /// `HostShareGuest`: lends host pages to a VM at `ipa`.
    ///
    /// # Errors
    /// `Denied` for a protected VM; `WrongState` for a page that is not the host's; `Busy` for an
    /// occupied `ipa`; `NoMemory` where the VM's table pool is too small.
    pub fn share_guest(vm: VmId, pages: Pages, ipa: IpaPfn, perms: Perms) -> Result<(), Refused> {
        let args = [vm.into(), pages.start.0, ipa.0, pages.count, u64::from(perms.raw())];
        Self::ask(HostFunction::HostShareGuest, args).map(drop)
    }

    /// `HostUnshareGuest`: takes lent pages back from a VM.
    ///
    /// # Errors
    /// `WrongState` where a page is not lent to this VM at this place.
    pub fn unshare_guest(vm: VmId, pages: Pages, ipa: IpaPfn) -> Result<(), Refused> {
        let args = [vm.into(), pages.start.0, ipa.0, pages.count, 0];
        Self::ask(HostFunction::HostUnshareGuest, args).map(drop)
    }

    /// `HostDonateGuest`: gives host pages to a VM at `ipa`; the host loses access.
    ///
    /// # Errors
    /// As [`Self::share_guest`], but for protected VMs too.
    pub fn donate_guest(vm: VmId, pages: Pages, ipa: IpaPfn) -> Result<(), Refused> {
        let args = [vm.into(), pages.start.0, ipa.0, pages.count, 0];
        Self::ask(HostFunction::HostDonateGuest, args).map(drop)
    }

    /// `HostReclaimGuest`: takes donated pages back from a VM that was torn down. Pages of a
    /// protected VM come back zeroed (R44).
    ///
    /// # Errors
    /// `WrongState` where the VM lives or a page is not its own.
    pub fn reclaim_guest(vm: VmId, pages: Pages) -> Result<(), Refused> {
        let args = [vm.into(), pages.start.0, pages.count, 0, 0];
        Self::ask(HostFunction::HostReclaimGuest, args).map(drop)
    }

    /// `VmCreate`: makes a VM and donates the memory for its tables.
    ///
    /// # Errors
    /// `NoMemory` where there are too many VMs or too few pages; `WrongState` where a page is not
    /// the host's alone; `Unsupported` where the CPUs lack what the contract needs.
    pub fn vm_create(contract: ContractFlags, vcpus: u64, tables: Pages) -> Result<VmId, Refused> {
        let args = [u64::from(contract.raw()), vcpus, tables.start.0, tables.count, 0];
        let [vm, ..] = Self::ask(HostFunction::VmCreate, args)?;
        // A number past 16 bits is no VM of this ABI; the next call on it is refused as unknown.
        Ok(VmId(u16::try_from(vm).unwrap_or(u16::MAX)))
    }

    /// `VmPoolAdd`: donates more table memory.
    ///
    /// # Errors
    /// `WrongState` where a page is not the host's alone.
    pub fn vm_pool_add(vm: VmId, tables: Pages) -> Result<(), Refused> {
        let args = [vm.into(), tables.start.0, tables.count, 0, 0];
        Self::ask(HostFunction::VmPoolAdd, args).map(drop)
    }

    /// `VmEnableMte`: switches memory tagging on.
    ///
    /// # Errors
    /// `WrongState` by R21 after the first bind or run; `Unsupported` without FEAT_MTE2.
    pub fn vm_enable_mte(vm: VmId) -> Result<(), Refused> {
        Self::ask(HostFunction::VmEnableMte, [vm.into(), 0, 0, 0, 0]).map(drop)
    }

    /// `VmTeardown`: stops the VM for good.
    ///
    /// # Errors
    /// `Busy` while a vCPU runs; `WrongState` the second time.
    pub fn vm_teardown(vm: VmId) -> Result<(), Refused> {
        Self::ask(HostFunction::VmTeardown, [vm.into(), 0, 0, 0, 0]).map(drop)
    }

    /// `VmFree`: takes one table page back and says how many the VM still holds; with the last
    /// one the VM is gone.
    ///
    /// # Errors
    /// `WrongState` where the VM lives; `Busy` where it still holds pages.
    pub fn vm_free(vm: VmId) -> Result<(Pfn, u64), Refused> {
        let [page, left, ..] = Self::ask(HostFunction::VmFree, [vm.into(), 0, 0, 0, 0])?;
        Ok((Pfn(page), left))
    }

    /// `VcpuInit`: puts a vCPU out of reset at `entry` (bytes) with `x0` set.
    ///
    /// # Errors
    /// `NotFound` where there is no such vCPU; `Busy` once it has run.
    pub fn vcpu_init(vm: VmId, vcpu: VcpuId, entry: u64, x0: u64) -> Result<(), Refused> {
        let args = [vm.into(), vcpu.into(), entry, x0, 0];
        Self::ask(HostFunction::VcpuInit, args).map(drop)
    }

    /// `VcpuRun`: runs a vCPU on this CPU until something needs the host. `load` completes the
    /// load of the last [`Exit::Mmio`].
    ///
    /// # Errors
    /// `Busy` where it runs on another CPU or was never initialised; `WrongState` where its VM was
    /// torn down.
    pub fn vcpu_run(vm: VmId, vcpu: VcpuId, load: GuestValue) -> Result<Exit, Refused> {
        let args = [vm.into(), vcpu.into(), load.0, 0, 0];
        Self::ask(HostFunction::VcpuRun, args).map(Exit::from_registers)
    }

    /// `VcpuGetReg`: returns register `x0..=x30` of a vCPU that does not run.
    ///
    /// # Errors
    /// `Denied` for protected VMs; `Busy` while it runs.
    pub fn vcpu_get_reg(vm: VmId, vcpu: VcpuId, register: u64) -> Result<u64, Refused> {
        let args = [vm.into(), vcpu.into(), register, 0, 0];
        Self::ask(HostFunction::VcpuGetReg, args).map(|[value, ..]| value)
    }

    /// `VcpuSetReg`: writes register `x0..=x30` of a vCPU that does not run.
    ///
    /// # Errors
    /// `Denied` for protected VMs after their first run; `Busy` while it runs.
    pub fn vcpu_set_reg(vm: VmId, vcpu: VcpuId, register: u64, value: u64) -> Result<(), Refused> {
        let args = [vm.into(), vcpu.into(), register, value, 0];
        Self::ask(HostFunction::VcpuSetReg, args).map(drop)
    }

    /// `PfnmapCheck`: judges a batch without changing anything (R32). `page` is this CPU's
    /// argument page; at most 64 requests are taken. Returns how many were judged: their decisions
    /// are in the page.
    ///
    /// # Errors
    /// `WrongState` without an argument page; `InvalidParameter` for an empty batch.
    pub fn check(page: &mut ArgumentPage, requests: &[Request]) -> Result<usize, Refused> {
        let items = page.put_requests(requests);
        let count = u64::try_from(items).unwrap_or(0);
        Self::ask(HostFunction::PfnmapCheck, [count, 0, 0, 0, 0])?;
        Ok(items)
    }

    /// `PfnmapBind`: announces a region for a VM (the memslot moment).
    ///
    /// # Errors
    /// The rule that refuses, with its facts.
    pub fn pfnmap_bind(request: &Request) -> Result<(), Refused> {
        let RequestWord(word) = request.word();
        let args = [word, request.pfn, request.ipa_pfn, request.pages, 0];
        Self::ask(HostFunction::PfnmapBind, args).map(drop)
    }

    /// `PfnmapMap`: installs the entries of the binding that holds `ipa` now.
    ///
    /// # Errors
    /// `NotFound` where no binding holds it; `NoMemory` where the table pool is too small.
    pub fn pfnmap_map(vm: VmId, ipa: IpaPfn) -> Result<(), Refused> {
        Self::ask(HostFunction::PfnmapMap, [vm.into(), ipa.0, 0, 0, 0]).map(drop)
    }

    /// `PfnmapUnbind`: takes the binding that holds `ipa` away and says what state its region is
    /// in afterwards; `None` is a state of a newer ABI.
    ///
    /// # Errors
    /// `NotFound` where no binding holds it.
    pub fn pfnmap_unbind(vm: VmId, ipa: IpaPfn) -> Result<Option<RegionState>, Refused> {
        let args = [vm.into(), ipa.0, 0, 0, 0];
        Self::ask(HostFunction::PfnmapUnbind, args).map(region_state)
    }

    /// `PfnmapReset`: reports that a quarantined region's device was reset, or retries its poll.
    ///
    /// # Errors
    /// `WrongState` where the region is not in quarantine; `NotFound` past the last region.
    pub fn pfnmap_reset(region: RegionIndex) -> Result<Option<RegionState>, Refused> {
        let args = [region.into(), 0, 0, 0, 0];
        Self::ask(HostFunction::PfnmapReset, args).map(region_state)
    }

    /// `PfnmapProbe`: returns `PAR_EL1` of `AT S12E1R` on `ipa`, through a write-back stage 1:
    /// the type that the CPU itself reports.
    ///
    /// # Errors
    /// `NotFound` where there is no such VM.
    pub fn pfnmap_probe(vm: VmId, ipa: IpaPfn) -> Result<u64, Refused> {
        let args = [vm.into(), ipa.0, 0, 0, 0];
        Self::ask(HostFunction::PfnmapProbe, args).map(|[par, ..]| par)
    }

    /// `MigrateExport`: writes what a VM needs of its next host to the argument page and returns
    /// the length in bytes.
    ///
    /// # Errors
    /// `WrongState` without an argument page; `NotFound` where there is no such VM.
    pub fn migrate_export(vm: VmId) -> Result<u64, Refused> {
        let args = [vm.into(), 0, 0, 0, 0];
        Self::ask(HostFunction::MigrateExport, args).map(|[bytes, ..]| bytes)
    }

    /// `MigrateCheck`: judges the descriptor in the argument page, verdicts in place, and returns
    /// how many items fail here.
    ///
    /// # Errors
    /// `InvalidParameter` for what is no descriptor; `WrongState` without an argument page.
    pub fn migrate_check() -> Result<u64, Refused> {
        Self::ask(HostFunction::MigrateCheck, [0; 5]).map(|[failing, ..]| failing)
    }
}

/// Reads `x1` of a call that returns a `RegionState`.
fn region_state(regs: [u64; 7]) -> Option<RegionState> {
    u8::try_from(regs[0]).ok().and_then(RegionState::from_raw)
}
