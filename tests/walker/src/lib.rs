//! A table walker written from the Arm ARM (DDI 0487, D8.2, D8.3, D24.2), 4 KiB granule, without
//! FEAT_LPA2. It shares nothing with the code that builds the tables, and it is strict: what a
//! table of this hypervisor never holds is an error, even where a CPU would accept it.

#![forbid(unsafe_code)]

mod tree;

pub use tree::{Run, Tree};

/// Words in a page.
pub const WORDS: usize = 512;

/// A page, as words.
pub type Page = [u64; WORDS];

/// Where tables lie.
pub trait Memory {
    /// Lends the page of frame `pfn`.
    fn page<R>(&self, pfn: u64, look: impl FnOnce(&Page) -> R) -> R;
}

/// Registers that select a stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2 {
    /// `VTTBR_EL2`.
    pub vttbr: u64,
    /// `VTCR_EL2`.
    pub vtcr: u64,
    /// What decides the meaning of `MemAttr`.
    pub encoding: Encoding,
}

/// What decides the meaning of `MemAttr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// `HCR_EL2.FWB`.
    pub fwb: bool,
    /// FEAT_MTE_PERM.
    pub mte_perm: bool,
}

/// What stage 2 makes of an access' type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Device-nGnRE.
    Device,
    /// Normal Non-cacheable.
    NormalNc,
    /// Normal write-back; without FWB that is also "as stage 1 says".
    WriteBack,
    /// As stage 1 says (FWB only).
    AsStage1,
}

/// Attributes of a stage-2 leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attrs {
    /// Memory type.
    pub mem: Type,
    /// Loads.
    pub read: bool,
    /// Stores.
    pub write: bool,
    /// Fetches, at EL1 and EL0.
    pub exec: bool,
    /// NoTagAccess.
    pub no_tags: bool,
}

/// What a walk comes across, in ascending order of input page.
pub trait Visitor<A> {
    /// A table at `level` that resolves pages from `first` on, in the frame `pfn`.
    fn table(&mut self, level: u8, first: u64, pfn: u64);

    /// `pages` pages from `first` on lead to the frames from `pfn` on.
    fn leaf(&mut self, first: u64, pages: u64, pfn: u64, attrs: A);
}

/// What is wrong with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Level of its table.
    pub level: u8,
    /// First input page.
    pub first: u64,
    /// The descriptor.
    pub bits: u64,
    /// Which rule it breaks.
    pub why: &'static str,
}

/// A place in the tables: what it takes to go on from there.
#[derive(Clone, Copy)]
struct Place {
    level: u8,
    first: u64,
    pfn: u64,
}

/// Output address bits of a descriptor, 48 bits.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Bits 62:59 (ignored, PBHA), 52 (contiguous), 51 (DBM) and 49:48 (beyond 48 bits): never set.
const NEVER: u64 = 0xf << 59 | 1 << 63 | 0x1b << 48;
/// Bit 50: GP of stage 1 (FEAT_BTI), beyond 48 bits in stage 2.
const GUARDED: u64 = 1 << 50;

const fn field(value: u64, high: u32, low: u32) -> u64 {
    value >> low & ((1 << (high - low + 1)) - 1)
}

/// Pages that one descriptor of `level` covers.
pub const fn pages_at(level: u8) -> u64 {
    1 << (9 * (3 - level))
}

impl Stage2 {
    /// Returns log2 of the bytes of the input space (`64 - T0SZ`).
    pub fn input_bits(&self) -> u32 {
        64 - u32::try_from(field(self.vtcr, 5, 0)).unwrap_or(0)
    }

    /// Returns log2 of the bytes of the output space (`PS`).
    fn output_bits(&self) -> u32 {
        [32, 36, 40, 42, 44, 48, 52, 52][usize::try_from(field(self.vtcr, 18, 16)).unwrap_or(0)]
    }

    /// Returns the level at which walks start (`SL0`).
    fn start_level(&self) -> u8 {
        assert_eq!(field(self.vtcr, 15, 14), 0, "TG0: 4 KiB granule");
        match field(self.vtcr, 7, 6) {
            0b10 => 0,
            0b01 => 1,
            0b00 => 2,
            _ => panic!("SL0 is reserved: {:#x}", self.vtcr),
        }
    }

