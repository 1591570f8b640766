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

/// A snapshot with everything that there can be, and no contradiction.
pub(crate) const SNAPSHOT: &str = "\
hyp pfn=0x7a200 pages=0x1f0
ram pfn=0x40000 pages=0x40000
region index=0x0 name=edu-bar0 pfn=0x10100 pages=0x100 class=0x1 modes=0x3 types=0x3 perms=0x3 flags=0x0 state=0x1 holders=0x1
region index=0x1 name=its pfn=0x10200 pages=0x100 class=0x1 modes=0x0 types=0x0 perms=0x0 flags=0x80 state=0x0 holders=0x0
region index=0x2 name=nic-bar2 pfn=0x10300 pages=0x100 class=0x1 modes=0x2 types=0x1 perms=0x3 flags=0x0 state=0x3 holders=0x0
vm number=0x0 contract=0x0 vcpus=0x1 pid=123 comm=demo dead=0
vm number=0x1 contract=0x1 vcpus=0x2 pid=456 comm=crosvm\\040vcpu dead=1
tables vm=0x0 pfn=0x51234 pages=0x10
lent vm=0x0 ipa=0x80000 pfn=0x55555 pages=0x10 perms=0x3
lent vm=0x1 ipa=0x80000 pfn=0x55555 pages=0x2 perms=0x1
given vm=0x1 ipa=0x90000 pfn=0x66666 pages=0x200 perms=0x7
bind vm=0x0 ipa=0x100000 pfn=0x10100 pages=0x80 mode=0x1 type=0x2 perms=0x3 flags=0x8
";
