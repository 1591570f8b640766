//! What a kernel module says of the machine ([`LaunchInfo`]), checked. The kernel is trusted until
//! launch: this stops mistakes, so that they are explained instead of suffered.

use core::fmt;

use arrayvec::ArrayVec;
use pfnguard_shared::launch::LaunchInfo;

use crate::addr::{Pfn, PfnRange, PhysAddr};
use crate::hypervisor::MAX_CPUS;
use crate::machine::MachineFacts;
use crate::vmemmap::MAX_BANKS;

/// Why it cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfoError {
    /// So many CPUs; there are one to [`MAX_CPUS`].
    Cpus(u32),
    /// So many ranges of RAM; there are one to [`MAX_BANKS`].
    Banks(u32),
    /// A range of RAM is empty, not behind the one before it, or past the last address.
    Range {
        /// Its first page.
        start: u64,
        /// Its number of pages.
        pages: u64,
    },
    /// The image does not lie in RAM.
    NotRam(Pfn),
    /// The console's registers do not begin a page, or are RAM.
    Uart(PhysAddr),
}

impl fmt::Display for InfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpus(cpus) => write!(f, "{cpus} CPUs: at most {MAX_CPUS}"),
            Self::Banks(banks) => write!(f, "{banks} ranges of RAM: at most {MAX_BANKS}"),
            Self::Range { start, pages } => {
                write!(f, "{pages:#x} pages of RAM at page {start:#x}: not sorted")
            }
            Self::NotRam(pfn) => write!(f, "the image at page {pfn} is not in RAM"),
            Self::Uart(base) => write!(f, "no console can be at {base}"),
        }
    }
}

impl MachineFacts {
    /// Returns the facts for an image that begins at page `image`. Memory behind what the kernel
    /// gives counts as taken.
    ///
    /// # Errors
    /// Every [`InfoError`].
    pub fn from_info(info: &LaunchInfo, image: Pfn) -> Result<Self, InfoError> {
        let cpus = listed(&info.mpidr, info.cpus).ok_or(InfoError::Cpus(info.cpus))?;
        let ram = ram(info)?;
        let bank = ram.iter().find(|bank| bank.contains(image)).ok_or(InfoError::NotRam(image))?;
        let past = image.0.saturating_add(info.pages);
        let behind = bank.end().0.checked_sub(past);
        Ok(Self {
            taken: behind.and_then(|pages| PfnRange::new(Pfn(past), pages)).into_iter().collect(),
            uart: uart(info.uart, &ram)?,
            cpus: cpus.iter().copied().collect(),
            // A size that no address space holds is refused as too long.
            manifest: (
                PhysAddr(info.manifest),
                usize::try_from(info.manifest_size).unwrap_or(usize::MAX),
            ),
            ram,
        })
    }
}

/// Returns the first `count` of `all`, of which there is at least one.
fn listed(all: &[u64], count: u32) -> Option<&[u64]> {
    let count = usize::try_from(count).ok()?;
    all.get(..count).filter(|listed| !listed.is_empty())
}

/// Returns where the console is, if there is one: not where EL2 would write over somebody's memory.
fn uart(base: u64, ram: &[PfnRange]) -> Result<Option<PhysAddr>, InfoError> {
    let base = PhysAddr(base);
    let is_ram = ram.iter().any(|bank| bank.contains(base.pfn()));
    match base.0 {
        0 => Ok(None),
        _ if base.offset() != 0 || is_ram => Err(InfoError::Uart(base)),
        _ => Ok(Some(base)),
    }
}

