//! The constraints on reset contracts (R41, R42).

use pfnguard_shared::manifest::{Entry, MAX_POLL_READS, RegionClass, ResetKind};

use super::check::Judge;
use super::constraint::Constraint;
use super::range::PhysRange;
use super::violation::Field;

/// Checks the reset contract of one entry.
pub(super) fn check_reset(judge: &mut Judge<'_>) {
    let entry = judge.entry;
    let Some(kind) = ResetKind::from_raw(entry.reset) else {
        let fact = format!("reset kind {} does not exist", entry.reset);
        judge.refuse(Constraint::ResetKind, &[Field::Reset], fact);
        return;
    };
    match kind {
        ResetKind::None | ResetKind::External => {
            check_unused(judge, kind, &register_fields(entry));
            check_unused(judge, kind, &poll_fields(entry));
        }
        ResetKind::Readback => {
            check_register(judge);
            check_unused(judge, kind, &poll_fields(entry));
        }
        ResetKind::Poll => {
            check_register(judge);
            check_poll(judge);
        }
    }
}

fn register_fields(entry: &Entry) -> [(u64, Field); 2] {
    [(entry.reset_addr, Field::ResetRegister), (u64::from(entry.reset_width), Field::ResetWidth)]
}

fn poll_fields(entry: &Entry) -> [(u64, Field); 3] {
    [
        (entry.reset_mask, Field::ResetMask),
        (entry.reset_value, Field::ResetValue),
        (u64::from(entry.reset_bound), Field::ResetBound),
    ]
}

fn check_unused(judge: &mut Judge<'_>, kind: ResetKind, fields: &[(u64, Field)]) {
    for &(_, field) in fields.iter().filter(|(value, _)| *value != 0) {
        let fact =
            format!("reset `{}` reads no `{}`", kind.name().to_ascii_lowercase(), field.key());
        judge.refuse(Constraint::ResetUnused, &[field, Field::Reset], fact);
    }
}

fn check_register(judge: &mut Judge<'_>) {
    let entry = judge.entry;
    let register = PhysRange::new(entry.reset_addr, u64::from(entry.reset_width));
    if !matches!(entry.reset_width, 4 | 8) {
        let fact = format!("the reset register is {} bytes wide", entry.reset_width);
        judge.refuse(Constraint::ResetWidth, &[Field::ResetWidth], fact);
        return;
    }
    if !register.base.0.is_multiple_of(register.bytes) {
        let fact = format!("{} is not a multiple of {}", register.base, register.bytes);
        judge.refuse(Constraint::ResetAligned, &[Field::ResetRegister, Field::ResetWidth], fact);
    }
    let inside = judge.entries.iter().any(|other| {
        RegionClass::from_raw(other.class) == Some(RegionClass::Mmio)
            && PhysRange::of(other).contains(register)
    });
    if !inside {
        let fact = format!("reset register {register} lies in no MMIO region of the manifest");
        judge.refuse(Constraint::ResetInside, &[Field::ResetRegister], fact);
    }
}

fn check_poll(judge: &mut Judge<'_>) {
    let entry = judge.entry;
    let fits = entry.reset_width == 8 || u32::try_from(entry.reset_mask).is_ok();
    if entry.reset_mask == 0 {
        let fact = "the mask is zero: every read would match".to_owned();
        judge.refuse(Constraint::PollMask, &[Field::ResetMask], fact);
    } else if !fits {
        let fact = format!("mask {:#x} is wider than the register", entry.reset_mask);
        judge.refuse(Constraint::PollMask, &[Field::ResetMask, Field::ResetWidth], fact);
    }
    if entry.reset_value & !entry.reset_mask != 0 {
        let fact =
            format!("value {:#x} has bits outside mask {:#x}", entry.reset_value, entry.reset_mask);
        judge.refuse(Constraint::PollValue, &[Field::ResetValue, Field::ResetMask], fact);
    }
    if !(1..=MAX_POLL_READS).contains(&entry.reset_bound) {
        let fact = format!("bound {} is not 1 to {MAX_POLL_READS}", entry.reset_bound);
        judge.refuse(Constraint::PollBound, &[Field::ResetBound], fact);
    }
}
