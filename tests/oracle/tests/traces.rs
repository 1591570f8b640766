//! Hand-written traces, good and bad: every fault is seen, and named by its rule, its moment, its
//! page, its CPU and its instruction.

mod machine;

use machine::{Exchange, FRAME, GUEST, HOST, Insn, Machine, PAGE_BITS};
use pfnguard_oracle::{Moment, Rule, Times, Translation};

/// Removes the host's page, maintains by `maintenance`, and returns.
fn unmapped(maintenance: &[Insn]) -> Option<(Rule, Moment)> {
    unmapped_on(Machine::new(), maintenance)
}

fn unmapped_on(mut machine: Machine, maintenance: &[Insn]) -> Option<(Rule, Moment)> {
    machine.set(0, HOST, 0);
    maintenance.iter().for_each(|insn| machine.run(0, *insn));
    machine.run(0, Insn::Eret);
    machine.verdict()
}

const BY_ADDRESS: [Insn; 6] = [
    Insn::DsbIshst,
    Insn::Ipas2e1is(FRAME),
    Insn::DsbIsh,
    Insn::Vmalle1is,
    Insn::DsbIsh,
    Insn::Isb,
];

/// The sequence without its step `left_out`.
fn without(left_out: usize) -> Vec<Insn> {
    let steps = BY_ADDRESS.iter().enumerate();
    steps.filter(|(index, _)| *index != left_out).map(|(_, insn)| *insn).collect()
}

/// The sequence with another step `place`.
fn with(place: usize, insn: Insn) -> Vec<Insn> {
    let mut sequence = BY_ADDRESS.to_vec();
    sequence[place] = insn;
    sequence
}

fn returned(rule: Rule) -> Option<(Rule, Moment)> {
    Some((rule, Moment::Returned))
}

#[test]
fn the_sequences_of_the_architecture_are_right() {
    assert_eq!(unmapped(&BY_ADDRESS), None);
    assert_eq!(unmapped(&[Insn::DsbIshst, Insn::Vmalls12e1is, Insn::DsbIsh]), None);
    assert_eq!(unmapped(&[Insn::DsbIsh, Insn::Alle1is, Insn::DsbSy]), None);
    let range = Insn::Ripas2e1is { page: FRAME & !1, scale: 0, num: 0 };
    assert_eq!(unmapped(&with(1, range)), None);
    assert_eq!(unmapped(&[BY_ADDRESS, BY_ADDRESS].concat()), None, "twice is no fault");
}

#[test]
fn a_cpu_with_the_erratum_needs_each_invalidation_twice() {
    let with_erratum =
        |sequences: &[&[Insn]]| unmapped_on(Machine::with_tlbi(Times::Twice), &sequences.concat());
    let (by_ipa, stage_1) = (&BY_ADDRESS[1..3], &BY_ADDRESS[3..5]);
    let before = &BY_ADDRESS[..1];
    assert_eq!(with_erratum(&[before, by_ipa, stage_1, by_ipa, stage_1]), None);
    assert_eq!(with_erratum(&[before, by_ipa, by_ipa, stage_1, stage_1]), None, "as Linux does");
    let whole = &[Insn::Vmalls12e1is, Insn::DsbIsh];
    assert_eq!(with_erratum(&[before, whole, whole]), None);
    let missing = returned(Rule::NotRepeated);
    assert_eq!(with_erratum(&[before, by_ipa, stage_1]), missing);
    assert_eq!(with_erratum(&[before, by_ipa, stage_1, stage_1]), missing);
    assert_eq!(with_erratum(&[before, by_ipa, by_ipa, stage_1]), missing);
    assert_eq!(with_erratum(&[before, whole]), missing);
    assert_eq!(with_erratum(&[before, whole, &whole[..1]]), missing);
}

#[test]
fn no_invalidation_at_all_is_seen() {
    assert_eq!(unmapped(&[]), returned(Rule::NotInvalidated));
    assert_eq!(unmapped(&[Insn::DsbIsh, Insn::Isb]), returned(Rule::NotInvalidated));
}

