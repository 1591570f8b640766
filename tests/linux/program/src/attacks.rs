//! A program that abuses what it has: its mappings change under a binding, it dies anywhere, it takes
//! all there is.

use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::Error;
use nix::sys::mman::ProtFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use pfnguard_shared::device::BindArgs;
use pfnguard_shared::info::{InfoSelector, RegionState};
use pfnguard_shared::request::{MemType, Mode, Perms, RequestFlags};
use pfnguard_shared::vm::ContractFlags;

use crate::device::{Device, Failed, Vm};
use crate::memory::{Memory, PAGE};
use crate::outcome::{Outcome, ensure, equal, refused};
use crate::vfio::{Function, Mapping};

/// A device whose BAR may be shared and donated, and whose reset is a read (edu).
const SLOT: &str = "0000:00:02.0";
/// Bytes of its BAR 0.
const SIZE: u64 = 1 << 20;
/// Table memory of a VM in pages.
const TABLES: u32 = 24;
/// Where guests see the BAR.
const GUEST: u64 = 0x8000_0000;
/// Where they see RAM.
const RAM: u64 = 0x4000_0000;
/// Who owns what.
const MAP: &str = "/sys/kernel/debug/pfnguard/map";

fn request(address: u64, mode: Mode) -> BindArgs {
    BindArgs {
        address,
        size: SIZE,
        guest: GUEST,
        mode: mode.raw(),
        mem_type: MemType::Device.raw(),
        perms: Perms::READ.with(Perms::WRITE).raw(),
        flags: RequestFlags::MAP_NOW.raw(),
        ..BindArgs::zeroed()
    }
}

/// Opens the function; who had it before may still be letting go.
fn function() -> io::Result<Function> {
    loop {
        match Function::open(SLOT) {
            Err(error) if error.raw_os_error() == Some(16) => thread::yield_now(),
            opened => return opened,
        }
    }
}

/// Fails unless the region of that name is the host's again.
fn ensure_free(device: &Device, wanted: &str) -> Outcome {
    let name = |info: &pfnguard_shared::info::RegionInfo| {
        String::from_utf8_lossy(&info.name).trim_end_matches('\0').to_owned()
    };
    for index in 0.. {
        let region = device.region(index)?.info;
        if name(&region) == wanted {
            return equal(region.state, RegionState::Free.raw(), "state of the region");
        }
    }
    Ok(())
}

/// Runs `attack` in a child and returns how that ended.
pub fn child(attack: impl FnOnce()) -> Outcome<WaitStatus> {
    // SAFETY: this program has one thread here, so the child may do what it likes.
    match unsafe { fork() }? {
        ForkResult::Child => {
            attack();
            std::process::exit(0);
        }
        ForkResult::Parent { child } => Ok(waitpid(child, None)?),
    }
}

/// Bindings follow the mapping that they were made of.
pub fn mappings() -> Outcome {
    let (device, function) = (Device::open()?, function()?);
    let vm = device.create_vm(ContractFlags::NONE, TABLES)?;
    let mapping = function.map(0, SIZE)?;
    vm.bind(request(mapping.address(), Mode::Share))?;
    vm.map(GUEST)?;
    let par = vm.probe(GUEST)?;
    equal(par & 1, 0, "a binding translates")?;
    drop(mapping);
    refused(vm.unbind(GUEST), Error::ENOENT, "a binding outlives its mapping")?;
    ensure_free(&device, "edu-bar0")?;
    permissions(&vm, &function)?;
    donated(&device, &vm, &function)?;
    protected(&device, &function)?;
    stranger(&vm)
}

fn permissions(vm: &Vm, function: &Function) -> Outcome {
    let read_only = function.map_at(0, SIZE, None, ProtFlags::PROT_READ)?;
    let wants_more = request(read_only.address(), Mode::Share);
    refused(vm.bind(wants_more), Error::EPERM, "stores through a mapping that has none")?;
    let longer = BindArgs { size: 2 * SIZE, ..wants_more };
    refused(vm.bind(longer), Error::EINVAL, "more than the mapping")?;
    let perms = Perms::READ.raw();
    vm.bind(BindArgs { perms, ..wants_more })?;
    vm.unbind(GUEST)?;
    Ok(())
}

