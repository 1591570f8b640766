use proptest::prelude::*;

use super::*;
use crate::viewer::testing::SNAPSHOT;

fn owners(text: &str) -> Owners {
    Owners::of(&Snapshot::read("map", text).unwrap())
}

/// A gigabyte of RAM, a region in a given state, a VM, and these lines.
fn with(state: u8, holders: u8, lines: &str) -> Owners {
    owners(&format!(
        "ram pfn=0x40000 pages=0x40000\n\
         region index=0x0 name=bar pfn=0x10100 pages=0x100 flags=0x0 state={state} holders={holders}\n\
         vm number=0x0 contract=0x0 vcpus=0x1 pid=1 comm=a dead=0\n\
         vm number=0x1 contract=0x0 vcpus=0x1 pid=2 comm=b dead=0\n{lines}"
    ))
}

fn owner(owners: &Owners, pfn: u64) -> Owner {
    let row = owners.rows.iter().find(|row| row.pages.contains(Pfn(pfn)));
    row.map(|row| row.cell.owner.clone()).unwrap()
}

fn problems(owners: &Owners) -> Vec<String> {
    owners.problems.iter().map(ToString::to_string).collect()
}

const BIND: &str =
    "bind vm=0x0 ipa=0x100000 pfn=0x10100 pages=0x80 mode=0x1 type=0x2 perms=0x3 flags=0x0\n";

#[test]
fn every_page_of_a_snapshot_has_an_owner_and_gaps_are_the_hosts() {
    let owners = owners(SNAPSHOT);
    assert_eq!(problems(&owners), [""; 0]);
    let shared = |vms: &[u16]| Owner::Shared(vms.iter().copied().collect());
    for (pfn, expected) in [
        (0x10100, shared(&[0])),
        (0x10180, Owner::Host),
        (0x10200, Owner::Closed),
        (0x10300, Owner::Quarantine),
        (0x40000, Owner::Host),
        (0x51234, Owner::Hyp),
        (0x55555, shared(&[0, 1])),
        (0x55557, shared(&[0])),
        (0x66666, Owner::Vm(1)),
        (0x7a200, Owner::Hyp),
        (0x7ffff, Owner::Host),
    ] {
        assert_eq!(owner(&owners, pfn), expected, "{pfn:#x}");
    }
    let total: u64 = owners.rows.iter().map(|row| row.pages.count()).sum();
    assert_eq!(total, 0x40000 + 0x300);
}

#[test]
fn rows_say_type_permissions_and_name() {
    let owners = owners(SNAPSHOT);
    let row = |pfn| {
        let row = owners.rows.iter().find(|row| row.pages.contains(Pfn(pfn))).unwrap();
        (row.cell.types(), row.cell.perms(), row.cell.name.as_str())
    };
    assert_eq!(row(0x10100), ("AnyUncached".into(), "RW".into(), "edu-bar0"));
    assert_eq!(row(0x55555), ("Cacheable".into(), "R/RW".into(), "RAM"));
    assert_eq!(row(0x51234), ("-".into(), "-".into(), "tables of VM 0"));
}

#[test]
fn a_donated_region_is_the_vms_whole() {
    let owners = with(2, 1, &BIND.replace("mode=0x1", "mode=0x2"));
    assert_eq!(problems(&owners), [""; 0]);
    assert_eq!((owner(&owners, 0x10100), owner(&owners, 0x101ff)), (Owner::Vm(0), Owner::Vm(0)));
}

#[test]
fn two_owners_of_a_page_are_a_contradiction() {
    let given = "given vm=0x0 ipa=0x1 pfn=0x50000 pages=0x2 perms=0x7\n";
    let lent = "lent vm=0x1 ipa=0x1 pfn=0x50001 pages=0x2 perms=0x3\n";
    let found = with(0, 0, &format!("{given}{lent}"));
    assert_eq!(problems(&found), ["pfn 0x50001: lent to VM 1, given to VM 0 at once"]);
    assert_eq!(owner(&found, 0x50001), Owner::Contradiction);
    assert_eq!(owner(&found, 0x50002), Owner::Shared(BTreeSet::from([1])));
    let hyp = with(0, 0, &format!("hyp pfn=0x50000 pages=1\n{given}"));
    assert_eq!(problems(&hyp), ["pfn 0x50000: the hypervisor's, given to VM 0 at once"]);
    let region = with(0, 0, "ram pfn=0x101ff pages=1\n");
    assert_eq!(problems(&region), ["pfn 0x101ff: RAM, region bar at once"]);
}

