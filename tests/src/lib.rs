//! Tests that need more than one crate, or a machine; all of them are under `tests/`.
