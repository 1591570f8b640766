//! The C header: up to date, and C.

use std::io::Write;
use std::process::{Command, Stdio};

use pfnguard_tools::header::{first_difference, generate, path};

/// Compiles `source` with the header in reach; `None` without a C compiler.
fn compile(arguments: &[&str], source: &str) -> Option<(bool, String)> {
    compile_as("c", arguments, source)
}

fn compile_as(language: &str, arguments: &[&str], source: &str) -> Option<(bool, String)> {
    let directory = path().parent()?.to_owned();
    let mut cc = Command::new("cc");
    cc.arg("-I").arg(directory).args(arguments).args(["-fsyntax-only", "-x", language, "-"]);
    cc.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = cc.spawn().ok()?;
    child.stdin.take()?.write_all(source.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    Some((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

const STRICT: [&str; 5] = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"];

#[test]
fn regenerating_the_header_changes_nothing() {
    let checked_in = std::fs::read_to_string(path()).expect("the header is checked in");
    let difference = first_difference(&checked_in, &generate());
    assert_eq!(difference, None, "run `cargo run -- header`");
    assert_eq!(checked_in, generate(), "line ends differ");
}

#[test]
fn the_header_is_strict_c11_and_its_layouts_hold() {
    let source = "#include \"pfnguard.h\"\n#include \"pfnguard.h\"\n";
    if let Some((compiled, errors)) = compile(&STRICT, source) {
        assert!(compiled, "{errors}");
    }
}

#[test]
fn cpp_can_include_the_header() {
    let arguments = ["-std=c++17", "-Wall", "-Wextra", "-Werror"];
    // A machine that links Rust has `cc`; that it also speaks C++ is not a matter of course.
    let Some((true, _)) = compile_as("c++", &[], "int main() { return 0; }\n") else { return };
    let compiled = compile_as("c++", &arguments, "#include \"pfnguard.h\"\n");
    assert!(compiled.is_some_and(|(compiled, errors)| {
        eprintln!("{errors}");
        compiled
    }));
}

#[test]
fn the_header_needs_no_kernel_headers_where_there_is_no_linux() {
    let arguments = [&STRICT[..], &["-U__linux__"]].concat();
    if let Some((compiled, errors)) = compile(&arguments, "#include \"pfnguard.h\"\n") {
        assert!(compiled, "{errors}");
    }
}

#[test]
fn a_wrong_layout_would_not_compile() {
    let source = "#include \"pfnguard.h\"\n\
        _Static_assert(sizeof(struct pfnguard_decision) == 33, \"\");\n";
    if let Some((compiled, _)) = compile(&STRICT, source) {
        assert!(!compiled);
    }
}

#[test]
fn the_header_keeps_the_kernels_style() {
    for (number, line) in generate().lines().enumerate() {
        let columns: usize = line.chars().map(|c| if c == '\t' { 8 } else { 1 }).sum();
        assert!(columns <= 100, "line {} is {columns} columns wide", number + 1);
        assert_eq!(line, line.trim_end(), "line {} ends in white space", number + 1);
        assert!(!line.starts_with("    "), "line {} is indented with spaces", number + 1);
    }
}
