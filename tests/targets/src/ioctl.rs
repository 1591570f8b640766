//! Arguments of ioctls: what the kernel module's C makes of them, beside the specification.

use pfnguard_arguments as module;
use pfnguard_arguments::specification;
use pfnguard_shared::device::Ioctl;
use zerocopy::FromBytes;

/// Reads a call and its argument.
pub fn run(data: &[u8]) {
    let Some((&which, argument)) = data.split_first() else {
        return;
    };
    let call = Ioctl::ALL[usize::from(which) % Ioctl::ALL.len()];
    judge(call, argument);
}

/// Compares both judgements of an argument, where the bytes are enough for one.
fn judge(call: Ioctl, bytes: &[u8]) {
    match call {
        Ioctl::Info => {}
        Ioctl::Region | Ioctl::RegionReset => both(bytes, module::region, specification::region),
        Ioctl::CreateVm => both(bytes, module::vm, specification::vm),
        Ioctl::AddTables | Ioctl::EnableMte => {
            both(
                bytes,
                |args| module::tables(call, args),
                |args| specification::tables(call, args),
            );
        }
        Ioctl::ShareRam | Ioctl::UnshareRam | Ioctl::DonateRam => {
            both(bytes, |args| module::ram(call, args), |args| specification::ram(call, args));
        }
        Ioctl::Check => both(bytes, module::check, specification::check),
        Ioctl::Bind => both(bytes, module::bind, specification::bind),
        Ioctl::Map | Ioctl::Unbind | Ioctl::Probe => {
            both(bytes, module::guest, specification::guest);
        }
    }
}

fn both<A, V>(bytes: &[u8], module: impl Fn(&A) -> V, specification: impl Fn(&A) -> V)
where
    A: FromBytes + std::fmt::Debug,
    V: PartialEq + std::fmt::Debug,
{
    if let Ok((args, _)) = A::read_from_prefix(bytes) {
        assert_eq!(module(&args), specification(&args), "of {args:?}");
    }
}

#[cfg(test)]
mod tests {
    use pfnguard_shared::device::RamArgs;
    use pfnguard_shared::request::{Mode, Perms, Request};
    use zerocopy::IntoBytes;

    use super::*;

    /// Numbers at which an answer changes.
    const EDGES: [u64; 8] = [0, 1, 0x1000, 0x1001, 0x2000, 1 << 63, u64::MAX - 0xfff, u64::MAX];

    #[test]
    fn ranges_at_every_edge_are_judged_alike() {
        for call in [Ioctl::ShareRam, Ioctl::UnshareRam, Ioctl::DonateRam, Ioctl::Bind] {
            for address in EDGES {
                for (size, guest) in EDGES.iter().flat_map(|&s| EDGES.map(|g| (s, g))) {
                    for perms in [0, 1, 3, 8] {
                        let args = RamArgs { address, size, guest, perms, ..RamArgs::zeroed() };
                        judge(call, args.as_bytes());
                    }
                }
            }
        }
    }

    #[test]
    fn a_good_argument_becomes_the_request_it_says() {
        let args = pfnguard_shared::device::BindArgs {
            address: 0x7000,
            size: 0x3000,
            guest: 0x8000_0000,
            mode: Mode::Donate.raw(),
            mem_type: 1,
            perms: Perms::READ.raw(),
            ..pfnguard_shared::device::BindArgs::zeroed()
        };
        let expected = Request {
            mode: Mode::Donate.raw(),
            mem_type: 1,
            perms: Perms::READ.raw(),
            ipa_pfn: 0x8_0000,
            pages: 3,
            ..Request::zeroed()
        };
        assert_eq!(module::bind(&args), Some(expected));
        judge(Ioctl::Bind, args.as_bytes());
    }
}
