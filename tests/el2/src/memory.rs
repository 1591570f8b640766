//! Touching what was given away, and what never was the host's.

use pfnguard_host_interface::{Pages, Pfn};
use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::{PAGE_SHIFT, trace::TraceKind};

use crate::abort;
use crate::frames;
use crate::outcome::{Failure, Outcome, aborted, ensure, equal, fetch_aborted};
use crate::suite::Test;
use crate::trace::Ring;
use crate::vm::{DATA, TestVm};
use crate::{Hyp, cpu};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("memory:donated-page-aborts-loads-and-stores", loads_and_stores),
    ("memory:donated-page-aborts-fetches", fetches),
    ("memory:donated-page-aborts-exclusives", exclusives),
    ("memory:donated-page-aborts-atomics", atomics),
    ("memory:donated-page-aborts-zva", zva),
    ("memory:donated-page-survives-cache-maintenance", maintenance),
    ("memory:abort-names-the-address", abort_names_the_address),
    ("memory:neighbours-of-a-donated-page-stay", neighbours),
    ("memory:payload-image-is-out-of-reach", payload_image),
    ("memory:hypervisor-pages-are-all-out-of-reach", hypervisor_pages),
    ("memory:table-pages-are-out-of-reach", table_pages),
    ("memory:past-ram-is-out-of-reach", past_ram),
    ("memory:trace-ring-is-read-only", trace_ring),
];

/// First byte of the payload's image (QEMU's place for a kernel).
const PAYLOAD: u64 = 0x4020_0000;
/// `ret`: a fetch that does not fault comes back.
pub const RET: u64 = 0xd65f_03c0;

/// Donates a page that holds `ret`, lets `touch` have its address, and takes it back.
fn with_donated(touch: impl FnOnce(u64) -> Outcome) -> Outcome {
    let vm = TestVm::protected()?;
    let page = Pages::one(frames::take_one());
    let address = frames::address(page.start);
    frames::fill(page, RET);
    Hyp::donate_guest(vm.id, page, DATA)?;
    let touched = touch(address);
    vm.destroy(&[page])?;
    touched?;
    ensure(frames::is_filled(page, 0), "reclaimed page is not zero")
}

fn loads_and_stores() -> Outcome {
    with_donated(|address| {
        aborted(abort::load(address), "load went through")?;
        aborted(abort::load(address + 4088), "load of the last doubleword went through")?;
        aborted(abort::load32(address + 64), "load of a word went through")?;
        aborted(abort::store(address, 1), "store went through").map(drop)
    })
}

fn fetches() -> Outcome {
    with_donated(|address| fetch_aborted(abort::call(address), "fetch went through").map(drop))
}

fn exclusives() -> Outcome {
    with_donated(|address| aborted(abort::exclusive(address), "exclusive went through").map(drop))
}

fn atomics() -> Outcome {
    if !cpu::has_atomics() {
        return Err(Failure::Skip("CPU without FEAT_LSE"));
    }
    with_donated(|address| aborted(abort::atomic(address), "atomic went through").map(drop))
}

fn zva() -> Outcome {
    with_donated(|address| aborted(abort::zero_block(address), "DC ZVA went through").map(drop))
}

fn maintenance() -> Outcome {
    with_donated(|address| {
        // Whether maintenance faults is the CPU's business; what it must not do is stop anything.
        match abort::clean_invalidate(address) {
            Ok(()) => Ok(()),
            Err(fault) => ensure(fault.is_data(), "maintenance met no data abort"),
        }
    })
}

fn abort_names_the_address() -> Outcome {
    let ring = Ring::of(0)?;
    let since = ring.header().written;
    with_donated(|address| {
        let fault = aborted(abort::load(address + 0x128), "load went through")?;
        ensure(fault.is_refused_data(), "the abort is no alignment fault")?;
        equal(fault.far, address + 0x128, "FAR of the injected abort")?;
        let records = (since..ring.header().written).rev().filter_map(|n| ring.record(n));
        let kind = TraceKind::HostAbort.raw();
        let mut aborts = records.into_iter().filter(|record| record.kind == kind);
        let found = aborts.any(|record| record.a >> PAGE_SHIFT == address >> PAGE_SHIFT);
        ensure(found, "no trace record of the abort")
    })
}

