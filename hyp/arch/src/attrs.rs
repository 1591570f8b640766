//! Stage-2 attributes as descriptor bits: the last table of the PFNMAP specification.

use aarch64_paging::descriptor::Stage2Attributes;
use pfnguard_core::machine::{Stage2Attrs, Stage2Type, TagAccess};
use pfnguard_shared::{MemType, Perms};

use crate::pool::{to_u64, to_usize};

/// Whether FEAT_S2FWB is in use (`HCR_EL2.FWB`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fwb {
    /// Stage 2 combines with stage 1.
    Absent,
    /// Stage 2 can override stage 1.
    Present,
}

/// Whether FEAT_MTE_PERM is there (NoTagAccess).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtePerm {
    /// Stage 2 cannot forbid tag access.
    Absent,
    /// It can, for cacheable memory, where FWB is in use.
    Present,
}

/// What decides the meaning of `MemAttr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// FEAT_S2FWB.
    pub fwb: Fwb,
    /// FEAT_MTE_PERM.
    pub mte_perm: MtePerm,
}

/// Why attributes have no encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEncoding {
    /// Permissions that stage 2 is not to have: none, or stores or fetches without loads.
    Perms(Perms),
    /// Instruction fetch from memory that is not cacheable (R11).
    ExecUncached(MemType),
    /// Tag access cannot be forbidden for this type on this machine (R20).
    Tags(Stage2Type),
}

/// Bit offset of `MemAttr[3:0]` (Arm ARM, D8.3.2).
const MEMATTR_SHIFT: u32 = 2;
/// `MemAttr[3:0]`.
const MEMATTR_MASK: u64 = 0b1111;
/// Marks as-stage-1 where its `MemAttr` equals that of forced write-back (FWB = 0). Bits 58:55
/// are software's (Arm ARM, D8.3.2).
const AS_STAGE1: Stage2Attributes = Stage2Attributes::SWFLAG_0;

impl Encoding {
    /// Returns the descriptor bits of `attrs`, valid bit and access flag included, without the bit
    /// that tells pages from blocks.
    ///
    /// # Errors
    ///
    /// [`NoEncoding`] where the request is contradictory, executable and uncached, or beyond the
    /// machine.
    pub fn encode(self, attrs: Stage2Attrs) -> Result<Stage2Attributes, NoEncoding> {
        let (mem_attr, mark) = self.mem_attr(attrs.mem, attrs.tags)?;
        let access = access(attrs)?;
        let mem_attr = Stage2Attributes::from_bits_retain(to_usize(mem_attr << MEMATTR_SHIFT));
        let fixed =
            Stage2Attributes::VALID | Stage2Attributes::ACCESS_FLAG | Stage2Attributes::SH_INNER;
        Ok(fixed | mem_attr | mark | access)
    }

    /// Returns `MemAttr[3:0]` and the mark.
    fn mem_attr(
        self,
        mem: Stage2Type,
        tags: TagAccess,
    ) -> Result<(u64, Stage2Attributes), NoEncoding> {
        let none = Stage2Attributes::empty();
        match (mem, tags, self.fwb) {
            // Uncached accesses never carry tags: forbidding them changes nothing.
            (Stage2Type::Forced(MemType::Device), _, _) => Ok((0b0001, none)),
            (Stage2Type::Forced(MemType::AnyUncached), _, _) => Ok((0b0101, none)),
            (Stage2Type::Forced(MemType::Cacheable), TagAccess::Allowed, Fwb::Absent) => {
                Ok((0b1111, none))
            }
            (Stage2Type::Forced(MemType::Cacheable), TagAccess::Allowed, Fwb::Present) => {
                Ok((0b0110, none))
            }
            (Stage2Type::AsStage1, TagAccess::Allowed, Fwb::Absent) => Ok((0b1111, AS_STAGE1)),
            (Stage2Type::AsStage1, TagAccess::Allowed, Fwb::Present) => Ok((0b0111, none)),
            (Stage2Type::AsStage1, TagAccess::Forbidden, _) => self.no_tags(mem, 0b1111),
            (Stage2Type::Forced(MemType::Cacheable), TagAccess::Forbidden, _) => {
                self.no_tags(mem, 0b1110)
            }
        }
    }