#[test]
fn invalidation_of_another_page_is_seen() {
    let other = with(1, Insn::Ipas2e1is(FRAME + 1));
    assert_eq!(unmapped(&other), returned(Rule::NotInvalidated));
    let range = with(1, Insn::Ripas2e1is { page: FRAME + 2, scale: 1, num: 3 });
    assert_eq!(unmapped(&range), returned(Rule::NotInvalidated));
}

#[test]
fn a_missing_dsb_before_is_seen() {
    assert_eq!(unmapped(&without(0)), returned(Rule::NoDsbBefore));
    assert_eq!(unmapped(&with(0, Insn::DsbNsh)), returned(Rule::NoDsbBefore));
    assert_eq!(unmapped(&with(0, Insn::DsbIshld)), returned(Rule::NoDsbBefore));
}

#[test]
fn a_missing_dsb_after_is_seen() {
    assert_eq!(unmapped(&without(4)), returned(Rule::NoDsbAfter));
    assert_eq!(unmapped(&with(4, Insn::DsbNsh)), returned(Rule::NoDsbAfter));
    assert_eq!(unmapped(&with(4, Insn::DsbIshst)), returned(Rule::NoDsbAfter));
}

#[test]
fn a_missing_dsb_between_the_stages_is_seen() {
    assert_eq!(unmapped(&without(2)), returned(Rule::NoDsbBetween));
}

#[test]
fn by_address_without_stage_1_is_seen() {
    assert_eq!(unmapped(&without(3)), returned(Rule::NoStage1));
    let early = [Insn::DsbIshst, Insn::Vmalle1is, Insn::DsbIsh, Insn::Ipas2e1is(FRAME)];
    assert_eq!(unmapped(&[&early[..], &[Insn::DsbIsh]].concat()), returned(Rule::NoStage1));
}

#[test]
fn stage_1_without_stage_2_is_seen() {
    assert_eq!(unmapped(&without(1)), returned(Rule::NotInvalidated));
}

#[test]
fn an_invalidation_that_is_not_broadcast_is_seen() {
    assert_eq!(unmapped(&with(1, Insn::Ipas2e1(FRAME))), returned(Rule::NotBroadcast));
    assert_eq!(unmapped(&with(3, Insn::Vmalle1)), returned(Rule::NotBroadcast));
    let local = [Insn::DsbIshst, Insn::Vmalls12e1, Insn::DsbIsh];
    assert_eq!(unmapped(&local), returned(Rule::NotBroadcast));
}

#[test]
fn another_cpu_s_barrier_does_not_count() {
    let mut machine = Machine::new();
    machine.set(0, HOST, 0);
    BY_ADDRESS[..4].iter().for_each(|insn| machine.run(0, *insn));
    machine.run(1, Insn::DsbIsh);
    machine.run(0, Insn::Eret);
    assert_eq!(machine.verdict(), returned(Rule::NoDsbAfter));
}

#[test]
fn the_wrong_vmid_is_seen() {
    let mut machine = Machine::new();
    machine.set(0, GUEST, 0);
    BY_ADDRESS.iter().for_each(|insn| machine.run(0, *insn));
    machine.run(0, Insn::Eret);
    assert_eq!(machine.verdict(), returned(Rule::WrongVmid));
    let violation = &machine.violations()[0];
    assert_eq!(violation.translation, Translation::Stage2 { vmid: 1 });
}

#[test]
fn a_foreign_vmid_has_to_be_selected_and_synchronised() {
    let sequence = |isb: &[Insn]| {
        let mut machine = Machine::new();
        machine.set(0, GUEST, 0);
        machine.run(0, Insn::DsbIsh);
        machine.run(0, Insn::SelectGuest);
        isb.iter().for_each(|insn| machine.run(0, *insn));
        BY_ADDRESS[1..5].iter().for_each(|insn| machine.run(0, *insn));
        machine.run(0, Insn::SelectHost);
        machine.run(0, Insn::Eret);
        machine.verdict()
    };
    assert_eq!(sequence(&[Insn::Isb]), None);
    assert_eq!(sequence(&[]), returned(Rule::NoIsbBefore));
}

