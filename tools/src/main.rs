//! pfnguard tools.
fn main() {}
