//! What holds in every state, whatever was called before: one owner for each page, one type on all
//! ways to it, and counts that say what there is.

use std::collections::BTreeSet;
use std::ops::Range;

use pfnguard_shared::info::{Capabilities, RegionState};
use pfnguard_shared::manifest::RegionFlags;
use pfnguard_shared::request::{MemTypes, Modes, RequestFlags};
use pfnguard_shared::vm::{ContractFlags, VmState};
use pfnguard_shared::{MemType, Mode, Perms};
use rangemap::RangeSet;

use crate::machine::{MAX_BINDINGS, MAX_VCPUS, MAX_VM_BINDINGS, MAX_VMS, Machine, count};
use crate::state::{Binding, Frame, Leaf, Region, State, Vcpu, Vm};
use crate::tables::{GIB, Mapping, PIECE};

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The invariant, after the rule that it serves.
    pub what: &'static str,
    /// Where it does not hold.
    pub at: String,
}

type Check = Result<(), Broken>;

fn require(holds: bool, what: &'static str, at: impl std::fmt::Debug) -> Check {
    if holds { Ok(()) } else { Err(Broken { what, at: format!("{at:x?}") }) }
}

impl State {
    /// Checks every invariant.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn check_invariants(&self, machine: &Machine) -> Result<(), Broken> {
        self.check_frames()?;
        self.check_table_memory()?;
        self.check_regions(machine)?;
        for (id, vm) in &self.vms {
            require(*id < MAX_VMS, "VM numbers are limited", id)?;
            self.check_bindings(machine, *id, vm)?;
            self.check_leaves(machine, *id, vm)?;
            vm.check_life()?;
            vm.check_tables_fit()?;
        }
        self.check_vcpus(machine)
    }
}

/// RAM.
impl State {
    /// Every count of a lent page is the number of guest pages that lead to it, and exactly one page
    /// of its owner leads to an owned one, until teardown.
    fn check_frames(&self) -> Check {
        let (mut all_lent, mut all_owned) = (0, 0);
        for (run, frame) in self.frames.iter() {
            let length = run.end - run.start;
            if let Some(owner) = frame.guest() {
                let vm = self.vms.get(&owner);
                require(vm.is_some(), "owners exist", (run, frame))?;
                let mapped = vm.is_some_and(|vm| vm.state == VmState::Active);
                all_owned += if mapped { length } else { 0 };
            } else if let Frame::HostLentGuests(times) = *frame {
                require(times > 0, "lent pages are lent to somebody", run)?;
                all_lent += length;
            } else if let Frame::HostLentHyp(pins @ 1..) = *frame {
                let pinned = run.clone().all(|page| self.users(page) == usize::from(pins));
                require(pinned, "pinned pages are argument pages", (run, frame))?;
            }
        }
        let (lent, owned) = self.check_borrowed()?;
        require(lent == all_lent, "a lent page has borrowers", (lent, all_lent))?;
        require(owned == all_owned, "an owner has its pages mapped", (owned, all_owned))?;
        for page in self.arg_pages.iter().flatten() {
            let pins = self.frames.get(page).and_then(|frame| frame.pins());
            let pinned = pins.is_some_and(|pins| usize::from(pins) == self.users(*page));
            require(pinned, "argument pages are pinned", (page, pins))?;
        }
        Ok(())
    }

    /// CPUs whose argument page it is.
    fn users(&self, page: u64) -> usize {
        self.arg_pages.iter().filter(|used| **used == Some(page)).count()
    }

    /// Checks the frames that guest pages lead to. Returns how many are lent, and owned.
    fn check_borrowed(&self) -> Result<(u64, u64), Broken> {
        let (mut lent, mut owned) = (0, 0);
        for (run, times) in self.ram_in_guests() {
            for (part, frame) in self.frames.overlapping(&run) {
                let length = part.end.min(run.end) - part.start.max(run.start);
                if frame.guest().is_some() {
                    require(times == 1, "an owned page is mapped once", (&run, frame))?;
                    owned += length;
                } else {
                    let counted = *frame == Frame::HostLentGuests(times);
                    require(counted, "a lent page counts its borrowers", (&run, frame, times))?;
                    lent += length;
                }
            }
        }
        Ok((lent, owned))
    }