    fn no_tags(
        self,
        mem: Stage2Type,
        mem_attr: u64,
    ) -> Result<(u64, Stage2Attributes), NoEncoding> {
        match (self.fwb, self.mte_perm) {
            (Fwb::Present, MtePerm::Present) => Ok((mem_attr, Stage2Attributes::empty())),
            (Fwb::Absent, _) | (_, MtePerm::Absent) => Err(NoEncoding::Tags(mem)),
        }
    }

    /// Returns the attributes that `bits`, those of a valid leaf, encode. `None` where
    /// [`Self::encode`] makes no such bits.
    pub fn decode(self, bits: Stage2Attributes) -> Option<Stage2Attrs> {
        let cacheable = Stage2Type::Forced(MemType::Cacheable);
        let mark = bits.contains(AS_STAGE1);
        let mem_attr = to_u64(bits.bits()) >> MEMATTR_SHIFT & MEMATTR_MASK;
        let (mem, tags) = match (mem_attr, self.fwb) {
            (0b0001, _) => (Stage2Type::Forced(MemType::Device), TagAccess::Allowed),
            (0b0101, _) => (Stage2Type::Forced(MemType::AnyUncached), TagAccess::Allowed),
            (0b1111, Fwb::Absent) if mark => (Stage2Type::AsStage1, TagAccess::Allowed),
            (0b1111, Fwb::Absent) => (cacheable, TagAccess::Allowed),
            (0b0110, Fwb::Present) => (cacheable, TagAccess::Allowed),
            (0b0111, Fwb::Present) => (Stage2Type::AsStage1, TagAccess::Allowed),
            (0b1110, Fwb::Present) => (cacheable, TagAccess::Forbidden),
            (0b1111, Fwb::Present) => (Stage2Type::AsStage1, TagAccess::Forbidden),
            (_, Fwb::Absent | Fwb::Present) => return None,
        };
        Some(Stage2Attrs { mem, perms: perms(bits)?, tags })
    }
}

/// Returns `S2AP` and `XN`. `XN[1:0]` = `0b10` forbids fetches at EL1 and EL0 with and without
/// FEAT_XNX; `0b00` allows both (Arm ARM, D8.4.2).
fn access(attrs: Stage2Attrs) -> Result<Stage2Attributes, NoEncoding> {
    if !attrs.perms.contains(Perms::READ) {
        return Err(NoEncoding::Perms(attrs.perms));
    }
    let write = match attrs.perms.contains(Perms::WRITE) {
        true => Stage2Attributes::S2AP_ACCESS_RW,
        false => Stage2Attributes::S2AP_ACCESS_RO,
    };
    if !attrs.perms.contains(Perms::EXEC) {
        return Ok(write | Stage2Attributes::XN);
    }
    match attrs.mem {
        Stage2Type::AsStage1 | Stage2Type::Forced(MemType::Cacheable) => Ok(write),
        Stage2Type::Forced(mem @ (MemType::Device | MemType::AnyUncached)) => {
            Err(NoEncoding::ExecUncached(mem))
        }
    }
}

