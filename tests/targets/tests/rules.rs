//! Coverage by rule: the corpus and some sequences grant by every rule and refuse by every rule.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pfnguard_harness::rules::counted;
use pfnguard_model::rules::Exercised;
use pfnguard_shared::Rule;
use pfnguard_targets::{ALL, Target, manifest_bytes, manifest_text};

/// Sequences beside the corpus.
const SEQUENCES: u64 = 2000;
/// Bytes of each.
const BYTES: usize = 1024;

/// Judged where the hypervisor is launched and the manifest is written, not by a call.
const MANIFEST: [Rule; 2] = [Rule::R50, Rule::R52];
/// There is no call that could break it.
const NEVER_REFUSED: [Rule; 1] = [Rule::R51];

fn inputs(target: &str) -> Vec<PathBuf> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files = fs::read_dir(&corpus).unwrap_or_else(|cause| panic!("{target}: {cause}"));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(target: &Target) {
    inputs(target.name).iter().for_each(|input| (target.run)(&fs::read(input).unwrap()));
}

/// Bytes that look random, and are the same every time.
fn sequences() -> impl Iterator<Item = Vec<u8>> {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    (0..SEQUENCES).map(move |number| {
        let mut bytes = vec![number.to_le_bytes()[0]];
        for _ in 0..BYTES / 8 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            bytes.extend(random.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        bytes
    })
}

fn judge_manifests(exercised: &mut Exercised) {
    for input in inputs("manifest_bytes") {
        let mut bytes = fs::read(input).unwrap();
        exercised.count(Rule::R50, manifest_bytes::accepted(&bytes));
        *bytes.last_mut().unwrap() ^= 1;
        exercised.count(Rule::R50, manifest_bytes::accepted(&bytes));
    }
    for input in inputs("manifest_text") {
        let text = fs::read_to_string(input).unwrap();
        exercised.count(Rule::R52, manifest_text::compiles(&text));
        exercised.count(Rule::R52, manifest_text::compiles(&text.replace('=', "")));
    }
}

#[test]
fn every_rule_grants_and_refuses() {
    let sequence = ALL.iter().find(|target| target.name == "sequence").unwrap();
    let mut exercised = counted(|| {
        ALL.iter().for_each(replay);
        sequences().for_each(|bytes| (sequence.run)(&bytes));
    });
    assert!(MANIFEST.iter().all(|rule| !exercised.granted.contains_key(rule)));
    judge_manifests(&mut exercised);
    let count = |counts: &BTreeMap<Rule, u64>, rule: &Rule| counts.get(rule).copied().unwrap_or(0);
    let mut missing = Vec::new();
    println!("rule   granted   refused");
    for rule in Rule::ALL {
        let granted = count(&exercised.granted, rule);
        let refused = count(&exercised.refused, rule);
        println!("{}  {granted:9} {refused:9}", rule.name());
        if granted == 0 || refused == 0 && !NEVER_REFUSED.contains(rule) {
            missing.push(rule.name());
        }
    }
    assert!(missing.is_empty(), "never granted or never refused: {missing:?}");
}
