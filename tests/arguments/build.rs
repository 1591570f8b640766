//! Builds `host-interface/kmod/args.c`, the module's own file, for this machine.

fn main() {
    let (file, headers) = ("../../host-interface/kmod/args.c", "../../host-interface/include");
    for path in [file, "../../host-interface/kmod/args.h", headers] {
        println!("cargo::rerun-if-changed={path}");
    }
    cc::Build::new().file(file).include(headers).warnings_into_errors(true).compile("arguments");
}