#[test]
fn a_missing_break_is_seen() {
    let mut machine = Machine::new();
    machine.set(0, HOST, (FRAME + 1) << 12 | PAGE_BITS);
    assert_eq!(machine.verdict(), Some((Rule::MissingBreak, Moment::Changed)));
    let mut machine = Machine::new();
    machine.set(0, HOST, FRAME << 12 | PAGE_BITS ^ 0b1010 << 2);
    assert_eq!(machine.verdict(), Some((Rule::MissingBreak, Moment::Changed)), "memory type");
}

#[test]
fn a_break_that_is_not_complete_before_the_make_is_seen() {
    let mut machine = Machine::new();
    machine.set(0, HOST, 0);
    BY_ADDRESS[..4].iter().for_each(|insn| machine.run(0, *insn));
    machine.set(0, HOST, (FRAME + 1) << 12 | PAGE_BITS);
    assert_eq!(machine.verdict(), Some((Rule::NoDsbAfter, Moment::Changed)));
}

#[test]
fn break_before_make_is_right() {
    let mut machine = Machine::new();
    machine.set(0, HOST, 0);
    BY_ADDRESS.iter().for_each(|insn| machine.run(0, *insn));
    machine.set(0, HOST, (FRAME + 1) << 12 | PAGE_BITS);
    machine.run(0, Insn::DsbIshst);
    machine.run(0, Insn::Eret);
    assert_eq!(machine.verdict(), None);
}

#[test]
fn a_lost_right_is_invalidated_like_a_lost_page() {
    let weakened = |maintenance: &[Insn]| {
        let mut machine = Machine::new();
        machine.set(0, HOST, FRAME << 12 | PAGE_BITS & !(1 << 7));
        maintenance.iter().for_each(|insn| machine.run(0, *insn));
        machine.run(0, Insn::Eret);
        machine.verdict()
    };
    assert_eq!(weakened(&BY_ADDRESS), None);
    assert_eq!(weakened(&[]), returned(Rule::NotInvalidated));
}

#[test]
fn a_late_invalidation_is_seen_when_the_next_owner_s_entry_becomes_valid() {
    let mut machine = Machine::new();
    machine.set(0, HOST, 0);
    machine.give(0, FRAME);
    BY_ADDRESS.iter().for_each(|insn| machine.run(0, *insn));
    machine.run(0, Insn::Eret);
    assert_eq!(machine.verdict(), Some((Rule::NotInvalidated, Moment::NextOwner)));
    let violation = &machine.violations()[0];
    assert_eq!((violation.frame, violation.cpu), (FRAME, 0));
    assert_eq!(violation.input, FRAME..FRAME + 1);
    assert!(violation.stored_at.is_some_and(|stored_at| stored_at < violation.pc));
}

#[test]
fn a_frame_that_its_next_owner_has_before_the_former_lost_it_is_seen() {
    let mut machine = Machine::new();
    machine.enter(0, 0);
    machine.give(0, FRAME);
    machine.run(0, Insn::DsbIshst);
    machine.set(0, HOST, 0);
    BY_ADDRESS.iter().for_each(|insn| machine.run(0, *insn));
    machine.run(0, Insn::Eret);
    assert_eq!(machine.verdict(), Some((Rule::TwoOwners, Moment::Removed)));
    let violation = &machine.violations()[0];
    assert_eq!((violation.translation, violation.frame), (Translation::Stage2 { vmid: 0 }, FRAME));
}

#[test]
fn a_frame_that_two_borrow_and_one_loses_later_is_right() {
    let mut machine = Machine::new();
    machine.enter(0, 0);
    machine.give(0, FRAME);
    machine.run(0, Insn::DsbIshst);
    machine.run(0, Insn::Eret);
    machine.enter(0, 0);
    machine.set(0, HOST, 0);
    BY_ADDRESS.iter().for_each(|insn| machine.run(0, *insn));
    machine.run(0, Insn::Eret);
    assert_eq!(machine.verdict(), None);
}

