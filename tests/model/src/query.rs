//! Calls that change nothing: what there is (R31), what would be granted (R32), what a guest was
//! promised (R23).

use std::ops::Range;

use pfnguard_shared::info::{Capabilities, InfoSelector, RegionInfo};
use pfnguard_shared::manifest::RegionFlags;
use pfnguard_shared::request::{CHECK_DECISIONS_OFFSET, Decision, Request};
use pfnguard_shared::vm::{Promise, VmState};
use pfnguard_shared::{
    ABI_MAJOR, ABI_MINOR, HostFunction, MAX_RANGE_PAGES, MemType, Mode, NO_PFN, Rule, Status,
    Subject,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::call::{Call, Outcome};
use crate::machine::{MAX_CPUS, Machine, count};
use crate::refusal::{argument, contract, ipa_range, no_arg_page, no_object};
use crate::state::{Binding, Frame, Leaf, State, Vm};
use crate::{PAGE_LIMIT, Refused};

/// Calls of the host.
impl State {
    /// x1..x4 of INFO. How many tables the host's stage 2 has left is open.
    pub(crate) fn info(
        &self,
        machine: &Machine,
        selector: InfoSelector,
        host_tables: u64,
    ) -> Result<[u64; 4], Refused> {
        Ok(match selector {
            InfoSelector::Abi => {
                let version = u64::from(ABI_MAJOR) << 32 | u64::from(ABI_MINOR);
                [version, count(HostFunction::COUNT), count(Rule::ALL.len()), 0]
            }
            InfoSelector::ManifestHash => hash_words(&machine.sha256),
            InfoSelector::Limits => machine.limits(),
            InfoSelector::Memory => {
                let (ram, hyp) = self.count_frames();
                [ram, machine.vmemmap_bytes, hyp, host_tables]
            }
            InfoSelector::Platform => {
                let bits = [machine.pa_bits, machine.guest_ipa_bits, machine.vmid_bits];
                let [pa, ipa, vmid] = bits.map(u64::from);
                [machine.capabilities().raw(), pa, ipa, vmid]
            }
        })
    }

    /// RAM frames, and those that are the hypervisor's.
    fn count_frames(&self) -> (u64, u64) {
        let length = |run: &Range<u64>| run.end - run.start;
        let is_hyp = |frame: &Frame| matches!(frame, Frame::Hyp | Frame::HypReadable);
        let hyp = self.frames.iter().filter(|(_, frame)| is_hyp(frame));
        (
            self.frames.iter().map(|(run, _)| length(run)).sum(),
            hyp.map(|(run, _)| length(run)).sum(),
        )
    }

    /// Grants and state of a region.
    pub(crate) fn region_info(
        &self,
        machine: &Machine,
        call: &Call<'_>,
        region: usize,
    ) -> Result<Outcome, Refused> {
        call.arg_page.ok_or(no_arg_page())?;
        let regions = count(machine.entries.len());
        let entry = machine.entries.get(region).ok_or(no_object(count(region), regions))?;
        let pages = machine.region_pages(region);
        let info = RegionInfo {
            name: entry.name,
            pfn: pages.start,
            pages: pages.end - pages.start,
            flags: entry.flags,
            class: entry.class,
            modes: entry.modes,
            types: entry.types,
            perms: entry.perms,
            max_vms: entry.max_vms,
            blocks: entry.blocks,
            reset: entry.reset,
            state: self.regions[region].state.raw(),
            holders: u8::try_from(self.holders(region)).expect("at most 16 VMs"),
            streams: entry.stream_count,
            reserved: [0; 2],
            quirk: entry.quirk,
        };
        let answer = Outcome::values([info.pfn, info.pages, 0, 0]);
        Ok(answer.writes(0, info.as_bytes()))
    }

    /// Where the host finds a CPU's trace ring.
    pub(crate) fn trace_info(&self, machine: &Machine, cpu: usize) -> Result<Outcome, Refused> {
        let pages = machine.trace_pages.get(cpu).ok_or(no_object(count(cpu), MAX_CPUS))?;
        Ok(Outcome::values([pages.start, pages.end - pages.start, 0, 0]))
    }

    /// R32: what BIND would answer to each item now, each for itself.
    pub(crate) fn check(
        &self,
        machine: &Machine,
        call: &Call<'_>,
        items: usize,
    ) -> Result<Outcome, Refused> {
        let page = call.arg_page.ok_or(no_arg_page())?;
        let requests = &page[..items * size_of::<Request>()];
        let mut decisions = Vec::with_capacity(items * size_of::<Decision>());
        for request in requests.chunks_exact(size_of::<Request>()) {
            let request = Request::read_from_bytes(request).expect("the size of a request");
            let decision = decision(self.plan(machine, &request).err());
            decisions.extend_from_slice(decision.as_bytes());
        }
        Ok(Outcome::done().writes(CHECK_DECISIONS_OFFSET, &decisions))
    }

    /// What the CPU answers is open.
    pub(crate) fn probe(
        &self,
        machine: &Machine,
        id: u16,
        ipa: u64,
        answer: u64,
    ) -> Result<Outcome, Refused> {
        if ipa >= PAGE_LIMIT {
            return Err(argument(2, PAGE_LIMIT - 1));
        }
        machine.check_ipa(&(ipa..ipa + 1))?;
        let vm = self.vm_in(id, VmState::Active)?;
        if vm.is_protected() && vm.binding_at(ipa).is_none() {
            return Err(contract());
        }
        Ok(Outcome::value(answer))
    }
}

/// R34: a refusal as CHECK writes it.
fn decision(refused: Option<Refused>) -> Decision {
    let granted = Refused::plain(Status::Success, Subject::None, 0u8, 0u8);
    let Refused { status, rule, subject, pfn, requested, granted } = refused.unwrap_or(granted);
    let (status, rule) = (status.raw(), rule.map_or(0, Rule::raw));
    let (subject, pfn) = (subject.raw(), pfn.unwrap_or(NO_PFN));
    Decision { status, rule, subject, pfn, requested, granted }
}

/// First byte in bits 7:0 of the first word (R51).
fn hash_words(sha256: &[u8; 32]) -> [u64; 4] {
    let (words, _) = sha256.as_chunks();
    std::array::from_fn(|index| u64::from_le_bytes(words[index]))
}

/// R23.
impl State {
    /// x1 and x2 of a guest's QUERY: the promise about a page, and for how many of the pages that
    /// were asked about it holds.
    pub(crate) fn query(
        &self,
        machine: &Machine,
        id: u16,
        first: u64,
        pages: u64,
    ) -> Result<[u64; 4], Refused> {
        let past = first.checked_add(pages).filter(|past| pages > 0 && *past <= PAGE_LIMIT);
        let limit = machine.ipa_limit();
        let past = past.ok_or(argument(2, PAGE_LIMIT))?.min(limit);
        if first >= limit {
            return Err(ipa_range(first, limit));
        }
        let vm = self.vm(id)?;
        if let Some((start, binding)) = vm.binding_at(first) {
            let pages = (start + binding.pages).min(past) - first;
            return Ok([binding.promise(machine), pages, 0, 0]);
        }
        if let Some(word) = self.ram_promise(machine, vm, first) {
            return Ok([word, self.ram_run(machine, vm, first..past, word), 0, 0]);
        }
        let occupied = vm.first_occupied(&(first..past));
        Ok([0, occupied.unwrap_or(past) - first, 0, 0])
    }

    /// What is promised about a page of RAM; `None` where there is none.
    fn ram_promise(&self, machine: &Machine, vm: &Vm, ipa: u64) -> Option<u64> {
        let leaf = vm.pages.get(&ipa)?;
        let frame = self.frames.get(&ipa.wrapping_add(leaf.offset))?;
        Some(ram_word(machine, leaf, *frame))
    }

    /// How many pages have the same promise; no more than one call may take.
    fn ram_run(&self, machine: &Machine, vm: &Vm, ipa: Range<u64>, word: u64) -> u64 {
        let past = ipa.end.min(ipa.start + MAX_RANGE_PAGES);
        let same = |page: &u64| self.ram_promise(machine, vm, *page) == Some(word);
        count((ipa.start..past).take_while(same).count())
    }
}

fn ram_word(machine: &Machine, leaf: &Leaf, frame: Frame) -> u64 {
    let shared = matches!(frame, Frame::HostLentGuests(_) | Frame::GuestLentHost(_));
    let promise = [
        (shared, Promise::SHARED),
        (machine.capabilities().contains(Capabilities::LSE), Promise::ATOMICS),
    ];
    let always = Promise::PRESENT.with(Promise::EXCLUSIVES);
    word(leaf.perms.raw(), MemType::Cacheable, always.with_all(promise))
}

fn word(perms: u8, mem_type: MemType, promise: Promise) -> u64 {
    u64::from(perms) | u64::from(mem_type.raw()) << 8 | u64::from(promise.raw()) << 16
}

impl Binding {
    /// No tags: guests run without (`HCR_EL2.ATA`).
    fn promise(&self, machine: &Machine) -> u64 {
        let has = |flag| machine.region_has(self.region, flag);
        let lse = machine.capabilities().contains(Capabilities::LSE);
        let promise = [
            (self.mode == Mode::Share, Promise::SHARED),
            (has(RegionFlags::EXCLUSIVES), Promise::EXCLUSIVES),
            (has(RegionFlags::ATOMICS) && lse, Promise::ATOMICS),
        ];
        let always = Promise::PRESENT.with(Promise::PFNMAP);
        word(self.leaf.perms.raw(), self.leaf.mem_type, always.with_all(promise))
    }
}

trait WithAll: Sized {
    fn with_all(self, others: impl IntoIterator<Item = (bool, Self)>) -> Self;
}

impl WithAll for Promise {
    /// With those bits that hold.
    fn with_all(self, others: impl IntoIterator<Item = (bool, Self)>) -> Self {
        let holding = others.into_iter().filter(|(holds, _)| *holds);
        holding.fold(self, |all, (_, bit)| all.with(bit))
    }
}
