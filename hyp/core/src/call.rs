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

/// The service's first own id; the others follow closely.
const FIRST: u32 = HostFunction::Info.raw();
const LAST: u32 = HostFunction::MigrateCheck.raw();

/// What the ids from [`FIRST`] to [`LAST`] mean: one look at a table decodes them.
static OWN: [Option<HostFunction>; 66] = {
    let mut table = [None; 66];
    let mut id = FIRST;
    let mut rest = table.as_mut_slice();
    while let [entry, others @ ..] = rest {
        *entry = HostFunction::from_raw(id);
        id += 1;
        rest = others;
    }
    assert!(id == LAST + 1);
    table
};

/// Decodes a function id, or returns `None` where the ABI defines no such number.
pub fn function(fid: u64) -> Option<HostFunction> {
    // Negative for the ids below, which SMCCC defines, and for some with a dirty upper half.
    match usize::try_from(fid.wrapping_sub(u64::from(FIRST)).cast_signed()) {
        Ok(number) => *OWN.get(number)?,
        Err(_) => u32::try_from(fid).ok().and_then(HostFunction::from_raw),
    }
}

/// Argument registers under their ABI numbers. What comes out is in range; nothing else is known
/// to be true of it.
///
/// # Errors
/// All methods: `Argument` for a number out of range, `NoObject` for an object that cannot exist.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a>(pub &'a [u64; 8]);

#[allow(clippy::missing_errors_doc, reason = "documented at the type, once for all")]
impl Args<'_> {
    /// Returns a register as it is.
    pub fn raw(self, register: usize) -> u64 {
        self.0[register]
    }

    /// Returns `x1` as the number of a VM.
    #[inline]
    pub fn vm(self) -> Result<VmId, HcallError> {
        VmId::from_raw(self.0[1])
    }

    /// Returns `x1` as the index of a region.
    pub fn region(self) -> Result<RegionId, HcallError> {
        RegionId::from_raw(self.0[1])
    }

    /// Returns `x1` as what INFO is asked for.
    pub fn selector(self) -> Result<InfoSelector, HcallError> {
        let last = InfoSelector::ALL.last().map_or(0, |selector| selector.raw());
        InfoSelector::from_raw(self.0[1]).ok_or(argument(1, last))
    }

    /// Returns `x1` as the index of a CPU.
    pub fn cpu(self) -> Result<CpuIndex, HcallError> {
        self.index(1, MAX_CPUS).map(CpuIndex)
    }

    /// Returns `x2` as the number of a vCPU.
    pub fn vcpu(self) -> Result<usize, HcallError> {
        self.index(2, MAX_VCPUS)
    }

    /// Returns `x3` as the number of a general register.
    pub fn register(self) -> Result<usize, HcallError> {
        self.bounded(3, 0, LAST_REGISTER)
    }

    /// Returns `x1` as the number of items of a batch.
    pub fn items(self) -> Result<usize, HcallError> {
        self.bounded(1, 1, MAX_CHECK_ITEMS)
    }

    /// Returns `x1` as a contract.
    pub fn contract(self) -> Result<ContractFlags, HcallError> {
        let contract = u32::try_from(self.0[1]).ok().and_then(ContractFlags::from_raw);
        contract.ok_or(argument(1, u64::from(ContractFlags::ALL.raw())))
    }

    /// Returns `x2` as a number of vCPUs.
    pub fn vcpu_count(self) -> Result<usize, HcallError> {
        self.bounded(2, 1, MAX_VCPUS)
    }

    /// Returns `x1..=x4` as a PFNMAP request, not looked at yet.
    pub fn request(self) -> Request {
        Request::from_registers(RequestWord(self.0[1]), self.0[2], self.0[3], self.0[4])
    }

    /// Returns a range of RAM: its first page in one register, the count in another.
    #[inline]
    pub fn pages(self, register: usize, count: usize) -> Result<PfnRange, HcallError> {
        let pages = self.0[count];
        if pages == 0 || pages > MAX_RANGE_PAGES {
            return Err(argument(count, MAX_RANGE_PAGES));
        }
        PfnRange::new(Pfn(self.0[register]), pages)
            .ok_or(argument(register, PFN_LIMIT.saturating_sub(pages)))
    }

    /// Returns pages and where a guest has them: `x2` page, `x3` IPA page, `x4` count.
    pub fn placed_pages(self) -> Result<(PfnRange, IpaRange), HcallError> {
        let pages = self.pages(2, 4)?;
        let ipa = IpaRange::new(IpaPfn(self.0[3]), pages.pages());
        Ok((pages, ipa.ok_or(argument(3, PFN_LIMIT.saturating_sub(pages.pages())))?))
    }

    /// Returns `x5` as permissions of borrowed RAM: known bits, and never without `READ`.
    pub fn perms(self) -> Result<Perms, HcallError> {
        let raw = u8::try_from(self.0[5]).ok();
        raw.and_then(Perms::from_raw)
            .filter(|perms| perms.contains(Perms::READ))
            .ok_or(argument(5, u64::from(Perms::ALL.raw())))
    }

    /// The number of an object of which there are at most `limit`.
    fn index(self, register: usize, limit: usize) -> Result<usize, HcallError> {
        let number = self.0[register];
        usize::try_from(number)
            .ok()
            .filter(|&index| index < limit)
            .ok_or(HcallError::NoObject { number, limit: register_value(limit) })
    }

    /// A number from `least` to `most`.
    fn bounded(self, register: usize, least: usize, most: usize) -> Result<usize, HcallError> {
        usize::try_from(self.0[register])
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or(argument(register, register_value(most)))
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
    fn an_id_with_a_dirty_upper_half_is_unknown() {
        let fid = u64::from(HostFunction::Uid.raw());
        assert_eq!(function(fid), Some(HostFunction::Uid));
        assert_eq!(function(fid | 1 << 32), None);
    }

    #[test]
    fn every_function_and_no_other_number_near_one_is_known() {
        let ids = HostFunction::ALL.iter().map(|function| u64::from(function.raw()));
        for id in ids.flat_map(|id| id - 2..id + 16) {
            let known = HostFunction::ALL.iter().find(|known| u64::from(known.raw()) == id);
            assert_eq!(function(id), known.copied(), "{id:#x}");
        }
        assert_eq!([function(0), function(u64::MAX)], [None; 2]);
    }

    #[test]
    fn empty_long_and_wrapping_ranges_are_refused_at_the_door() {
        let pages = |pfn, count| Args(&[0, pfn, count, 0, 0, 0, 0, 0]).pages(1, 2);
        let count_error = HcallError::Argument { index: 2, limit: MAX_RANGE_PAGES };
        assert_eq!(pages(0, 0), Err(count_error));
        assert_eq!(pages(0, MAX_RANGE_PAGES + 1), Err(count_error));
        assert!(matches!(pages(u64::MAX, 1), Err(HcallError::Argument { index: 1, .. })));
        assert!(pages(PFN_LIMIT - 1, 1).is_ok());
    }

    #[test]
    fn borrowed_ram_is_readable_at_least() {
        let perms = |raw| Args(&[0, 0, 0, 0, 0, raw, 0, 0]).perms();
        assert_eq!(perms(1), Ok(Perms::READ));
        let error = HcallError::Argument { index: 5, limit: 7 };
        assert_eq!([perms(0), perms(2), perms(8), perms(1 << 32 | 1)], [Err(error); 4]);
    }
}