#[test]
fn what_lies_where_it_cannot_is_a_contradiction() {
    let outside = with(0, 0, "lent vm=0x1 ipa=0x1 pfn=0x7ffff pages=0x2 perms=0x3\n");
    assert_eq!(
        problems(&outside),
        ["pfn 0x80000: lent to VM 1, and it is neither RAM nor a region"]
    );
    let in_region = with(0, 0, "tables vm=0x1 pfn=0x10100 pages=0x1\n");
    assert_eq!(problems(&in_region), ["pfn 0x10100: tables of VM 1, and it is region bar"]);
    let in_ram = with(0, 0, &BIND.replace("0x10100", "0x40000"));
    assert_eq!(problems(&in_ram), ["pfn 0x40000-0x4007f: bound by VM 0, and it is RAM"]);
}

#[test]
fn a_binding_agrees_with_its_region() {
    let free = problems(&with(0, 1, BIND));
    assert_eq!(free, ["pfn 0x10100-0x1017f: bound by VM 0 (Share), and the region is Free"]);
    let count = problems(&with(1, 2, BIND));
    assert_eq!(count, ["pfn 0x10100-0x101ff: region bar is Shared, held by 2 VMs and bound by 1"]);
    let nobody = problems(&with(2, 0, ""));
    assert_eq!(
        nobody,
        ["pfn 0x10100-0x101ff: region bar is Donated, held by 0 VMs and bound by 0"]
    );
    let other = BIND.replace("vm=0x0", "vm=0x1").replace("type=0x2", "type=0x1");
    let aliases = problems(&with(1, 2, &format!("{BIND}{other}")));
    assert_eq!(aliases, ["pfn 0x10100-0x1017f: bound as Device and as AnyUncached (R10)"]);
}

#[test]
fn vms_are_known_and_see_one_thing_at_a_place() {
    let stranger = with(0, 0, "given vm=0x9 ipa=0x1 pfn=0x50000 pages=0x1 perms=0x7\n");
    assert_eq!(problems(&stranger), ["pfn 0x50000: there is no VM 9"]);
    let twice = "given vm=0x0 ipa=0x1 pfn=0x50000 pages=0x9 perms=0x7\n\
        given vm=0x0 ipa=0x2 pfn=0x60000 pages=0x1 perms=0x7\n\
        given vm=0x0 ipa=0x9 pfn=0x70000 pages=0x1 perms=0x7\n";
    let expected = [
        "pfn 0x60000: VM 0 has something else at IPA page 0x2 too",
        "pfn 0x70000: VM 0 has something else at IPA page 0x9 too",
    ];
    assert_eq!(problems(&with(0, 0, twice)), expected);
}

proptest! {
    #[test]
    fn rows_are_in_order_and_nothing_panics(
        lines in prop::collection::vec((0usize..5, 0u64..40, 1u64..9, 0u16..3, 0u8..5), 0..20),
    ) {
        let line = |&(kind, pfn, pages, vm, state): &(usize, u64, u64, u16, u8)| match kind {
            0 => format!("ram pfn={pfn} pages={pages}\n"),
            1 => format!("region index=0 name=r pfn={pfn} pages={pages} flags=0 state={state} holders=0\n"),
            2 => format!("given vm={vm} ipa={pfn} pfn={pfn} pages={pages} perms=1\n"),
            3 => format!("bind vm={vm} ipa=1 pfn={pfn} pages={pages} mode=1 type=1 perms=1 flags=0\n"),
            _ => format!("hyp pfn={pfn} pages={pages}\n"),
        };
        let owners = owners(&lines.iter().map(line).collect::<String>());
        for pair in owners.rows.windows(2) {
            prop_assert!(pair[0].pages.end() <= pair[1].pages.first());
        }
    }
}
