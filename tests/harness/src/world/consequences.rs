//! What follows from the state: who reaches what.

use std::ops::Range;

use pfnguard_core::addr::{IpaPfn, Pfn};
use pfnguard_core::machine::{GuestStage2, HostStage2, Stage2Attrs, Stage2Type, TagAccess};
use pfnguard_core::vm::VmId;
use pfnguard_model::host::HostMay;
use pfnguard_model::state::Frame;
use pfnguard_shared::{MemType, Perms};

use super::World;
use crate::abstraction::perms;
use crate::walker::{Attrs, Run, Type};

/// What follows from the state.
impl World {
    /// Returns what the host may do with a page.
    pub(super) fn host_perms(&self, page: u64) -> Perms {
        let may = self.specified.host_access(&self.board.machine, page);
        may.map_or(Perms::NONE, |may| may.perms)
    }

    /// Checks all of it.
    pub(super) fn check_consequences(&self) {
        self.check_host();
        self.check_el2();
        self.check_table_pages();
    }

    /// The host's translations give it no more than it may have.
    pub(super) fn check_host(&self) {
        for run in &self.reader.host.runs {
            self.require(run.first == run.pfn, || format!("not the identity: {run:x?}"));
            let mut page = run.first;
            while page < run.first + run.pages {
                self.check_host_page(page, run);
                page = self.next_boundary(page, run.first + run.pages);
            }
        }
    }

    pub(super) fn check_host_page(&self, page: u64, run: &Run<Attrs>) {
        let may = self.specified.host_access(&self.board.machine, page);
        let fits = may.is_some_and(|may| self.fits(&may, &run.attrs));
        self.require(fits, || format!("the host has {page:#x} {run:x?}, but may {may:?}"));
    }

    /// Never more than it may, and of the very type.
    pub(super) fn fits(&self, may: &HostMay, attrs: &Attrs) -> bool {
        let mem = match may.mem_type {
            None if self.board.encoding.fwb => Type::AsStage1,
            None | Some(MemType::Cacheable) => Type::WriteBack,
            Some(MemType::AnyUncached) => Type::NormalNc,
            Some(MemType::Device) => Type::Device,
        };
        may.perms.contains(perms(attrs)) && attrs.mem == mem && attrs.no_tags == may.no_tags
    }

    /// Returns the next page at which the host's access may be another one.
    pub(super) fn next_boundary(&self, page: u64, end: u64) -> u64 {
        let frames = self.specified.frames.overlapping(page..end).next();
        let frame = frames.map_or(end, |(run, _)| match run.start > page {
            true => run.start,
            false => run.end,
        });
        let regions = 0..self.board.machine.entries.len();
        let edges = regions.flat_map(|region| {
            let pages = self.board.machine.region_pages(region);
            [pages.start, pages.end]
        });
        edges.filter(|edge| *edge > page).fold(frame, u64::min).min(end)
    }

    /// EL2 maps the hypervisor's pages and no others, writable, never executable.
    pub(super) fn check_el2(&self) {
        let mut own: Vec<Range<u64>> = Vec::new();
        for (range, frame) in self.specified.frames.iter() {
            if !matches!(frame, Frame::Hyp | Frame::HypReadable) {
                continue;
            }
            match own.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => own.push(range.clone()),
            }
        }
        let runs = &self.reader.el2.runs;
        let same = runs.iter().map(Run::range).eq(own.iter().cloned());
        let sound = runs.iter().all(|run| {
            run.first == run.pfn && run.attrs.write && !run.attrs.exec && run.attrs.index == 2
        });
        self.require(same && sound, || format!("EL2 maps {runs:x?}, but has {own:x?}"));
    }

    /// Every page of the hypervisor is carved or one VM's table page.
    pub(super) fn check_table_pages(&self) {
        let state = &self.reader.state;
        let donated = state.vms.values().flat_map(|vm| vm.tables.frames.iter());
        let mut total = self.board.carve.own.pages();
        for page in donated {
            total += 1;
            let own = state.frames.get(page) == Some(&Frame::Hyp);
            self.require(own, || format!("table page {page:#x} is not the hypervisor's"));
        }
        let frames = state.frames.iter().filter(|(_, frame)| **frame == Frame::Hyp);
        let own: u64 = frames.map(|(range, _)| range.end - range.start).sum();
        self.require(own == total, || format!("{own} pages of the hypervisor, {total} in use"));
    }
}

/// Two walks of the same tables.
impl World {
    /// The hypervisor's own walk finds what this crate's walker finds, at every edge.
    pub(super) fn check_walks(&self) {
        for page in edges(&self.reader.host.runs) {
            let theirs =
                self.launched.hypervisor.inspect_host(|host| host.stage2.lookup(Pfn(page)));
            let theirs = theirs.map(|attrs| (page, self.as_walked(&attrs)));
            self.require_same(page, self.translate(&self.host_regs(), page), theirs);
        }
        for number in self.reader.state.vms.keys() {
            let id = VmId::from_raw(u64::from(*number)).expect("a VM's number");
            let pages = self.reader.guest(*number).into_iter().flat_map(|tree| edges(&tree.runs));
            for page in pages {
                let looked = self
                    .launched
                    .hypervisor
                    .inspect_vm(id, |vm| (vm.stage2.regs(), vm.stage2.lookup(IpaPfn(page))));
                let (regs, theirs) = looked.expect("the VM was read");
                let theirs = theirs.map(|leaf| (leaf.pfn.0, self.as_walked(&leaf.attrs)));
                self.require_same(page, self.translate(&regs, page), theirs);
            }
        }
    }

    fn require_same(&self, page: u64, ours: Option<(u64, Attrs)>, theirs: Option<(u64, Attrs)>) {
        self.require(ours == theirs, || format!("{page:#x}: walked {ours:x?}, theirs {theirs:x?}"));
    }

    /// Attributes of the hypervisor in the walker's words.
    fn as_walked(&self, attrs: &Stage2Attrs) -> Attrs {
        let mem = match attrs.mem {
            Stage2Type::AsStage1 if self.board.encoding.fwb => Type::AsStage1,
            Stage2Type::AsStage1 | Stage2Type::Forced(MemType::Cacheable) => Type::WriteBack,
            Stage2Type::Forced(MemType::AnyUncached) => Type::NormalNc,
            Stage2Type::Forced(MemType::Device) => Type::Device,
        };
        let has = |perm| attrs.perms.contains(perm);
        let (read, write, exec) = (has(Perms::READ), has(Perms::WRITE), has(Perms::EXEC));
        Attrs { mem, read, write, exec, no_tags: attrs.tags == TagAccess::Forbidden }
    }
}

/// The first and last page of each run, and the pages beside them.
fn edges<A>(runs: &[Run<A>]) -> impl Iterator<Item = u64> {
    runs.iter().flat_map(|run| {
        let Range { start, end } = run.range();
        [start.saturating_sub(1), start, end - 1, end]
    })
}