    /// Returns the first root table's frame, the number of concatenated ones, and their level.
    fn root(&self) -> (u64, u64, u8) {
        let level = self.start_level();
        let entries = 1u64 << (self.input_bits() - 12 - 9 * (3 - u32::from(level)));
        let tables = entries.div_ceil(512);
        assert!(tables <= 16, "at most 16 tables are concatenated");
        let base = self.vttbr & 0x0000_ffff_ffff_fffe;
        assert_eq!(base % (4096 * tables), 0, "the root is aligned to its size");
        (base >> 12, tables, level)
    }

    /// Visits everything that the tables translate.
    ///
    /// # Errors
    /// The first descriptor that a table of this hypervisor never holds.
    pub fn walk(
        &self,
        memory: &impl Memory,
        to: &mut impl Visitor<Attrs>,
    ) -> Result<(), Malformed> {
        let (root, tables, level) = self.root();
        for table in 0..tables {
            let first = table * 512 * pages_at(level);
            let place = Place { level, first, pfn: root + table };
            descend(memory, place, self.output_bits(), &|place, bits| self.attrs(place, bits), to)?;
        }
        Ok(())
    }

    /// Translates one page: the frame and how it may be accessed, `None` on a translation fault.
    ///
    /// # Errors
    /// As [`Self::walk`].
    pub fn translate(
        &self,
        memory: &impl Memory,
        page: u64,
    ) -> Result<Option<(u64, Attrs)>, Malformed> {
        if page >> (self.input_bits() - 12) != 0 {
            return Ok(None);
        }
        let (root, _, level) = self.root();
        let table = root + page / (512 * pages_at(level));
        let first = page & !(512 * pages_at(level) - 1);
        let mut place = Place { level, first, pfn: table };
        loop {
            let index = page / pages_at(place.level) % 512;
            let bits = memory.page(place.pfn, |page| page[usize::try_from(index).unwrap_or(0)]);
            let here = Place { first: place.first + index * pages_at(place.level), ..place };
            match step(here, bits, self.output_bits())? {
                Step::None => return Ok(None),
                Step::Table(pfn) => {
                    place = Place { level: place.level + 1, first: here.first, pfn };
                }
                Step::Leaf(pfn) => {
                    let attrs = self.attrs(here, bits)?;
                    return Ok(Some((pfn + (page - here.first), attrs)));
                }
            }
        }
    }

    fn attrs(&self, place: Place, bits: u64) -> Result<Attrs, Malformed> {
        let wrong = |why| Err(place.malformed(bits, why));
        if field(bits, 9, 8) != 0b11 {
            return wrong("SH is not inner shareable");
        }
        if bits & GUARDED != 0 {
            return wrong("a bit that is never set");
        }
        let exec = match field(bits, 54, 53) {
            0b00 => true,
            0b10 => false,
            _ => return wrong("XN tells EL0 from EL1"),
        };
        let (mem, no_tags) = match self.memory_type(field(bits, 5, 2)) {
            Some(decoded) => decoded,
            None => return wrong("MemAttr is not one of the specification's"),
        };
        let (read, write) = (bits & 1 << 6 != 0, bits & 1 << 7 != 0);
        if !read {
            return wrong("S2AP without loads");
        }
        if exec && matches!(mem, Type::Device | Type::NormalNc) {
            return wrong("executable and uncached (R11)");
        }
        Ok(Attrs { mem, read, write, exec, no_tags })
    }

    /// `MemAttr[3:0]` (D8.6.5): bits 3:2 are outer, 1:0 inner cacheability without FWB.
    fn memory_type(&self, bits: u64) -> Option<(Type, bool)> {
        let Encoding { fwb, mte_perm } = self.encoding;
        match (bits, fwb) {
            (0b0001, _) => Some((Type::Device, false)),
            (0b0101, _) => Some((Type::NormalNc, false)),
            (0b1111, false) | (0b0110, true) => Some((Type::WriteBack, false)),
            (0b0111, true) => Some((Type::AsStage1, false)),
            (0b1110, true) if mte_perm => Some((Type::WriteBack, true)),
            (0b1111, true) if mte_perm => Some((Type::AsStage1, true)),
            _ => None,
        }
    }
}

