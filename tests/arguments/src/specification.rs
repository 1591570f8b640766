//! What `/dev/pfnguard` accepts in the arguments of its calls, before it looks at the caller's memory:
//! everything else is EINVAL.

use pfnguard_shared::device::{
    BindArgs, CheckArgs, GuestArgs, Ioctl, MAX_TABLES, RamArgs, RegionArgs, TablesArgs, VmArgs,
};
use pfnguard_shared::request::{MAX_CHECK_ITEMS, Perms, Request, RequestFlags};
use pfnguard_shared::{PAGE_SHIFT, PAGE_SIZE};

fn is_page(address: u64) -> bool {
    usize::try_from(address).is_ok_and(|address| address.is_multiple_of(PAGE_SIZE))
}

/// Pages, at least one, none of them behind the last address.
fn is_range(start: u64, size: u64) -> bool {
    let last = size.checked_sub(1).and_then(|rest| start.checked_add(rest));
    is_page(start) && is_page(size) && last.is_some()
}

/// Returns whether REGION and REGION_RESET accept this.
pub fn region(args: &RegionArgs) -> bool {
    args.reserved == 0
}

/// Returns whether CREATE_VM accepts this.
pub fn vm(args: &VmArgs) -> bool {
    args.reserved == 0 && (1..=MAX_TABLES).contains(&args.tables)
}

/// Returns whether ADD_TABLES, or ENABLE_MTE, accepts this.
pub fn tables(call: Ioctl, args: &TablesArgs) -> bool {
    let wanted = if call == Ioctl::EnableMte { 0..=0 } else { 1..=MAX_TABLES };
    args.reserved == 0 && wanted.contains(&args.tables)
}

/// Returns whether a call about RAM accepts this.
pub fn ram(call: Ioctl, args: &RamArgs) -> bool {
    let known = u8::try_from(args.perms).ok().and_then(Perms::from_raw);
    let loan = known.is_some_and(|perms| perms.contains(Perms::READ));
    let perms = if call == Ioctl::ShareRam { loan } else { args.perms == 0 };
    let source = is_range(args.address, args.size);
    let address = if call == Ioctl::UnshareRam { args.address == 0 } else { source };
    args.reserved == 0 && is_range(args.guest, args.size) && perms && address
}

/// Returns the request that BIND makes of this, as far as it does not depend on the caller's mapping.
pub fn bind(args: &BindArgs) -> Option<Request> {
    let places = is_range(args.address, args.size) && is_range(args.guest, args.size);
    let cow = args.flags & RequestFlags::COW.raw() != 0;
    (args.reserved == 0 && places && !cow).then(|| Request {
        mode: args.mode,
        mem_type: args.mem_type,
        perms: args.perms,
        flags: args.flags,
        ipa_pfn: args.guest >> PAGE_SHIFT,
        pages: args.size >> PAGE_SHIFT,
        ..Request::zeroed()
    })
}

/// Returns whether CHECK accepts this.
pub fn check(args: &CheckArgs) -> bool {
    let count = usize::try_from(args.count);
    args.reserved == 0 && count.is_ok_and(|count| (1..=MAX_CHECK_ITEMS).contains(&count))
}

/// Returns whether a call about a binding accepts this.
pub fn guest(args: &GuestArgs) -> bool {
    is_page(args.guest)
}
