//! The whole ABI as data: what the C header and the layout tests are made from.

use pfnguard_shared::device::{
    self, BindArgs, CheckArgs, GuestArgs, InfoArgs, Ioctl, RamArgs, RegionArgs, TablesArgs, VmArgs,
};
use pfnguard_shared::info::{Capabilities, InfoSelector, RegionInfo, RegionState};
use pfnguard_shared::launch::{self, ImageHeader, LaunchAnswer, LaunchInfo, LaunchStep};
use pfnguard_shared::manifest::{
    self, BlockSizes, PlatformFlags, RegionClass, RegionFlags, ResetKind,
};
use pfnguard_shared::migration::{self, MigrationHeader, MigrationItem};
use pfnguard_shared::request::{self, HostAlias, MemTypes, Modes, RequestFlags};
use pfnguard_shared::trace::{RingHeader, TraceKind, TraceRecord};
use pfnguard_shared::vm::{ContractFlags, ExitReason, MmioAccess, PageState, Promise, VmState};
use pfnguard_shared::{
    Constant, Field, GuestFunction, HostFunction, MemType, Mode, Perms, Rule, Status, Subject,
    Wire, call,
};

/// A set of named numbers or bits.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Rust name of the type.
    pub name: &'static str,
    /// Prefix of the C names, after `PFNGUARD_`.
    pub prefix: &'static str,
    /// What the numbers are, in a few words.
    pub title: &'static str,
    /// Whether they are numbers or bits.
    pub kind: Kind,
    /// The numbers.
    pub constants: &'static [Constant],
}

/// How the numbers of a group are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Function ids, in hexadecimal.
    Functions,
    /// Alternatives, in decimal.
    Numbers,
    /// Bits of a set.
    Bits,
}

/// A structure.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Rust name.
    pub name: &'static str,
    /// Bytes.
    pub size: usize,
    /// What it is, one line per string.
    pub docs: &'static [&'static str],
    /// Fields in memory order.
    pub fields: &'static [Field],
}

/// A single number.
#[derive(Clone, Copy, Debug)]
pub struct Single {
    /// C name, after `PFNGUARD_`.
    pub name: &'static str,
    /// Its value.
    pub value: Value,
    /// What it is.
    pub doc: &'static str,
}

/// How a single number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// In decimal.
    Decimal(u64),
    /// 32 bits, in hexadecimal.
    Word(u32),
    /// 64 bits, in hexadecimal.
    Double(u64),
}

/// Builds one row of [`GROUPS`].
macro_rules! group {
    ($type:ident, $kind:ident, $prefix:literal, $title:literal) => {
        Group {
            name: stringify!($type),
            prefix: $prefix,
            title: $title,
            kind: Kind::$kind,
            constants: $type::CONSTANTS,
        }
    };
}

/// Every set of numbers, in the order of the header.
pub const GROUPS: &[Group] = &[
    group!(HostFunction, Functions, "FN", "calls of the host kernel"),
    group!(GuestFunction, Functions, "GUEST_FN", "calls of a guest"),
    group!(Ioctl, Functions, "IOCTL", "calls of /dev/pfnguard"),
    group!(Status, Numbers, "STATUS", "status in x0"),
    group!(Subject, Numbers, "SUBJECT", "what the two values of a refusal are"),
    group!(Rule, Numbers, "RULE", "rule that refused"),
    group!(InfoSelector, Numbers, "INFO", "x1 of the INFO call"),
    group!(Capabilities, Bits, "CAP", "abilities of CPUs and platform"),
    group!(Mode, Numbers, "MODE", "who keeps access"),
    group!(Modes, Bits, "MODES", "a set of modes"),
    group!(MemType, Numbers, "TYPE", "memory type"),
    group!(MemTypes, Bits, "TYPES", "a set of memory types"),
    group!(Perms, Bits, "PERM", "permissions of a guest"),
    group!(HostAlias, Numbers, "ALIAS", "the host's own mapping of a request's pages"),
    group!(RequestFlags, Bits, "REQUEST", "properties of a request"),
    group!(ContractFlags, Bits, "CONTRACT", "contract of a VM"),
    group!(VmState, Numbers, "VM", "life of a VM"),
    group!(ExitReason, Numbers, "EXIT", "why VCPU_RUN returned"),
    group!(MmioAccess, Bits, "MMIO", "low bits of x3 of an MMIO exit"),
    group!(PageState, Numbers, "PAGE", "state of a RAM frame"),
    group!(Promise, Bits, "PROMISE", "bits 31:16 of x1 of QUERY"),
    group!(RegionState, Numbers, "REGION", "life of a region"),
    group!(PlatformFlags, Bits, "PLATFORM", "facts about the platform"),
    group!(RegionClass, Numbers, "CLASS", "what lies behind a region's pages"),
    group!(BlockSizes, Bits, "SIZES", "stage-2 block sizes"),
    group!(RegionFlags, Bits, "ENTRY", "properties of a manifest entry"),
    group!(ResetKind, Numbers, "RESET", "reset contract of a region"),
    group!(TraceKind, Numbers, "TRACE", "kind of a trace record"),
    group!(LaunchStep, Numbers, "LAUNCH", "what an entry of the image is for"),
    group!(LaunchAnswer, Numbers, "LAUNCHED", "what it answers"),
];

/// Describes one wire structure.
fn layout<T: Wire>() -> Layout {
    Layout { name: T::NAME, size: T::SIZE, docs: T::DOCS, fields: T::FIELDS }
}

