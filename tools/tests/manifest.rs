//! The manifest compiler's claims: every constraint is enforced, with the place and the rule.

#[path = "manifest/binary.rs"]
mod binary;
#[path = "manifest/derive.rs"]
mod derive;
#[path = "manifest/docs.rs"]
mod docs;
#[path = "manifest/text.rs"]
mod text;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pfnguard_tools::manifest::{Constraint, compile, parse_binary};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn worked(name: &str) -> String {
    let path = repository().join("tools/manifests").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_worked_manifest_compiles_and_reads_back() {
    let directory = repository().join("tools/manifests");
    let names = fs::read_dir(directory).expect("the worked manifests are part of the repository");
    let mut seen = 0;
    for file in names {
        let name = file.expect("readable").file_name().into_string().expect("an ASCII name");
        let binary = compile(&name, &worked(&name)).unwrap_or_else(|e| panic!("{e:?}"));
        let (_, entries) = parse_binary(&binary).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!entries.is_empty(), "{name}");
        seen += 1;
    }
    assert!(seen >= 5);
}

#[test]
fn the_whole_virt_machine_grants_what_the_grants_file_grants() {
    let [whole, grants] = ["qemu-virt.toml", "qemu-virt-demo.grants.toml"].map(|name| {
        let binary = compile(name, &worked(name)).unwrap_or_else(|e| panic!("{e:?}"));
        parse_binary(&binary).expect("just compiled").1
    });
    let granted: Vec<_> = whole.into_iter().filter(|entry| entry.modes != 0).collect();
    assert_eq!(granted, grants);
}

#[test]
fn every_constraint_has_a_bad_manifest() {
    let tested: BTreeSet<Constraint> = text::cases()
        .into_iter()
        .map(|case| case.constraint)
        .chain(binary::cases().into_iter().map(|case| case.constraint))
        .chain(text::TESTED_APART)
        .chain(binary::TESTED_APART)
        .chain(derive::TESTED_APART)
        .collect();
    let missing: Vec<_> = Constraint::ALL.iter().filter(|c| !tested.contains(c)).collect();
    assert_eq!(missing, Vec::<&Constraint>::new());
}
