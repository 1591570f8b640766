//! Sequences of calls, most of them out of random bytes, each compared with the specification.

use arbitrary::Unstructured;
use pfnguard_harness::{World, boards, calls};
use pfnguard_shared::request::Request;
use pfnguard_shared::{HostFunction, MemType, Mode, Perms};
use proptest::prelude::*;

/// Steps of a sequence.
const STEPS: usize = 40;
/// Shorter sequences that are tried for one that fails; `PROPTEST_MAX_SHRINK_ITERS` may say fewer.
const SHRINKS: u32 = 300;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        max_shrink_iters: ProptestConfig::default().max_shrink_iters.min(SHRINKS),
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_call_does_what_the_specification_says(
        board in 0..boards::all().len(),
        bytes in proptest::collection::vec(any::<u8>(), 64..2048),
    ) {
        let mut world = World::new(boards::all()[board]);
        calls::sequence(&mut world, &mut Unstructured::new(&bytes), STEPS);
    }
}

fn granted(world: &mut World, function: HostFunction, [x1, x2, x3, x4]: [u64; 4]) {
    let answer = world.call(0, [u64::from(function.raw()), x1, x2, x3, x4, 0, 0, 0]);
    assert_eq!(answer[0], 0, "{function:?}: {answer:x?}");
}

/// Chance seldom binds a part inside of a part and lets go of the outer one first.
#[test]
fn pages_around_a_part_that_is_still_held_are_zeroed() {
    let (outer, ipa) = (boards::POLLED, [0, 512]);
    let inner = outer.start + 4..outer.end - 4;
    let mut world = World::new(boards::all()[0]);
    granted(&mut world, HostFunction::VmCreate, [0, 1, boards::RAM[0].start, 8]);
    for (part, ipa_pfn) in [outer, inner].into_iter().zip(ipa) {
        let (pfn, pages) = (part.start, part.end - part.start);
        let (mode, mem_type) = (Mode::Share.raw(), MemType::Device.raw());
        let perms = Perms::READ.raw();
        let asked = Request { mode, mem_type, perms, pfn, ipa_pfn, pages, ..Request::zeroed() };
        granted(&mut world, HostFunction::PfnmapBind, [asked.word().0, pfn, ipa_pfn, pages]);
    }
    for ipa_pfn in ipa {
        granted(&mut world, HostFunction::PfnmapUnbind, [0, ipa_pfn, 0, 0]);
    }
    world.finish();
}