/// The host's own mapping of a donated BAR: a program gets SIGBUS, a system call an error.
fn donated(device: &Device, vm: &Vm, function: &Function) -> Outcome {
    let mapping = function.map(0, SIZE)?;
    ensure(mapping.load() != u32::MAX, "edu does not answer")?;
    vm.bind(request(mapping.address(), Mode::Donate))?;
    let touched = child(|| println!("a donated BAR says {}", mapping.load()))?;
    let killed = matches!(touched, WaitStatus::Signaled(_, Signal::SIGBUS, _));
    ensure(killed, &format!("a load of a donated BAR: {touched:?}"))?;
    equal(function.load(0)?, u32::MAX, "vfio loads from a donated BAR")?;
    function.store(0, 0)?;
    equal(mapping.write_to("/dev/null"), Ok(()), "/dev/null looks at nothing")?;
    equal(mapping.write_to("/tmp/copy"), Err(Error::EFAULT), "a system call reads a donated BAR")?;
    equal(vm.unbind(GUEST)?, RegionState::Free.raw().into(), "state after unbinding")?;
    equal(function.load(0)?, mapping.load(), "edu answers afterwards, to vfio and to a program")?;
    ensure(mapping.load() != u32::MAX, "edu does not answer afterwards")?;
    ensure_free(device, "edu-bar0")
}

/// What a protected VM owns cannot be taken from it alone: the VM ends with the first mapping.
fn protected(device: &Device, function: &Function) -> Outcome {
    const HALF: u64 = SIZE / 2;
    let vm = device.create_vm(ContractFlags::PROTECTED, TABLES)?;
    let (first, second) = (function.map(0, SIZE)?, function.map(0, SIZE)?);
    let half = |mapping: &Mapping, offset| {
        let whole = request(mapping.address() + offset, Mode::Donate);
        vm.bind(BindArgs { size: HALF, guest: GUEST + offset, ..whole })
    };
    half(&first, 0)?;
    half(&second, HALF)?;
    refused(vm.unbind(GUEST), Error::EPERM, "withdrawal from a protected VM")?;
    let memory = Memory::new(PAGE)?;
    vm.donate(memory.address(), RAM, PAGE)?;
    drop(first);
    refused(vm.donate(memory.address(), RAM + PAGE, PAGE), Error::EPERM, "gift to a dead VM")?;
    let map = fs::read_to_string(MAP)?;
    let bound = map.lines().find(|line| line.starts_with("bind "));
    ensure(bound.is_none(), &format!("a dead VM has {bound:?}"))?;
    ensure_free(device, "edu-bar0")
}

/// Another process has the file, and none of the rights.
fn stranger(vm: &Vm) -> Outcome {
    let memory = Memory::new(PAGE)?;
    let answer = child(|| {
        let answer = vm.share(memory.loan(RAM));
        let refused = matches!(answer, Err(Failed { errno: Error::EIO, .. }));
        std::process::exit(if refused { 0 } else { 1 });
    })?;
    ensure(matches!(answer, WaitStatus::Exited(_, 0)), "a stranger lends its memory")
}

/// Rounds of a race.
const ROUNDS: u32 = 1000;

/// One thread binds, another unmaps and maps.
pub fn races() -> Outcome {
    let (device, function) = (Device::open()?, function()?);
    let vm = device.create_vm(ContractFlags::NONE, TABLES)?;
    let mapping = function.map(0, SIZE)?;
    let (address, over) = (mapping.address(), AtomicBool::new(false));
    let bound = thread::scope(|scope| {
        scope.spawn(|| remap(&function, mapping, &over));
        let bound = (0..ROUNDS).map(|round| race(&vm, address, round)).sum::<Result<u32, _>>();
        over.store(true, Ordering::Relaxed);
        bound
    })?;
    ensure(bound > 0, "the race was always lost")?;
    refused(vm.unbind(GUEST), Error::ENOENT, "a binding outlives its mapping")?;
    ensure_free(&device, "edu-bar0")
}

fn remap(function: &Function, mapping: Mapping, over: &AtomicBool) {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let address = usize::try_from(mapping.address()).ok().and_then(NonZeroUsize::new);
    let mut last = Some(mapping);
    while !over.load(Ordering::Relaxed) {
        drop(last.take());
        last = function.map_at(0, SIZE, address, protection).ok();
    }
}

/// Binds once; returns how often that succeeded.
fn race(vm: &Vm, address: u64, round: u32) -> Result<u32, Failed> {
    let mode = if round.is_multiple_of(2) { Mode::Share } else { Mode::Donate };
    let lost = |answer: Result<(), Failed>| match answer {
        Err(Failed { errno: Error::EINVAL | Error::ENOENT | Error::EFAULT, .. }) => Ok(0),
        other => other.map(|()| 1),
    };
    let bound = lost(vm.bind(request(address, mode)))?;
    lost(vm.map(GUEST))?;
    lost(vm.unbind(GUEST).map(drop))?;
    Ok(bound)
}

