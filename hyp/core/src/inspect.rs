//! Read-only views for tests that compare the hypervisor with a specification.

use crate::hypervisor::{Host, Hyp, Hypervisor};
use crate::machine::Machine;
use crate::vm::{Vm, VmId};

impl<M: Machine> Hypervisor<M> {
    /// Lends what the host lock owns.
    pub fn inspect_host<R>(&self, look: impl FnOnce(&Host<M>) -> R) -> R {
        look(&self.enter().lock_host())
    }

    /// Lends what the hyp lock owns.
    pub fn inspect_hyp<R>(&self, look: impl FnOnce(&Hyp<M>) -> R) -> R {
        let mut door = self.enter();
        let mut host = door.lock_host();
        let (_, hyp) = host.with_hyp();
        look(&hyp)
    }

    /// Lends a VM, or returns `None` where its slot is free.
    pub fn inspect_vm<R>(&self, id: VmId, look: impl FnOnce(&Vm<M>) -> R) -> Option<R> {
        self.enter().lock_guest(id).ok().map(|guest| look(&guest))
    }
}
