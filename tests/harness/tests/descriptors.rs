//! Leaf descriptors for all values: what hyp/arch writes and reads, beside what the walker, written
//! from the Arm ARM alone, makes of the same bits.

use pfnguard_arch::attrs::Encoding;
use pfnguard_core::addr::{Pfn, PfnRange};
use pfnguard_core::machine::{Stage2Attrs, Stage2Type, TagAccess};
use pfnguard_harness::machine::arch_encoding;
use pfnguard_harness::memory::Memory;
use pfnguard_harness::walker::{self, Attrs, Stage2, Type};
use pfnguard_shared::{MemType, Perms};

/// Where the table with the one leaf lies, and the frame that the leaf leads to.
const MEMORY: (u64, u64) = (0x1000, 3);
const FRAME: u64 = 0x4_2000;

const TYPES: [Stage2Type; 4] = [
    Stage2Type::AsStage1,
    Stage2Type::Forced(MemType::Device),
    Stage2Type::Forced(MemType::AnyUncached),
    Stage2Type::Forced(MemType::Cacheable),
];

/// Stage 2 with one page, page 0: three levels of tables, of which the last slot changes.
struct OneLeaf {
    memory: Memory,
    stage2: Stage2,
}

impl OneLeaf {
    fn new(encoding: walker::Encoding) -> Self {
        let memory = Memory::take(PfnRange::new(Pfn(MEMORY.0), MEMORY.1).unwrap());
        for level in 0..2 {
            let next = (MEMORY.0 + level + 1) << 12 | 0b11;
            memory.page_mut(MEMORY.0 + level, |page| page[0] = next);
        }
        // T0SZ of 39 bits, SL0 of level 1, PS of 48 bits.
        let vtcr = 25 | 0b01 << 6 | 0b101 << 16;
        Self { memory, stage2: Stage2 { vttbr: MEMORY.0 << 12, vtcr, encoding } }
    }

    /// Returns what the walker makes of the leaf; `None` where it refuses it.
    fn read(&self, leaf: u64) -> Option<Attrs> {
        self.memory.page_mut(MEMORY.0 + 2, |page| page[0] = leaf);
        let (pfn, attrs) = self.stage2.translate(&self.memory, 0).ok()??;
        assert_eq!(pfn, FRAME);
        Some(attrs)
    }
}

impl Drop for OneLeaf {
    fn drop(&mut self) {
        (0..MEMORY.1).for_each(|page| self.memory.clear(MEMORY.0 + page));
        self.memory.give_back();
    }
}

fn machines() -> impl Iterator<Item = (walker::Encoding, Encoding)> {
    [(false, false), (false, true), (true, false), (true, true)].into_iter().map(|both| {
        let encoding = walker::Encoding { fwb: both.0, mte_perm: both.1 };
        (encoding, arch_encoding(encoding))
    })
}

/// What the core asked for, as an access of the guest meets it.
fn meant(attrs: Stage2Attrs, fwb: bool) -> Attrs {
    let mem = match attrs.mem {
        Stage2Type::Forced(MemType::Device) => Type::Device,
        Stage2Type::Forced(MemType::AnyUncached) => Type::NormalNc,
        Stage2Type::AsStage1 if fwb => Type::AsStage1,
        // Without FWB write-back at stage 2 leaves stage 1 its say.
        Stage2Type::AsStage1 | Stage2Type::Forced(MemType::Cacheable) => Type::WriteBack,
    };
    let cacheable = matches!(mem, Type::WriteBack | Type::AsStage1);
    Attrs {
        mem,
        read: attrs.perms.contains(Perms::READ),
        write: attrs.perms.contains(Perms::WRITE),
        exec: attrs.perms.contains(Perms::EXEC),
        no_tags: cacheable && attrs.tags == TagAccess::Forbidden,
    }
}

#[test]
fn whatever_is_encoded_means_what_was_asked_for() {
    let mut encoded = 0;
    for (encoding, arch) in machines() {
        let tables = OneLeaf::new(encoding);
        for (mem, perms) in TYPES.into_iter().flat_map(|mem| (0..8).map(move |raw| (mem, raw))) {
            for tags in [TagAccess::Allowed, TagAccess::Forbidden] {
                let perms = Perms::from_raw(perms).unwrap();
                let attrs = Stage2Attrs { mem, perms, tags };
                let Ok(bits) = arch.encode(attrs) else { continue };
                // Bit 1 makes it a page.
                let leaf = u64::try_from(bits.bits()).unwrap() | FRAME << 12 | 0b10;
                assert_eq!(tables.read(leaf), Some(meant(attrs, encoding.fwb)), "{attrs:?}");
                encoded += 1;
            }
        }
    }
    // Two cacheable types with four permissions, two uncached ones with two, whatever the tags; and
    // the cacheable ones without tags, where FEAT_MTE_PERM and FWB are.
    assert_eq!(encoded, 4 * (2 * 4 + 2 * 2 * 2) + 2 * 4);
}

/// Every value of every attribute field, valid leaves or not: where the walker reads a leaf,
/// hyp/arch reads the same.
#[test]
fn both_read_every_leaf_alike() {
    // MemAttr, S2AP, SH, AF; then XN.
    let fields = (0..1u64 << 9).map(|low| low << 2);
    let mut alike = 0;
    for (encoding, arch) in machines() {
        let tables = OneLeaf::new(encoding);
        for bits in fields.clone().flat_map(|low| (0..4).map(move |xn: u64| low | xn << 53)) {
            let Some(read) = tables.read(bits | FRAME << 12 | 0b11) else { continue };
            let attributes = usize::try_from(bits | 1).unwrap();
            let attributes =
                aarch64_paging::descriptor::Stage2Attributes::from_bits_retain(attributes);
            let decoded = arch.decode(attributes).expect("the walker reads it");
            assert_eq!(meant(decoded, encoding.fwb), read, "{bits:#x}");
            alike += 1;
        }
    }
    assert!(alike > 0);
}