    /// Runs of RAM, and how many guest pages lead to each of their pages.
    fn ram_in_guests(&self) -> Vec<(Range<u64>, u8)> {
        let leaves = self.vms.values().flat_map(|vm| vm.pages.iter());
        let runs = leaves.map(|(ipa, leaf)| leaf.frames(ipa));
        let ram = runs.filter(|run| self.frames.overlaps(run));
        let mut edges: Vec<(u64, i32)> =
            ram.flat_map(|run| [(run.start, 1), (run.end, -1)]).collect();
        edges.sort_unstable();
        let (mut depth, mut runs) = (0, Vec::new());
        for pair in edges.windows(2) {
            let [(start, change), (end, _)] = *pair else { continue };
            depth += change;
            if depth > 0 && start < end {
                runs.push((start..end, u8::try_from(depth).unwrap_or(u8::MAX)));
            }
        }
        runs
    }

    /// Tables are the hypervisor's, of one VM each.
    fn check_table_memory(&self) -> Check {
        let mut all = RangeSet::new();
        for (id, vm) in &self.vms {
            let runs = runs(&vm.tables.frames);
            for run in &runs {
                let hyp = self.frames.overlapping(run).all(|(_, frame)| *frame == Frame::Hyp);
                let ram = self.frames.gaps(run).next().is_none();
                require(hyp && ram, "tables are the hypervisor's", (id, run))?;
                require(!all.overlaps(run), "a table serves one VM", (id, run))?;
            }
            all.extend(runs);
        }
        Ok(())
    }

    fn check_vcpus(&self, machine: &Machine) -> Check {
        let cpus = machine.trace_pages.len();
        let mut busy = vec![false; cpus];
        for (id, vm) in &self.vms {
            let number = count(vm.vcpus.len());
            require((1..=MAX_VCPUS).contains(&number), "a VM has one to eight vCPUs", id)?;
            for vcpu in &vm.vcpus {
                if let Vcpu::Running(cpu) = vcpu {
                    let free = busy.get_mut(*cpu).map(|busy| !std::mem::replace(busy, true));
                    require(free == Some(true), "a CPU runs one vCPU", (id, cpu))?;
                    let active = vm.state == VmState::Active;
                    require(active, "nothing runs in a dying VM", (id, cpu))?;
                }
            }
        }
        for pages in &machine.trace_pages {
            let readable = self.frames.overlapping(pages).all(|(_, f)| *f == Frame::HypReadable);
            require(readable, "trace rings are readable", pages)?;
        }
        Ok(())
    }
}

/// Regions and bindings.
impl State {
    /// R10, R40, R41: a region is what its bindings make it.
    fn check_regions(&self, machine: &Machine) -> Check {
        let all: usize = self.vms.values().map(|vm| vm.bindings.len()).sum();
        require(all <= MAX_BINDINGS, "there are 128 bindings at most", all)?;
        for (index, region) in self.regions.iter().enumerate() {
            let (holders, most) = (self.holders(index), machine.entries[index].max_vms);
            let (held, typed) = (holders > 0, region.mem_type.is_some());
            let owned = region.owner.is_some();
            let expected = match region.state {
                RegionState::Shared => (true, true, false),
                RegionState::Donated => (true, true, true),
                RegionState::Free | RegionState::Quarantined | RegionState::Lost => {
                    (false, false, false)
                }
            };
            let what = "R41: a region is held where it is shared or donated";
            require((held, typed, owned) == expected, what, (index, region, holders))?;
            require(holders <= u64::from(most), "R02: no more holders than granted", index)?;
        }
        Ok(())
    }

    fn check_bindings(&self, machine: &Machine, id: u16, vm: &Vm) -> Check {
        let number = vm.bindings.len();
        require(number <= MAX_VM_BINDINGS, "R33: a descriptor holds all bindings", id)?;
        require(number == 0 || vm.bound_once, "R21: a bind seals the contract", id)?;
        let mut past = 0;
        for (first, binding) in &vm.bindings {
            require(*first >= past, "bindings of a VM are disjoint", (id, first))?;
            past = first + binding.pages;
            require(past <= machine.ipa_limit(), "bindings lie in the guest", (id, first))?;
            self.check_held(id, binding)?;
            binding.check_granted(machine, vm.contract)?;
            vm.check_installed(*first, binding)?;
            vm.check_blocks(&binding.mapping(machine, *first), binding)?;
        }
        Ok(())
    }

