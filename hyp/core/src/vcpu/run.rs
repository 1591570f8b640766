//! VCPU_RUN: the only place where a guest runs. No lock is held while it does.

use pfnguard_shared::PAGE_SHIFT;
use pfnguard_shared::vm::{ContractFlags, ExitReason, MmioAccess, VmState};

use crate::addr::IpaPfn;
use crate::dispatch::Reply;
use crate::error::HcallError;
use crate::guest::{self, AfterCall};
use crate::hypervisor::{Cpu, Unlocked};
use crate::machine::{GuestExit, GuestStage2, Machine, World};
use crate::pfnmap::{self, GuestFault};
use crate::vcpu::syndrome::{self, Access, Class, FaultKind};
use crate::vcpu::{PendingLoad, VcpuContext, VcpuState, busy};
use crate::vm::VmId;
use crate::{ownership, smc};

/// A vCPU that this physical CPU has taken out of its VM. The VM cannot be torn down meanwhile.
struct Loaded {
    vm: VmId,
    number: usize,
    context: VcpuContext,
    vttbr: u64,
    contract: ContractFlags,
    pending: Option<PendingLoad>,
}

/// What follows an exit of the guest.
enum Next {
    /// The guest runs on.
    Resume,
    /// The host must act.
    Leave(Exit),
}

/// Why VCPU_RUN returns, before it is packed into registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Interrupt,
    Wait,
    Mmio { ipa: u64, access: u64, value: u64 },
    Fault { ipa: u64 },
    Yield([u64; 3]),
    Power(u64),
    Unsupported(u64),
}

impl Exit {
    fn reply(self) -> Reply {
        let (reason, facts) = match self {
            Self::Interrupt => (ExitReason::Interrupt, [0; 3]),
            Self::Wait => (ExitReason::Wait, [0; 3]),
            Self::Mmio { ipa, access, value } => (ExitReason::Mmio, [ipa, access, value]),
            Self::Fault { ipa } => (ExitReason::Fault, [ipa, 0, 0]),
            Self::Yield(values) => (ExitReason::Yield, values),
            Self::Power(function) => (ExitReason::Power, [function, 0, 0]),
            Self::Unsupported(class) => (ExitReason::Unsupported, [class, 0, 0]),
        };
        Reply([reason.raw(), facts[0], facts[1], facts[2]])
    }
}

/// VCPU_RUN: runs a vCPU until the host must act. `load` completes an MMIO load.
///
/// # Errors
/// `VmState` for a dying VM; `NoObject` where it has no such vCPU; `VcpuBusy` where the vCPU was
/// not initialised or runs on another CPU.
pub fn run<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    vm: VmId,
    number: usize,
    load: u64,
) -> Result<Reply, HcallError> {
    let mut loaded = check_out(door, cpu, vm, number, load)?;
    let exit = loop {
        let exit = cpu.local.run(&mut loaded.context, loaded.vttbr);
        match after_exit(door, cpu, &mut loaded, exit) {
            Next::Resume => {}
            Next::Leave(exit) => break exit,
        }
    };
    check_in(door, loaded);
    Ok(exit.reply())
}

fn check_out<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &Cpu<M>,
    vm: VmId,
    number: usize,
    load: u64,
) -> Result<Loaded, HcallError> {
    let mut guest = door.lock_guest(vm)?;
    guest.check_state(VmState::Active)?;
    let (vttbr, contract) = (guest.stage2.vttbr(), guest.contract);
    let vcpu = guest.vcpu(number)?;
    match vcpu.state {
        VcpuState::Fresh | VcpuState::Idle => {}
        VcpuState::Off | VcpuState::Running(_) => return Err(busy(number)),
    }
    vcpu.state = VcpuState::Running(cpu.index);
    let mut context = vcpu.context.clone();
    if let Some(pending) = vcpu.pending.take() {
        pending.complete(&mut context.regs, load);
    }
    Ok(Loaded { vm, number, context, vttbr, contract, pending: None })
}

fn check_in<M: Machine>(door: &mut Unlocked<'_, M>, loaded: Loaded) {
    let mut guest = door.lock_guest(loaded.vm).expect("VM gone under its vCPU: hypervisor bug");
    let vcpu = guest.vcpu(loaded.number).expect("vCPU gone while it ran: hypervisor bug");
    vcpu.state = VcpuState::Idle;
    vcpu.context = loaded.context;
    vcpu.pending = loaded.pending;
}

fn after_exit<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    loaded: &mut Loaded,
    exit: GuestExit,
) -> Next {
    match exit {
        GuestExit::Interrupt => Next::Leave(Exit::Interrupt),
        GuestExit::SError => Next::Leave(Exit::Unsupported(EC_SERROR)),
        GuestExit::Sync { esr, far, hpfar } => match syndrome::class(esr) {
            Class::Wait => {
                loaded.skip();
                Next::Leave(Exit::Wait)
            }
            Class::Hvc(immediate) => call(door, cpu, loaded, immediate),
            // A trapped SMC has not been stepped over.
            Class::Smc(immediate) => {
                loaded.skip();
                firmware_call(loaded, immediate)
            }
            Class::InstructionAbort => abort(door, cpu, loaded, &Abort::new(None, esr, far, hpfar)),
            Class::DataAbort => {
                let access = Access::decode(esr);
                abort(door, cpu, loaded, &Abort::new(access, esr, far, hpfar))
            }
            Class::Trapped => {
                syndrome::inject_undefined(&mut loaded.context);
                Next::Resume
            }
            Class::Other(class) => Next::Leave(Exit::Unsupported(class)),
        },
    }
}

