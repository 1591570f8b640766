//! The constraints that a manifest must meet, by the numbers that `docs/manifest.md` lists.

use pfnguard_shared::Rule;

macro_rules! constraints {
    ($( $variant:ident = $number:literal $rule:ident $broken:literal; )*) => {
        /// A constraint on a manifest.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Constraint { $( #[doc = concat!("M", $number, ": ", $broken)] $variant, )* }

        impl Constraint {
            /// Every constraint.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )*];

            /// Returns the number that the compiler of manifests uses too (`M08`).
            pub const fn id(self) -> &'static str {
                match self { $( Self::$variant => concat!("M", $number), )* }
            }

            /// Returns the rule that the constraint serves.
            pub const fn rule(self) -> Rule {
                match self { $( Self::$variant => Rule::$rule, )* }
            }

            /// Returns what is wrong where it does not hold.
            pub const fn broken(self) -> &'static str {
                match self { $( Self::$variant => $broken, )* }
            }
        }
    };
}

constraints! {
    Magic = "01" R50 "the magic number is not that of a manifest";
    Version = "02" R50 "the version is not 1";
    Length = "03" R50 "the length is not that of the header and its entries";
    Checksum = "04" R50 "the SHA-256 does not match";
    EntryCount = "05" R50 "there are more than 128 entries";
    HeaderReserved = "06" R50 "unknown platform flags or reserved header bytes are set";
    Sorted = "07" R50 "the base lies below that of the entry before";
    Overlap = "08" R50 "it overlaps the entry before";
    Ram = "09" R15 "it overlaps RAM";
    Name = "10" R50 "the name is empty or garbled";
    NameUnique = "11" R50 "the name occurs twice";
    BaseAligned = "12" R50 "the base is not page aligned";
    Size = "13" R50 "the size is zero or not page aligned";
    AddressSpace = "14" R50 "it ends past the physical address space";
    Class = "15" R50 "the class is unknown";
    UnknownBits = "16" R50 "unknown flag bits or reserved bytes are set";
    NothingGranted = "17" R02 "something is granted, but no mode";
    DevicePresent = "18" R03 "device is not granted";
    ReadFirst = "19" R02 "write or execute granted without read";
    SomePermission = "20" R02 "modes granted but no permission";
    ExecCacheable = "21" R11 "execute granted but cacheable is not";
    CacheableMemory = "22" R06 "cacheable granted but class is mmio";
    NcSafe = "23" R04 "any-uncached granted but nothing says that it is safe";
    NormalNcForbidden = "24" R04 "any-uncached granted but the platform forbids normal-nc";
    Holders = "25" R02 "max_vms is not 1 to 8";
    DonateOnly = "26" R02 "donate only, but max_vms is not 1";
    PageBlock = "27" R02 "the block sizes lack 4K";
    TagsMemory = "28" R20 "tags promised but class is mmio";
    AtomicsMemory = "29" R22 "exclusives or atomics promised but class is mmio";
    ZeroMemory = "30" R40 "zero-on-return but class is mmio";
    CmoMemory = "31" R08 "maintenance by address promised but class is mmio";
    QuirkReason = "32" R43 "blocked without a reason, or a reason without being blocked";
    ResetKind = "33" R41 "the reset kind is unknown";
    ResetWidth = "34" R41 "the reset register is not 4 or 8 bytes wide";
    ResetAligned = "35" R41 "the reset register is not aligned";
    ResetInside = "36" R41 "the reset register lies in no mmio entry";
    ResetUnused = "37" R41 "the reset gives more than its kind reads";
    PollMask = "38" R42 "the poll mask is zero or wider than the register";
    PollValue = "39" R42 "the poll value has bits outside its mask";
    PollBound = "40" R42 "the poll bound is not 1 to 1000000 reads";
    StreamCount = "41" R45 "more than 4 streams, or an unused slot is set";
    StreamUnique = "42" R45 "a stream occurs twice";
    CacheableReturn = "43" R40 "cacheable granted, but neither maintenance nor an external reset cleans it";
    ClosedGrants = "45" R45 "it is closed to the host, but modes are granted";
    Hypervisor = "44" R50 "it overlaps the hypervisor's memory";
}
