//! Bad binaries: what no text can say, and every flipped bit.

use pfnguard_shared::manifest::{Entry, Header, SHA256_OFFSET};
use pfnguard_tools::manifest::{Constraint, compile, parse_binary};
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, IntoBytes};

/// Constraints with a test of their own in this file.
pub const TESTED_APART: [Constraint; 1] = [Constraint::Checksum];

/// A change to a good manifest that breaks one constraint.
pub struct Case {
    pub constraint: Constraint,
    change: fn(&mut Header, &mut Vec<Entry>),
}

const GOOD: &str = r#"
[platform]
name = "test"
normal_nc = "allowed"
[[region]]
name = "a"
base = 0x1000
size = "4K"
class = "mmio"
modes = ["share", "donate"]
types = ["device"]
perms = "rw"
max_vms = 2
reset = { kind = "poll", register = 0x1008, width = 8, mask = 3, value = 1, bound = 10 }
streams = [1, 2]
[[region]]
name = "b"
base = 0x2000
size = "8K"
class = "memory"
quirk = "broken"
"#;

/// Every case.
pub fn cases() -> Vec<Case> {
    use Constraint as C;
    let case = |constraint, change| Case { constraint, change };
    vec![
        case(C::Magic, |header, _| header.magic[7] = b'J'),
        case(C::Version, |header, _| header.version = 2),
        case(C::Length, |header, _| header.length += 8),
        case(C::EntryCount, |header, _| header.entries = 129),
        case(C::EntryCount, |header, _| header.entries = u32::MAX),
        case(C::HeaderReserved, |header, _| header.flags = 2),
        case(C::HeaderReserved, |header, _| header.reserved = 1),
        case(C::Sorted, |_, entries| entries.reverse()),
        case(C::Overlap, |_, entries| entries[0].size = 0x2000),
        case(C::Name, |_, entries| entries[0].name = [0; 32]),
        case(C::Name, |_, entries| entries[0].name[31] = b'x'),
        case(C::Name, |_, entries| entries[0].name[0] = 0xff),
        case(C::NameUnique, |_, entries| entries[0].name = entries[1].name),
        case(C::Size, |_, entries| entries[1].size = 0),
        case(C::AddressSpace, |_, entries| entries[1].size = 0xffff_ffff_ffff_f000),
        case(C::Class, |_, entries| entries[1].class = 0),
        case(C::UnknownBits, |_, entries| entries[1].flags |= 1 << 8),
        case(C::UnknownBits, |_, entries| entries[0].modes |= 1 << 2),
        case(C::UnknownBits, |_, entries| entries[0].types |= 1 << 3),
        case(C::UnknownBits, |_, entries| entries[0].perms |= 1 << 3),
        case(C::UnknownBits, |_, entries| entries[0].blocks |= 1 << 3),
        case(C::UnknownBits, |_, entries| entries[0].reserved[2] = 1),
        case(C::UnknownBits, |_, entries| entries[0].reserved2 = 1),
        case(C::QuirkReason, |_, entries| entries[0].quirk[0] = b'x'),
        case(C::QuirkReason, |_, entries| entries[1].quirk = [0; 32]),
        case(C::ResetKind, |_, entries| entries[1].reset = 4),
        case(C::ResetUnused, |_, entries| entries[1].reset_width = 4),
        case(C::ResetInside, |_, entries| entries[0].reset_addr = u64::MAX - 7),
        case(C::PollValue, |_, entries| entries[0].reset_value = 4),
        case(C::StreamCount, |_, entries| entries[0].stream_count = 5),
        case(C::StreamCount, |_, entries| entries[0].streams[3] = 5),
        case(C::StreamUnique, |_, entries| entries[0].streams[1] = 1),
    ]
}

fn good() -> Vec<u8> {
    compile("good.toml", GOOD).unwrap_or_else(|report| panic!("{report:?}"))
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let hash = Sha256::new()
        .chain_update(&bytes[..SHA256_OFFSET])
        .chain_update(&bytes[SHA256_OFFSET + 32..])
        .finalize();
    bytes[SHA256_OFFSET..SHA256_OFFSET + 32].copy_from_slice(&hash);
    bytes
}

#[test]
fn every_constraint_of_the_binary_is_refused_first() {
    for (number, case) in cases().into_iter().enumerate() {
        let (mut header, mut entries) = parse_binary(&good()).expect("just compiled");
        (case.change)(&mut header, &mut entries);
        let bytes = seal([header.as_bytes(), entries.as_bytes()].concat());
        let refusal = parse_binary(&bytes).expect_err("one constraint is broken");
        assert_eq!(refusal.violations[0].constraint, case.constraint, "{number}: {refusal}");
        assert!(refusal.to_string().contains(case.constraint.rule().name()));
    }
}

#[test]
fn a_wrong_checksum_is_refused_as_such() {
    let mut bytes = good();
    bytes[SHA256_OFFSET] ^= 1;
    let refusal = parse_binary(&bytes).expect_err("the checksum is wrong");
    assert_eq!(refusal.violations[0].constraint, Constraint::Checksum);
}

#[test]
fn every_flipped_bit_is_refused() {
    let good = good();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(parse_binary(&bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn no_flipped_bit_under_a_new_seal_makes_the_checker_panic() {
    let good = good();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = parse_binary(&seal(bytes)).map_err(|refusal| refusal.to_string());
    }
}

#[test]
fn the_binary_has_the_layout_of_the_abi_and_is_sorted() {
    let swapped = GOOD.replace("0x1000", "0x9000").replace("0x1008", "0x9008");
    let bytes = compile("swapped.toml", &swapped).unwrap_or_else(|report| panic!("{report:?}"));
    assert_eq!(bytes.len(), size_of::<Header>() + 2 * size_of::<Entry>());
    let (header, body) = Header::read_from_prefix(&bytes).expect("long enough");
    assert_eq!((header.version, header.entries, header.flags), (1, 2, 0));
    let (first, _) = Entry::read_from_prefix(body).expect("long enough");
    assert_eq!((first.base, first.size, first.max_vms), (0x2000, 0x2000, 0));
    assert_eq!(first.name[..2], *b"b\0");
    assert_eq!(first.quirk[..7], *b"broken\0");
}