/// Exception class of an SError (Arm ARM, `ESR_EL2.EC`).
const EC_SERROR: u64 = 0x2f;
/// Bytes in an A64 instruction.
const INSTRUCTION: u64 = 4;

impl Loaded {
    fn is_protected(&self) -> bool {
        self.contract.contains(ContractFlags::PROTECTED)
    }

    fn skip(&mut self) {
        self.context.pc = self.context.pc.wrapping_add(INSTRUCTION);
    }

    fn register(&self, number: usize) -> u64 {
        // Register 31 reads as zero.
        self.context.regs.get(number).copied().unwrap_or(0)
    }
}

fn call<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    loaded: &mut Loaded,
    immediate: u16,
) -> Next {
    if immediate != 0 || smc::is_firmware_call(loaded.context.regs[0]) {
        return firmware_call(loaded, immediate);
    }
    match guest::call(door, cpu, loaded.vm, &mut loaded.context.regs) {
        AfterCall::Resume => Next::Resume,
        AfterCall::Yield(values) => Next::Leave(Exit::Yield(values)),
    }
}

/// PSCI and architecture calls, by SMC or by HVC: both conduits do the same.
fn firmware_call(loaded: &mut Loaded, immediate: u16) -> Next {
    let function = loaded.context.regs[0];
    match smc::guest_call(function, immediate) {
        smc::GuestAnswer::Value(value) => {
            loaded.context.regs[0] = value;
            Next::Resume
        }
        smc::GuestAnswer::Power(function) => Next::Leave(Exit::Power(u64::from(function))),
    }
}

/// A stage-2 abort of a guest.
struct Abort {
    kind: FaultKind,
    access: Option<Access>,
    ipa: IpaPfn,
    /// Address in bytes.
    address: u64,
}

impl Abort {
    fn new(access: Option<Access>, esr: u64, far: u64, hpfar: u64) -> Self {
        let ipa = syndrome::fault_ipa(hpfar);
        // A table walk has its own address, of which only the page is known.
        let offset = if syndrome::is_table_walk(esr) { 0 } else { far & ((1 << PAGE_SHIFT) - 1) };
        let address = ipa.0 << PAGE_SHIFT | offset;
        Self { kind: syndrome::fault_kind(esr), access, ipa, address }
    }
}

fn abort<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    loaded: &mut Loaded,
    abort: &Abort,
) -> Next {
    let fault = Next::Leave(Exit::Fault { ipa: abort.address });
    match abort.kind {
        FaultKind::Translation => {}
        FaultKind::Permission | FaultKind::Other => return fault,
    }
    match pfnmap::guest_fault(door, cpu, loaded.vm, abort.ipa) {
        // Installed by this fault, or by another vCPU since.
        GuestFault::Mapped | GuestFault::AlreadyMapped => Next::Resume,
        GuestFault::Refused(_) => fault,
        GuestFault::Unbound if is_mapped(door, loaded.vm, abort.ipa) => Next::Resume,
        GuestFault::Unbound => match abort.access {
            // A protected guest that stores to what it takes for its own memory shows no value.
            Some(access) if !loaded.is_protected() => mmio(loaded, abort.address, access),
            Some(_) | None => fault,
        },
    }
}

/// Returns whether RAM was mapped there since the fault.
fn is_mapped<M: Machine>(door: &mut Unlocked<'_, M>, vm: VmId, ipa: IpaPfn) -> bool {
    let limit = ownership::ipa_limit(door.hypervisor().features());
    let guest = door.lock_guest(vm).expect("VM gone under its vCPU: hypervisor bug");
    ipa < limit && guest.stage2.lookup(ipa).is_some()
}

/// Leaves the access to the host, with the one register that it involves, and steps over it.
fn mmio(loaded: &mut Loaded, ipa: u64, access: Access) -> Next {
    loaded.skip();
    let (flags, bytes, value) = match access {
        Access::Load(load) => {
            loaded.pending = Some(load);
            (load.flags(), load.bytes, 0)
        }
        Access::Store { register, bytes } => {
            let unused = 64 - 8 * bytes;
            (MmioAccess::WRITE, bytes, loaded.register(register) << unused >> unused)
        }
    };
    let access = flags.raw() | u64::from(bytes) << 8;
    Next::Leave(Exit::Mmio { ipa, access, value })
}

impl PendingLoad {
    fn flags(&self) -> MmioAccess {
        match self.widen {
            super::Widen::Zero => MmioAccess::NONE,
            super::Widen::Sign32 | super::Widen::Sign64 => MmioAccess::SIGNED,
        }
    }
}

#[cfg(test)]
mod tests;
