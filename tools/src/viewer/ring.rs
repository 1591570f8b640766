//! Raw images of trace rings: a header, then as many records as it says.
//!
//! An image may be cut exactly behind its last record, or hold the rest of its last page, which is
//! zero: no header starts with a page of zeros.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Duration;

use miette::Diagnostic;
use pfnguard_shared::PAGE_SIZE;
use pfnguard_shared::trace::{RingHeader, TraceRecord};
use thiserror::Error;
use zerocopy::FromBytes;

/// Nanoseconds in a second.
const NANOS: u64 = 1_000_000_000;

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// Too few bytes for a header.
    #[error("{0} bytes are too few for a ring's header")]
    Short(usize),
    /// A record of another size.
    #[error("a record has {size} bytes, it says, and not {}", size_of::<TraceRecord>())]
    RecordSize {
        /// The header's `record_size`.
        size: u32,
    },
    /// A ring that holds nothing.
    #[error("no record fits, it says")]
    NoCapacity,
    /// Fewer bytes than the records need.
    #[error("{capacity} records follow, it says, and there are {bytes} bytes")]
    Capacity {
        /// The header's `capacity`.
        capacity: u32,
        /// Bytes behind the header.
        bytes: usize,
    },
    /// A counter that does not count.
    #[error("its counter's frequency is 0")]
    Frequency,
    /// The same CPU a second time.
    #[error("CPU {0} has a ring before this one")]
    Twice(u32),
}

/// Bytes that are no rings.
#[derive(Clone, Debug, Error, Diagnostic, PartialEq, Eq)]
#[error("{file}: no trace ring at byte {offset:#x}: {fault}")]
#[diagnostic(help(
    "a ring is a header of 64 bytes and `capacity` records of 64: shared/src/trace.rs"
))]
pub struct RingError {
    /// The file.
    pub file: String,
    /// Where in the file the ring starts.
    pub offset: usize,
    /// What is wrong.
    pub fault: Fault,
}

/// One CPU's ring as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The CPU's index.
    pub cpu: u32,
    /// Where in its file it starts.
    offset: usize,
    frequency: NonZeroU32,
    written: u64,
    records: Vec<TraceRecord>,
}

/// Something that a ring tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The CPU's index.
    pub cpu: u32,
    /// When, since the counter was 0.
    pub time: Duration,
    /// What.
    pub what: What,
}

/// What a ring tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A record.
    Record(TraceRecord),
    /// Records with these numbers are gone: newer ones took their places.
    Overwritten(Range<u64>),
    /// A record is not there: its place holds another number.
    Torn {
        /// The number that belongs there.
        number: u64,
        /// The number that was found.
        found: u64,
    },
    /// The ring has fewer records than it had: the hypervisor started anew.
    Restarted,
}

impl Ring {
    /// Reads all rings that lie one after the other in `bytes`, the contents of `file`.
    ///
    /// # Errors
    /// The first place that holds no ring.
    pub fn read_all(file: &str, bytes: &[u8]) -> Result<Vec<Self>, RingError> {
        let mut rings = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() || rings.is_empty() {
            let offset = bytes.len().saturating_sub(rest.len());
            let at = |fault| RingError { file: file.to_owned(), offset, fault };
            let (ring, behind) = Self::read(offset, rest).map_err(at)?;
            rest = skip_padding(rest.len(), behind);
            rings.push(ring);
        }
        Ok(rings)
    }

    /// Reads the ring that `bytes`, `offset` bytes into a file, start with, and returns what lies
    /// behind it.
    fn read(offset: usize, bytes: &[u8]) -> Result<(Self, &[u8]), Fault> {
        let short = |_| Fault::Short(bytes.len());
        let (header, rest) = RingHeader::read_from_prefix(bytes).map_err(short)?;
        if usize::try_from(header.record_size) != Ok(size_of::<TraceRecord>()) {
            return Err(Fault::RecordSize { size: header.record_size });
        }
        let frequency = NonZeroU32::new(header.frequency).ok_or(Fault::Frequency)?;
        let (records, rest) = records(header.capacity, rest)?;
        let (cpu, written) = (header.cpu, header.written);
        Ok((Self { cpu, offset, frequency, written, records }, rest))
    }

    /// Returns the number of the next record.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Returns what the ring tells from record number `from` on, in the order of numbers.
    pub fn events(&self, from: u64) -> Vec<Event> {
        let restarted = (from > self.written).then_some(What::Restarted);
        let from = if restarted.is_some() { 0 } else { from };
        let capacity = u64::try_from(self.records.len()).unwrap_or(u64::MAX);
        let oldest = self.written.saturating_sub(capacity).max(from);
        let lost = (oldest > from).then_some(What::Overwritten(from..oldest));
        let kept = (oldest..self.written).map(|number| self.record(number));
        self.dated(restarted.into_iter().chain(lost).chain(kept))
    }

