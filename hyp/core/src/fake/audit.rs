//! The truth, compared with everything that must follow from it.

use std::collections::BTreeMap;
use std::vec::Vec;

use pfnguard_shared::Perms;
use pfnguard_shared::vm::{ContractFlags, VmState};

use super::{FakeGuest, FakeMachine, IMAGE, length};
use crate::addr::{IpaPfn, Pfn, PfnRange};
use crate::hypervisor::{Host, Hypervisor};
use crate::machine::{El2Stage1, GuestLeaf, GuestStage2, Stage2Attrs};
use crate::region::HostView;
use crate::vm::{Vm, VmId};
use crate::vmemmap::{FrameState, HostAccess};

/// Pages of one VM, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields of Vm")]
pub struct VmSnapshot {
    pub id: VmId,
    pub contract: ContractFlags,
    pub state: VmState,
    pub owned: u64,
    pub borrowed: u64,
    pub bindings: u64,
    pub leaves: Vec<(IpaPfn, GuestLeaf)>,
    pub tables_free: u64,
}

/// Everything that a refused call must leave as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after what they are a copy of")]
pub struct Snapshot {
    pub frames: Vec<FrameState>,
    pub host: Vec<(PfnRange, Stage2Attrs)>,
    pub vms: Vec<VmSnapshot>,
    pub el2_pages: u64,
    pub regions: std::string::String,
}

/// Copies the state of the hypervisor. Under Miri the frames are those of the first 128 pages.
pub fn snapshot(hypervisor: &Hypervisor<FakeMachine>) -> Snapshot {
    let mut door = hypervisor.enter();
    let mut host = door.lock_host();
    let vms = VmId::all().filter_map(|id| {
        let (_, guest) = host.with_guest(id).ok()?;
        Some(VmSnapshot {
            id,
            contract: guest.contract,
            state: guest.state,
            owned: guest.owned_pages,
            borrowed: guest.borrowed_pages,
            bindings: guest.bindings,
            leaves: guest.stage2.leaves().map(|(ipa, leaf)| (*ipa, *leaf)).collect(),
            tables_free: guest.stage2.tables_free(),
        })
    });
    let vms = vms.collect();
    let el2_pages = host.with_hyp().1.stage1.pages();
    let map = &host.vmemmap;
    let most = if cfg!(miri) { 128 } else { usize::MAX };
    let frames = map.banks().flat_map(|bank| bank.iter()).take(most);
    let frames = frames.map(|pfn| map.state(pfn)).collect();
    let regions = std::format!("{:?}", host.regions);
    Snapshot { frames, host: host.stage2.runs().copied().collect(), vms, el2_pages, regions }
}

/// Asserts that every translation and every count follows from the state of frames and regions.
///
/// Does nothing under Miri, where looking at every frame takes minutes.
pub fn assert_consistent(hypervisor: &Hypervisor<FakeMachine>) {
    if cfg!(miri) {
        return;
    }
    let mut door = hypervisor.enter();
    let mut host = door.lock_host();
    host.vmemmap.assert_summaries();
    for (run, attrs) in host.stage2.runs() {
        run.iter().for_each(|pfn| assert_host_access(&host, pfn, attrs));
    }
    let mut borrowed = BTreeMap::new();
    let mut tables = 0;
    for id in VmId::all() {
        if let Ok((host, guest)) = host.with_guest(id) {
            tables += length(guest.stage2.tables().count());
            assert_tables(host, &guest.stage2);
            assert_leaves(host, id, &guest, &mut borrowed);
        }
    }
    let trace = length(hypervisor.trace_pages.iter().flatten().count());
    assert_eq!(host.vmemmap.hyp_pages(), IMAGE.pages() + trace + tables);
    assert_eq!(host.with_hyp().1.stage1.pages(), tables);
    assert_share_counts(&host, &borrowed);
}

fn assert_tables(host: &Host<FakeMachine>, stage2: &FakeGuest) {
    for table in stage2.tables() {
        assert_eq!(host.vmemmap.state(*table), FrameState::HypOwned, "table {table}");
    }
}