    /// R10: one mode and one type for all holders and the host. R40: what is donated has one owner,
    /// and the host is not another.
    fn check_held(&self, id: u16, binding: &Binding) -> Check {
        let Region { state, mem_type, owner } = self.regions[binding.region];
        let fits = match binding.mode {
            Mode::Share => state == RegionState::Shared,
            Mode::Donate => state == RegionState::Donated && owner == Some(id),
        };
        require(fits, "R40: a region has one owner", (id, binding))?;
        let one_type = mem_type == Some(binding.leaf.mem_type);
        require(one_type, "R10: a region has one type", (id, binding))
    }

    /// Where a guest's pages lead: to RAM that it owns or borrows, or to what it bound.
    fn check_leaves(&self, machine: &Machine, id: u16, vm: &Vm) -> Check {
        let bound = vm.bindings.iter().map(|(first, bound)| *first..first + bound.pages);
        let bound: RangeSet<u64> = bound.collect();
        for (run, leaf) in vm.pages.iter() {
            require(run.end <= machine.ipa_limit(), "pages lie in the guest", (id, run))?;
            for part in bound.gaps(run) {
                self.check_ram(id, vm, (&part, leaf))?;
            }
        }
        Ok(())
    }

    /// R15: RAM is write-back. A page that two worlds reach is shared.
    fn check_ram(&self, id: u16, vm: &Vm, (ipa, leaf): (&Range<u64>, &Leaf)) -> Check {
        let frames = leaf.frames(ipa);
        let write_back = leaf.mem_type == MemType::Cacheable && !leaf.no_tags;
        require(write_back, "R15: guest RAM is write-back", (id, ipa, leaf))?;
        let outside = self.frames.gaps(&frames).next();
        require(outside.is_none(), "R01: a guest reaches RAM or what it bound", (id, &outside))?;
        for (run, frame) in self.frames.overlapping(&frames) {
            let own = frame.guest() == Some(id) && leaf.perms == Perms::ALL;
            let borrowed = matches!(frame, Frame::HostLentGuests(_)) && !vm.is_protected();
            require(
                own || borrowed,
                "a guest reaches its own or what it borrows",
                (id, run, frame),
            )?;
        }
        Ok(())
    }
}

/// Runs of pages that follow each other.
fn runs(pages: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match runs.last_mut().filter(|run| run.end == *page) {
            Some(run) => run.end += 1,
            None => runs.push(*page..page + 1),
        }
    }
    runs
}

impl Binding {
    /// R02 to R08, R11, R20, R22, R43, R45: what the entry grants, still.
    fn check_granted(&self, machine: &Machine, contract: ContractFlags) -> Check {
        let entry = &machine.entries[self.region];
        let pages = machine.region_pages(self.region);
        let inside = pages.start <= self.pfn && self.pfn + self.pages <= pages.end;
        require(inside && self.pages > 0, "R14: a binding lies in its region", self)?;
        let mode = entry.modes & Modes::from(self.mode).raw() != 0;
        let mem_type = entry.types & MemTypes::from(self.leaf.mem_type).raw() != 0;
        let perms = self.leaf.perms.raw() & !entry.perms == 0;
        require(mode && mem_type && perms, "R02: a binding stays within the grant", self)?;
        let readable = self.leaf.perms.contains(Perms::READ);
        require(readable, "a binding is readable", self)?;
        let cacheable = self.leaf.mem_type == MemType::Cacheable;
        let executable = self.leaf.perms.contains(Perms::EXEC);
        require(cacheable || !executable, "R11: uncached memory is not executable", self)?;
        let has = |flag| machine.region_has(self.region, flag);
        let can = |capabilities| machine.capabilities().contains(capabilities);
        let usable = !has(RegionFlags::QUIRKED) && !has(RegionFlags::HOST_CLOSED);
        require(usable, "R43: a quirked region is not assigned", self)?;
        let streams = self.mode == Mode::Donate && entry.stream_count > 0;
        require(!streams, "R45: a region with streams is not donated", self)?;
        let nc = self.leaf.mem_type == MemType::AnyUncached;
        let nc_safe = has(RegionFlags::NC_SAFE) && can(Capabilities::NORMAL_NC);
        require(!nc || nc_safe, "R04: Normal-NC is safe", self)?;
        let maintained = self.mode == Mode::Donate && has(RegionFlags::CMO_BY_ADDRESS);
        let coherent = can(Capabilities::FWB.with(Capabilities::DIC)) || maintained;
        require(!cacheable || coherent, "R07, R08: cacheable memory is coherent", self)?;
        let tagged = cacheable && contract.contains(ContractFlags::MTE) && !has(RegionFlags::TAGS);
        require(self.leaf.no_tags == tagged, "R20: tags exist or are forbidden", self)?;
        let general = contract.contains(ContractFlags::GENERAL_PURPOSE)
            || self.flags.contains(RequestFlags::GENERAL_PURPOSE);
        let atomics = has(RegionFlags::EXCLUSIVES.with(RegionFlags::ATOMICS));
        require(!general || atomics, "R22: programs have exclusives and atomics", self)
    }
}

