//! The ABI against its golden text: numbers are never reused, layouts never move.
//!
//! `abi.golden` changes by hand, in the commit that changes the ABI: a line may be added; from
//! version 1.0 on, none may be changed or removed.

use std::collections::BTreeSet;

use pfnguard_tools::abi::{self, Kind};

const GOLDEN: &str = include_str!("abi.golden");

#[test]
fn every_number_and_every_layout_is_the_golden_one() {
    let now = abi::golden();
    let (then, is): (BTreeSet<&str>, BTreeSet<&str>) =
        (GOLDEN.lines().collect(), now.lines().collect());
    let gone: Vec<_> = then.difference(&is).collect();
    let new: Vec<_> = is.difference(&then).collect();
    assert!(gone.is_empty(), "of the golden ABI, these are gone: {gone:#?}\nand new are: {new:#?}");
    assert!(new.is_empty(), "add these lines to tests/tests/abi.golden: {new:#?}");
}

#[test]
fn no_number_means_two_things() {
    for group in abi::GROUPS {
        let values: BTreeSet<i64> = group.constants.iter().map(|c| c.value).collect();
        assert_eq!(values.len(), group.constants.len(), "in {}", group.name);
    }
}

#[test]
fn every_bit_is_one_bit() {
    for group in abi::GROUPS.iter().filter(|group| group.kind == Kind::Bits) {
        for constant in group.constants {
            assert_eq!(constant.value.count_ones(), 1, "{}::{}", group.name, constant.name);
        }
    }
}

#[test]
fn structures_have_no_holes_and_aligned_fields() {
    for layout in abi::layouts() {
        let mut end = 0;
        for field in layout.fields {
            assert_eq!(field.offset, end, "hole before {}.{}", layout.name, field.name);
            let element = element_size(field.rust_type);
            assert_eq!(field.offset % element, 0, "{}.{} is misaligned", layout.name, field.name);
            end += field.size;
        }
        assert_eq!(end, layout.size, "hole at the end of {}", layout.name);
        assert_eq!(layout.size % 8, 0, "{} does not keep arrays aligned", layout.name);
    }
}

/// Returns the size in bytes of the integers that a field is made of; structures begin at eight.
fn element_size(rust_type: &str) -> usize {
    let element = rust_type.trim_start_matches('[').split(';').next().unwrap_or_default();
    match element.trim() {
        "u8" => 1,
        "u16" => 2,
        "u32" | "i32" => 4,
        "u64" => 8,
        structure if abi::layouts().iter().any(|layout| layout.name == structure) => 8,
        other => panic!("`{other}` is no type of the wire"),
    }
}