/// Does everything that a VM is for, again and again.
fn live() -> Outcome {
    let (device, function) = (Device::open()?, function()?);
    for round in 0u32.. {
        let contract =
            if round.is_multiple_of(3) { ContractFlags::PROTECTED } else { ContractFlags::NONE };
        let vm = device.create_vm(contract, TABLES)?;
        let memory = Memory::new(256 * PAGE)?;
        if contract == ContractFlags::NONE {
            vm.share(memory.loan(RAM))?;
        }
        vm.donate(memory.address(), RAM + 256 * PAGE, 64 * PAGE)?;
        let mapping = function.map(0, SIZE)?;
        let mode = if round.is_multiple_of(2) { Mode::Donate } else { Mode::Share };
        vm.bind(request(mapping.address(), mode))?;
    }
    Ok(())
}

/// What nobody must keep: pages that the hypervisor has, and pages that are pinned.
pub fn held(device: &Device) -> Outcome<[u64; 2]> {
    let [_, _, hypervisor, _] = device.info(InfoSelector::Memory)?;
    // Each CPU counts for itself; this adds up.
    fs::write("/proc/sys/vm/stat_refresh", "1")?;
    let text = fs::read_to_string("/proc/vmstat")?;
    let count = |name: &str| -> Outcome<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.unwrap_or_default().trim().parse()?)
    };
    let pinned = count("nr_foll_pin_acquired ")? - count("nr_foll_pin_released ")?;
    Ok([hypervisor, pinned])
}

/// Dies at a hundred random points; nothing stays behind.
pub fn killed() -> Outcome {
    let device = Device::open()?;
    let mut random = fastrand::Rng::with_seed(1);
    let before = held(&device)?;
    for round in 0..100 {
        // SAFETY: this program has one thread, so the child may do what it likes.
        let child = match unsafe { fork() }? {
            ForkResult::Child => {
                println!("{:?}", live());
                std::process::exit(1);
            }
            ForkResult::Parent { child } => child,
        };
        // Not a wait for anything: the moment is the attack.
        thread::sleep(Duration::from_micros(random.u64(0..30_000)));
        end(child, round)?;
        equal(held(&device)?, before, "pages of the hypervisor, and pinned ones")?;
    }
    ensure_free(&device, "edu-bar0")
}

fn end(child: Pid, round: u32) -> Outcome {
    kill(child, Signal::SIGKILL)?;
    let status = waitpid(child, None)?;
    let killed = matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
    ensure(killed, &format!("round {round}: {status:?}"))?;
    let map = fs::read_to_string(MAP)?;
    let left = map.lines().find(|line| line.starts_with("vm "));
    ensure(left.is_none(), &format!("round {round}: {left:?} is still there"))
}

/// Returns the bytes that the kernel could give.
fn available() -> Outcome<u64> {
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.unwrap_or_default().parse::<u64>()? << 10)
}

/// Takes all VMs and all memory, and gives it back.
pub fn exhaust() -> Outcome {
    let device = Device::open()?;
    let (before, kept) = (available()?, held(&device)?);
    let mut vms = Vec::new();
    let why = loop {
        match device.create_vm(ContractFlags::NONE, TABLES) {
            Ok(vm) => vms.push(vm),
            Err(failed) => break failed.errno,
        }
    };
    equal(why, Error::ENOMEM, "a VM too many")?;
    let memory = Memory::new(512 * PAGE)?;
    let first = &vms[0];
    let mut guest = RAM;
    // In pieces of 2 MiB: what is between them is left to the kernel, which kills somebody otherwise.
    while give(first, &memory, guest, 512 * PAGE)? {
        guest += 512 * PAGE;
    }
    ensure(available()? < before / 2, "memory did not run out")?;
    drop(vms);
    equal(held(&device)?, kept, "pages of the hypervisor, and pinned ones")?;
    ensure(available()? + (16 << 20) > before, "memory did not come back")
}

/// Gives memory, and tables where they are short; returns whether there was any.
fn give(vm: &Vm, memory: &Memory, guest: u64, size: u64) -> Outcome<bool> {
    loop {
        match vm.donate(memory.address(), guest, size) {
            Ok(()) => return Ok(true),
            Err(Failed { errno: Error::ENOMEM, decision }) if decision.status == 0 => {
                return Ok(false);
            }
            Err(Failed { errno: Error::ENOMEM, .. }) => vm.add_tables(1)?,
            Err(failed) => return Err(format!("{failed:?}").into()),
        }
    }
}

/// Has a VM with a page of its own and a BAR, says so, and waits until its input ends.
pub fn hold() -> Outcome {
    let (device, function) = (Device::open()?, function()?);
    let vm = device.create_vm(ContractFlags::PROTECTED, TABLES)?;
    let memory = Memory::new(PAGE)?;
    vm.donate(memory.address(), RAM, PAGE)?;
    let mapping = function.map(0, SIZE)?;
    vm.bind(request(mapping.address(), Mode::Donate))?;
    println!("ready");
    io::stdout().flush()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
