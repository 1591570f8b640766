//! The trace rings, as the host reads them.

use pfnguard_host_interface::Pages;
use pfnguard_shared::trace::{RingHeader, TraceKind, TraceRecord};
use zerocopy::{FromBytes, IntoBytes};

use crate::Hyp;
use crate::frames;
use crate::outcome::Failure;

/// One CPU's ring.
pub struct Ring {
    /// Its pages.
    pub pages: Pages,
}

impl Ring {
    /// Finds the ring of CPU number `cpu`.
    pub fn of(cpu: u64) -> Result<Self, Failure> {
        Ok(Self { pages: Hyp::trace_info(cpu)? })
    }

    /// Reads the header.
    pub fn header(&self) -> RingHeader {
        self.read(0)
    }

    /// Reads record number `sequence`, or `None` where it is not there any more or not yet.
    pub fn record(&self, sequence: u64) -> Option<TraceRecord> {
        let slot = sequence.checked_rem(u64::from(self.header().capacity))?;
        let record: TraceRecord = self.read(64 + slot * 64);
        (record.sequence == sequence).then_some(record)
    }

    /// Returns the newest record of `kind` whose `a` is `a`, among those from `since` on.
    pub fn find(&self, since: u64, kind: TraceKind, a: u64) -> Option<TraceRecord> {
        let records = (since..self.header().written).rev().filter_map(|n| self.record(n));
        records.into_iter().find(|record| record.kind == kind.raw() && record.a == a)
    }

    /// Copies a structure of 64 bytes from `offset` bytes into the ring.
    fn read<T: FromBytes + IntoBytes>(&self, offset: u64) -> T {
        let mut value = T::new_zeroed();
        let base = frames::address(self.pages.start) + offset;
        for (index, chunk) in (0u64..).zip(value.as_mut_bytes().chunks_exact_mut(8)) {
            chunk.copy_from_slice(&frames::read(base + index * 8).to_le_bytes());
        }
        value
    }
}