/// How EL2 itself may access a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct El2Attrs {
    /// Stores.
    pub write: bool,
    /// Fetches.
    pub exec: bool,
    /// Index into `MAIR_EL2`.
    pub index: u8,
}

/// Visits everything that a 48-bit EL2 stage 1 (E2H = 0) at `ttbr0` translates.
///
/// # Errors
/// The first descriptor that a table of this hypervisor never holds.
pub fn walk_el2(
    memory: &impl Memory,
    ttbr0: u64,
    output_bits: u32,
    to: &mut impl Visitor<El2Attrs>,
) -> Result<(), Malformed> {
    let place = Place { level: 0, first: 0, pfn: (ttbr0 & ADDRESS) >> 12 };
    descend(memory, place, output_bits, &el2_attrs, to)
}

fn el2_attrs(place: Place, bits: u64) -> Result<El2Attrs, Malformed> {
    if field(bits, 9, 8) != 0b11 {
        return Err(place.malformed(bits, "SH is not inner shareable"));
    }
    let (write, exec) = (bits & 1 << 7 == 0, bits & 1 << 54 == 0);
    if write && exec {
        return Err(place.malformed(bits, "writable and executable"));
    }
    if !exec && bits & GUARDED != 0 {
        return Err(place.malformed(bits, "guarded, and not executable"));
    }
    Ok(El2Attrs { write, exec, index: u8::try_from(field(bits, 4, 2)).unwrap_or(0) })
}

/// What a descriptor is.
enum Step {
    None,
    Table(u64),
    Leaf(u64),
}

fn step(place: Place, bits: u64, output_bits: u32) -> Result<Step, Malformed> {
    if bits & 1 == 0 {
        return match bits {
            0 => Ok(Step::None),
            _ => Err(place.malformed(bits, "invalid, and not zero")),
        };
    }
    let (output, table) = (bits & ADDRESS, bits & 2 != 0);
    if output >> output_bits != 0 {
        return Err(place.malformed(bits, "beyond the output size"));
    }
    if table && place.level < 3 {
        return match bits & !ADDRESS {
            0b11 => Ok(Step::Table(output >> 12)),
            _ => Err(place.malformed(bits, "a table with attributes")),
        };
    }
    let block = !table;
    if block && (place.level == 0 || place.level == 3) {
        return Err(place.malformed(bits, "a block at a level without blocks"));
    }
    if (output >> 12) % pages_at(place.level) != 0 {
        return Err(place.malformed(bits, "a block that is not aligned"));
    }
    if bits & NEVER != 0 {
        return Err(place.malformed(bits, "a bit that is never set"));
    }
    if bits & 1 << 10 == 0 {
        return Err(place.malformed(bits, "AF is clear"));
    }
    Ok(Step::Leaf(output >> 12))
}

impl Place {
    fn malformed(self, bits: u64, why: &'static str) -> Malformed {
        Malformed { level: self.level, first: self.first, bits, why }
    }
}

/// Descriptors that are looked at together: most of a table is zero.
const GROUP: usize = 8;

fn descend<A>(
    memory: &impl Memory,
    place: Place,
    output_bits: u32,
    attrs: &impl Fn(Place, u64) -> Result<A, Malformed>,
    to: &mut impl Visitor<A>,
) -> Result<(), Malformed> {
    to.table(place.level, place.first, place.pfn);
    memory.page(place.pfn, |table: &Page| {
        for (group, descriptors) in table.as_chunks::<GROUP>().0.iter().enumerate() {
            if descriptors.iter().fold(0, |all, bits| all | bits) == 0 {
                continue;
            }
            for (index, &bits) in descriptors.iter().enumerate() {
                let index = u64::try_from(group * GROUP + index).unwrap_or(0);
                let first = place.first + index * pages_at(place.level);
                let here = Place { first, ..place };
                match step(here, bits, output_bits)? {
                    Step::None => {}
                    Step::Table(pfn) => {
                        let below = Place { level: place.level + 1, first, pfn };
                        descend(memory, below, output_bits, attrs, to)?;
                    }
                    Step::Leaf(pfn) => {
                        to.leaf(first, pages_at(place.level), pfn, attrs(here, bits)?);
                    }
                }
            }
        }
        Ok(())
    })
}