/// Returns every structure, in the order of the header.
pub fn layouts() -> Vec<Layout> {
    vec![
        layout::<request::Request>(),
        layout::<request::Decision>(),
        layout::<RegionInfo>(),
        layout::<InfoArgs>(),
        layout::<RegionArgs>(),
        layout::<VmArgs>(),
        layout::<TablesArgs>(),
        layout::<RamArgs>(),
        layout::<BindArgs>(),
        layout::<CheckArgs>(),
        layout::<GuestArgs>(),
        layout::<manifest::Header>(),
        layout::<manifest::Entry>(),
        layout::<MigrationHeader>(),
        layout::<MigrationItem>(),
        layout::<RingHeader>(),
        layout::<TraceRecord>(),
        layout::<ImageHeader>(),
        layout::<LaunchInfo>(),
    ]
}

/// Returns every single number, in the order of the header.
pub fn singles() -> Vec<Single> {
    let mut singles = identity();
    singles.extend(limits());
    singles
}

fn identity() -> Vec<Single> {
    use pfnguard_shared::{ABI_MAJOR, ABI_MINOR, NO_PFN};
    let single = |name, value, doc| Single { name, value, doc };
    let [host0, host1, host2, host3] = call::HOST_UID;
    let [guest0, guest1, guest2, guest3] = call::GUEST_UID;
    vec![
        single("ABI_MAJOR", Value::Decimal(ABI_MAJOR.into()), "ABI version, major half"),
        single("ABI_MINOR", Value::Decimal(ABI_MINOR.into()), "ABI version, minor half"),
        single("HOST_UID_0", Value::Word(host0), "x0 of the host's UID call"),
        single("HOST_UID_1", Value::Word(host1), "x1 of the host's UID call"),
        single("HOST_UID_2", Value::Word(host2), "x2 of the host's UID call"),
        single("HOST_UID_3", Value::Word(host3), "x3 of the host's UID call"),
        single("GUEST_UID_0", Value::Word(guest0), "x0 of a guest's UID call"),
        single("GUEST_UID_1", Value::Word(guest1), "x1 of a guest's UID call"),
        single("GUEST_UID_2", Value::Word(guest2), "x2 of a guest's UID call"),
        single("GUEST_UID_3", Value::Word(guest3), "x3 of a guest's UID call"),
        single("NO_PFN", Value::Double(NO_PFN), "x2 of a refusal that no single page caused"),
        single(
            "MANIFEST_MAGIC",
            Value::Double(u64::from_le_bytes(manifest::MAGIC)),
            "First eight bytes of a manifest, little-endian: PFNGMANI",
        ),
        single("MANIFEST_VERSION", Value::Decimal(manifest::VERSION.into()), "Manifest version"),
        single(
            "MIGRATION_MAGIC",
            Value::Double(u64::from_le_bytes(migration::MAGIC)),
            "First eight bytes of a migration descriptor, little-endian: PFNGMIGR",
        ),
        single(
            "MIGRATION_VERSION",
            Value::Decimal(migration::VERSION.into()),
            "Migration descriptor version",
        ),
        single(
            "IMAGE_MAGIC",
            Value::Double(launch::IMAGE_MAGIC),
            "First eight bytes of struct pfnguard_image_header: PFNGUARD",
        ),
    ]
}

fn limits() -> Vec<Single> {
    use pfnguard_shared::{MAX_RANGE_PAGES, PAGE_SIZE};
    let single = |name, value, doc| Single { name, value: Value::Decimal(value), doc };
    let count = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    vec![
        single("PAGE_SIZE", count(PAGE_SIZE), "Bytes in a page"),
        single("MAX_RANGE_PAGES", MAX_RANGE_PAGES, "Most pages that one RAM call accepts"),
        single("MAX_CHECK_ITEMS", count(request::MAX_CHECK_ITEMS), "Most items of a CHECK batch"),
        single(
            "CHECK_DECISIONS_OFFSET",
            count(request::CHECK_DECISIONS_OFFSET),
            "Offset of the first decision in the argument page, in bytes",
        ),
        single(
            "IMAGE_HEADER_OFFSET",
            count(launch::IMAGE_HEADER_OFFSET),
            "Offset of struct pfnguard_image_header in the image, in bytes",
        ),
        single(
            "MAX_TABLES",
            device::MAX_TABLES.into(),
            "Most pages of table memory that one ioctl takes",
        ),
        single("MAX_ENTRIES", count(manifest::MAX_ENTRIES), "Most entries in a manifest"),
        single("MAX_STREAMS", count(manifest::MAX_STREAMS), "Most DMA streams of an entry"),
        single("MAX_HOLDERS", manifest::MAX_HOLDERS.into(), "Most VMs an entry may let hold it"),
        single("MAX_POLL_READS", manifest::MAX_POLL_READS.into(), "Greatest bound of a poll reset"),
        single(
            "MAX_MIGRATION_ITEMS",
            count(migration::MAX_ITEMS),
            "Most items of a migration descriptor",
        ),
    ]
}

/// Returns the whole ABI as text, one fact a line: what must never change its meaning.
pub fn golden() -> String {
    let mut lines = Vec::new();
    for group in GROUPS {
        let constants = group.constants.iter();
        lines.extend(constants.map(|c| format!("{}::{} = {:#x}", group.name, c.name, c.value)));
    }
    for Single { name, value, .. } in singles() {
        let number = match value {
            Value::Decimal(number) | Value::Double(number) => number,
            Value::Word(number) => number.into(),
        };
        lines.push(format!("{name} = {number:#x}"));
    }
    for layout in layouts() {
        lines.push(format!("struct {} size {}", layout.name, layout.size));
        let field = |f: &Field| {
            format!("{}.{} at {} size {} {}", layout.name, f.name, f.offset, f.size, f.rust_type)
        };
        lines.extend(layout.fields.iter().map(field));
    }
    lines.join("\n") + "\n"
}
