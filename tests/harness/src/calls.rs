//! Steps of a sequence out of raw bytes: calls that are meaningful where they are made, mostly.
//!
//! Fuzzers and property tests share this. Bytes choose among what the world has: VMs that exist,
//! pages in the state that a call needs, intermediate pages that are mapped, pages beside a
//! block's edge; and once in a while anything at all.

mod acts;
mod pick;

use arbitrary::{Arbitrary, Result, Unstructured};
use pfnguard_model::state::{Frame, Region, State, Vcpu, Vm};
use pfnguard_shared::info::RegionState;
use pfnguard_shared::request::{MAX_CHECK_ITEMS, Request};
use pfnguard_shared::vm::VmState;
use pfnguard_shared::{HostFunction, PAGE_SIZE};
use zerocopy::IntoBytes;

use self::pick::Pick;
use crate::world::World;

/// Does the next thing to `world` that the bytes say.
///
/// # Errors
/// Where there are too few bytes.
///
/// # Panics
/// As [`World::call`].
pub fn step(world: &mut World, bytes: &mut Unstructured<'_>) -> Result<()> {
    let cpu = bytes.choose_index(world.cpus())?;
    match bytes.int_in_range(0..=15u8)? {
        0..=1 => touch(world, cpu, bytes)?,
        2 => scribble(world, cpu, bytes)?,
        3 => {
            let regs: [u64; 8] = Arbitrary::arbitrary(bytes)?;
            let function = *bytes.choose(HostFunction::ALL)?;
            let odd = bytes.ratio(1, 8)?;
            let x0 = if odd { regs[0] } else { u64::from(function.raw()) };
            world.call(cpu, [x0, regs[1], regs[2], regs[3], regs[4], regs[5], regs[6], regs[7]]);
        }
        _ => call(world, cpu, bytes)?,
    }
    Ok(())
}

/// Does everything that the bytes say, at most `steps` steps, and then checks the world whole.
///
/// # Panics
/// As [`World::call`].
pub fn sequence(world: &mut World, bytes: &mut Unstructured<'_>, steps: usize) {
    for _ in 0..steps {
        if bytes.is_empty() || step(world, bytes).is_err() {
            break;
        }
    }
    world.finish();
}

/// Functions by how often they are called.
const CALLS: [(HostFunction, u8); 30] = [
    (HostFunction::Uid, 1),
    (HostFunction::Revision, 1),
    (HostFunction::Info, 2),
    (HostFunction::RegionInfo, 2),
    (HostFunction::ArgPageSet, 3),
    (HostFunction::ArgPageClear, 1),
    (HostFunction::TraceInfo, 1),
    (HostFunction::HostShareHyp, 4),
    (HostFunction::HostUnshareHyp, 3),
    (HostFunction::HostShareGuest, 16),
    (HostFunction::HostUnshareGuest, 14),
    (HostFunction::HostDonateGuest, 14),
    (HostFunction::HostReclaimGuest, 12),
    (HostFunction::VmCreate, 6),
    (HostFunction::VmPoolAdd, 8),
    (HostFunction::VmEnableMte, 2),
    (HostFunction::VmTeardown, 2),
    (HostFunction::VmFree, 12),
    (HostFunction::VcpuInit, 4),
    (HostFunction::VcpuRun, 30),
    (HostFunction::VcpuGetReg, 2),
    (HostFunction::VcpuSetReg, 3),
    (HostFunction::PfnmapCheck, 8),
    (HostFunction::PfnmapBind, 34),
    (HostFunction::PfnmapMap, 8),
    (HostFunction::PfnmapUnbind, 12),
    (HostFunction::PfnmapReset, 4),
    (HostFunction::PfnmapProbe, 3),
    (HostFunction::MigrateExport, 4),
    (HostFunction::MigrateCheck, 4),
];

fn function(state: &State, cpu: usize, bytes: &mut Unstructured<'_>) -> Result<HostFunction> {
    let total: u8 = CALLS.iter().map(|(_, weight)| weight).sum();
    let mut at = bytes.int_in_range(0..=total - 1)?;
    let mut chosen = HostFunction::Uid;
    for (function, weight) in CALLS {
        chosen = function;
        match at.checked_sub(weight) {
            Some(left) => at = left,
            None => break,
        }
    }
    if bytes.ratio(1, 12)? {
        return Ok(chosen);
    }
    let mut needed = Some(chosen);
    while let Some(earlier) = needed.and_then(|function| prerequisite(state, cpu, function)) {
        chosen = earlier;
        needed = Some(earlier);
    }
    Ok(chosen)
}

