//! All entries together, and beside what else lies in memory.

use pfnguard_shared::manifest::RegionClass;

use super::error::Place;
use super::{Constraint, Entry, Fact, ManifestError, Register, Reset};
use crate::addr::PfnRange;

/// Checks what entries must be to each other, to RAM and to the hypervisor.
pub(super) fn check(
    entries: &[Entry],
    ram: &[PfnRange],
    hypervisor: &[PfnRange],
) -> Result<(), ManifestError> {
    for (index, entry) in entries.iter().enumerate() {
        let judge = Judge { index, entry, before: entries.get(..index).unwrap_or(&[]) };
        // The hypervisor lies in RAM: the more telling reason comes first.
        judge.check_apart(hypervisor, Constraint::Hypervisor)?;
        judge.check_apart(ram, Constraint::Ram)?;
        judge.check_order()?;
        judge.check_unique()?;
        judge.check_register(entries)?;
    }
    Ok(())
}

struct Judge<'a> {
    index: usize,
    entry: &'a Entry,
    before: &'a [Entry],
}

impl Judge<'_> {
    fn refuse(&self, constraint: Constraint, fact: Fact) -> ManifestError {
        let place = Some(Place { index: self.index, name: self.entry.name });
        ManifestError { constraint, place, fact }
    }

    fn check_apart(
        &self,
        others: &[PfnRange],
        constraint: Constraint,
    ) -> Result<(), ManifestError> {
        let common = others.iter().find_map(|other| other.intersection(&self.entry.range));
        match common.and_then(|pages| pages.start().base()) {
            Some(base) => Err(self.refuse(constraint, Fact::Value(base.0))),
            None => Ok(()),
        }
    }

    /// Sorted and apart from the entry before: so it is apart from all before.
    fn check_order(&self) -> Result<(), ManifestError> {
        let Some((last, previous)) = self.before.iter().enumerate().next_back() else {
            return Ok(());
        };
        if self.entry.range.start() < previous.range.start() {
            return Err(self.refuse(Constraint::Sorted, Fact::Other(last)));
        }
        if self.entry.range.overlaps(&previous.range) {
            return Err(self.refuse(Constraint::Overlap, Fact::Other(last)));
        }
        Ok(())
    }

    fn check_unique(&self) -> Result<(), ManifestError> {
        if let Some(other) = self.before.iter().position(|entry| entry.name == self.entry.name) {
            return Err(self.refuse(Constraint::NameUnique, Fact::Other(other)));
        }
        // Every region of a device lists its streams: only repetition within one entry is wrong.
        let streams = &self.entry.streams;
        let repeated = streams.iter().enumerate().find(|(at, s)| streams[..*at].contains(s));
        if let Some((_, stream)) = repeated {
            return Err(self.refuse(Constraint::StreamUnique, Fact::Value(u64::from(*stream))));
        }
        Ok(())
    }

    /// A reset register is read by the hypervisor: it must be a register, and a listed one. It is
    /// aligned, so it lies in one page.
    fn check_register(&self, entries: &[Entry]) -> Result<(), ManifestError> {
        let Some(register) = register_of(&self.entry.reset) else { return Ok(()) };
        let page = register.addr.pfn();
        let listed = |entry: &Entry| entry.class == RegionClass::Mmio && entry.range.contains(page);
        if entries.iter().any(listed) {
            return Ok(());
        }
        Err(self.refuse(Constraint::ResetInside, Fact::Value(register.addr.0)))
    }
}

fn register_of(reset: &Reset) -> Option<Register> {
    match *reset {
        Reset::Readback(register) | Reset::Poll { register, .. } => Some(register),
        Reset::None | Reset::External => None,
    }
}
