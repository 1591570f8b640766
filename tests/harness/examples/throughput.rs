//! How fast sequences are compared, and what they reach: `cargo run --release --example throughput`.

use std::collections::BTreeMap;
use std::time::Instant;

use arbitrary::Unstructured;
use pfnguard_harness::{World, boards, calls};
use pfnguard_shared::{HostFunction, Status};

/// Steps of a sequence.
const STEPS: usize = 32;
/// Bytes that a sequence may use.
const BYTES: usize = 1024;

fn main() {
    let count = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(20_000u64);
    let mut answers: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = [0; BYTES];
    let (mut calls, start) = (0u64, Instant::now());
    for sequence in 0..count {
        for word in bytes.as_chunks_mut::<8>().0 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            *word = random.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        }
        let boards = boards::all();
        let board = usize::try_from(sequence).unwrap_or(0) % boards.len();
        let mut world = World::new(boards[board]);
        calls::sequence(&mut world, &mut Unstructured::new(&bytes), STEPS);
        for (function, status) in world.answers() {
            calls += 1;
            let name = function.map_or("unknown", HostFunction::name);
            *answers.entry((name, status.map_or("plain", Status::name))).or_default() += 1;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    for ((function, status), number) in answers {
        println!("{function:20} {status:20} {number:8}");
    }
    #[allow(clippy::as_conversions, clippy::cast_precision_loss, reason = "a rate")]
    let rates = (calls as f64 / seconds, count as f64 / seconds);
    println!("{calls} calls: {:.0} a second, {:.0} sequences a second", rates.0, rates.1);
}
