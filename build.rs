//! Build script of the payload: hands the linker its script and asks for position independence.

use std::env;
use std::path::Path;

fn main() {
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let script = Path::new(&manifest_dir).join("payload.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    println!("cargo:rerun-if-changed=../build.rs");
    // A build for the developer's own machine has no linker script: only `cargo check` makes sense.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    println!("cargo:rustc-link-arg-bins=--script={}", script.display());
    // The entry applies `R_AARCH64_RELATIVE` itself, before the sections become read-only.
    for argument in ["-pie", "--no-dynamic-linker", "-zmax-page-size=4096", "-ztext"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