/// Gives another page to the guest, executes `barriers`, and returns.
fn published(barriers: &[(u8, Insn)]) -> Option<(Rule, Moment)> {
    let mut machine = Machine::new();
    machine.give(0, FRAME + 1);
    barriers.iter().for_each(|(cpu, insn)| machine.run(*cpu, *insn));
    machine.run(0, Insn::Eret);
    machine.verdict()
}

#[test]
fn a_new_translation_is_published_by_a_dsb() {
    assert_eq!(published(&[(0, Insn::DsbIshst)]), None);
    assert_eq!(published(&[(0, Insn::DsbSy)]), None);
}

#[test]
fn a_new_translation_that_walkers_need_not_see_is_seen() {
    let missing = returned(Rule::NotPublished);
    assert_eq!(published(&[]), missing);
    assert_eq!(published(&[(0, Insn::Isb)]), missing);
    assert_eq!(published(&[(0, Insn::DsbIshld)]), missing);
    assert_eq!(published(&[(0, Insn::DsbNsh)]), missing);
    assert_eq!(published(&[(1, Insn::DsbIsh)]), missing);
}

#[test]
fn a_translation_that_is_gone_again_needs_no_publication() {
    let mut machine = Machine::new();
    machine.set(0, GUEST, 0);
    machine.run(0, Insn::DsbIsh);
    machine.run(0, Insn::Alle1is);
    machine.run(0, Insn::DsbIsh);
    machine.run(0, Insn::Eret);
    assert_eq!(machine.verdict(), None);
}

#[test]
fn a_window_is_used_after_dsb_and_isb() {
    let used = |barriers: &[Insn]| {
        let mut machine = Machine::new();
        machine.open_window(0, FRAME);
        barriers.iter().for_each(|insn| machine.run(0, *insn));
        machine.clean_through_window(0);
        machine.verdict()
    };
    let missing = Some((Rule::NotSynchronised, Moment::Used));
    assert_eq!(used(&[Insn::DsbIshst, Insn::Isb]), None);
    assert_eq!(used(&[Insn::DsbNsh, Insn::Isb]), None, "this CPU's own");
    assert_eq!(used(&[Insn::DsbIshst]), missing);
    assert_eq!(used(&[Insn::Isb, Insn::DsbIshst]), missing);
    assert_eq!(used(&[]), missing);
}

#[test]
fn a_table_used_again_before_the_maintenance_is_seen() {
    let mut machine = Machine::new();
    let table = machine.unlink_page_table(0);
    machine.run(0, Insn::DsbIshst);
    machine.store(0, table + 8, PAGE_BITS);
    assert_eq!(machine.verdict(), Some((Rule::NotInvalidated, Moment::TableReused)));
}

#[test]
fn a_removed_table_takes_its_pages_along() {
    let mut machine = Machine::new();
    machine.unlink_page_table(0);
    // Right for the table, but its page was another one.
    let sequence = with(1, Insn::Ipas2e1is(FRAME + 1));
    sequence.iter().for_each(|insn| machine.run(0, *insn));
    machine.run(0, Insn::Eret);
    assert_eq!(machine.verdict(), returned(Rule::NotInvalidated));
    assert_eq!(machine.violations()[0].frame, FRAME);

    let mut machine = Machine::new();
    let table = machine.unlink_page_table(0);
    BY_ADDRESS.iter().for_each(|insn| machine.run(0, *insn));
    machine.store(0, table + 8, PAGE_BITS);
    machine.run(0, Insn::Eret);
    assert_eq!(machine.verdict(), None);
}

#[test]
fn the_link_of_a_list_of_freed_tables_is_harmless() {
    let mut machine = Machine::new();
    let table = machine.unlink_page_table(0);
    machine.store(0, table, 0x4100_0000);
    BY_ADDRESS.iter().for_each(|insn| machine.run(0, *insn));
    machine.run(0, Insn::Eret);
    assert_eq!(machine.verdict(), None);
}

