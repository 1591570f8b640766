//! The trace ring of one CPU: the hypervisor writes, the host reads.

use core::sync::atomic::{AtomicU64, Ordering};

use pfnguard_shared::trace::{TraceKind, TraceRecord};
use pfnguard_shared::{NO_PFN, Status};

use crate::addr::PfnRange;
use crate::error::Refusal;

/// VM number of a record that concerns no VM.
pub const NO_VM: u16 = u16::MAX;
/// Records in a ring: a power of two, so that finding the next one takes no division.
pub const RING_RECORDS: usize = 256;

static_assertions::const_assert!(RING_RECORDS.is_power_of_two());

/// One CPU's ring.
pub struct TraceRing {
    written: &'static AtomicU64,
    records: &'static mut [TraceRecord; RING_RECORDS],
    pages: PfnRange,
}

/// What a record says, before it has a number and a time.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Kind; decides what `a`, `b`, `c` are.
    pub kind: TraceKind,
    /// VM number or [`NO_VM`].
    pub vm: u16,
    /// Meaning by kind.
    pub a: u64,
    /// Meaning by kind.
    pub b: u64,
    /// Meaning by kind.
    pub c: u64,
}

impl TraceRing {
    /// Makes a ring over `records`, which lie in `pages` behind the header that holds `written`.
    pub fn new(
        written: &'static AtomicU64,
        records: &'static mut [TraceRecord; RING_RECORDS],
        pages: PfnRange,
    ) -> Self {
        Self { written, records, pages }
    }

    /// Returns the pages that the host may read.
    pub fn pages(&self) -> PfnRange {
        self.pages
    }

    /// Returns a record by its number, if it was written and not overwritten since.
    pub fn record_at(&self, sequence: u64) -> Option<&TraceRecord> {
        let record = &self.records[slot(sequence)];
        (sequence < self.written() && record.sequence == sequence).then_some(record)
    }

    /// Returns the newest record.
    pub fn newest(&self) -> Option<&TraceRecord> {
        self.record_at(self.written().checked_sub(1)?)
    }

    /// Returns the number of records written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Writes one record of something that went well.
    pub fn record(&mut self, now: u64, event: Event) {
        self.write(
            now,
            event,
            Outcome { status: Status::Success, rule: 0, subject: 0, pfn: NO_PFN },
        );
    }

    /// Writes one record of a refusal: the requested and the granted value are its `b` and `c`,
    /// whatever the event says there (R34).
    pub fn refuse(&mut self, now: u64, event: Event, refusal: &Refusal) {
        let event = Event { b: refusal.requested, c: refusal.granted, ..event };
        let outcome = Outcome {
            status: refusal.status,
            rule: refusal.rule.map_or(0, pfnguard_shared::Rule::raw),
            subject: refusal.subject.raw(),
            pfn: refusal.pfn,
        };
        self.write(now, event, outcome);
    }

    fn write(&mut self, now: u64, event: Event, outcome: Outcome) {
        let sequence = self.written();
        self.records[slot(sequence)] = TraceRecord {
            sequence,
            time: now,
            kind: event.kind.raw(),
            rule: outcome.rule,
            status: outcome.status.raw(),
            subject: outcome.subject,
            vm: event.vm,
            reserved: 0,
            a: event.a,
            b: event.b,
            c: event.c,
            pfn: outcome.pfn,
        };
        // Publishes the record: a reader that sees the new count sees the bytes.
        self.written.store(sequence.wrapping_add(1), Ordering::Release);
    }
}

/// The place of record number `sequence`: its low bits.
fn slot(sequence: u64) -> usize {
    usize::try_from(sequence).expect("64 bits") % RING_RECORDS
}

struct Outcome {
    status: Status,
    rule: u16,
    subject: u16,
    pfn: u64,
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use super::*;
    use crate::fake::IMAGE;

    #[test]
    fn a_record_is_found_from_its_writing_to_its_overwriting() {
        let written = Box::leak(Box::new(AtomicU64::new(0)));
        let records = Box::leak(Box::new([TraceRecord::zeroed(); RING_RECORDS]));
        let mut ring = TraceRing::new(written, records, IMAGE);
        // A ring of zeros holds what looks like record 0.
        assert!(ring.record_at(0).is_none() && ring.newest().is_none());
        let capacity = u64::try_from(RING_RECORDS).unwrap();
        for number in 0..=capacity {
            let event = Event { kind: TraceKind::Smc, vm: NO_VM, a: number, b: 0, c: 0 };
            ring.record(0, event);
            assert_eq!(ring.record_at(number).map(|record| record.a), Some(number));
            assert!(ring.record_at(number + 1).is_none());
        }
        assert!(ring.record_at(0).is_none(), "overwritten");
        assert_eq!(ring.record_at(1).map(|record| record.a), Some(1));
        assert_eq!(ring.newest().map(|record| record.a), Some(capacity));
    }
}
