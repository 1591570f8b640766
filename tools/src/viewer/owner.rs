//! Who owns each page of a snapshot, and where the snapshot contradicts itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use pfnguard_shared::info::RegionState;
use pfnguard_shared::manifest::RegionFlags;
use pfnguard_shared::{MemType, Mode, Perms};

use super::pages::{Pages, Pfn};
use super::snapshot::{Binding, Ram, Region, Snapshot};
use crate::words;

/// Who owns a page.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The host alone.
    Host,
    /// The hypervisor.
    Hyp,
    /// One VM alone.
    Vm(u16),
    /// The host, and these VMs borrow it.
    Shared(BTreeSet<u16>),
    /// Nobody until the device was reset.
    Quarantine,
    /// Nobody until the machine restarts: a reset failed.
    Lost,
    /// Nobody at all: registers through which a device could write anywhere.
    Closed,
    /// More than one, says the snapshot.
    Contradiction,
}

/// Pages that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The pages.
    pub pages: Pages,
    /// What is the same for all of them.
    pub cell: Cell,
}

/// What there is to say of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The bank or region that it lies in, as an index into the snapshot's areas.
    pub area: Option<usize>,
    /// Who owns it.
    pub owner: Owner,
    /// The memory types that stage 2 forces on VMs; empty where it forces none that is known here.
    pub types: Vec<MemType>,
    /// What VMs may do; more than one where they differ.
    pub perms: BTreeSet<Perms>,
    /// What it is.
    pub name: String,
}

/// A bank of RAM or a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// What it is called.
    pub name: String,
    /// Its pages.
    pub pages: Pages,
}

/// Something that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub pages: Pages,
    /// What.
    pub what: String,
}

/// Something that the snapshot says of a page.
#[derive(Clone, Copy)]
enum Claim<'a> {
    Ram,
    Region(&'a Region),
    Hyp,
    Tables(u16),
    Lent(&'a Ram),
    Given(&'a Ram),
    Bound(&'a Binding),
}

/// Areas, rows and problems, all in the order of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Banks of RAM and regions.
    pub areas: Vec<Area>,
    /// Everything that the snapshot says something of.
    pub rows: Vec<Row>,
    /// Where it contradicts itself.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {}: {}", self.pages, self.what)
    }
}

impl fmt::Display for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ram => f.write_str("RAM"),
            Self::Region(region) => write!(f, "region {}", region.name),
            Self::Hyp => f.write_str("the hypervisor's"),
            Self::Tables(vm) => write!(f, "tables of VM {vm}"),
            Self::Lent(ram) => write!(f, "lent to VM {}", ram.vm),
            Self::Given(ram) => write!(f, "given to VM {}", ram.vm),
            Self::Bound(binding) => write!(f, "bound by VM {}", binding.vm),
        }
    }
}

impl Owners {
    /// Finds out who owns what.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut owners = Self { areas: areas(snapshot), ..Self::default() };
        sweep(&claims(snapshot), |pages, claims| owners.keep(snapshot, pages, claims));
        owners.problems.extend(snapshot.regions.iter().filter_map(|r| miscounted(snapshot, r)));
        owners.problems.extend(strangers(snapshot));
        owners.problems.extend(twice_in_a_vm(snapshot));
        owners.problems.sort_by_key(|problem| problem.pages);
        owners
    }

    fn keep(&mut self, snapshot: &Snapshot, pages: Pages, claims: &[Claim<'_>]) {
        let problem = contradiction(claims);
        let area = self.areas.iter().position(|area| area.pages.contains(pages.first()));
        let mut cell = Cell { area, ..cell(snapshot, claims) };
        if let Some(what) = problem {
            cell.owner = Owner::Contradiction;
            self.complain(Problem { pages, what });
        }
        match self.rows.last_mut() {
            Some(row) if row.pages.end() == pages.first() && row.cell == cell => {
                row.pages = joined(row.pages, pages);
            }
            Some(_) | None => self.rows.push(Row { pages, cell }),
        }
    }

    fn complain(&mut self, problem: Problem) {
        match self.problems.last_mut() {
            Some(last)
                if last.what == problem.what && last.pages.end() == problem.pages.first() =>
            {
                last.pages = joined(last.pages, problem.pages);
            }
            Some(_) | None => self.problems.push(problem),
        }
    }
}

