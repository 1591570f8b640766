//! Argument registers: which numbers a call accepts. Nothing else is known to be true of them.
//!
//! Registers are judged in the order of their numbers, a count before its first page.

use std::ops::Range;

use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::manifest::MAX_ENTRIES;
use pfnguard_shared::request::{MAX_CHECK_ITEMS, Request, RequestWord};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{MAX_RANGE_PAGES, Perms};

use crate::machine::{MAX_CPUS, MAX_VCPUS, MAX_VMS, count};
use crate::refusal::{argument, no_object};
use crate::{PAGE_LIMIT, Refused};

/// The last register that VCPU_GET_REG and VCPU_SET_REG name: `x30`.
const LAST_REGISTER: u64 = 30;

/// `x0..=x7` of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Args<'a>(pub &'a [u64; 8]);

/// Pages, and where a guest has them.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub pages: Range<u64>,
    pub ipa: Range<u64>,
}

impl Args<'_> {
    /// x1: a VM.
    pub(crate) fn vm(&self) -> Result<u16, Refused> {
        vm_number(self.0[1])
    }

    /// x2: a vCPU.
    pub(crate) fn vcpu(&self) -> Result<usize, Refused> {
        index(self.0[2], MAX_VCPUS)
    }

    /// x1: a CPU.
    pub(crate) fn cpu(&self) -> Result<usize, Refused> {
        index(self.0[1], MAX_CPUS)
    }

    /// x1: a region.
    pub(crate) fn region(&self) -> Result<usize, Refused> {
        index(self.0[1], count(MAX_ENTRIES))
    }

    /// x1: what INFO is asked for.
    pub(crate) fn selector(&self) -> Result<InfoSelector, Refused> {
        InfoSelector::from_raw(self.0[1]).ok_or(argument(1, InfoSelector::Platform.raw()))
    }

    /// x1: items of a batch.
    pub(crate) fn items(&self) -> Result<usize, Refused> {
        self.number(1, 1, count(MAX_CHECK_ITEMS)).map(to_index)
    }

    /// x1: a contract.
    pub(crate) fn contract(&self) -> Result<ContractFlags, Refused> {
        let known = u32::try_from(self.0[1]).ok().and_then(ContractFlags::from_raw);
        known.ok_or(argument(1, ContractFlags::ALL.raw()))
    }

    /// x2: how many vCPUs.
    pub(crate) fn vcpus(&self) -> Result<usize, Refused> {
        self.number(2, 1, MAX_VCPUS).map(to_index)
    }

    /// x3: a general register.
    pub(crate) fn register(&self) -> Result<usize, Refused> {
        self.number(3, 0, LAST_REGISTER).map(to_index)
    }

    /// x1..=x4: a PFNMAP request.
    pub(crate) fn request(&self) -> Request {
        let [_, word, pfn, ipa, pages, ..] = *self.0;
        Request::from_registers(RequestWord(word), pfn, ipa, pages)
    }

    /// A range of RAM: first page and count in these registers.
    pub(crate) fn pages(&self, first: usize, pages: usize) -> Result<Range<u64>, Refused> {
        let length = self.0[pages];
        if length == 0 || length > MAX_RANGE_PAGES {
            return Err(argument(pages, MAX_RANGE_PAGES));
        }
        self.range(first, length)
    }

    /// x2: page, x3: IPA page, x4: count.
    pub(crate) fn placed(&self) -> Result<Placed, Refused> {
        let pages = self.pages(2, 4)?;
        Ok(Placed { pages, ipa: self.range(3, self.0[4])? })
    }

    /// x5: permissions of borrowed RAM.
    pub(crate) fn perms(&self) -> Result<Perms, Refused> {
        let known = u8::try_from(self.0[5]).ok().and_then(Perms::from_raw);
        let readable = known.filter(|perms| perms.contains(Perms::READ));
        readable.ok_or(argument(5, Perms::ALL.raw()))
    }

    fn range(&self, first: usize, length: u64) -> Result<Range<u64>, Refused> {
        let (start, last_start) = (self.0[first], PAGE_LIMIT - length);
        if start > last_start {
            return Err(argument(first, last_start));
        }
        Ok(start..start + length)
    }

    fn number(&self, register: usize, least: u64, most: u64) -> Result<u64, Refused> {
        let number = self.0[register];
        if (least..=most).contains(&number) { Ok(number) } else { Err(argument(register, most)) }
    }
}

/// The number of a VM that can exist.
pub(crate) fn vm_number(number: u64) -> Result<u16, Refused> {
    let small = u16::try_from(number).ok().filter(|number| *number < MAX_VMS);
    small.ok_or(no_object(number, MAX_VMS))
}

fn index(number: u64, limit: u64) -> Result<usize, Refused> {
    if number < limit { Ok(to_index(number)) } else { Err(no_object(number, limit)) }
}

fn to_index(small: u64) -> usize {
    usize::try_from(small).expect("bounded by a documented limit")
}
