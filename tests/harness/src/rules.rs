//! Rules that the worlds of this thread exercised, while somebody counts.

use std::cell::RefCell;

use pfnguard_model::rules::{Done, Exercised};

thread_local! {
    static COUNTED: RefCell<Option<Exercised>> = const { RefCell::new(None) };
}

/// Returns what `run` exercised on this thread.
pub fn counted(run: impl FnOnce()) -> Exercised {
    COUNTED.set(Some(Exercised::default()));
    run();
    COUNTED.take().expect("counting does not nest")
}

pub(crate) fn is_counting() -> bool {
    COUNTED.with_borrow(Option::is_some)
}

pub(crate) fn note(done: &Done<'_>) {
    COUNTED.with_borrow_mut(|counted| {
        if let Some(counted) = counted {
            counted.note(done);
        }
    });
}