fn ram(info: &LaunchInfo) -> Result<ArrayVec<PfnRange, MAX_BANKS>, InfoError> {
    let words = info.banks.checked_mul(2).and_then(|words| listed(&info.ram, words));
    let words = words.ok_or(InfoError::Banks(info.banks))?;
    let mut ram: ArrayVec<PfnRange, MAX_BANKS> = ArrayVec::new();
    for range in words.chunks_exact(2) {
        let (start, pages) = (range[0], range[1]);
        let sorted = ram.last().is_none_or(|last| last.end().0 <= start);
        let range = PfnRange::new(Pfn(start), pages).filter(|range| {
            // Also the last byte has an address.
            sorted && range.end().base().is_some()
        });
        let range = range.ok_or(InfoError::Range { start, pages })?;
        // Page 0 stays the host's for good: an address of 0 is none to the hypervisor.
        let range = if start == 0 { PfnRange::new(Pfn(1), pages - 1) } else { Some(range) };
        ram.extend(range);
    }
    Ok(ram)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn info(ram: &[(u64, u64)]) -> LaunchInfo {
        let mut info = LaunchInfo::zeroed();
        (info.cpus, info.banks) = (2, u32::try_from(ram.len()).unwrap());
        info.mpidr[1] = 0x100;
        let words = ram.iter().flat_map(|(start, pages)| [*start, *pages]);
        info.ram.iter_mut().zip(words).for_each(|(word, value)| *word = value);
        info.pages = 0x100;
        info
    }

    fn refused(info: &LaunchInfo) -> InfoError {
        MachineFacts::from_info(info, Pfn(0x4_1000)).err().unwrap()
    }

    #[test]
    fn what_lies_behind_the_kernels_gift_is_taken() {
        let mut info = info(&[(0x4_0000, 0x4_0000), (0x10_0000, 1)]);
        (info.manifest, info.manifest_size, info.uart) = (0x4800_0008, 200, 0x900_0000);
        let facts = MachineFacts::from_info(&info, Pfn(0x4_1000)).unwrap();
        let range = |start, pages| PfnRange::new(Pfn(start), pages).unwrap();
        assert_eq!(facts.ram[..], [range(0x4_0000, 0x4_0000), range(0x10_0000, 1)]);
        assert_eq!(facts.taken[..], [range(0x4_1100, 0x8_0000 - 0x4_1100)]);
        assert_eq!(facts.cpus[..], [0, 0x100]);
        assert_eq!(facts.manifest, (PhysAddr(0x4800_0008), 200));
        assert_eq!(facts.uart, Some(PhysAddr(0x900_0000)));
    }

    #[test]
    fn a_gift_up_to_the_end_of_ram_leaves_nothing_taken() {
        let facts = MachineFacts::from_info(&info(&[(0x4_0000, 0x1100)]), Pfn(0x4_1000)).unwrap();
        assert!(facts.taken.is_empty());
        assert_eq!(facts.uart, None);
    }

    #[test]
    fn page_0_is_the_hosts_for_good() {
        let range = |start, pages| PfnRange::new(Pfn(start), pages).unwrap();
        for (first, left) in [(0x100, Some(range(1, 0xff))), (1, None)] {
            let info = info(&[(0, first), (0x4_0000, 0x8000)]);
            let facts = MachineFacts::from_info(&info, Pfn(0x4_1000)).unwrap();
            let expected: Vec<_> = left.into_iter().chain([range(0x4_0000, 0x8000)]).collect();
            assert_eq!(facts.ram[..], expected);
        }
    }

    #[test]
    fn a_console_is_a_page_of_registers() {
        for (uart, why) in [(0x900_0004, "inside a page"), (0x4000_0000, "RAM")] {
            let info = LaunchInfo { uart, ..info(&[(0x4_0000, 0x8000)]) };
            assert_eq!(refused(&info), InfoError::Uart(PhysAddr(uart)), "{why}");
        }
    }

    #[test]
    fn counts_are_bounded() {
        let ram: Vec<_> = (0..16).map(|bank| (0x4_0000 + bank * 0x1_0000, 0x8000)).collect();
        assert_eq!(MachineFacts::from_info(&info(&ram), Pfn(0x4_1000)).unwrap().ram.len(), 16);
        for cpus in [0, 17, u32::MAX] {
            assert_eq!(refused(&LaunchInfo { cpus, ..info(&ram) }), InfoError::Cpus(cpus));
        }
        for banks in [0, 17, 1 << 31, u32::MAX] {
            assert_eq!(refused(&LaunchInfo { banks, ..info(&ram) }), InfoError::Banks(banks));
        }
    }

    #[test]
    fn ranges_are_sorted_disjoint_and_memory() {
        for (start, pages) in [(0x5_0000, 0), (0x4_7fff, 1), (0x1000, 1), (1 << 52, 1), (5, !0)] {
            let info = info(&[(0x4_0000, 0x8000), (start, pages)]);
            assert_eq!(refused(&info), InfoError::Range { start, pages });
        }
        let elsewhere = info(&[(0x8_0000, 0x8000)]);
        assert_eq!(refused(&elsewhere), InfoError::NotRam(Pfn(0x4_1000)));
    }
}
