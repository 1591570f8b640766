//! Rings as a hypervisor writes them, for tests.

use pfnguard_shared::NO_PFN;
use pfnguard_shared::trace::{RingHeader, TraceKind, TraceRecord};
use zerocopy::IntoBytes;

/// A ring in the making.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) header: RingHeader,
    pub(crate) records: Vec<TraceRecord>,
}

impl Image {
    /// A ring of `cpu` that holds `capacity` records and none yet, with the counter of QEMU.
    pub(crate) fn new(cpu: u32, capacity: u32) -> Self {
        let record_size = u32::try_from(size_of::<TraceRecord>()).unwrap();
        let header = RingHeader {
            capacity,
            record_size,
            cpu,
            frequency: 62_500_000,
            ..RingHeader::zeroed()
        };
        let records = vec![TraceRecord::zeroed(); usize::try_from(capacity).unwrap()];
        Self { header, records }
    }

    /// Writes a record as the hypervisor does.
    pub(crate) fn with(mut self, record: TraceRecord) -> Self {
        let sequence = self.header.written;
        let slot = usize::try_from(sequence % u64::from(self.header.capacity)).unwrap();
        self.records[slot] = TraceRecord { sequence, ..record };
        self.header.written += 1;
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.header.as_bytes(), self.records.as_bytes()].concat()
    }
}

/// A record of nothing in particular at counter value `time`.
pub(crate) fn record(time: u64) -> TraceRecord {
    let kind = TraceKind::Smc.raw();
    TraceRecord { time, kind, vm: u16::MAX, pfn: NO_PFN, ..TraceRecord::zeroed() }
}

/// A record of something that went well.
pub(crate) fn done(kind: TraceKind, a: u64, b: u64, c: u64) -> TraceRecord {
    TraceRecord { kind: kind.raw(), a, b, c, ..record(0) }
}
