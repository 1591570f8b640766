use std::vec::Vec;

use pfnguard_shared::info::Capabilities;

use super::*;
use crate::fake::{self, FakeMachine, RAM, assert_consistent, call, snapshot};

const PAGE: u64 = RAM.0 + 64;

fn machine() -> (Hypervisor<FakeMachine>, Vec<Cpu<FakeMachine>>) {
    fake::machine(Vec::new())
}

#[test]
fn the_service_introduces_itself() {
    let (hv, mut cpus) = machine();
    let c = &mut cpus[0];
    let uid = call(&hv, c, HostFunction::Uid, &[]);
    assert_eq!(uid[..4], HOST_UID.map(u64::from));
    let revision = call(&hv, c, HostFunction::Revision, &[]);
    assert_eq!(revision[..2], [u64::from(ABI_MAJOR), u64::from(ABI_MINOR)]);
    let info = |c: &mut _, selector: InfoSelector| {
        let regs = call(&hv, c, HostFunction::Info, &[selector.raw()]);
        assert_eq!(regs[0], 0);
        [regs[1], regs[2], regs[3], regs[4]]
    };
    assert_eq!(info(c, InfoSelector::Abi)[1..3], [30, count(Rule::ALL.len())]);
    assert_eq!(info(c, InfoSelector::ManifestHash), [0x5a5a_5a5a_5a5a_5a5a; 4]);
    assert_eq!(info(c, InfoSelector::Limits), [16, 8, 0, 512]);
    let [frames, bytes, hyp, tables] = info(c, InfoSelector::Memory);
    assert_eq!(tables, 100, "what the fake has");
    assert_eq!((frames, bytes, hyp), (2048, 2048 * 2 + 8, 64 + 2));
    let [capabilities, pa, ipa, vmid] = info(c, InfoSelector::Platform);
    assert_eq!(capabilities & Capabilities::FWB.raw(), Capabilities::FWB.raw());
    assert_eq!((pa, ipa, vmid), (48, 40, 16));
}

#[test]
fn the_hash_starts_in_the_low_byte() {
    let hash = core::array::from_fn(|index| u8::try_from(index).unwrap());
    assert_eq!(hash_words(&hash)[0], 0x0706_0504_0302_0100);
    assert_eq!(hash_words(&hash)[3] >> 56, 31);
}

#[test]
fn r34_every_call_leaves_exactly_one_call_record_with_its_outcome() {
    let (hv, mut cpus) = machine();
    let c = &mut cpus[0];
    for (function, args, status) in [
        (HostFunction::Uid, [0, 0], Status::Success),
        (HostFunction::HostShareHyp, [0, 1], Status::WrongState),
        (HostFunction::HostShareHyp, [0, 0], Status::InvalidParameter),
        (HostFunction::VmFree, [3, 0], Status::NotFound),
    ] {
        let written = c.trace.written();
        let regs = call(&hv, c, function, &args);
        assert_eq!(c.trace.written(), written + 1);
        let record = c.trace.newest().unwrap();
        assert_eq!((record.kind, record.status), (TraceKind::HostCall.raw(), status.raw()));
        // What was asked for; of a refusal, what the registers say of it.
        let facts = if status == Status::Success { args } else { [regs[3], regs[4]] };
        assert_eq!((record.a, [record.b, record.c]), (u64::from(function.raw()), facts));
    }
}

#[test]
fn an_unknown_function_and_a_foreign_immediate_are_refused_with_the_id() {
    let (hv, mut cpus) = machine();
    let c = &mut cpus[0];
    let mut regs = [0xdead, 1, 2, 3, 4, 5, 6, 7];
    hv.host_call(c, &mut regs);
    assert_eq!((Status::from_register(regs[0]), regs[3]), (Some(Status::NotSupported), 0xdead));
    let mut regs = [u64::from(HostFunction::Uid.raw()), 0, 0, 0, 0, 0, 0, 0];
    hv.refuse_immediate(c, &mut regs);
    assert_eq!(Status::from_register(regs[0]), Some(Status::NotSupported));
    assert_eq!(c.trace.written(), 2);
}

#[test]
fn an_argument_page_stays_lent_while_a_cpu_uses_it() {
    use HostFunction as F;
    let (hv, mut cpus) = machine();
    let [a, b] = &mut cpus[..] else { panic!("two CPUs") };
    let status = |regs: [u64; 8]| Status::from_register(regs[0]).unwrap();
    assert_eq!(status(call(&hv, a, F::ArgPageSet, &[PAGE])), Status::WrongState);
    assert_eq!(status(call(&hv, a, F::ArgPageClear, &[])), Status::WrongState);
    call(&hv, a, F::HostShareHyp, &[PAGE, 2]);
    for cpu in [&mut *a, &mut *b] {
        assert_eq!(status(call(&hv, cpu, F::ArgPageSet, &[PAGE])), Status::Success);
        assert_eq!(status(call(&hv, cpu, F::ArgPageSet, &[PAGE])), Status::Success, "again");
    }
    assert_eq!(status(call(&hv, a, F::HostUnshareHyp, &[PAGE, 1])), Status::Busy);
    call(&hv, a, F::ArgPageSet, &[PAGE + 1]);
    assert_eq!(status(call(&hv, a, F::HostUnshareHyp, &[PAGE, 1])), Status::Busy);
    call(&hv, b, F::ArgPageClear, &[]);
    assert_eq!(status(call(&hv, a, F::HostUnshareHyp, &[PAGE, 1])), Status::Success);
    assert_eq!(status(call(&hv, a, F::HostUnshareHyp, &[PAGE + 1, 1])), Status::Busy);
    assert_eq!(a.arg_page, Some(Pfn(PAGE + 1)));
    let far = call(&hv, a, F::ArgPageSet, &[u64::MAX]);
    assert_eq!(status(far), Status::InvalidParameter);
    assert_eq!(a.arg_page, Some(Pfn(PAGE + 1)));
}

#[test]
fn the_host_finds_every_cpus_trace_ring() {
    let (hv, mut cpus) = machine();
    for index in 0..3 {
        let regs = call(&hv, &mut cpus[0], HostFunction::TraceInfo, &[index]);
        match hv.trace_pages[usize::try_from(index).unwrap()] {
            Some(pages) => assert_eq!(regs[..3], [0, pages.start().0, 1]),
            None => assert_eq!(Status::from_register(regs[0]), Some(Status::NotFound)),
        }
    }
}

/// Whatever the registers hold: an answer, and nothing broken.
#[test]
fn no_register_value_panics() {
    let (calls, audits) = if cfg!(miri) { (400, 1) } else { (40_000, 40) };
    let (hv, mut cpus) = machine();
    let mut seed = 1_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 24
    };
    for step in 0..calls {
        let cpu = &mut cpus[usize::try_from(random() % 2).unwrap()];
        let functions = HostFunction::ALL;
        let function = functions[usize::try_from(random()).unwrap() % functions.len()];
        let mut regs = core::array::from_fn(|_| match random() % 6 {
            0 => random() % 4,
            1 => RAM.0 + random() % 4096,
            2 => u64::MAX - random() % 4,
            3 => 1 << (random() % 64),
            4 => random() % 600,
            _ => random() << 24 ^ random(),
        });
        if random() % 16 != 0 {
            regs[0] = u64::from(function.raw());
        }
        match random() % 8 {
            0 => hv.smc(cpu, &mut regs),
            _ => hv.host_call(cpu, &mut regs),
        }
        if step % (calls / audits) == 0 {
            assert_consistent(&hv);
        }
    }
    assert_consistent(&hv);
    let _ = snapshot(&hv);
}