fn joined(left: Pages, right: Pages) -> Pages {
    Pages::between(left.first(), right.end()).unwrap_or(left)
}

fn areas(snapshot: &Snapshot) -> Vec<Area> {
    let ram = snapshot.ram.iter().map(|&pages| Area { name: "RAM".to_owned(), pages });
    let regions = snapshot.regions.iter().map(|r| Area { name: r.name.clone(), pages: r.pages });
    let mut areas: Vec<Area> = ram.chain(regions).collect();
    areas.sort_by_key(|area| area.pages);
    areas
}

fn claims(snapshot: &Snapshot) -> Vec<(Pages, Claim<'_>)> {
    let ram = snapshot.ram.iter().map(|&pages| (pages, Claim::Ram));
    let regions = snapshot.regions.iter().map(|region| (region.pages, Claim::Region(region)));
    let hyp = snapshot.hyp.iter().map(|&pages| (pages, Claim::Hyp));
    let tables = snapshot.tables.iter().map(|&(vm, pages)| (pages, Claim::Tables(vm)));
    let lent = snapshot.lent.iter().map(|ram| (ram.pages, Claim::Lent(ram)));
    let given = snapshot.given.iter().map(|ram| (ram.pages, Claim::Given(ram)));
    let bound = snapshot.bindings.iter().map(|binding| (binding.pages, Claim::Bound(binding)));
    ram.chain(regions).chain(hyp).chain(tables).chain(lent).chain(given).chain(bound).collect()
}

/// Calls `each` for every run of pages of which the same is claimed, in the order of addresses.
fn sweep<'a>(claims: &[(Pages, Claim<'a>)], mut each: impl FnMut(Pages, &[Claim<'a>])) {
    let mut edges: BTreeMap<Pfn, Vec<usize>> = BTreeMap::new();
    for (index, (pages, _)) in claims.iter().enumerate() {
        edges.entry(pages.first()).or_default().push(index);
        edges.entry(pages.end()).or_default().push(index);
    }
    let mut active = BTreeSet::new();
    let mut from = Pfn(0);
    for (at, changed) in edges {
        let now: Vec<Claim<'a>> =
            active.iter().filter_map(|&index| at_index(claims, index)).collect();
        if let Some(pages) = Pages::between(from, at).filter(|_| !now.is_empty()) {
            each(pages, &now);
        }
        for index in changed {
            // At its first page a claim comes, at its end it goes.
            if !active.remove(&index) {
                active.insert(index);
            }
        }
        from = at;
    }
}

fn at_index<'a>(claims: &[(Pages, Claim<'a>)], index: usize) -> Option<Claim<'a>> {
    claims.get(index).map(|(_, claim)| *claim)
}

fn region_of<'a>(claims: &[Claim<'a>]) -> Option<&'a Region> {
    claims.iter().find_map(|claim| match claim {
        Claim::Region(region) => Some(*region),
        Claim::Ram
        | Claim::Hyp
        | Claim::Tables(_)
        | Claim::Lent(_)
        | Claim::Given(_)
        | Claim::Bound(_) => None,
    })
}

fn bound<'a>(claims: &[Claim<'a>]) -> Vec<&'a Binding> {
    let binding = |claim: &Claim<'a>| match claim {
        Claim::Bound(binding) => Some(*binding),
        Claim::Ram
        | Claim::Region(_)
        | Claim::Hyp
        | Claim::Tables(_)
        | Claim::Lent(_)
        | Claim::Given(_) => None,
    };
    claims.iter().filter_map(binding).collect()
}