impl Vm {
    /// R30: an announced binding has its tables and nothing else; an installed one is mapped whole.
    fn check_installed(&self, first: u64, binding: &Binding) -> Check {
        let ipa = first..first + binding.pages;
        let placed = binding.leaf.offset == binding.pfn.wrapping_sub(first);
        require(placed, "a binding leads to its pages", binding)?;
        let mut mapped = self.pages.overlapping(&ipa);
        if binding.reserved.is_some() {
            return require(mapped.next().is_none(), "announced is not mapped", binding);
        }
        let alike = mapped.all(|(_, leaf)| *leaf == binding.leaf);
        let whole = self.pages.gaps(&ipa).next().is_none();
        require(alike && whole, "R09: what was granted is mapped", binding)
    }

    /// R02: no larger block than the entry grants, or than frames and pages are aligned to.
    fn check_blocks(&self, mapping: &Mapping, binding: &Binding) -> Check {
        if binding.reserved.is_some() {
            return Ok(());
        }
        for (level, size) in [(2, GIB), (3, PIECE)] {
            let first = mapping.ipa.start / size * size;
            let tables = self.tables.live.range((level, first)..(level, mapping.ipa.end));
            let all = (mapping.ipa.end - first).div_ceil(size);
            let split = mapping.allows(size) || count(tables.count()) == all;
            require(split, "R02: blocks are not larger than granted", binding)?;
        }
        Ok(())
    }

    /// R40: a dying VM reaches nothing.
    fn check_life(&self) -> Check {
        let nothing =
            self.pages.is_empty() && self.bindings.is_empty() && self.tables.live.is_empty();
        let dying = self.state == VmState::Dying;
        require(!dying || nothing, "R40: a dying VM reaches nothing", self.state)?;
        let root = self.tables.live.contains(&(1, 0));
        require(dying || root, "a living VM has a root table", self.state)
    }

    /// Table memory is accounted for, and tables are where pages and the ends of blocks need them.
    fn check_tables_fit(&self) -> Check {
        let tables = &self.tables;
        let live = count(tables.live.len());
        let all = count(tables.frames.len());
        require(live + tables.free == all, "tables add up", (live, tables.free, all))?;
        let reserved: u64 = self.bindings.values().filter_map(|binding| binding.reserved).sum();
        require(
            reserved <= tables.free,
            "R30: reserved tables are there",
            (reserved, tables.free),
        )?;
        for (level, first) in tables.live.iter().filter(|(level, _)| *level > 1) {
            let (parent, size) =
                if *level == 2 { ((1, 0), GIB) } else { ((2, first / GIB * GIB), PIECE) };
            let linked = tables.live.contains(&parent) && first.is_multiple_of(size);
            require(linked, "a table hangs below another", (level, first))?;
        }
        for (run, leaf) in self.pages.iter() {
            for edge in [run.start, run.end] {
                let at = if edge == run.end { edge - 1 } else { edge };
                let paged = edge.is_multiple_of(PIECE) && leaf.offset.is_multiple_of(PIECE)
                    || tables.live.contains(&(3, at / PIECE * PIECE));
                let small = edge.is_multiple_of(GIB) && leaf.offset.is_multiple_of(GIB)
                    || tables.live.contains(&(2, at / GIB * GIB));
                require(paged && small, "a block does not reach past its pages", (run, leaf))?;
            }
        }
        Ok(())
    }
}
