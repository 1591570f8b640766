//! Callers of a guest kernel. Refusals look like the host's.

use core::marker::PhantomData;

use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::vm::Promise;
use pfnguard_shared::{GuestFunction, MemType, Perms};

use crate::{Hypercall, IpaPfn, Refused};

/// The calls of a guest, over the conduit `H`.
#[derive(Clone, Copy, Debug)]
pub struct Guest<H: Hypercall>(PhantomData<H>);

/// What a guest was promised about a run of pages (R23).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promised {
    /// What works there.
    pub promise: Promise,
    /// The memory type that stage 2 forces; `None` where nothing is mapped.
    pub mem_type: Option<MemType>,
    /// What the guest may do.
    pub perms: Perms,
    /// Pages from the queried one on that the answer holds for.
    pub pages: u64,
}

impl Promised {
    /// Reads `x1` and `x2` of QUERY.
    pub fn from_registers(word: u64, pages: u64) -> Self {
        let [perms, mem_type, low, high, ..] = word.to_le_bytes();
        let promise = u16::from_le_bytes([low, high]) & Promise::ALL.raw();
        Self {
            promise: Promise::from_raw(promise).unwrap_or(Promise::NONE),
            mem_type: MemType::from_raw(mem_type),
            perms: Perms::from_raw(perms & Perms::ALL.raw()).unwrap_or(Perms::NONE),
            pages,
        }
    }
}

impl<H: Hypercall> Guest<H> {
    /// Makes any call of the guest interface: `x1..=x7` in, `x1..=x7` out.
    ///
    /// # Errors
    /// The refusal. Not for [`GuestFunction::Uid`], [`GuestFunction::Features`] and
    /// [`GuestFunction::HypMeminfo`], which have no status.
    pub fn invoke(function: GuestFunction, args: [u64; 7]) -> Result<[u64; 7], Refused> {
        Refused::from_registers(Self::raw(function, args))
    }

    fn raw(function: GuestFunction, args: [u64; 7]) -> [u64; 8] {
        let [a, b, c, d, e, f, g] = args;
        H::call([u64::from(function.raw()), a, b, c, d, e, f, g])
    }

    /// Returns the four words of the UID that Linux guests look for.
    pub fn uid() -> [u64; 4] {
        let [a, b, c, d, ..] = Self::raw(GuestFunction::Uid, [0; 7]);
        [a, b, c, d]
    }

    /// Returns the bitmap of the guest functions that exist, 32 bits a word.
    pub fn features() -> [u64; 4] {
        let [a, b, c, d, ..] = Self::raw(GuestFunction::Features, [0; 7]);
        [a, b, c, d]
    }

    /// Returns the granule in bytes of [`Self::mem_share`].
    pub fn hyp_meminfo() -> u64 {
        Self::raw(GuestFunction::HypMeminfo, [0; 7])[0]
    }

    /// Lends the page at `ipa` (bytes) to the host.
    ///
    /// # Errors
    /// `WrongState` where the guest does not own the page alone.
    pub fn mem_share(ipa: u64) -> Result<(), Refused> {
        Self::invoke(GuestFunction::MemShare, [ipa, 0, 0, 0, 0, 0, 0]).map(drop)
    }

    /// Takes the page at `ipa` (bytes) back from the host.
    ///
    /// # Errors
    /// `WrongState` where it is not lent.
    pub fn mem_unshare(ipa: u64) -> Result<(), Refused> {
        Self::invoke(GuestFunction::MemUnshare, [ipa, 0, 0, 0, 0, 0, 0]).map(drop)
    }

    /// Returns what `selector` documents.
    ///
    /// # Errors
    /// `NotSupported` where a guest may not ask for it.
    pub fn info(selector: InfoSelector) -> Result<[u64; 4], Refused> {
        let args = [selector.raw(), 0, 0, 0, 0, 0, 0];
        Self::invoke(GuestFunction::Info, args).map(|[a, b, c, d, ..]| [a, b, c, d])
    }

    /// Returns what the guest was promised about `pages` pages from `ipa` on (R23).
    ///
    /// # Errors
    /// `InvalidParameter` for a range outside the guest's address space.
    pub fn query(ipa: IpaPfn, pages: u64) -> Result<Promised, Refused> {
        let args = [ipa.0, pages, 0, 0, 0, 0, 0];
        let [word, same, ..] = Self::invoke(GuestFunction::Query, args)?;
        Ok(Promised::from_registers(word, same))
    }

    /// Hands three values to the host, which resumes the guest when it likes.
    ///
    /// # Errors
    /// `NotSupported` under a hypervisor without this call.
    pub fn give_up_cpu(values: [u64; 3]) -> Result<(), Refused> {
        let [a, b, c] = values;
        Self::invoke(GuestFunction::Yield, [a, b, c, 0, 0, 0, 0]).map(drop)
    }
}
