//! Binary manifests: the compiler's reader and the hypervisor's are written independently, and
//! must accept the same bytes and name the same constraint.

use pfnguard_core::manifest::Manifest;
use pfnguard_shared::manifest::{Entry, Header, MAGIC, SHA256_OFFSET, VERSION};
use pfnguard_tools::manifest::parse_binary;
use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

/// The first byte says whether the container is made good around the rest. A fuzzer does not find
/// a SHA-256.
///
/// # Panics
/// Where the readers disagree.
pub fn run(data: &[u8]) {
    if let Some(bytes) = whole(data) {
        judge(&bytes);
    }
}

/// Returns whether the hypervisor accepts an input.
pub fn accepted(data: &[u8]) -> bool {
    whole(data).is_some_and(|bytes| Manifest::parse(&bytes, &[], &[]).is_ok())
}

fn whole(data: &[u8]) -> Option<Vec<u8>> {
    let (mode, rest) = data.split_first()?;
    Some(if mode % 2 == 0 { in_container(rest) } else { rest.to_vec() })
}

/// Judges bytes with both readers.
///
/// # Panics
/// Where they disagree.
pub fn judge(bytes: &[u8]) {
    let compiler = parse_binary(bytes);
    let hypervisor = Manifest::parse(bytes, &[], &[]);
    match (&compiler, &hypervisor) {
        (Ok((_, entries)), Ok(manifest)) => assert_eq!(entries.len(), manifest.entries.len()),
        (Err(refusal), Err(error)) => {
            let named: Vec<_> = refusal.violations.iter().map(|v| v.constraint.id()).collect();
            assert!(named.contains(&error.constraint.id()), "{named:?}, hypervisor: {error}");
        }
        (Ok(_), Err(error)) => panic!("only the hypervisor refuses: {error}"),
        (Err(refusal), Ok(_)) => panic!("only the compiler refuses: {refusal}"),
    }
}

/// Four bytes of platform flags, then entries; a cut last one is left out.
fn in_container(rest: &[u8]) -> Vec<u8> {
    let (flags, entries) = rest.split_at(rest.len().min(size_of::<u32>()));
    let mut word = [0; 4];
    word[..flags.len()].copy_from_slice(flags);
    let (entries, _cut) = entries.split_at(entries.len() - entries.len() % size_of::<Entry>());
    let mut header = Header::zeroed();
    header.magic = MAGIC;
    header.version = VERSION;
    header.flags = u32::from_le_bytes(word);
    let count = entries.len() / size_of::<Entry>();
    header.entries = u32::try_from(count).unwrap_or(u32::MAX);
    let bytes = size_of::<Header>() + entries.len();
    header.length = u32::try_from(bytes).unwrap_or(u32::MAX);
    let sum = {
        let (before, rest) = header.as_bytes().split_at(SHA256_OFFSET);
        let after = &rest[header.sha256.len()..];
        Sha256::new().chain_update(before).chain_update(after).chain_update(entries).finalize()
    };
    header.sha256 = sum.into();
    [header.as_bytes(), entries].concat()
}
