//! What a test comes to.

use std::fmt::Debug;

use nix::Error;

use crate::device::Failed;

/// A test: it holds, or this is why not.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Fails with `what` unless `holds`.
pub fn ensure(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// Fails unless both are equal.
pub fn equal<T: PartialEq + Debug>(found: T, expected: T, what: &str) -> Outcome {
    ensure(found == expected, &format!("{what}: {found:?} instead of {expected:?}"))
}

/// Fails unless the call was refused with `errno`.
pub fn refused<T: Debug>(answer: Result<T, Failed>, errno: Error, what: &str) -> Outcome {
    match answer {
        Err(failed) => equal(failed.errno, errno, what),
        Ok(value) => Err(format!("{what}: answered {value:?} instead of {errno}").into()),
    }
}
