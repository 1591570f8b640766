//! The machine's RAM, read from outside after its end: page tables against the specified state.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pfnguard_model::host::HostMay;
use pfnguard_model::machine::Machine;
use pfnguard_model::state::{Frame, Leaf, State, Vm};
use pfnguard_oracle::Translations;
use pfnguard_shared::info::Capabilities;
use pfnguard_shared::vm::VmState;
use pfnguard_shared::{MemType, PAGE_SHIFT, PAGE_SIZE, Perms};
use pfnguard_walker::{Attrs, El2Attrs, Encoding, Memory, Page, Run, Stage2, Tree, Type, WORDS};
use rangemap::RangeMap;

use crate::machine::RAM;

/// The host's VMID.
const HOST_VMID: u16 = 0;
/// Page of the console, which EL2 maps.
const CONSOLE: u64 = 0x0900_0000 >> PAGE_SHIFT;

/// RAM in a file.
#[derive(Debug)]
pub struct Ram {
    file: File,
    failed: RefCell<Option<io::Error>>,
}

impl Ram {
    /// Opens the file of a machine that has ended.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, failed: RefCell::new(None) })
    }

    /// Returns why a page could not be read, if so.
    pub fn failure(&self) -> Option<io::Error> {
        self.failed.take()
    }
}

impl Memory for Ram {
    /// What is not RAM holds nothing.
    fn page<R>(&self, pfn: u64, look: impl FnOnce(&Page) -> R) -> R {
        let mut bytes = [0; PAGE_SIZE];
        let address = pfn << PAGE_SHIFT;
        if RAM.contains(&address)
            && let Err(cause) = self.file.read_exact_at(&mut bytes, address - RAM.start)
        {
            self.failed.replace(Some(cause));
        }
        let mut page = [0; WORDS];
        for (word, bytes) in page.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        look(&page)
    }
}

/// Compares tables with the state at the end. Returns every difference, and the leaves' number.
pub fn compare(
    machine: &Machine,
    state: &State,
    ram: &impl Memory,
    translations: &Translations,
) -> (Vec<String>, usize) {
    let mte_perm = machine.capabilities().contains(Capabilities::MTE_PERM);
    let encoding = Encoding { fwb: translations.fwb, mte_perm };
    let mut judge =
        Judge { machine, state, ram, translations, encoding, wrong: Vec::new(), leaves: 0 };
    judge.host();
    for (id, vm) in &state.vms {
        if vm.state == VmState::Active {
            judge.guest(*id, vm);
        }
    }
    judge.el2();
    (judge.wrong, judge.leaves)
}

struct Judge<'a, M> {
    machine: &'a Machine,
    state: &'a State,
    ram: &'a M,
    translations: &'a Translations,
    encoding: Encoding,
    wrong: Vec<String>,
    leaves: usize,
}

