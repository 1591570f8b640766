//! Sequences of calls out of random bytes, each compared with the specification.

use arbitrary::Unstructured;
use pfnguard_harness::{World, boards, calls};
use proptest::prelude::*;

/// Steps of a sequence.
const STEPS: usize = 40;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        max_shrink_iters: 300,
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
