use pfnguard_shared::Perms;
use pfnguard_shared::request::Request;
use proptest::prelude::*;

use super::*;
use crate::viewer::testing::{done, record};

fn text(record: &TraceRecord) -> String {
    let description = describe(record);
    format!("{} {description}", description.kind)
}

fn call(function: HostFunction, x1: u64, x2: u64) -> String {
    text(&done(TraceKind::HostCall, function.raw().into(), x1, x2))
}

fn bind() -> u64 {
    let mut request = Request::zeroed();
    request.vm = 2;
    request.mode = Mode::Share.raw();
    request.mem_type = MemType::AnyUncached.raw();
    request.perms = Perms::READ.with(Perms::WRITE).raw();
    request.flags = RequestFlags::MAP_NOW.raw();
    request.word().0
}

const BIND: &str = "vm=2 mode=Share type=AnyUncached perms=RW alias=None flags=MAP_NOW";

#[test]
fn host_calls_have_their_function_and_arguments() {
    let shared = call(HostFunction::HostShareHyp, 0x40000, 16);
    assert_eq!(shared, "host-call HostShareHyp pfn=0x40000-0x4000f pages=16");
    let donated = call(HostFunction::HostDonateGuest, 1, 0x40000);
    assert_eq!(donated, "host-call HostDonateGuest vm=1 pfn=0x40000");
    let bound = call(HostFunction::PfnmapBind, bind(), 0x10100);
    assert_eq!(bound, format!("host-call PfnmapBind {BIND} pfn=0x10100"));
    assert_eq!(call(HostFunction::VcpuRun, 0, 3), "host-call VcpuRun vm=0 vcpu=3");
    let created = call(HostFunction::VmCreate, 3, 2);
    assert_eq!(created, "host-call VmCreate contract=PROTECTED+MTE vcpus=2");
    assert_eq!(call(HostFunction::Info, 1, 0), "host-call Info selector=ManifestHash");
    assert_eq!(call(HostFunction::PfnmapMap, 1, 0x80), "host-call PfnmapMap vm=1 ipa_pfn=0x80");
}

#[test]
fn every_call_has_its_name() {
    for function in HostFunction::ALL {
        assert!(call(*function, 1, 2).starts_with(&format!("host-call {}", function.name())));
    }
    for function in GuestFunction::ALL {
        let record =
            TraceRecord { vm: 4, ..done(TraceKind::GuestCall, function.raw().into(), 1, 4) };
        assert!(text(&record).starts_with(&format!("guest-call {} vm=4", function.name())));
    }
    let unknown = text(&done(TraceKind::HostCall, 0x1_c600_0100, 1, 2));
    assert_eq!(unknown, "host-call 0x1c6000100 x1=0x1 x2=0x2");
}

#[test]
fn the_other_kinds_have_their_facts() {
    let decision = TraceRecord { vm: 2, ..done(TraceKind::Decision, bind(), 0x10100, 0x100) };
    assert_eq!(text(&decision), format!("decision grant {BIND} pfn=0x10100-0x101ff pages=256"));
    let given = TraceRecord { vm: 1, ..done(TraceKind::Ownership, 0x66666, 1, 0x1_0105) };
    assert_eq!(text(&given), "ownership HostOwned->GuestOwned pfn=0x66666 pages=1 vm=1");
    let region = TraceRecord { vm: 1, ..done(TraceKind::Region, 3, 0x0001, 1) };
    assert_eq!(text(&region), "region Free->Shared index=3 vm=1");
    let smc = done(TraceKind::Smc, 0x8400_0003, u64::MAX, 0);
    assert_eq!(text(&smc), "smc CPU_ON id=0x84000003 result=-1");
    let abort = text(&done(TraceKind::HostAbort, 0x4020_0008, 0x9200_0007, 0xffff_8000));
    assert!(abort.starts_with("host-abort Data Abort from a lower Exception level; "), "{abort}");
    let facts = " pfn=0x40200 ipa=0x40200008 esr=0x92000007 elr=0xffff8000";
    assert!(abort.ends_with(facts), "{abort}");
    let trap = text(&done(TraceKind::Trap, 0xffff_ffff_ffff_ffff, 0x10, 0));
    assert_eq!(trap, "trap trap esr=0xffffffffffffffff elr=0x10");
}

#[test]
fn a_refusal_has_its_status_rule_subject_page_and_the_values_by_meaning() {
    let donate = HostFunction::HostDonateGuest.raw().into();
    let record = TraceRecord {
        status: Status::WrongState.raw(),
        subject: Subject::PageState.raw(),
        pfn: 0x40000,
        ..done(TraceKind::HostCall, donate, 1, 5)
    };
    let expected = "host-call HostDonateGuest refused: WrongState PageState pfn=0x40000: \
        the page must be HostOwned and is GuestOwned";
    assert_eq!(text(&record), expected);
    let decision = TraceRecord {
        status: Status::Unsupported.raw(),
        rule: Rule::R06.raw(),
        subject: Subject::Types.raw(),
        ..done(TraceKind::Decision, bind(), 4, 1)
    };
    let expected = format!(
        "decision request {BIND} refused: Unsupported R06 Types: type Cacheable, granted Device"
    );
    assert_eq!(text(&decision), expected);
}

#[test]
fn numbers_without_a_name_are_shown_as_they_are() {
    let odd =
        TraceRecord { status: -99, rule: 99, subject: 98, ..done(TraceKind::Region, 3, 1, 2) };
    let expected =
        "region change index=3 refused: status -99 rule 99 subject 98: requested 0x1, granted 0x2";
    assert_eq!(text(&odd), expected);
    let kind = TraceRecord { kind: 99, a: 1, b: 2, c: 3, ..record(0) };
    let expected = "kind-99 unknown rule=0 status=0 subject=0 vm=0xffff a=0x1 b=0x2 c=0x3 \
        pfn=0xffffffffffffffff";
    assert_eq!(text(&kind), expected);
    let range = call(HostFunction::HostShareHyp, 1, 0);
    assert_eq!(range, "host-call HostShareHyp pfn=0x1 pages=0x0");
}

#[test]
fn the_vm_and_the_pages_are_known_where_the_record_has_them() {
    let of = |record: &TraceRecord| {
        let description = describe(record);
        (description.vm, description.pages.map(|pages| pages.to_string()))
    };
    let donate = HostFunction::HostDonateGuest.raw().into();
    let donated = done(TraceKind::HostCall, donate, 1, 0x40000);
    assert_eq!(of(&donated), (Some(1), Some("0x40000".to_owned())));
    assert_eq!(of(&record(0)), (None, None));
    let page = TraceRecord { vm: NO_VM, ..done(TraceKind::Ownership, 9, 1, 0xffff_0401) };
    assert_eq!(of(&page), (None, Some("0x9".to_owned())));
}

proptest! {
    #[test]
    fn every_record_has_words(
        kind in 0u16..10, rule: u16, status: i32, subject in 0u16..22, vm: u16,
        a: u64, b: u64, c: u64, pfn: u64, host in 0usize..HostFunction::COUNT, is_call: bool,
    ) {
        let a = if is_call { HostFunction::ALL[host].raw().into() } else { a };
        let record =
            TraceRecord { kind, rule, status, subject, vm, a, b, c, pfn, ..TraceRecord::zeroed() };
        for record in [record, TraceRecord { status: 0, ..record }] {
            let words = text(&record);
            prop_assert!(!words.is_empty() && !words.contains('\n'));
        }
    }
}