/// Returns the call that has to come first, where nothing can come of `function` yet.
fn prerequisite(state: &State, cpu: usize, function: HostFunction) -> Option<HostFunction> {
    use HostFunction as F;
    let any = |has: &dyn Fn(&Vm) -> bool| state.vms.values().any(has);
    let active = any(&|vm| vm.state == VmState::Active);
    let (missing, first) = match function {
        F::RegionInfo | F::PfnmapCheck | F::MigrateExport | F::MigrateCheck => {
            let arg_page = state.arg_pages.get(cpu).copied().flatten();
            (arg_page.is_none(), F::ArgPageSet)
        }
        F::ArgPageSet => {
            let lent = state.frames.iter().any(|(_, frame)| matches!(frame, Frame::HostLentHyp(_)));
            (!lent, F::HostShareHyp)
        }
        F::HostUnshareGuest => (!any(&|vm| !vm.pages.is_empty()), F::HostShareGuest),
        F::HostReclaimGuest | F::VmFree => (!any(&|vm| vm.state == VmState::Dying), F::VmTeardown),
        F::PfnmapMap | F::PfnmapUnbind => (!any(&|vm| !vm.bindings.is_empty()), F::PfnmapBind),
        F::PfnmapReset => {
            let waits = |region: &Region| region.state == RegionState::Quarantined;
            (!state.regions.iter().any(waits), F::PfnmapUnbind)
        }
        F::VcpuRun => {
            let ready = |vcpu: &Vcpu| matches!(vcpu, Vcpu::Fresh(_) | Vcpu::Idle(..));
            (!any(&|vm| vm.vcpus.iter().any(ready)), F::VcpuInit)
        }
        F::HostShareGuest
        | F::HostDonateGuest
        | F::VmPoolAdd
        | F::VmEnableMte
        | F::VmTeardown
        | F::VcpuInit
        | F::VcpuGetReg
        | F::VcpuSetReg
        | F::PfnmapBind
        | F::PfnmapProbe => (!active, F::VmCreate),
        F::Uid
        | F::Revision
        | F::Info
        | F::TraceInfo
        | F::ArgPageClear
        | F::HostShareHyp
        | F::HostUnshareHyp
        | F::VmCreate => return None,
    };
    missing.then_some(first)
}

fn call(world: &mut World, cpu: usize, bytes: &mut Unstructured<'_>) -> Result<()> {
    let function = function(world.state(), cpu, bytes)?;
    let pick = Pick::new(world);
    let args = pick.args(function, bytes)?;
    let mut regs = [0; 8];
    regs[0] = u64::from(function.raw());
    regs[1..=args.len()].copy_from_slice(&args);
    let (mut acts, mut registers) = (Vec::new(), Vec::new());
    match function {
        HostFunction::VcpuRun => acts = pick.acts(regs[1], bytes)?,
        HostFunction::PfnmapUnbind | HostFunction::VmTeardown => {
            for _ in 0..bytes.int_in_range(0..=3u8)? {
                registers.push(bytes.ratio(7, 8)?.then_some(bytes.int_in_range(0..=3)?));
            }
        }
        HostFunction::PfnmapCheck => {
            let items = usize::try_from(regs[1]).unwrap_or(0).min(MAX_CHECK_ITEMS);
            for item in 0..items.min(4) {
                let request = Pick::new(world).request(bytes)?;
                world.write_arg_page(cpu, item * size_of::<Request>(), request.as_bytes());
            }
        }
        _ => {}
    }
    world.call_with(cpu, regs, &acts, &registers);
    Ok(())
}

fn touch(world: &mut World, cpu: usize, bytes: &mut Unstructured<'_>) -> Result<()> {
    // No CPU has more address bits.
    let page = Pick::new(world).touched_page(bytes)? & ((1 << 40) - 1);
    world.host_touch(cpu, page, Arbitrary::arbitrary(bytes)?);
    Ok(())
}

/// The host writes anything to its argument page.
fn scribble(world: &mut World, cpu: usize, bytes: &mut Unstructured<'_>) -> Result<()> {
    let written: [u8; 8] = Arbitrary::arbitrary(bytes)?;
    let length = bytes.int_in_range(1..=written.len())?;
    let offset = bytes.int_in_range(0..=PAGE_SIZE - length)?;
    // Mostly where something is read.
    let offset = if bytes.arbitrary()? { offset % 256 } else { offset };
    world.write_arg_page(cpu, offset, &written[..length]);
    Ok(())
}