impl<M: Memory> Judge<'_, M> {
    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(what());
        }
    }

    /// Reads the tables of a VMID.
    fn tree(&mut self, vmid: u16, whose: &str) -> Option<Tree<Attrs>> {
        let Some(&(vttbr, vtcr)) = self.translations.stage2.get(&vmid) else {
            self.wrong.push(format!("no register ever pointed at the tables of {whose}"));
            return None;
        };
        let mut tree = Tree::default();
        let stage2 = Stage2 { vttbr, vtcr, encoding: self.encoding };
        if let Err(malformed) = stage2.walk(self.ram, &mut tree) {
            self.wrong.push(format!("tables of {whose}: {malformed:x?}"));
            return None;
        }
        self.tables(&tree.tables, whose);
        self.leaves += tree.runs.len();
        Some(tree)
    }

    /// Nobody else reaches a table.
    fn tables(&mut self, tables: &[(u8, u64, u64)], whose: &str) {
        for (level, first, pfn) in tables {
            let frame = self.state.frames.get(pfn).copied();
            self.require(frame == Some(Frame::Hyp), || {
                format!("a table of {whose} (level {level}, {first:#x}) is in {pfn:#x}: {frame:?}")
            });
        }
    }

    /// The host's translations give it no more than it may have.
    fn host(&mut self) {
        let Some(tree) = self.tree(HOST_VMID, "the host") else { return };
        for run in &tree.runs {
            self.require(run.first == run.pfn, || format!("not the identity: {run:x?}"));
            let mut page = run.first;
            while page < run.range().end {
                let may = self.state.host_access(self.machine, page);
                let fits = may.is_some_and(|may| self.fits(&may, &run.attrs));
                self.require(fits, || format!("the host has {page:#x} {run:x?}, but may {may:x?}"));
                page = self.next_boundary(page, run.range().end);
            }
        }
    }

    /// No more than it may, and of the very type.
    fn fits(&self, may: &HostMay, attrs: &Attrs) -> bool {
        let mem = match may.mem_type {
            None if self.encoding.fwb => Type::AsStage1,
            None | Some(MemType::Cacheable) => Type::WriteBack,
            Some(MemType::AnyUncached) => Type::NormalNc,
            Some(MemType::Device) => Type::Device,
        };
        may.perms.contains(perms(attrs)) && attrs.mem == mem && attrs.no_tags == may.no_tags
    }

    /// The next page at which the host's access may be another one.
    fn next_boundary(&self, page: u64, end: u64) -> u64 {
        let frames = self.state.frames.overlapping(page..end).next();
        let frame =
            frames.map_or(end, |(run, _)| if run.start > page { run.start } else { run.end });
        let regions = 0..self.machine.entries.len();
        let edges = regions.flat_map(|region| {
            let pages = self.machine.region_pages(region);
            [pages.start, pages.end]
        });
        edges.filter(|edge| *edge > page).fold(frame, u64::min).min(end)
    }

    /// A guest has what it was given, all of it, and its tables are in memory that was meant for it.
    fn guest(&mut self, id: u16, vm: &Vm) {
        let whose = format!("VM {id}");
        let Some(tree) = self.tree(id + 1, &whose) else { return };
        for (level, first, pfn) in &tree.tables {
            let own = vm.tables.frames.contains(pfn);
            self.require(own, || format!("{whose} has a table in {pfn:#x}: {level} {first:#x}"));
        }
        let live: BTreeSet<(u8, u64)> =
            tree.tables.iter().map(|(level, first, _)| (*level, *first)).collect();
        self.require(live == vm.tables.live, || {
            format!("tables of {whose}: specified {:x?}, found {live:x?}", vm.tables.live)
        });
        let found: Option<RangeMap<u64, Leaf>> =
            tree.runs.iter().map(|run| leaf(run).map(|leaf| (run.range(), leaf))).collect();
        self.require(found.as_ref() == Some(&vm.pages), || {
            format!("{whose}: specified {:x?}, found {:x?}", vm.pages, tree.runs)
        });
    }

    /// EL2 maps its own memory, argument pages and the console.
    fn el2(&mut self) {
        let Some(ttbr0) = self.translations.el2 else {
            return self.wrong.push("no register ever pointed at EL2's tables".to_owned());
        };
        let mut tree: Tree<El2Attrs> = Tree::default();
        let walked = pfnguard_walker::walk_el2(self.ram, ttbr0, self.machine.pa_bits, &mut tree);
        self.require(walked.is_ok(), || format!("EL2's tables: {walked:x?}"));
        self.tables(&tree.tables, "EL2");
        for run in &tree.runs {
            let frames = run.pfn..run.pfn + run.pages;
            let own = frames.clone().all(|pfn| self.state.el2_may_map(pfn) || pfn == CONSOLE);
            self.require(own, || format!("EL2 maps {run:x?}"));
        }
        self.leaves += tree.runs.len();
    }
}

fn leaf(run: &Run<Attrs>) -> Option<Leaf> {
    let mem_type = match run.attrs.mem {
        Type::Device => MemType::Device,
        Type::NormalNc => MemType::AnyUncached,
        Type::WriteBack => MemType::Cacheable,
        Type::AsStage1 => return None,
    };
    let (perms, no_tags) = (perms(&run.attrs), run.attrs.no_tags);
    Some(Leaf { offset: run.pfn.wrapping_sub(run.first), mem_type, perms, no_tags })
}

