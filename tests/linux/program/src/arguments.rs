//! Every bad argument has its error, and changes nothing.

use nix::Error;
use nix::sys::mman::ProtFlags;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Uid, setuid};
use pfnguard_shared::device::{BindArgs, MAX_TABLES, RamArgs};
use pfnguard_shared::info::{Capabilities, InfoSelector};
use pfnguard_shared::request::{MemType, Mode, Perms};
use pfnguard_shared::trace::TraceRecord;
use pfnguard_shared::vm::ContractFlags;

use crate::device::{Device, Vm};
use crate::memory::{Memory, PAGE};
use crate::outcome::{Outcome, ensure, equal, refused};

/// Table memory of a VM in pages.
const TABLES: u32 = 16;
/// Where the guest sees what it is lent.
const GUEST: u64 = 0x4000_0000;

/// Tries them.
pub fn run() -> Outcome {
    let device = Device::open()?;
    refused(device.region(u32::MAX), Error::ENOENT, "a region behind the last")?;
    ensure(device.info_of(0xffff).is_err(), "an unknown selector is answered")?;
    refused(device.create_vm(ContractFlags::NONE, 0), Error::EINVAL, "a VM without tables")?;
    let many = device.create_vm(ContractFlags::NONE, MAX_TABLES + 1);
    refused(many, Error::EINVAL, "a VM with too many tables")?;
    let vm = device.create_vm(ContractFlags::NONE, TABLES)?;
    refused(vm.add_tables(0), Error::EINVAL, "no tables")?;
    refused(vm.enable_mte(1), Error::EINVAL, "tags and tables")?;
    let [capabilities, ..] = device.info(InfoSelector::Platform)?;
    if capabilities & Capabilities::MTE.raw() == 0 {
        refused(vm.enable_mte(0), Error::EPERM, "tags on a machine without")?;
    } else {
        vm.enable_mte(0)?;
    }
    loans(&vm)?;
    gifts(&vm)?;
    bindings(&vm)?;
    rings(&device)
}

fn rings(device: &Device) -> Outcome {
    let (read, write) = (ProtFlags::PROT_READ, ProtFlags::PROT_WRITE);
    let header = device.ring(0, read)?;
    let record = u32::try_from(size_of::<TraceRecord>())?;
    equal((header.cpu, header.record_size), (0, record), "the ring of the first CPU")?;
    ensure(header.written > 0, "nothing was written down")?;
    let bytes = u64::from(header.capacity + 1) * u64::from(record);
    let nobodys = 1000 * bytes.next_multiple_of(PAGE);
    let answers = [
        (device.ring(0, read | write), Error::EINVAL, "stores to a ring"),
        (device.ring(0, read | ProtFlags::PROT_EXEC), Error::EINVAL, "code in a ring"),
        (device.ring(PAGE, read), Error::EINVAL, "the middle of a ring"),
        (device.ring(nobodys, read), Error::ENOENT, "the ring of no CPU"),
    ];
    answers.into_iter().try_for_each(|(answer, errno, what)| equal(answer.err(), Some(errno), what))
}

fn loans(vm: &Vm) -> Outcome {
    let memory = Memory::new(16 * PAGE)?;
    let good = memory.loan(GUEST);
    let bad = [
        ("an address within a page", RamArgs { address: good.address + 1, ..good }),
        ("a size within a page", RamArgs { size: PAGE + 1, ..good }),
        ("nothing", RamArgs { size: 0, ..good }),
        ("a guest address within a page", RamArgs { guest: 1, ..good }),
        ("the end of all addresses", RamArgs { guest: 0u64.wrapping_sub(PAGE), ..good }),
        ("unknown permissions", RamArgs { perms: 8, ..good }),
        ("no permission", RamArgs { perms: 0, ..good }),
        ("a reserved field", RamArgs { reserved: 1, ..good }),
    ];
    for (what, args) in bad {
        refused(vm.share(args), Error::EINVAL, what)?;
    }
    let hole = RamArgs { address: PAGE, ..good };
    refused(vm.share(hole), Error::EFAULT, "a loan of what is not mapped")?;
    let read_only = Memory::with(PAGE, ProtFlags::PROT_READ)?;
    refused(vm.share(read_only.loan(GUEST)), Error::EFAULT, "a loan of what cannot be written")?;
    let endless = RamArgs { size: 1 << 60, ..good };
    refused(vm.share(endless), Error::ENOMEM, "a loan of more than there is")?;
    vm.share(good)?;
    refused(vm.share(good), Error::EBUSY, "a loan where there is one")?;
    let half = RamArgs { guest: GUEST - PAGE, ..good };
    refused(vm.share(half), Error::EBUSY, "a loan that overlaps one")?;
    refused(vm.unshare(GUEST - PAGE, 2 * PAGE), Error::ENOENT, "the end of half a loan")?;
    refused(vm.unshare(GUEST, 8 * PAGE), Error::ENOENT, "the end of a loan's first half")?;
    refused(vm.unshare(GUEST + 8 * PAGE, 8 * PAGE), Error::ENOENT, "and of its second")?;
    vm.unshare(GUEST, 16 * PAGE)?;
    refused(vm.unshare(GUEST, PAGE), Error::ENOENT, "the end of no loan")
}

