//! The door: registers from outside are claims, decoded once.

use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::request::{MAX_CHECK_ITEMS, Request, RequestWord};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{HostFunction, MAX_RANGE_PAGES, Perms};

use crate::addr::{IpaPfn, IpaRange, PFN_LIMIT, Pfn, PfnRange};
use crate::error::HcallError;
use crate::hypervisor::{MAX_CPUS, MAX_VCPUS};
use crate::region::RegionId;
use crate::vcpu::CpuIndex;
use crate::vm::VmId;

/// A call of the host, decoded. Every number is in range; nothing else is known to be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented at HostFunction, which names the registers")]
pub enum HostCall {
    Uid,
    Revision,
    Info(InfoSelector),
    RegionInfo(RegionId),
    ArgPageSet { page: Pfn },
    ArgPageClear,
    TraceInfo(CpuIndex),
    HostShareHyp { pages: PfnRange },
    HostUnshareHyp { pages: PfnRange },
    HostShareGuest { vm: VmId, pages: PfnRange, ipa: IpaRange, perms: Perms },
    HostUnshareGuest { vm: VmId, pages: PfnRange, ipa: IpaRange },
    HostDonateGuest { vm: VmId, pages: PfnRange, ipa: IpaRange },
    HostReclaimGuest { vm: VmId, pages: PfnRange },
    VmCreate { contract: ContractFlags, vcpus: usize, tables: PfnRange },
    VmPoolAdd { vm: VmId, tables: PfnRange },
    VmEnableMte { vm: VmId },
    VmTeardown { vm: VmId },
    VmFree { vm: VmId },
    VcpuInit { vm: VmId, vcpu: usize, entry: u64, x0: u64 },
    VcpuRun { vm: VmId, vcpu: usize, load: u64 },
    VcpuGetReg { vm: VmId, vcpu: usize, register: usize },
    VcpuSetReg { vm: VmId, vcpu: usize, register: usize, value: u64 },
    PfnmapCheck { items: usize },
    PfnmapBind { request: Request },
    PfnmapMap { vm: VmId, ipa: IpaPfn },
    PfnmapUnbind { vm: VmId, ipa: IpaPfn },
    PfnmapReset { region: RegionId },
    PfnmapProbe { vm: VmId, ipa: IpaPfn },
    MigrateExport { vm: VmId },
    MigrateCheck,
}

impl HostCall {
    /// Decodes `x0..=x7`.
    ///
    /// # Errors
    /// `UnknownFunction` for an id the ABI does not define; `Argument` and `NoObject` for
    /// registers out of range.
    pub fn decode(regs: &[u64; 8]) -> Result<Self, HcallError> {
        let unknown = HcallError::UnknownFunction(regs[0]);
        let fid = u32::try_from(regs[0]).map_err(|_| unknown)?;
        let function = HostFunction::from_raw(fid).ok_or(unknown)?;
        Args(regs).decode(function)
    }
}

/// Argument registers under their ABI numbers.
struct Args<'a>(&'a [u64; 8]);