#[test]
fn windows_of_one_cpu_are_invalidated_on_all() {
    let closed = |tlbi: fn(u64) -> Insn| {
        let mut machine = Machine::new();
        let page = machine.open_window(0, FRAME);
        machine.close_window(0);
        [Insn::DsbIshst, tlbi(page), Insn::DsbIsh].iter().for_each(|insn| machine.run(0, *insn));
        machine.run(0, Insn::Eret);
        machine.verdict()
    };
    assert_eq!(closed(Insn::Vae2is), None);
    assert_eq!(closed(Insn::Vae2), returned(Rule::NotBroadcast));
}

#[test]
fn without_fwb_ram_changes_hands_clean() {
    assert_eq!(Exchange::ram().maintaining(0..64).verdict(), None);
}

#[test]
fn without_fwb_ram_that_is_not_maintained_is_seen() {
    let lines = |maintained| Some((Rule::LinesLeft { maintained, lines: 64 }, Moment::NextOwner));
    assert_eq!(Exchange::ram().verdict(), lines(0));
    assert_eq!(Exchange::ram().maintaining(0..63).verdict(), lines(63));
    assert_eq!(Exchange::ram().maintaining(0..64).cleaning_only().verdict(), lines(0));
    assert_eq!(Exchange::ram().maintaining(0..64).without_barrier().verdict(), lines(0));
    assert_eq!(Exchange::ram().maintaining_early(0..64).verdict(), lines(0));
}

#[test]
fn ram_that_is_zeroed_and_cleaned_is_right() {
    assert_eq!(Exchange::ram().zeroing().verdict(), None);
}

#[test]
fn with_fwb_ram_needs_no_maintenance_but_device_memory_does() {
    assert_eq!(Exchange::ram().with_fwb().verdict(), None);
    let lines = |maintained| Some((Rule::LinesLeft { maintained, lines: 64 }, Moment::NextOwner));
    assert_eq!(Exchange::device().with_fwb().verdict(), lines(0));
    assert_eq!(Exchange::device().with_fwb().maintaining(0..32).verdict(), lines(32));
    assert_eq!(Exchange::device().with_fwb().maintaining(0..64).verdict(), None);
}

#[test]
fn device_memory_that_was_never_cacheable_needs_no_maintenance() {
    assert_eq!(Exchange::device().uncached().verdict(), None);
}

#[test]
fn a_violation_says_where_in_words() {
    let mut machine = Machine::new();
    machine.set(1, HOST, 0);
    machine.run(1, Insn::Eret);
    let text = machine.violations()[0].describe(&|pc| format!("<{pc:#x}>"));
    assert!(
        text.starts_with("TLB: the removed translation was not invalidated, when EL2 returned")
    );
    assert!(text.contains("stage 2 of VMID 0, page 0x50123 (1 pages), frame 0x50123"), "{text}");
    assert!(text.contains("CPU 1 at <0x4020"), "{text}");
    assert!(text.contains("removed at <0x4020"), "{text}");
}

#[test]
fn the_report_counts_what_each_call_did() {
    use pfnguard_oracle::Counter;
    let mut machine = Machine::new();
    machine.enter(0, 0xc600_0110);
    machine.set(0, HOST, 0);
    BY_ADDRESS.iter().for_each(|insn| machine.run(0, *insn));
    machine.run(0, Insn::Eret);
    machine.enter(0, 0xc600_0110);
    machine.run(0, Insn::Eret);
    let calls: Vec<_> = machine.report().calls.iter().collect();
    let [(call, tally)] = calls[..] else { panic!("{calls:?}") };
    assert_eq!((call.class, call.function, tally.calls), (0x16, 0xc600_0110, 2));
    let both = |counter| (tally.least(counter), tally.most(counter));
    assert_eq!(both(Counter::Stage2Tlbi), (0, 1));
    assert_eq!(both(Counter::Dsb), (0, 3));
    assert_eq!(both(Counter::Removed), (0, 1));
    assert_eq!(tally.total(Counter::Stage1Tlbi), 1);
}