fn perms(attrs: &Attrs) -> Perms {
    [(attrs.read, Perms::READ), (attrs.write, Perms::WRITE), (attrs.exec, Perms::EXEC)]
        .into_iter()
        .filter(|(given, _)| *given)
        .fold(Perms::NONE, |all, (_, perm)| all.with(perm))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use pfnguard_model::Platform;

    use super::*;

    /// Pages of the hypervisor: the host's two roots, a table of 1 GiB, one of 2 MiB, EL2's root.
    const ROOT: u64 = 0x4_0200;
    const MIDDLE: u64 = ROOT + 2;
    const LAST: u64 = ROOT + 3;
    const EL2: u64 = ROOT + 4;
    const OWN: u64 = 8;
    /// 40 bits in and out, from level 1.
    const VTCR: u64 = 2 << 16 | 1 << 6 | 24;
    /// Valid, a table or page; a page as stage 1 says, loads and stores and fetches, FWB.
    const TABLE: u64 = 0b11;
    const PAGE: u64 = 1 << 10 | 0b11 << 8 | 0b11 << 6 | 0b0111 << 2 | 0b11;

    #[derive(Default)]
    struct Tables(HashMap<u64, Page>);

    impl Memory for Tables {
        fn page<R>(&self, pfn: u64, look: impl FnOnce(&Page) -> R) -> R {
            look(self.0.get(&pfn).unwrap_or(&[0; WORDS]))
        }
    }

    impl Tables {
        /// The host has one page of RAM.
        fn new(page: u64) -> Self {
            let mut tables = Self::default();
            tables.set(ROOT, 1, MIDDLE << PAGE_SHIFT | TABLE);
            tables.set(MIDDLE, page >> 9 & 0x1ff, LAST << PAGE_SHIFT | TABLE);
            tables.set(LAST, page & 0x1ff, page << PAGE_SHIFT | PAGE);
            tables
        }

        fn set(&mut self, table: u64, index: u64, bits: u64) {
            let index = usize::try_from(index).unwrap();
            self.0.entry(table).or_insert([0; WORDS])[index] = bits;
        }

        fn differences(&self) -> String {
            let platform = Platform { ram: vec![RAM], ..Platform::default() };
            let machine = Machine { platform, pa_bits: 40, ..Machine::default() };
            let own = ROOT..ROOT + OWN;
            let state = machine.launch(&[own]);
            let stage2 = [(HOST_VMID, (ROOT << PAGE_SHIFT, VTCR))].into();
            let translations = Translations { stage2, el2: Some(EL2 << PAGE_SHIFT), fwb: true };
            compare(&machine, &state, self, &translations).0.join("\n")
        }
    }

    #[test]
    fn what_the_host_may_have_is_no_difference() {
        assert_eq!(Tables::new(0x5_0000).differences(), "");
    }

    #[test]
    fn a_leaf_that_is_not_the_host_s_is_found() {
        for page in [ROOT, ROOT + OWN - 1] {
            let found = Tables::new(page).differences();
            assert!(found.contains(&format!("the host has {page:#x}")), "{found}");
        }
        let mut block = Tables::default();
        block.set(ROOT, 1, RAM.start | PAGE & !0b10);
        assert!(block.differences().contains("but may None"), "{}", block.differences());
    }

    #[test]
    fn another_type_and_another_address_are_found() {
        let mut device = Tables::new(0x5_0000);
        device.set(LAST, 0, 0x5_0000 << PAGE_SHIFT | PAGE & !(0b0110 << 2) | 1 << 54);
        assert!(device.differences().contains("the host has 0x50000"), "{}", device.differences());
        let mut moved = Tables::new(0x5_0000);
        moved.set(LAST, 0, 0x5_0001 << PAGE_SHIFT | PAGE);
        assert!(moved.differences().contains("not the identity"), "{}", moved.differences());
    }

    #[test]
    fn a_table_in_reach_of_the_host_is_found() {
        let mut tables = Tables::new(0x5_0000);
        tables.set(ROOT, 0, 0x5_0000 << PAGE_SHIFT | TABLE);
        assert!(tables.differences().contains("a table of the host"), "{}", tables.differences());
    }
}
