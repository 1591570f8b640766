//! What is compared after a call: answer, state, bytes of tables and records, contents of pages.

use std::mem;
use std::ops::Range;

use pfnguard_model::call::{Outcome, Seen};
use pfnguard_model::state::Frame;
use pfnguard_shared::HostFunction;
use pfnguard_shared::trace::TraceKind;
use zerocopy::IntoBytes;

use super::World;
use crate::difference;
use crate::maintenance::{self, Done};

/// What is compared.
impl World {
    pub(super) fn compare_outcome(&mut self, cpu: usize, seen: &Seen, outcome: &Outcome) {
        let answer = seen.answer;
        self.require(answer == outcome.regs, || {
            format!("the answer is {answer:x?}, specified {:x?}", outcome.regs)
        });
        let reads = seen.reads.len();
        self.require(reads == outcome.reads, || {
            format!("{reads} reads of reset registers, specified {}", outcome.reads)
        });
        let entered = mem::take(&mut self.launched.cpus[cpu].local.guest.entered);
        self.require(entered == outcome.entered, || {
            let comparison = pretty_assertions::Comparison::new(&outcome.entered, &entered);
            format!("registers of the guest {comparison}")
        });
    }

    pub(super) fn compare_arg_page(&mut self, page: Option<u64>, outcome: &Outcome) {
        let Some(page) = page else {
            let none = outcome.arg_page.is_empty();
            return self.require(none, || "a write to no argument page is specified".into());
        };
        for (offset, bytes) in &outcome.arg_page {
            self.arg_page[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        let expected = &*self.arg_page;
        let differs = self.memory.page(page, |page| {
            page.as_bytes().iter().zip(expected).position(|(found, expected)| found != expected)
        });
        self.require(differs.is_none(), || format!("byte {differs:?} of the argument page"));
    }

    /// The newest record says of the call what its answer does: of a granted one its arguments, of
    /// a refused one why (R34).
    pub(super) fn check_record(&self, cpu: usize, before: u64, regs: &[u64; 8], answer: &[u64; 8]) {
        let trace = &self.launched.cpus[cpu].trace;
        let newest = trace.newest();
        let plain = [HostFunction::Uid, HostFunction::Revision];
        let is_plain = plain.iter().any(|function| regs[0] == u64::from(function.raw()));
        let good = newest.is_some_and(|record| {
            let why = [u64::from(record.rule) | u64::from(record.subject) << 16, record.pfn];
            let facts = [record.a, record.b, record.c];
            let status = i64::from(record.status).cast_unsigned();
            let granted = status == 0 && facts == [regs[0], regs[1], regs[2]];
            let refused = why == answer[1..3] && facts == [regs[0], answer[3], answer[4]];
            let told = if status == 0 { granted } else { refused };
            record.kind == TraceKind::HostCall.raw() && told && (is_plain || status == answer[0])
        });
        let more = trace.written() > before;
        self.require(good && more, || format!("the newest record is {newest:x?}"));
    }

    pub(super) fn read_and_compare(&mut self) {
        self.reader.read(&self.launched.hypervisor, &self.launched.cpus);
        if self.specified != self.reader.state {
            let difference = difference::of_states(&self.specified, &self.reader.state);
            self.fail(&difference.unwrap_or_default());
        }
        let changes = &self.reader.changes;
        let owners = !changes.frames.is_empty();
        if owners || changes.host_tables {
            self.check_host();
        }
        if owners || changes.el2_tables {
            self.check_el2();
        }
        if owners || !changes.guest_tables.is_empty() {
            self.check_table_pages();
        }
        let done = Done { ops: &self.ops, machine: &self.board.machine, state: &self.reader.state };
        let debt = maintenance::first_debt(&done, &self.reader);
        self.require(debt.is_none(), || debt.unwrap_or_default());
        let broken = self.specified.check_invariants(&self.board.machine).err();
        self.require(broken.is_none(), || format!("{broken:?}"));
    }

    /// A refused call has changed no byte of tables or records (R35).
    pub(super) fn check_refusal(&self, regs: &[u64; 8], answer: &[u64; 8]) {
        let plain = regs[0] == u64::from(HostFunction::Uid.raw())
            || regs[0] == u64::from(HostFunction::Revision.raw());
        if plain || answer[0] != 0 {
            let changed = self.reader.changes.first();
            self.require(changed.is_none(), || format!("a refused call changed {changed:?}"));
        }
    }

    pub(super) fn check_contents(&mut self, cpu: usize, outcome: &Outcome) {
        let stored = mem::take(&mut self.launched.cpus[cpu].local.guest.stored);
        stored.into_iter().for_each(|(page, marker)| self.contents.marked(page, marker));
        for pages in &outcome.zeroed {
            let zeroed = maintenance::zeroes(&self.ops, pages);
            self.require(zeroed, || format!("{pages:x?} was not zeroed"));
            self.check_zero(pages.clone());
        }
        for changed in mem::take(&mut self.reader.changes.frames) {
            if changed.new == Frame::Hyp {
                self.contents.forget(changed.pfn);
            }
            let kept = self.contents.is_kept(changed.pfn);
            self.require(kept, || format!("contents of {:#x} are lost", changed.pfn));
        }
        for page in self.reader.state.arg_pages.iter().flatten() {
            self.contents.forget(*page);
            if !self.written.contains(page) {
                self.written.push(*page);
            }
        }
    }

    pub(super) fn check_zero(&mut self, pages: Range<u64>) {
        for page in pages.filter(|page| self.memory.has(*page)) {
            // Tables in use are compared whole, and free ones are looked at when they are read.
            if self.reader.state.frames.get(&page) == Some(&Frame::Hyp) {
                continue;
            }
            let zero = self.memory.is_zero(page);
            self.require(zero, || format!("page {page:#x} is not zero"));
            self.contents.forget(page);
        }
    }
}