/// One owner a page, and nobody else's translation leads there.
fn assert_leaves(
    host: &Host<FakeMachine>,
    id: VmId,
    guest: &Vm<FakeMachine>,
    borrowed: &mut BTreeMap<Pfn, u64>,
) {
    let (mut owned_leaves, mut borrowed_leaves) = (0, 0);
    for (ipa, leaf) in guest.stage2.leaves() {
        match host.vmemmap.state(leaf.pfn) {
            FrameState::GuestOwned { vm } | FrameState::GuestSharedHost { vm } => {
                assert_eq!(vm, id, "{} is mapped by a stranger", leaf.pfn);
                owned_leaves += 1;
            }
            FrameState::HostSharedGuest { .. } => {
                *borrowed.entry(leaf.pfn).or_default() += 1;
                borrowed_leaves += 1;
            }
            FrameState::NoPage => assert_binding(host, id, *ipa, leaf),
            state @ (FrameState::HostOwned
            | FrameState::HostSharedHyp { .. }
            | FrameState::HypOwned
            | FrameState::HypReadable) => panic!("a guest maps {} in {state:?}", leaf.pfn),
        }
    }
    assert_eq!(guest.borrowed_pages, borrowed_leaves);
    assert_eq!(guest.owned_pages, owned_frames(host, id));
    match guest.state {
        VmState::Active => assert_eq!(guest.owned_pages, owned_leaves),
        VmState::Dying => assert_eq!(owned_leaves, 0),
    }
}

fn assert_binding(host: &Host<FakeMachine>, id: VmId, ipa: IpaPfn, leaf: &GuestLeaf) {
    let binding = host.regions.binding_at(id, ipa).expect("leaf of no binding");
    let page = binding.pfns.start().0 + (ipa.0 - binding.ipa.start().0);
    assert_eq!((leaf.pfn.0, leaf.attrs), (page, binding.attrs()));
}

fn owned_frames(host: &Host<FakeMachine>, id: VmId) -> u64 {
    let owners = [FrameState::GuestOwned { vm: id }, FrameState::GuestSharedHost { vm: id }];
    let map = &host.vmemmap;
    let frames = map.banks().flat_map(|bank| bank.iter());
    length(frames.filter(|pfn| owners.contains(&map.state(*pfn))).count())
}

fn assert_share_counts(host: &Host<FakeMachine>, borrowed: &BTreeMap<Pfn, u64>) {
    for pfn in host.vmemmap.banks().flat_map(|bank| bank.iter()) {
        let count = match host.vmemmap.state(pfn) {
            FrameState::HostSharedGuest { count } => Some(u64::from(count)),
            FrameState::NoPage
            | FrameState::HostOwned
            | FrameState::HostSharedHyp { .. }
            | FrameState::HypOwned
            | FrameState::HypReadable
            | FrameState::GuestOwned { .. }
            | FrameState::GuestSharedHost { .. } => None,
        };
        assert_eq!(borrowed.get(&pfn).copied(), count, "share count of {pfn}");
    }
}

fn assert_host_access(host: &Host<FakeMachine>, pfn: Pfn, attrs: &Stage2Attrs) {
    if host.vmemmap.is_ram(pfn) {
        match host.vmemmap.state(pfn).host_access() {
            HostAccess::Full => {}
            HostAccess::ReadOnly => assert_eq!(attrs.perms, Perms::READ, "host at {pfn}"),
            HostAccess::None => panic!("the host reaches {pfn}: {:?}", host.vmemmap.state(pfn)),
        }
        return;
    }
    match host.regions.host_view(pfn) {
        Some(HostView::Region { attrs: now, .. }) => {
            assert_eq!(now.as_ref(), Ok(attrs), "host at {pfn}");
        }
        Some(HostView::Outside { .. }) => {}
        None => panic!("the host reaches {pfn}, which does not exist"),
    }
}