fn gifts(vm: &Vm) -> Outcome {
    let memory = Memory::new(1024 * PAGE)?;
    let address = memory.address();
    refused(vm.donate(PAGE, GUEST, PAGE), Error::EFAULT, "a gift of what is not mapped")?;
    refused(vm.donate(address, GUEST, 513 * PAGE), Error::E2BIG, "a gift that is too great")?;
    vm.donate(address, GUEST, 16 * PAGE)?;
    refused(vm.donate(address, GUEST, PAGE), Error::EBUSY, "a gift where there is one")?;
    refused(vm.unshare(GUEST, PAGE), Error::ENOENT, "a gift taken back")
}

fn bindings(vm: &Vm) -> Outcome {
    let memory = Memory::new(PAGE)?;
    let good = BindArgs {
        address: memory.address(),
        size: PAGE,
        guest: GUEST,
        mode: Mode::Share.raw(),
        mem_type: MemType::Device.raw(),
        perms: Perms::READ.raw(),
        ..BindArgs::zeroed()
    };
    refused(vm.bind(good), Error::EINVAL, "a binding of RAM")?;
    refused(vm.bind(BindArgs { flags: 1, ..good }), Error::EINVAL, "COW by the caller's word")?;
    refused(vm.bind(BindArgs { reserved: 1, ..good }), Error::EINVAL, "a reserved field")?;
    refused(vm.map(GUEST), Error::ENOENT, "no binding to install")?;
    refused(vm.map(GUEST + 1), Error::EINVAL, "an address within a page")?;
    refused(vm.unbind(GUEST), Error::ENOENT, "no binding to end")?;
    equal(vm.check(&mut []).is_err(), true, "an empty batch is an error")?;
    let mut items = [good; 65];
    equal(vm.check(&mut items).is_err(), true, "a batch of 65 is an error")?;
    vm.check(&mut items[..2])?;
    ensure(items[0].decision.status < 0, "RAM passes the check")
}

/// What is lent and given counts as locked, which an ordinary user may not have without end.
pub fn memlock() -> Outcome {
    let device = Device::open()?;
    let tables = u64::from(TABLES);
    setrlimit(Resource::RLIMIT_MEMLOCK, (16 + tables) * PAGE, (16 + tables) * PAGE)?;
    setuid(Uid::from_raw(1000))?;
    let ring = device.ring(0, ProtFlags::PROT_READ).err();
    equal(ring, Some(Error::EPERM), "everybody's trace to anybody")?;
    let vm = device.create_vm(ContractFlags::NONE, TABLES)?;
    refused(vm.add_tables(17), Error::ENOMEM, "tables count too")?;
    let memory = Memory::new(17 * PAGE)?;
    refused(vm.share(memory.loan(GUEST)), Error::ENOMEM, "17 pages of a limit of 16")?;
    let address = memory.address();
    refused(vm.donate(address, GUEST, 17 * PAGE), Error::ENOMEM, "17 pages given")?;
    let fewer = RamArgs { size: 15 * PAGE, ..memory.loan(GUEST) };
    vm.share(fewer)?;
    // PAR_EL1.F, PA: translated, and where to is not said.
    equal(vm.probe(GUEST)? & (0xf_ffff_ffff_f000 | 1), 0, "where a loan lies")?;
    vm.donate(address, GUEST + 16 * PAGE, PAGE)?;
    refused(vm.donate(address, GUEST + 32 * PAGE, PAGE), Error::ENOMEM, "the 17th page")?;
    vm.unshare(GUEST, 15 * PAGE)?;
    vm.share(fewer)?;
    drop(vm);
    let again = device.create_vm(ContractFlags::NONE, TABLES)?;
    Ok(again.share(RamArgs { size: 16 * PAGE, ..memory.loan(GUEST) })?)
}