/// Returns the permissions of a leaf; `None` where loads are not among them.
fn perms(bits: Stage2Attributes) -> Option<Perms> {
    if !bits.contains(Stage2Attributes::S2AP_ACCESS_RO) {
        return None;
    }
    let write = match bits.contains(Stage2Attributes::S2AP_ACCESS_RW) {
        true => Perms::WRITE,
        false => Perms::NONE,
    };
    let exec = match bits.contains(Stage2Attributes::XN) {
        true => Perms::NONE,
        false => Perms::EXEC,
    };
    Some(Perms::READ.with(write).with(exec))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: [Stage2Type; 4] = [
        Stage2Type::AsStage1,
        Stage2Type::Forced(MemType::Device),
        Stage2Type::Forced(MemType::AnyUncached),
        Stage2Type::Forced(MemType::Cacheable),
    ];
    const TAGS: [TagAccess; 2] = [TagAccess::Allowed, TagAccess::Forbidden];
    const MACHINES: [Encoding; 4] = [
        Encoding { fwb: Fwb::Absent, mte_perm: MtePerm::Absent },
        Encoding { fwb: Fwb::Absent, mte_perm: MtePerm::Present },
        Encoding { fwb: Fwb::Present, mte_perm: MtePerm::Absent },
        Encoding { fwb: Fwb::Present, mte_perm: MtePerm::Present },
    ];

    /// Every machine with every request.
    fn all() -> impl Iterator<Item = (Encoding, Stage2Attrs)> {
        let attrs = TYPES.into_iter().flat_map(|mem| {
            (0..8).flat_map(move |perms| {
                let perms = Perms::from_raw(perms).unwrap();
                TAGS.into_iter().map(move |tags| Stage2Attrs { mem, perms, tags })
            })
        });
        MACHINES
            .into_iter()
            .flat_map(move |machine| attrs.clone().map(move |attrs| (machine, attrs)))
    }

    /// The specification's table, written down again; `None` where there is no encoding.
    fn expected(machine: Encoding, attrs: Stage2Attrs) -> Option<u64> {
        let fwb = machine.fwb == Fwb::Present;
        let no_tags = attrs.tags == TagAccess::Forbidden;
        let perm = machine.mte_perm == MtePerm::Present;
        let mem_attr = match attrs.mem {
            Stage2Type::Forced(MemType::Device) => 0b0001,
            Stage2Type::Forced(MemType::AnyUncached) => 0b0101,
            Stage2Type::Forced(MemType::Cacheable) if no_tags => (fwb && perm).then_some(0b1110)?,
            Stage2Type::AsStage1 if no_tags => (fwb && perm).then_some(0b1111)?,
            Stage2Type::Forced(MemType::Cacheable) if fwb => 0b0110,
            Stage2Type::AsStage1 if fwb => 0b0111,
            Stage2Type::Forced(MemType::Cacheable) | Stage2Type::AsStage1 => 0b1111,
        };
        let (read, write, exec) = (1, 2, 4);
        let uncached = mem_attr == 0b0001 || mem_attr == 0b0101;
        let raw = attrs.perms.raw();
        if raw & read == 0 || (raw & exec != 0 && uncached) {
            return None;
        }
        let s2ap = if raw & write != 0 { 0b11 } else { 0b01 };
        let xn: u64 = if raw & exec != 0 { 0b00 } else { 0b10 };
        Some(mem_attr << 2 | s2ap << 6 | 0b11 << 8 | 1 << 10 | xn << 53 | 1)
    }

    #[test]
    fn every_request_has_the_specified_encoding_or_none() {
        for (machine, attrs) in all() {
            let software = 0b1111 << 55;
            let bits = machine.encode(attrs).ok().map(|bits| to_u64(bits.bits()) & !software);
            assert_eq!(bits, expected(machine, attrs), "{machine:?} {attrs:?}");
        }
    }

    #[test]
    fn decoding_gives_back_what_was_encoded() {
        for (machine, attrs) in all() {
            let Ok(bits) = machine.encode(attrs) else { continue };
            // Uncached accesses carry no tags, allowed or not.
            let tags = match attrs.mem {
                Stage2Type::Forced(MemType::Device | MemType::AnyUncached) => TagAccess::Allowed,
                Stage2Type::Forced(MemType::Cacheable) | Stage2Type::AsStage1 => attrs.tags,
            };
            let given = Stage2Attrs { tags, ..attrs };
            assert_eq!(machine.decode(bits), Some(given), "{machine:?} {attrs:?}");
        }
    }

    #[test]
    fn execution_from_uncached_memory_has_no_encoding_on_any_machine() {
        for (machine, attrs) in all() {
            let uncached = [MemType::Device, MemType::AnyUncached].map(Stage2Type::Forced);
            if attrs.perms.contains(Perms::EXEC) && uncached.contains(&attrs.mem) {
                assert!(machine.encode(attrs).is_err(), "{machine:?} {attrs:?}");
            }
        }
    }
}
