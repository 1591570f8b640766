//! Ends of ranges, work that is done only where it is needed, and what records say.

use super::*;

/// First page past a guest's address space, as `fake::Setup` has it.
const IPA_END: u64 = 1 << (40 - PAGE_SHIFT);

#[test]
fn a_binding_may_end_with_the_guests_address_space_and_not_behind_it() {
    let mut wire = request(MMIO, Mode::Share, MemType::Device);
    wire.ipa_pfn = IPA_END - MMIO.1;
    both().bind(&wire);
    wire.ipa_pfn += 1;
    let mut bench = both();
    assert_eq!(bench.refused_bind(&wire).0, Status::InvalidParameter);
    // Also where the VM has a binding, and the way to the answer is another.
    bench.bind(&share(MemType::Device));
    assert_eq!(bench.refused_bind(&wire).0, Status::InvalidParameter);
    wire.ipa_pfn -= 1;
    bench.bind(&wire);
}

#[test]
fn executable_pages_make_cpus_forget_instructions_unless_caches_are_coherent() {
    for (dic, forgets) in [(Capabilities::DIC, false), (Capabilities::NONE, true)] {
        for (perms, executable) in [(Perms::READ.with(Perms::EXEC), true), (Perms::READ, false)] {
            let capabilities = Capabilities::ALL.without(Capabilities::DIC).with(dic);
            let setup = Setup { capabilities, ..Setup::default() };
            let entries = vec![mmio(), memory()];
            let mut bench = Bench::with(Setup { entries, ram: small_ram(), ..setup });
            let mut wire = donate(MemType::Cacheable);
            wire.perms = perms.raw();
            bench.bind(&wire);
            let forgot = take_log().contains(&Op::ForgetInstructions);
            assert_eq!(forgot, forgets && executable, "{capabilities:?} {perms:?}");
        }
    }
}

#[test]
fn only_memory_that_can_be_is_cleaned_when_the_host_loses_it() {
    let whole = Op::CleanInvalidate { range: range(MEMORY) };
    let uncleanable =
        Entry { flags: memory().flags.without(RegionFlags::CMO_BY_ADDRESS), ..memory() };
    for (entry, cleans) in [(memory(), true), (uncleanable, false)] {
        let mut bench = Bench::new(vec![mmio(), entry]);
        bench.bind(&donate(MemType::Device));
        assert_eq!(take_log().contains(&whole), cleans);
    }
}

#[test]
fn a_region_that_changes_state_leaves_a_record_and_one_that_does_not_leaves_none() {
    let mut bench = both();
    let records = |bench: &Bench| {
        let all = (0..bench.cpu.trace.written()).filter_map(|at| bench.cpu.trace.record_at(at));
        all.filter(|record| record.kind == TraceKind::Region.raw()).copied().collect::<Vec<_>>()
    };
    bench.bind(&part(share(MemType::Device), 0, 1));
    let [record] = records(&bench)[..] else { panic!("one record") };
    let region = bench.hv.enter().lock_host().regions.lookup(Pfn(MEMORY.0)).unwrap().0;
    let states = raw(RegionState::Free) << 8 | raw(RegionState::Shared);
    assert_eq!((record.a, record.b, record.c, record.vm), (region.raw(), states, 0, 0));

    let mut second = part(share(MemType::Device), 1, 1);
    second.vm = 1;
    bench.bind(&second);
    assert_eq!(records(&bench).len(), 1, "shared before, shared now");
    bench.unbind(0, MEMORY.0);
    bench.unbind(1, MEMORY.0 + 1);
    let last = *records(&bench).last().unwrap();
    assert_eq!((last.b >> 8, last.c, last.vm), (raw(RegionState::Shared), 1, 1));
}
