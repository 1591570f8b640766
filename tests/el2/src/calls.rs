//! What the service says of itself, and what it says to calls that do not exist.

use pfnguard_host_interface::{Hvc, Hypercall, RegionIndex};
use pfnguard_shared::call::HOST_UID;
use pfnguard_shared::info::{InfoSelector, RegionState};
use pfnguard_shared::trace::TraceKind;
use pfnguard_shared::{ABI_MAJOR, ABI_MINOR, HostFunction, Rule, Status, Subject};

use crate::Hyp;
use crate::outcome::{Failure, Outcome, denied, ensure, equal, refused};
use crate::suite::Test;
use crate::trace::Ring;
use crate::vm::args;

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("calls:uid-and-revision", identity),
    ("calls:info-describes-the-service", info),
    ("calls:info-describes-the-machine", platform),
    ("calls:regions-are-enumerated", regions),
    ("calls:unknown-functions-are-not-supported", unknown),
    ("calls:other-immediates-are-not-supported", immediates),
    ("calls:registers-beyond-the-answer-are-zero", answers_are_clean),
    ("calls:every-refusal-is-in-the-trace", refusals_are_traced),
];

/// Ids that nothing defines: neighbours of those that exist, other services, other conventions.
const UNKNOWN: [u64; 12] = [
    0,
    u64::MAX,
    0xc600_00ff,
    0xc600_0105,
    0xc600_0136,
    0xc600_0142,
    0xc600_0180,
    0x8600_ff00,
    0x8600_0100,
    0x4600_0100,
    0x1_c600_0100,
    0x8000_0000_c600_0100,
];

fn identity() -> Outcome {
    let uid = HOST_UID.map(u64::from);
    ensure(Hyp::uid() == uid, "UID is not pfnguard's")?;
    let revision = (u64::from(ABI_MAJOR), u64::from(ABI_MINOR));
    ensure(Hyp::revision() == revision, "revision is not the one this host was built for")
}

fn info() -> Outcome {
    let [version, functions, rules, zero] = Hyp::info(InfoSelector::Abi)?;
    equal(version, u64::from(ABI_MAJOR) << 32 | u64::from(ABI_MINOR), "version")?;
    equal(functions, u64::try_from(HostFunction::COUNT).unwrap_or(0), "number of functions")?;
    equal(rules, u64::try_from(Rule::ALL.len()).unwrap_or(0), "number of rules")?;
    equal(zero, 0, "fourth value")?;
    let hash = Hyp::info(InfoSelector::ManifestHash)?;
    ensure(hash != [0; 4], "hash of the manifest is zero")
}

fn platform() -> Outcome {
    let [_, pa_bits, ipa_bits, vmid_bits] = Hyp::info(InfoSelector::Platform)?;
    ensure((32..=52).contains(&pa_bits), "implausible physical address bits")?;
    ensure((32..=pa_bits).contains(&ipa_bits), "implausible IPA bits")?;
    ensure(vmid_bits == 8 || vmid_bits == 16, "implausible VMID bits")?;
    let [frames, vmemmap, owned, tables] = Hyp::info(InfoSelector::Memory)?;
    equal(frames, 1 << 18, "frames of RAM")?;
    ensure(vmemmap > 0 && owned > 0 && tables > 0, "memory counts of zero")
}

fn regions() -> Outcome {
    let [_, _, regions, _] = Hyp::info(InfoSelector::Limits)?;
    let count = u16::try_from(regions).map_err(|_| Failure::Wrong("too many regions"))?;
    let mut end = 0;
    for index in (0..count).map(RegionIndex) {
        let info = args(|page| Hyp::region_info(page, index))?;
        ensure(info.pages > 0 && info.pfn >= end, "regions are empty, unsorted or overlap")?;
        ensure(RegionState::from_raw(info.state) == Some(RegionState::Free), "region is not free")?;
        ensure(info.name[0] != 0, "region without a name")?;
        end = info.pfn + info.pages;
    }
    let past = args(|page| Hyp::region_info(page, RegionIndex(count)));
    refused(past, Status::NotFound, "region past the last").map(drop)
}

fn unknown() -> Outcome {
    for fid in UNKNOWN {
        let answer = Hvc::call([fid, 1, 2, 3, 4, 5, 6, 7]);
        equal(answer[0], Status::NotSupported.to_register(), "answer to an unknown function")?;
    }
    Ok(())
}

/// `HVC` with an immediate other than 0, which no service has.
macro_rules! hvc_with {
    ($instruction:literal) => {{
        let answer: u64;
        let function = u64::from(HostFunction::HostShareHyp.raw());
        let fault = probed!([$instruction] inout("x0") function => answer,
            inout("x1") 0u64 => _, inout("x2") 0u64 => _, inout("x3") 0u64 => _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _);
        (answer, fault)
    }};
}

fn immediates() -> Outcome {
    for (answer, fault) in [hvc_with!("hvc #1"), hvc_with!("hvc #0x4b00"), hvc_with!("hvc #0xffff")]
    {
        // An undefined instruction is an answer too.
        let refused = answer == Status::NotSupported.to_register();
        let undefined = fault.is_some_and(|fault| fault.is_undefined());
        ensure(refused || undefined, "HVC with an immediate was served")?;
    }
    Ok(())
}

fn answers_are_clean() -> Outcome {
    let fid = u64::from(HostFunction::Info.raw());
    let noise = [fid, 0, !0, !0, !0, !0, !0, !0];
    let answer = Hvc::call(noise);
    equal(answer[0], 0, "status")?;
    ensure(answer[5..] == [0; 3], "a register of the answer holds noise")
}

/// Refuses three calls in three ways and looks for their records.
fn refusals_are_traced() -> Outcome {
    let ring = Ring::of(0)?;
    for (fid, argument) in [
        (0xc600_01f0, 0x1111),
        (u64::from(HostFunction::HostShareHyp.raw()), u64::MAX),
        (u64::from(HostFunction::VmTeardown.raw()), 15),
    ] {
        let since = ring.header().written;
        let answer = Hvc::call([fid, argument, 1, 0, 0, 0, 0, 0]);
        ensure(answer[0] != 0, "a call that must be refused was not")?;
        let found = ring.find(since, TraceKind::HostCall, fid);
        let record = found.ok_or(Failure::Wrong("refusal without a record"))?;
        let status = Status::from_raw(record.status).map(Status::to_register);
        equal(status.unwrap_or(0), answer[0], "status in the record")?;
        let subject = (answer[1] >> 16) & 0xffff;
        equal(u64::from(record.subject), subject, "subject in the record")?;
    }
    let facts = denied(Hyp::trace_info(999), "ring of a CPU that does not exist")?;
    ensure(facts.subject != Subject::None, "refusal without a subject")
}
