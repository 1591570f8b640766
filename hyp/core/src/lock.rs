//! The one kind of lock: a ticket lock, fair and without an operating system.
//!
//! With the feature `shuttle` it is a lock whose holder a scheduler chooses, so that
//! `tests/schedules` can try orders that two real threads would take years to hit.

#[cfg(not(feature = "shuttle"))]
pub(crate) use spin::mutex::{TicketMutex, ticket::TicketMutexGuard};

#[cfg(feature = "shuttle")]
pub(crate) use scheduled::{TicketMutex, TicketMutexGuard};

#[cfg(feature = "shuttle")]
mod scheduled {
    use shuttle::sync::{Mutex, MutexGuard};

    pub(crate) type TicketMutexGuard<'a, T> = MutexGuard<'a, T>;

    /// The ticket lock's interface over shuttle's mutex.
    pub(crate) struct TicketMutex<T>(Mutex<T>);

    impl<T> TicketMutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> TicketMutexGuard<'_, T> {
            self.0.lock().expect("a test thread panicked")
        }
    }
}