impl Args<'_> {
    fn decode(&self, function: HostFunction) -> Result<HostCall, HcallError> {
        use HostFunction as F;
        Ok(match function {
            F::Uid => HostCall::Uid,
            F::Revision => HostCall::Revision,
            F::Info => HostCall::Info(self.selector()?),
            F::RegionInfo => HostCall::RegionInfo(RegionId::from_raw(self.0[1])?),
            F::ArgPageSet => HostCall::ArgPageSet { page: Pfn(self.0[1]) },
            F::ArgPageClear => HostCall::ArgPageClear,
            F::TraceInfo => HostCall::TraceInfo(CpuIndex(self.index(1, MAX_CPUS)?)),
            F::HostShareHyp => HostCall::HostShareHyp { pages: self.pages(1, 2)? },
            F::HostUnshareHyp => HostCall::HostUnshareHyp { pages: self.pages(1, 2)? },
            F::HostShareGuest => self.share_guest()?,
            F::HostUnshareGuest => self.unshare_guest()?,
            F::HostDonateGuest => self.donate_guest()?,
            F::HostReclaimGuest => {
                HostCall::HostReclaimGuest { vm: self.vm()?, pages: self.pages(2, 3)? }
            }
            F::VmCreate => self.vm_create()?,
            F::VmPoolAdd => HostCall::VmPoolAdd { vm: self.vm()?, tables: self.pages(2, 3)? },
            F::VmEnableMte => HostCall::VmEnableMte { vm: self.vm()? },
            F::VmTeardown => HostCall::VmTeardown { vm: self.vm()? },
            F::VmFree => HostCall::VmFree { vm: self.vm()? },
            F::VcpuInit => self.vcpu_init()?,
            F::VcpuRun => self.vcpu_run()?,
            F::VcpuGetReg => self.vcpu_get_reg()?,
            F::VcpuSetReg => self.vcpu_set_reg()?,
            F::PfnmapCheck => HostCall::PfnmapCheck { items: self.items()? },
            F::PfnmapBind => HostCall::PfnmapBind { request: self.request() },
            F::PfnmapMap => HostCall::PfnmapMap { vm: self.vm()?, ipa: IpaPfn(self.0[2]) },
            F::PfnmapUnbind => HostCall::PfnmapUnbind { vm: self.vm()?, ipa: IpaPfn(self.0[2]) },
            F::PfnmapReset => HostCall::PfnmapReset { region: RegionId::from_raw(self.0[1])? },
            F::PfnmapProbe => HostCall::PfnmapProbe { vm: self.vm()?, ipa: IpaPfn(self.0[2]) },
            F::MigrateExport => HostCall::MigrateExport { vm: self.vm()? },
            F::MigrateCheck => HostCall::MigrateCheck,
        })
    }

    fn share_guest(&self) -> Result<HostCall, HcallError> {
        let (vm, pages) = (self.vm()?, self.pages(2, 4)?);
        let ipa = self.ipa(3, pages.pages())?;
        Ok(HostCall::HostShareGuest { vm, pages, ipa, perms: self.perms()? })
    }

    fn unshare_guest(&self) -> Result<HostCall, HcallError> {
        let (vm, pages) = (self.vm()?, self.pages(2, 4)?);
        Ok(HostCall::HostUnshareGuest { vm, pages, ipa: self.ipa(3, pages.pages())? })
    }

    fn donate_guest(&self) -> Result<HostCall, HcallError> {
        let (vm, pages) = (self.vm()?, self.pages(2, 4)?);
        Ok(HostCall::HostDonateGuest { vm, pages, ipa: self.ipa(3, pages.pages())? })
    }

    fn vm_create(&self) -> Result<HostCall, HcallError> {
        let contract = u32::try_from(self.0[1]).ok().and_then(ContractFlags::from_raw);
        let contract = contract.ok_or(argument(1, u64::from(ContractFlags::ALL.raw())))?;
        let vcpus = self.bounded(2, 1, MAX_VCPUS)?;
        Ok(HostCall::VmCreate { contract, vcpus, tables: self.pages(3, 4)? })
    }

    fn vcpu_init(&self) -> Result<HostCall, HcallError> {
        let (vm, vcpu) = (self.vm()?, self.index(2, MAX_VCPUS)?);
        Ok(HostCall::VcpuInit { vm, vcpu, entry: self.0[3], x0: self.0[4] })
    }

    fn vcpu_run(&self) -> Result<HostCall, HcallError> {
        Ok(HostCall::VcpuRun { vm: self.vm()?, vcpu: self.index(2, MAX_VCPUS)?, load: self.0[3] })
    }

    fn vcpu_get_reg(&self) -> Result<HostCall, HcallError> {
        let (vm, vcpu) = (self.vm()?, self.index(2, MAX_VCPUS)?);
        Ok(HostCall::VcpuGetReg { vm, vcpu, register: self.bounded(3, 0, LAST_REGISTER)? })
    }

    fn vcpu_set_reg(&self) -> Result<HostCall, HcallError> {
        let (vm, vcpu) = (self.vm()?, self.index(2, MAX_VCPUS)?);
        let register = self.bounded(3, 0, LAST_REGISTER)?;
        Ok(HostCall::VcpuSetReg { vm, vcpu, register, value: self.0[4] })
    }

    fn request(&self) -> Request {
        Request::from_registers(RequestWord(self.0[1]), self.0[2], self.0[3], self.0[4])
    }

    fn items(&self) -> Result<usize, HcallError> {
        self.bounded(1, 1, MAX_CHECK_ITEMS)
    }

    fn selector(&self) -> Result<InfoSelector, HcallError> {
        let last = InfoSelector::ALL.last().map_or(0, |selector| selector.raw());
        InfoSelector::from_raw(self.0[1]).ok_or(argument(1, last))
    }

    fn vm(&self) -> Result<VmId, HcallError> {
        VmId::from_raw(self.0[1])
    }

    /// The number of an object of which there are at most `limit`.
    fn index(&self, register: usize, limit: usize) -> Result<usize, HcallError> {
        let number = self.0[register];
        usize::try_from(number)
            .ok()
            .filter(|&index| index < limit)
            .ok_or(HcallError::NoObject { number, limit: register_value(limit) })
    }

    /// A number from `least` to `most`.
    fn bounded(&self, register: usize, least: usize, most: usize) -> Result<usize, HcallError> {
        usize::try_from(self.0[register])
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or(argument(register, register_value(most)))
    }

    /// A range of RAM: page in one register, count in another.
    fn pages(&self, register: usize, count: usize) -> Result<PfnRange, HcallError> {
        let pages = self.0[count];
        if pages == 0 || pages > MAX_RANGE_PAGES {
            return Err(argument(count, MAX_RANGE_PAGES));
        }
        PfnRange::new(Pfn(self.0[register]), pages)
            .ok_or(argument(register, PFN_LIMIT.saturating_sub(pages)))
    }

    fn ipa(&self, register: usize, pages: u64) -> Result<IpaRange, HcallError> {
        IpaRange::new(IpaPfn(self.0[register]), pages)
            .ok_or(argument(register, PFN_LIMIT.saturating_sub(pages)))
    }

    /// Permissions of borrowed RAM: known bits, and never without `READ`.
    fn perms(&self) -> Result<Perms, HcallError> {
        let raw = u8::try_from(self.0[5]).ok();
        raw.and_then(Perms::from_raw)
            .filter(|perms| perms.contains(Perms::READ))
            .ok_or(argument(5, u64::from(Perms::ALL.raw())))
    }
}