    fn record(&self, number: u64) -> What {
        let length = u64::try_from(self.records.len()).unwrap_or(u64::MAX);
        let place = number.checked_rem(length).and_then(|slot| usize::try_from(slot).ok());
        let found = place.and_then(|slot| self.records.get(slot));
        match found {
            Some(record) if record.sequence == number => What::Record(*record),
            Some(record) => What::Torn { number, found: record.sequence },
            None => What::Torn { number, found: 0 },
        }
    }

    /// Gives each event its time; what has none takes that of the next record, or of the last.
    fn dated(&self, events: impl Iterator<Item = What>) -> Vec<Event> {
        let mut dated: Vec<Event> = Vec::new();
        let mut without = 0;
        for what in events {
            let time = match &what {
                What::Record(record) => Some(self.time(record)),
                What::Overwritten(_) | What::Torn { .. } | What::Restarted => None,
            };
            if let Some(time) = time {
                dated.iter_mut().skip(without).for_each(|event| event.time = time);
                without = dated.len().saturating_add(1);
            }
            let last = dated.last().map_or(Duration::ZERO, |event| event.time);
            dated.push(Event { cpu: self.cpu, time: time.unwrap_or(last), what });
        }
        dated
    }

    fn time(&self, record: &TraceRecord) -> Duration {
        let frequency = u64::from(self.frequency.get());
        let (seconds, rest) = (record.time / frequency, record.time % frequency);
        // Less than 2^32 times 10^9: no overflow.
        Duration::from_secs(seconds) + Duration::from_nanos(rest * NANOS / frequency)
    }
}

fn records(capacity: u32, bytes: &[u8]) -> Result<(Vec<TraceRecord>, &[u8]), Fault> {
    let short = Fault::Capacity { capacity, bytes: bytes.len() };
    let length =
        usize::try_from(capacity).ok().and_then(|n| n.checked_mul(size_of::<TraceRecord>()));
    let (image, rest) = length.and_then(|n| bytes.split_at_checked(n)).ok_or(short)?;
    let records = image.chunks_exact(size_of::<TraceRecord>());
    let records: Vec<TraceRecord> =
        records.filter_map(|bytes| TraceRecord::read_from_bytes(bytes).ok()).collect();
    if records.is_empty() { Err(Fault::NoCapacity) } else { Ok((records, rest)) }
}

/// Skips what is left of a ring's last page, if it is zero. `before` bytes were there at its start.
fn skip_padding(before: usize, behind: &[u8]) -> &[u8] {
    let used = before.saturating_sub(behind.len());
    let padding = used.next_multiple_of(PAGE_SIZE).saturating_sub(used);
    match behind.split_at_checked(padding) {
        Some((zeros, rest)) if zeros.iter().all(|&byte| byte == 0) => rest,
        Some(_) | None => behind,
    }
}