/// Says why these claims cannot all be true.
fn contradiction(claims: &[Claim<'_>]) -> Option<String> {
    let places = claims.iter().filter(|claim| matches!(claim, Claim::Ram | Claim::Region(_)));
    let is_ram = claims.iter().any(|claim| matches!(claim, Claim::Ram));
    if places.count() > 1 {
        return Some(at_once(claims));
    }
    let region = region_of(claims);
    let misplaced = claims.iter().find(|claim| match claim {
        Claim::Ram | Claim::Region(_) => false,
        // Firmware may have kept it out of what the kernel calls RAM.
        Claim::Hyp => region.is_some(),
        Claim::Tables(_) | Claim::Lent(_) | Claim::Given(_) => !is_ram,
        Claim::Bound(_) => region.is_none(),
    });
    if let Some(claim) = misplaced {
        let place = region.map_or_else(
            || if is_ram { "RAM" } else { "neither RAM nor a region" }.to_owned(),
            |region| format!("region {}", region.name),
        );
        return Some(format!("{claim}, and it is {place}"));
    }
    match region {
        Some(region) => misbound(region, &bound(claims)),
        None => owned_twice(claims).then(|| at_once(claims)),
    }
}

fn at_once(claims: &[Claim<'_>]) -> String {
    let places = claims.iter().filter(|claim| matches!(claim, Claim::Ram | Claim::Region(_)));
    // That RAM is RAM is worth a word only beside another place.
    let alone = places.count() == 1;
    let told = claims.iter().filter(|claim| !alone || !matches!(claim, Claim::Ram));
    let words: Vec<String> = told.map(ToString::to_string).collect();
    format!("{} at once", words.join(", "))
}

/// RAM has one owner; the host's may be lent to more than one VM, tables are the hypervisor's.
fn owned_twice(claims: &[Claim<'_>]) -> bool {
    let count = |is: fn(&Claim<'_>) -> bool| claims.iter().filter(|claim| is(claim)).count();
    let tables = count(|claim| matches!(claim, Claim::Tables(_)));
    let hyp = count(|claim| matches!(claim, Claim::Hyp)).max(tables);
    let given = count(|claim| matches!(claim, Claim::Given(_)));
    let lent = count(|claim| matches!(claim, Claim::Lent(_))).min(1);
    hyp + given + lent > 1
}

fn misbound(region: &Region, bindings: &[&Binding]) -> Option<String> {
    let state = region.state;
    let agrees = |binding: &&&Binding| match state {
        RegionState::Shared => binding.mode == Mode::Share,
        RegionState::Donated => binding.mode == Mode::Donate,
        RegionState::Free | RegionState::Quarantined | RegionState::Lost => false,
    };
    if let Some(binding) = bindings.iter().find(|binding| !agrees(binding)) {
        let (vm, mode) = (binding.vm, binding.mode.name());
        return Some(format!("bound by VM {vm} ({mode}), and the region is {}", state.name()));
    }
    let types: BTreeSet<MemType> = bindings.iter().map(|binding| binding.mem_type).collect();
    let names: Vec<&str> = types.into_iter().map(MemType::name).collect();
    (names.len() > 1).then(|| format!("bound as {} (R10)", names.join(" and as ")))
}

/// Says what there is to say of a page of which this is claimed.
fn cell(snapshot: &Snapshot, claims: &[Claim<'_>]) -> Cell {
    match region_of(claims) {
        Some(region) => region_cell(snapshot, region, &bound(claims)),
        None => ram_cell(claims),
    }
}

fn region_cell(snapshot: &Snapshot, region: &Region, bindings: &[&Binding]) -> Cell {
    let vms: BTreeSet<u16> = bindings.iter().map(|binding| binding.vm).collect();
    let closed = region.flags.contains(RegionFlags::HOST_CLOSED);
    let owner = match region.state {
        RegionState::Free if closed => Owner::Closed,
        RegionState::Free => Owner::Host,
        RegionState::Shared if vms.is_empty() => Owner::Host,
        RegionState::Shared => Owner::Shared(vms),
        // A region is donated whole, whatever part of it is bound.
        RegionState::Donated => {
            holders(snapshot, region).first().map_or(Owner::Contradiction, |&vm| Owner::Vm(vm))
        }
        RegionState::Quarantined => Owner::Quarantine,
        RegionState::Lost => Owner::Lost,
    };
    let types: BTreeSet<MemType> = bindings.iter().map(|binding| binding.mem_type).collect();
    let perms = bindings.iter().map(|binding| binding.perms).collect();
    let types = types.into_iter().collect();
    Cell { area: None, owner, types, perms, name: region.name.clone() }
}

/// Returns the VMs that have bound a part of a region.
fn holders(snapshot: &Snapshot, region: &Region) -> BTreeSet<u16> {
    let here = snapshot.bindings.iter().filter(|binding| binding.pages.overlaps(region.pages));
    here.map(|binding| binding.vm).collect()
}

fn ram_cell(claims: &[Claim<'_>]) -> Cell {
    let (mut owner, mut name) = (Owner::Host, "RAM".to_owned());
    let (mut types, mut perms) = (Vec::new(), BTreeSet::new());
    let mut borrowers = BTreeSet::new();
    for claim in claims {
        match claim {
            Claim::Ram | Claim::Region(_) | Claim::Bound(_) => {}
            Claim::Hyp => (owner, name) = (Owner::Hyp, "hypervisor".to_owned()),
            Claim::Tables(_) => (owner, name) = (Owner::Hyp, claim.to_string()),
            Claim::Given(ram) => owner = Owner::Vm(ram.vm),
            Claim::Lent(ram) => {
                borrowers.insert(ram.vm);
                owner = Owner::Shared(borrowers.clone());
            }
        }
        if let Claim::Given(ram) | Claim::Lent(ram) = claim {
            // A VM's RAM is always write-back (R15).
            types = vec![MemType::Cacheable];
            perms.insert(ram.perms);
        }
    }
    Cell { area: None, owner, types, perms, name }
}

/// A region that says another number of VMs than have bound it.
fn miscounted(snapshot: &Snapshot, region: &Region) -> Option<Problem> {
    let found = holders(snapshot, region).len();
    let needed = match region.state {
        RegionState::Donated => found == 1,
        RegionState::Shared => found >= 1,
        RegionState::Free | RegionState::Quarantined | RegionState::Lost => true,
    };
    let (state, told) = (region.state.name(), region.holders);
    let what =
        format!("region {} is {state}, held by {told} VMs and bound by {found}", region.name);
    let counted = found == usize::from(told);
    (!counted || !needed).then_some(Problem { pages: region.pages, what })
}

/// VMs that are named and not listed.
fn strangers(snapshot: &Snapshot) -> impl Iterator<Item = Problem> {
    let known: BTreeSet<u16> = snapshot.vms.iter().map(|vm| vm.number).collect();
    let tables = snapshot.tables.iter().map(|&(vm, pages)| (vm, pages));
    let ram = snapshot.lent.iter().chain(&snapshot.given).map(|ram| (ram.vm, ram.pages));
    let bound = snapshot.bindings.iter().map(|binding| (binding.vm, binding.pages));
    let strange = tables.chain(ram).chain(bound).filter(move |(vm, _)| !known.contains(vm));
    strange.map(|(vm, pages)| Problem { pages, what: format!("there is no VM {vm}") })
}

/// Pages that a VM sees where it sees others already.
fn twice_in_a_vm(snapshot: &Snapshot) -> Vec<Problem> {
    let ram = snapshot.lent.iter().chain(&snapshot.given).map(|ram| (ram.vm, ram.ipa, ram.pages));
    let bound = snapshot.bindings.iter().map(|binding| (binding.vm, binding.ipa, binding.pages));
    let mut seen: Vec<(u16, Pages, Pages)> = ram.chain(bound).collect();
    seen.sort();
    let mut problems = Vec::new();
    let mut furthest: Option<(u16, Pages)> = None;
    for (vm, ipa, pages) in seen {
        let before = furthest.filter(|(of, _)| *of == vm).map(|(_, before)| before);
        if before.is_some_and(|before| before.overlaps(ipa)) {
            let what = format!("VM {vm} has something else at IPA page {} too", ipa.first());
            problems.push(Problem { pages, what });
        }
        if before.is_none_or(|before| before.end() < ipa.end()) {
            furthest = Some((vm, ipa));
        }
    }
    problems
}

impl Cell {
    /// Writes the memory types.
    pub fn types(&self) -> String {
        or_dash(self.types.iter().map(|mem_type| mem_type.name()).collect::<Vec<_>>().join("/"))
    }

    /// Writes what VMs may do.
    pub fn perms(&self) -> String {
        or_dash(self.perms.iter().map(|&perms| words::letters(perms)).collect::<Vec<_>>().join("/"))
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests;
