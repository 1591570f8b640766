//! What the kernel module says of the arguments of ioctls: its own C, callable here, beside what it has
//! to say ([`specification`]).

pub mod specification;

use std::ffi::{c_int, c_uint};

use pfnguard_shared::device::{
    BindArgs, CheckArgs, GuestArgs, Ioctl, RamArgs, RegionArgs, TablesArgs, VmArgs,
};
use pfnguard_shared::request::Request;

unsafe extern "C" {
    safe fn pfnguard_region_args(args: &RegionArgs) -> c_int;
    safe fn pfnguard_vm_args(args: &VmArgs) -> c_int;
    safe fn pfnguard_tables_args(call: c_uint, args: &TablesArgs) -> c_int;
    safe fn pfnguard_ram_args(call: c_uint, args: &RamArgs) -> c_int;
    safe fn pfnguard_bind_args(args: &BindArgs, request: &mut Request) -> c_int;
    safe fn pfnguard_check_args(args: &CheckArgs) -> c_int;
    safe fn pfnguard_guest_args(args: &GuestArgs) -> c_int;
}

/// `-EINVAL`.
const INVALID: c_int = -22;

/// Reads the C function's answer.
fn accepted(answer: c_int) -> bool {
    assert!(answer == 0 || answer == INVALID, "{answer} is no answer");
    answer == 0
}

/// Returns whether REGION and REGION_RESET accept this.
pub fn region(args: &RegionArgs) -> bool {
    accepted(pfnguard_region_args(args))
}

/// Returns whether CREATE_VM accepts this.
pub fn vm(args: &VmArgs) -> bool {
    accepted(pfnguard_vm_args(args))
}

/// Returns whether ADD_TABLES, or ENABLE_MTE, accepts this.
pub fn tables(call: Ioctl, args: &TablesArgs) -> bool {
    accepted(pfnguard_tables_args(call.raw(), args))
}

/// Returns whether a call about RAM accepts this.
pub fn ram(call: Ioctl, args: &RamArgs) -> bool {
    accepted(pfnguard_ram_args(call.raw(), args))
}

/// Returns the request that BIND makes of this; a refusal leaves it as it was.
pub fn bind(args: &BindArgs) -> Option<Request> {
    let mut request = Request::zeroed();
    let granted = accepted(pfnguard_bind_args(args, &mut request));
    assert!(granted || request == Request::zeroed(), "a refusal has written {request:?}");
    granted.then_some(request)
}

/// Returns whether CHECK accepts this.
pub fn check(args: &CheckArgs) -> bool {
    accepted(pfnguard_check_args(args))
}

/// Returns whether a call about a binding accepts this.
pub fn guest(args: &GuestArgs) -> bool {
    accepted(pfnguard_guest_args(args))
}