/// Refuses a second ring of the same CPU, which is the one that `file` holds.
///
/// # Errors
/// [`Fault::Twice`].
pub fn distinct(seen: &mut BTreeSet<u32>, file: &str, rings: &[Ring]) -> Result<(), RingError> {
    match rings.iter().find(|ring| !seen.insert(ring.cpu)) {
        Some(Ring { cpu, offset, .. }) => {
            let (file, fault) = (file.to_owned(), Fault::Twice(*cpu));
            Err(RingError { file, offset: *offset, fault })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::viewer::testing::{Image, record};

    fn numbers(events: &[Event]) -> Vec<u64> {
        let number = |event: &Event| match &event.what {
            What::Record(record) => Some(record.sequence),
            What::Overwritten(_) | What::Torn { .. } | What::Restarted => None,
        };
        events.iter().filter_map(number).collect()
    }

    fn only(image: &Image) -> Ring {
        let [ring] = Ring::read_all("t", &image.bytes()).unwrap().try_into().unwrap();
        ring
    }

    #[test]
    fn a_ring_that_is_not_full_tells_all_its_records() {
        let ring = only(&Image::new(3, 4).with(record(100)).with(record(200)));
        let events = ring.events(0);
        assert_eq!(numbers(&events), [0, 1]);
        assert!(events.iter().all(|event| event.cpu == 3));
        assert_eq!(only(&Image::new(0, 4)).events(0), []);
    }

    #[test]
    fn a_ring_that_wrapped_says_what_it_lost() {
        let image = (0..6).fold(Image::new(0, 4), |image, n| image.with(record(n)));
        let events = only(&image).events(0);
        assert_eq!(events[0].what, What::Overwritten(0..2));
        assert_eq!(numbers(&events), [2, 3, 4, 5]);
        assert_eq!(events[0].time, events[1].time);
    }

    #[test]
    fn a_reader_that_comes_again_gets_what_is_new() {
        let image = (0..6).fold(Image::new(0, 4), |image, n| image.with(record(n)));
        let ring = only(&image);
        assert_eq!(numbers(&ring.events(5)), [5]);
        assert_eq!(ring.events(6), []);
        assert_eq!(ring.events(1)[0].what, What::Overwritten(1..2));
        assert_eq!(ring.events(9)[0].what, What::Restarted);
    }

    #[test]
    fn a_record_with_another_number_is_torn() {
        let mut image = Image::new(0, 4).with(record(1)).with(record(2)).with(record(3));
        image.records[1].sequence = 5;
        let events = only(&image).events(0);
        assert_eq!(events[1].what, What::Torn { number: 1, found: 5 });
        assert_eq!(numbers(&events), [0, 2]);
        assert_eq!(events[1].time, events[2].time);
    }

    #[test]
    fn time_is_the_counter_over_its_frequency() {
        let ring = only(&Image::new(0, 4).with(record(62_500_000 + 625)));
        assert_eq!(ring.events(0)[0].time, Duration::new(1, 10_000));
        let mut greatest = Image::new(0, 1).with(record(u64::MAX));
        greatest.header.frequency = 1;
        assert_eq!(only(&greatest).events(0)[0].time.as_secs(), u64::MAX);
    }

    #[test]
    fn images_follow_one_another_with_or_without_the_rest_of_a_page() {
        let (one, two) = (Image::new(0, 2).with(record(1)), Image::new(1, 3));
        let tight = [one.bytes(), two.bytes()].concat();
        let mut page = one.bytes();
        page.resize(PAGE_SIZE, 0);
        let paged = [page, two.bytes()].concat();
        for bytes in [tight, paged] {
            let rings = Ring::read_all("t", &bytes).unwrap();
            assert_eq!(rings.iter().map(|ring| ring.cpu).collect::<Vec<_>>(), [0, 1]);
        }
    }

    #[test]
    fn what_is_no_ring_is_named_with_its_place() {
        let fault = |change: fn(&mut RingHeader)| {
            let mut image = Image::new(0, 2);
            change(&mut image.header);
            let bytes = [Image::new(1, 1).bytes(), image.bytes()].concat();
            let error = Ring::read_all("f", &bytes).unwrap_err();
            assert_eq!((error.file.as_str(), error.offset), ("f", 128));
            error.fault
        };
        assert_eq!(fault(|header| header.record_size = 32), Fault::RecordSize { size: 32 });
        assert_eq!(fault(|header| header.capacity = 0), Fault::NoCapacity);
        let capacity = u32::MAX;
        assert_eq!(fault(|h| h.capacity = u32::MAX), Fault::Capacity { capacity, bytes: 128 });
        assert_eq!(fault(|header| header.frequency = 0), Fault::Frequency);
        assert_eq!(Ring::read_all("f", b"").unwrap_err().fault, Fault::Short(0));
        let error = Ring::read_all("cpu0", &[0; 9]).unwrap_err().to_string();
        assert_eq!(
            error,
            "cpu0: no trace ring at byte 0x0: 9 bytes are too few for a ring's header"
        );
    }

    #[test]
    fn a_cpu_has_one_ring() {
        let ring = only(&Image::new(2, 1));
        let mut seen = BTreeSet::new();
        distinct(&mut seen, "a", std::slice::from_ref(&ring)).unwrap();
        assert_eq!(distinct(&mut seen, "b", &[ring]).unwrap_err().fault, Fault::Twice(2));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, written: u64, cut in 0usize..400, from: u64) {
            let _ = Ring::read_all("t", &bytes);
            let mut image = Image::new(0, 4).bytes();
            image[..8].copy_from_slice(&written.to_le_bytes());
            for (place, byte) in image[64..].iter_mut().zip(&bytes) {
                *place = *byte;
            }
            for ring in Ring::read_all("t", &image).unwrap() {
                let _ = (ring.events(0), ring.events(from));
            }
            image.truncate(cut);
            let _ = Ring::read_all("t", &image);
        }
    }
}
