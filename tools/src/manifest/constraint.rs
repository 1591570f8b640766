//! The constraints that a manifest must meet: one number each, with its rule and its cure.
//!
//! `docs/manifest.md` lists the same table; a test keeps both equal.

use std::fmt;

use pfnguard_shared::Rule;

macro_rules! constraints {
    ($( $variant:ident = $number:literal $rule:ident $statement:literal, $hint:literal; )*) => {
        /// A constraint on a manifest.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Constraint { $( #[doc = $statement] $variant, )* }

        impl Constraint {
            /// Every constraint, in the order of its number.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )*];

            /// Returns the constraint's number, as errors show it (`M08`).
            pub const fn id(self) -> &'static str {
                match self { $( Self::$variant => concat!("M", $number), )* }
            }

            /// Returns the rule that the constraint serves.
            pub const fn rule(self) -> Rule {
                match self { $( Self::$variant => Rule::$rule, )* }
            }

            /// Returns what must hold, in one sentence.
            pub const fn statement(self) -> &'static str {
                match self { $( Self::$variant => $statement, )* }
            }

            /// Returns what to do about a manifest that does not meet it.
            pub const fn hint(self) -> &'static str {
                match self { $( Self::$variant => $hint, )* }
            }
        }
    };
}

constraints! {
    // The file.
    Magic = "01" R50 "The binary starts with the eight bytes `PFNGMANI`.",
        "this is not a compiled manifest: compile the text with `tools manifest compile`";
    Version = "02" R50 "The version is 1.",
        "compile the text again with the compiler that belongs to this hypervisor";
    Length = "03" R50 "The length is that of the header and its entries, and equals the file's.",
        "the file was cut or padded: copy it again, or compile the text again";
    Checksum = "04" R50 "The SHA-256 of all bytes but itself is the one in the header.",
        "the file was changed after it was compiled: compile the text again";
    EntryCount = "05" R50 "There are at most 128 entries.",
        "leave out regions that nobody is to get: an unlisted page is refused anyway (R01)";
    HeaderReserved = "06" R50 "Unknown platform flags and reserved header bytes are zero.",
        "compile the text again with the compiler that belongs to this hypervisor";
    Sorted = "07" R50 "Entries are sorted by base.",
        "compile the text again: the compiler sorts";
    Overlap = "08" R50 "Entries do not overlap.",
        "give every page to one region: shrink one of the two, or merge them";
    Ram = "09" R15 "No entry overlaps RAM.",
        "RAM is never PFNMAP memory: remove the region, or correct its base and size";
    // Identity and place.
    Name = "10" R50 "The name is UTF-8 of 1 to 32 bytes, without control characters.",
        "choose a short name, such as `gpu-hbm` or `edu-bar0`";
    NameUnique = "11" R50 "Names are unique.",
        "logs and tables show regions by name: rename one of the two";
    BaseAligned = "12" R50 "The base is a multiple of 4 KiB.",
        "stage 2 maps whole pages: start at a page, and mind what else lies in that page";
    Size = "13" R50 "The size is a multiple of 4 KiB and not zero.",
        "stage 2 maps whole pages: round up, and mind what else lies in the last page";
    AddressSpace = "14" R50 "The region ends at or below 2^52.",
        "no Arm CPU has more than 52 bits of physical address: correct base or size";
    Class = "15" R50 "The class is `mmio` or `memory`.",
        "use `mmio` where reads have side effects, `memory` where speculative reads are harmless";
    UnknownBits = "16" R50 "Unknown flag bits and reserved bytes are zero.",
        "compile the text again with the compiler that belongs to this hypervisor";
    // Grants.
    NothingGranted = "17" R02 "An entry without modes grants no types, no permissions, no VMs.",
        "add `modes`, or remove `types`, `perms` and `max_vms`";
    DevicePresent = "18" R03 "An entry with modes grants `device`.",
        "add \"device\" to `types`: it is the floor of every grant";
    ReadFirst = "19" R02 "Write and execute permission come with read permission.",
        "add `r` to `perms`";
    SomePermission = "20" R02 "An entry with modes grants at least read permission.",
        "add `perms = \"r\"` or more";
    ExecCacheable = "21" R11 "Execute permission needs a `cacheable` grant.",
        "nothing executes from uncached memory: drop `x`, or grant `cacheable` if it is memory";
    CacheableMemory = "22" R06 "`cacheable` needs class `memory`.",
        "registers are never cacheable: drop \"cacheable\", or set class = \"memory\" if speculative \
         reads of every byte are harmless";
    NcSafe = "23" R04 "`any-uncached` needs `nc_safe = true`.",
        "set `nc_safe = true` only if no access through a Normal-NC mapping can hang or fault the \
         machine; otherwise drop \"any-uncached\"";
    NormalNcForbidden = "24" R04 "`any-uncached` needs a platform with normal_nc = \"allowed\".",
        "impossible grant: the platform forbids Normal-NC everywhere; drop \"any-uncached\"";
    Holders = "25" R02 "An entry with modes lets 1 to 8 VMs hold it.",
        "set `max_vms` to a number from 1 to 8";
    DonateOnly = "26" R02 "An entry that can only be donated is held by 1 VM.",
        "one owner at a time: set `max_vms = 1`, or add \"share\" to `modes`";
    PageBlock = "27" R02 "The block sizes contain `4K`.",
        "add \"4K\" to `blocks`: larger blocks only come on top";
    // Properties.
    TagsMemory = "28" R20 "`tags` needs class `memory`.",
        "registers have no tag storage: remove `tags`";
    AtomicsMemory = "29" R22 "`exclusives` and `atomics` need class `memory`.",
        "do not promise exclusives or atomics on registers: remove the flag";
    ZeroMemory = "30" R40 "`zero_on_return` needs class `memory`.",
        "zeroing registers has side effects: remove `zero_on_return` and use `reset`";
    CmoMemory = "31" R08 "`cmo_by_address` needs class `memory`.",
        "cache maintenance on registers can hang the core: remove `cmo_by_address`";
    QuirkReason = "32" R43 "A blocked entry has a reason of 1 to 32 bytes; an entry that is not has none.",
        "write `quirk = \"reason\"`, at most 32 bytes";
    // Reset.
    ResetKind = "33" R41 "The reset is `none`, `readback`, `poll` or `external`.",
        "see `reset` in docs/manifest.md";
    ResetWidth = "34" R41 "A reset register is 4 or 8 bytes wide.",
        "set `width = 4` or `width = 8`";
    ResetAligned = "35" R41 "A reset register is aligned to its width.",
        "correct `register` or `width`";
    ResetInside = "36" R41 "A reset register lies in an entry of class `mmio` of this manifest.",
        "list the page of the register as a region of class \"mmio\" (it needs no grants)";
    ResetUnused = "37" R41 "A reset gives no more than its kind reads.",
        "`readback` takes register and width; `poll` also mask, value and bound; `none` and \
         `external` take nothing";
    PollMask = "38" R42 "The mask of a `poll` is not zero and fits the register.",
        "set the bits that tell that the reset is done; a 4-byte register has 32";
    PollValue = "39" R42 "The value of a `poll` lies within its mask.",
        "no read can ever match: set `value` to bits of `mask`";
    PollBound = "40" R42 "The bound of a `poll` is 1 to 1000000 reads.",
        "the hypervisor waits for no device for ever: choose a bound in range";
    // DMA.
    StreamCount = "41" R45 "An entry has at most 4 streams; unused slots are zero.",
        "split the region, one part per function of the device";
    StreamUnique = "42" R45 "A stream occurs once in an entry.",
        "list each stream of the device once; every region of the device lists them";
    // Letting go of it.
    CacheableReturn = "43" R40 "`cacheable` needs `cmo_by_address = true` or an `external` reset.",
        "set `cmo_by_address = true` if maintenance by address reaches the memory, or have the \
         driver's reset clean the caches; otherwise one VM's lines could reach the next";
    ClosedGrants = "45" R45 "A `closed` entry grants nothing.",
        "what the host must not touch, because its registers make a device write anywhere, no VM may";
    // Text only.
    Syntax = "50" R52 "The text is TOML 1.0 in UTF-8.",
        "see the example in docs/manifest.md";
    UnknownField = "51" R50 "Every field is known.",
        "correct the spelling, or remove the field; docs/manifest.md lists all";
    MissingField = "52" R52 "Required fields are present.",
        "add the field; docs/manifest.md has examples";
    BadValue = "53" R52 "A value has its field's type and is one of its field's words.",
        "docs/manifest.md lists the type and the words of every field";
    Repeated = "54" R52 "A word occurs once in a list.",
        "remove the repetition";
    // Derivation only.
    DeviceTree = "60" R52 "The device tree can be read.",
        "dump it again: qemu-system-aarch64 -M virt,…,dumpdtb=FILE -nic none, or /sys/firmware/fdt";
    GrantBlocked = "61" R43 "A grant does not touch what the platform itself needs.",
        "interrupt controllers, IOMMUs, timers and the console are never assigned: remove the region";
    GrantPlace = "62" R01 "A grant lies in a PCI window, or is exactly one derived device.",
        "the device tree knows nothing here: check the address, or write a whole manifest and compile it";
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.id(), self.rule().name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraint_numbers_ascend() {
        assert!(Constraint::ALL.windows(2).all(|pair| pair[0].id() < pair[1].id()));
    }
}
