//! Walker, QEMU and Unicorn over the same random tables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pfnguard_tools::machine::Cpu;
use pfnguard_tools::progress::Progress;
use pfnguard_tools::setup;
use pfnguard_walker::{Attrs, Tree};
use pfnguard_walks::{
    Answer, Arena, Fault, Limits, Query, Random, Verdict, judge, qemu, strictness,
};

/// What the architecture forbids and a CPU does all the same.
type Faults = [(&'static str, Option<Fault>)];

/// Compares and counts; prints what the walker refuses and what the CPU makes of that.
fn compare(who: &str, random: &Random, answers: &[Answer], types: bool, faults: &Faults) {
    let mut counts = BTreeMap::new();
    let mut seen = BTreeMap::new();
    let mut trees = BTreeMap::new();
    assert_eq!(answers.len(), random.queries.len());
    for (query, answer) in random.queries.iter().zip(answers) {
        match judge(&random.arena, query, *answer, types) {
            Verdict::Agreed(to) => {
                let kind = to.map_or("nowhere".into(), |(_, attrs)| format!("{:?}", attrs.mem));
                *seen.entry(kind).or_insert(0) += 1;
                if query.sound {
                    let key = query.stage2.vttbr;
                    let tree = trees.entry(key).or_insert_with(|| whole(&random.arena, query));
                    assert_eq!(found(tree, query.ipa >> 12), to, "{who}: {query:x?}");
                }
            }
            Verdict::Void => *seen.entry("void".into()).or_insert(0) += 1,
            Verdict::Strict(why, fault) => {
                let known = strictness(why).contains(&fault) || faults.contains(&(why, fault));
                assert!(known, "{who}: {why}: {fault:?}, {query:x?}");
                *counts.entry((why, fault)).or_insert(0) += 1;
            }
            Verdict::Differs(said) => panic!("{who}: {query:x?}: {answer:x?}, walker: {said:x?}"),
        }
    }
    println!("{who}: {seen:?}");
    for ((why, fault), count) in counts {
        println!("  {count:6} {why}: {}", fault.map_or("goes on".into(), |f| format!("{f:?}")));
    }
    for kind in ["Device", "NormalNc", "WriteBack", "nowhere"] {
        assert!(seen.get(kind).is_some_and(|count| *count >= 100), "too few {kind}");
    }
}

/// Reads tables whole, as everything does that compares with the specification.
fn whole(arena: &Arena, query: &Query) -> Tree<Attrs> {
    let mut tree = Tree::default();
    query.stage2.walk(arena, &mut tree).expect("nothing is spoilt");
    tree
}

fn found(tree: &Tree<Attrs>, page: u64) -> Option<(u64, Attrs)> {
    let run = tree.runs.iter().find(|run| run.range().contains(&page))?;
    Some((run.pfn + (page - run.first), run.attrs))
}

fn beside_qemu(cpu: Cpu, limits: Limits) {
    setup::ensure(Progress::Plain).unwrap();
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    for seed in 0..4 {
        let random = Random::new(seed, limits);
        let ram = directory.join(format!("walks-{}-{seed}.ram", cpu.name()));
        let answers = qemu::answers(cpu, &ram, &random.arena, &random.queries);
        std::fs::remove_file(ram).unwrap();
        compare(&format!("{} {seed}", cpu.name()), &random, &answers.unwrap(), true, &[]);
    }
}

#[test]
fn walks_like_qemu_without_fwb() {
    beside_qemu(Cpu::CortexA72, Limits { fwb: false, pa_bits: 44 });
}

#[test]
fn walks_like_qemu_with_fwb() {
    beside_qemu(Cpu::NeoverseN2, Limits { fwb: true, pa_bits: 48 });
}

/// It follows output addresses past `VTCR_EL2.PS`, and takes blocks at level 0.
#[cfg(feature = "unicorn")]
const UNICORN: &Faults = &[
    ("beyond the output size", None),
    ("beyond the output size", Some(Fault::AccessFlag)),
    ("a block at a level without blocks", None),
    ("a block at a level without blocks", Some(Fault::AccessFlag)),
];

/// It knows no FWB, has 44 bits of physical address, and its memory types are those of stage 1 alone.
#[cfg(feature = "unicorn")]
#[test]
fn walks_like_unicorn() {
    for seed in 0..8 {
        let random = Random::new(seed, Limits { fwb: false, pa_bits: 44 });
        let answers = pfnguard_walks::unicorn::answers(&random.arena, &random.queries).unwrap();
        compare(&format!("unicorn {seed}"), &random, &answers, false, UNICORN);
    }
}
