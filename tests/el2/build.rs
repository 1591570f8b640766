//! Links the host as a flat image for one address.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg-bins=-Timage.ld");
    println!("cargo::rustc-link-arg-bins=-T{directory}/memory.ld");
    println!("cargo::rerun-if-changed=memory.ld");
    println!("cargo::rerun-if-changed=build.rs");
}