/// `x30`, the last register that VCPU_GET_REG and VCPU_SET_REG name.
const LAST_REGISTER: usize = 30;

fn register_value(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn argument(register: usize, limit: u64) -> HcallError {
    HcallError::Argument { index: register_value(register), limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_of_the_abi_is_decoded_or_refused_for_its_arguments() {
        for &function in HostFunction::ALL {
            let regs = [u64::from(function.raw()), 0, 0, 0, 0, 0, 0, 0];
            let unknown = HcallError::UnknownFunction(regs[0]);
            assert_ne!(HostCall::decode(&regs), Err(unknown), "{}", function.name());
        }
    }

    #[test]
    fn an_id_with_a_dirty_upper_half_is_unknown() {
        let fid = u64::from(HostFunction::Uid.raw()) | 1 << 32;
        let regs = [fid, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(HostCall::decode(&regs), Err(HcallError::UnknownFunction(fid)));
    }

    #[test]
    fn empty_long_and_wrapping_ranges_are_refused_at_the_door() {
        let call = |pfn, count| {
            let fid = u64::from(HostFunction::HostShareHyp.raw());
            HostCall::decode(&[fid, pfn, count, 0, 0, 0, 0, 0])
        };
        let count_error = HcallError::Argument { index: 2, limit: MAX_RANGE_PAGES };
        assert_eq!(call(0, 0), Err(count_error));
        assert_eq!(call(0, MAX_RANGE_PAGES + 1), Err(count_error));
        assert!(matches!(call(u64::MAX, 1), Err(HcallError::Argument { index: 1, .. })));
        assert!(call(PFN_LIMIT - 1, 1).is_ok());
    }
}