fn neighbours() -> Outcome {
    let vm = TestVm::protected()?;
    // In the middle of a 2 MiB block that the host has touched: it must be split, not dropped.
    let block = frames::take_aligned(512, 512);
    frames::fill(block, 7);
    let middle = Pages::one(frames::nth(block, 255));
    Hyp::donate_guest(vm.id, middle, DATA)?;
    let lower = Pages::new(block.start, 255);
    let upper = Pages::new(Pfn(middle.start.0 + 1), 256);
    let intact = frames::is_filled(lower, 7) && frames::is_filled(upper, 7);
    let gone = aborted(abort::load(frames::address(middle.start)), "donated page is readable");
    vm.destroy(&[middle])?;
    gone?;
    ensure(intact, "a neighbour lost its contents")
}

fn payload_image() -> Outcome {
    for address in [PAYLOAD, PAYLOAD + 0x1000, PAYLOAD + 0x1_0000] {
        aborted(abort::load(address), "hypervisor image is readable")?;
        aborted(abort::store(address, 0), "hypervisor image is writable")?;
        fetch_aborted(abort::call(address), "hypervisor image is executable")?;
    }
    Ok(())
}

/// Counts the pages of RAM that the host cannot read and compares with what the hypervisor says it
/// owns: a page of vmemmap, a table or a stack that it forgot would be missing.
fn hypervisor_pages() -> Outcome {
    let [frames_of_ram, _, owned, _] = Hyp::info(InfoSelector::Memory)?;
    let first = crate::RAM_BASE >> PAGE_SHIFT;
    let mut unreadable = 0;
    for page in first..first + frames_of_ram {
        match abort::load(page << PAGE_SHIFT) {
            Ok(_) => {}
            Err(fault) if fault.is_data() => {
                unreadable += 1;
                let address = page << PAGE_SHIFT;
                aborted(abort::store(address, 0), "unreadable page is writable")?;
            }
            Err(fault) => return Err(Failure::Faulted(fault)),
        }
    }
    ensure(unreadable > 0, "every page of RAM is readable")?;
    // Trace rings are the hypervisor's too, but readable.
    let rings = (0..16).map_while(|cpu| Hyp::trace_info(cpu).ok()).map(|pages| pages.count);
    let readable: u64 = rings.sum();
    ensure(unreadable <= owned, "more pages are out of reach than the hypervisor owns")?;
    ensure(unreadable + readable >= owned, "a page of the hypervisor is readable")
}

fn table_pages() -> Outcome {
    let tables = frames::take(16);
    let vm = Hyp::vm_create(pfnguard_shared::vm::ContractFlags::NONE, 1, tables)?;
    let mut touched = Ok(());
    for index in 0..tables.count {
        let address = frames::address(frames::nth(tables, index));
        touched = touched
            .and(aborted(abort::load(address), "table page is readable").map(drop))
            .and(aborted(abort::store(address, 0), "table page is writable").map(drop));
    }
    TestVm { id: vm }.destroy(&[])?;
    touched?;
    ensure(frames::is_filled(tables, 0), "a table page comes back with its contents")
}

fn past_ram() -> Outcome {
    let end = frames::RAM_END << PAGE_SHIFT;
    for address in [end, end + 0x1000_0000] {
        aborted(abort::load(address), "memory past RAM is readable")?;
        aborted(abort::store(address, 0), "memory past RAM is writable")?;
    }
    Ok(())
}

fn trace_ring() -> Outcome {
    let ring = Ring::of(0)?;
    let header = ring.header();
    ensure(header.written > 0, "no record was ever written")?;
    ensure(u64::from(header.capacity) >= 16, "ring of fewer than 16 records")?;
    equal(u64::from(header.record_size), 64, "record size")?;
    for index in 0..ring.pages.count {
        let address = frames::address(frames::nth(ring.pages, index));
        aborted(abort::store(address, 0), "trace ring is writable")?;
        fetch_aborted(abort::call(address), "trace ring is executable")?;
        abort::load(address)?;
    }
    let newest = ring.header().written.wrapping_sub(1);
    let record = ring.record(newest).ok_or(Failure::Wrong("newest record is missing"))?;
    equal(record.sequence, newest, "number of the newest record")
}
