//! Rule ids: the numbers that code, tests, trace records and refusals share.

numbers! {
    /// A rule of the specification of PFNMAP memory types. The number is the decimal of its id.
    pub enum Rule: u16 {
        /// Default deny: no PFN outside the manifest is bound.
        R01 = 1,
        /// A request stays within modes, types, permissions, holders and block sizes of its entry.
        R02 = 2,
        /// Device is what a region gets if it grants nothing more.
        R03 = 3,
        /// AnyUncached only where no action through the mapping can cause an uncontained failure.
        R04 = 4,
        /// AnyUncached never means cacheable.
        R05 = 5,
        /// Cacheable only for device memory with a cacheable grant, never for MMIO.
        R06 = 6,
        /// Cacheable needs FEAT_S2FWB and CTR_EL0.DIC.
        R07 = 7,
        /// Without FWB or DIC, cacheable is for donated regions that maintenance by address reaches.
        R08 = 8,
        /// No fallback to a weaker type, ever.
        R09 = 9,
        /// No mismatched aliases between the host and a guest, or between guests.
        R10 = 10,
        /// No execution from uncached memory; execution from cacheable memory needs a grant.
        R11 = 11,
        /// Copy-on-write PFNMAP is refused.
        R12 = 12,
        /// Dirty logging on PFNMAP is refused.
        R13 = 13,
        /// One request, one entry: a range that straddles is refused whole.
        R14 = 14,
        /// RAM is not PFNMAP.
        R15 = 15,
        /// A VM with MTE gets cacheable PFNMAP only with tag storage or NoTagAccess.
        R20 = 20,
        /// MTE cannot be switched on after the first bind.
        R21 = 21,
        /// General-purpose use needs exclusives, atomics and, with MTE, tags.
        R22 = 22,
        /// A guest can ask what it was promised.
        R23 = 23,
        /// Everything is decided at bind, and checked again at map.
        R30 = 30,
        /// Abilities, grants and contracts can be enumerated.
        R31 = 31,
        /// CHECK gives the same decision and changes nothing.
        R32 = 32,
        /// A VM's requirements are exported and checked before it migrates.
        R33 = 33,
        /// Refusals are explained in registers and trace.
        R34 = 34,
        /// A batch or a range is all or nothing.
        R35 = 35,
        /// Order of letting go: unmap, invalidate, maintain, reset, and only then the next owner.
        R40 = 40,
        /// Quarantine until the reset contract is satisfied.
        R41 = 41,
        /// A reset that fails within its bound quarantines for good.
        R42 = 42,
        /// A quirked entry is blocked, with the reason shown.
        R43 = 43,
        /// Protected VM memory is zeroed and cleaned before the host gets it back.
        R44 = 44,
        /// A region with streams is donated only while they are translated or blocked.
        R45 = 45,
        /// The manifest is checked whole before the host loses EL2.
        R50 = 50,
        /// The manifest is sealed at launch; its SHA-256 can be read.
        R51 = 51,
        /// The manifest can be written by a person and derived from a device tree.
        R52 = 52,
    }
}

impl Rule {
    /// Returns the rule in one sentence, as refusals show it.
    pub fn summary(self) -> &'static str {
        let doc = Self::CONSTANTS.iter().find(|c| c.name == self.name()).map(|c| c.docs);
        match doc {
            Some([line, ..]) => line.trim(),
            Some([]) | None => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_number_is_the_decimal_of_its_name() {
        for rule in Rule::ALL {
            let digits = rule.name().strip_prefix('R').and_then(|d| d.parse::<u16>().ok());
            assert_eq!(digits, Some(rule.raw()));
            assert!(!rule.summary().is_empty());
        }
        let last = "The manifest can be written by a person and derived from a device tree.";
        assert_eq!(Rule::R52.summary(), last);
    }
}
