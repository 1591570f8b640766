//! The C header of the ABI, in the manner of the kernel's own: tabs, kernel-doc, asserted layouts.

use std::path::PathBuf;

use miette::{IntoDiagnostic, WrapErr, miette};
use pfnguard_shared::{Constant, Field};

use crate::abi::{self, Group, Kind, Layout, Single, Value};
use crate::files::say;
use crate::{artifacts, workspace};

/// Widest line of a comment, in columns.
const WIDTH: usize = 80;
/// Column in which values start, counted in tabs of eight.
const VALUE_TABS: usize = 6;

/// Start of the header: licence, where it comes from, the calling convention, the types.
const PROLOGUE: &str = "\
/* SPDX-License-Identifier: (MIT OR Apache-2.0) */
/*
 * pfnguard: the ABI between a host kernel, its guests and the hypervisor.
 *
 * Generated from the crate pfnguard-shared by `cargo run -- header`; do not edit.
 *
 * Calls are HVC #0 with the SMCCC 1.2 register convention: function id in x0,
 * arguments in x1..x7, results in x0..x7. x0 is a status, sign-extended: zero,
 * or negative. A refused call has changed nothing and returns
 *
 *   x1  bits 15:0 the rule (0: none), bits 31:16 the subject of the two values
 *   x2  offending page frame number, or PFNGUARD_NO_PFN
 *   x3  requested value
 *   x4  granted value
 *
 * Structures are little-endian and have no padding.
 */
#ifndef _UAPI_PFNGUARD_H
#define _UAPI_PFNGUARD_H

#if !defined(__ASSEMBLY__) && !defined(__ASSEMBLER__)
#if defined(__KERNEL__)
#include <linux/stddef.h>
#include <linux/types.h>
#elif defined(__linux__)
#include <stddef.h>
#include <linux/types.h>
#else
#include <stddef.h>
#include <stdint.h>

typedef uint8_t __u8;
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef int32_t __s32;
typedef uint64_t __u64;
#endif
#endif /* !assembly */
";

/// How the layouts are asserted in both languages.
const ASSERT: &str = "
#ifdef __cplusplus
#define PFNGUARD_ASSERT static_assert
#else
#define PFNGUARD_ASSERT _Static_assert
#endif
";

/// Whether the header is to be written or only compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write it.
    Write,
    /// Fail if it is not as it would be written.
    Check,
}

/// Returns where the header lies.
pub fn path() -> PathBuf {
    workspace::root().join("host-interface/include/pfnguard.h")
}

/// Writes the header, or compares it.
///
/// # Errors
/// The file cannot be read or written, or, for [`Action::Check`], it differs.
pub fn run(action: Action) -> miette::Result<()> {
    let (path, fresh) = (path(), generate());
    match action {
        Action::Write => Ok(artifacts::put(&path, fresh.as_bytes())?),
        Action::Check => {
            let problem = || format!("cannot read {}", path.display());
            let old = std::fs::read_to_string(&path).into_diagnostic().wrap_err_with(problem)?;
            match first_difference(&old, &fresh) {
                None => {
                    say(format!("{} is up to date", path.display()))?;
                    Ok(())
                }
                Some(place) => Err(miette!(
                    help = "cargo run -- header",
                    "{} is not what the ABI says: {place}",
                    path.display()
                )),
            }
        }
    }
}

/// Returns the header's text.
pub fn generate() -> String {
    let mut text = PROLOGUE.to_owned();
    text.push('\n');
    for single in abi::singles() {
        text.push_str(&define_single(&single));
    }
    for group in abi::GROUPS {
        text.push_str(&define_group(group));
    }
    text.push_str("\n#if !defined(__ASSEMBLY__) && !defined(__ASSEMBLER__)\n");
    for layout in abi::layouts() {
        text.push_str(&define_struct(&layout));
    }
    text.push_str(ASSERT);
    for layout in abi::layouts() {
        text.push_str(&assertions(&layout));
    }
    text.push_str("#undef PFNGUARD_ASSERT\n");
    text.push_str("\n#endif /* !assembly */\n\n#endif /* _UAPI_PFNGUARD_H */\n");
    text
}

/// Says in which line two texts differ first, and how.
pub fn first_difference(old: &str, new: &str) -> Option<String> {
    let count = old.lines().count().max(new.lines().count());
    let (mut left, mut right) = (old.lines(), new.lines());
    (1..=count).find_map(|number| {
        let (old, new) = (left.next().unwrap_or("(end)"), right.next().unwrap_or("(end)"));
        (old != new).then(|| format!("line {number} is `{old}`, should be `{new}`"))
    })
}

fn define_single(single: &Single) -> String {
    let value = match single.value {
        Value::Decimal(value) => value.to_string(),
        Value::Word(value) => format!("{value:#010x}"),
        Value::Double(value) => format!("{value:#018x}ULL"),
    };
    format!("{}{}", comment(single.doc), define(single.name, &value))
}

fn define_group(group: &Group) -> String {
    let mut text = format!("\n{}", comment(&format!("{}: {}", group.name, group.title)));
    for constant in group.constants {
        let name = format!("{}_{}", group.prefix, upper_snake(constant.name));
        text.push_str(&comment(&prose(constant.docs)));
        text.push_str(&define(&name, &number(group.kind, constant)));
    }
    text
}

fn number(kind: Kind, constant: &Constant) -> String {
    let value = constant.value;
    match kind {
        Kind::Functions => format!("{value:#010x}"),
        Kind::Numbers if value < 0 => format!("({value})"),
        Kind::Numbers => value.to_string(),
        Kind::Bits => format!("(1ULL << {})", value.trailing_zeros()),
    }
}

/// Writes a definition, its value in a column of its own.
fn define(name: &str, value: &str) -> String {
    let left = format!("#define PFNGUARD_{name}");
    let tabs = VALUE_TABS.saturating_sub(left.len() / 8).max(1);
    format!("{left}{}{value}\n", "\t".repeat(tabs))
}

fn define_struct(layout: &Layout) -> String {
    let name = struct_name(layout);
    let title = wrap(&format!("struct {name} - {}", prose(layout.docs)), " * ");
    let mut text = format!("\n/**\n{title}");
    for field in layout.fields {
        text.push_str(&wrap(&format!("@{}: {}", c_name(field), prose(field.docs)), " * "));
    }
    text.push_str(&format!(" */\nstruct {name} {{\n"));
    for field in layout.fields {
        text.push_str(&format!("\t{};\n", member(field)));
    }
    text.push_str("};\n");
    text
}

fn struct_name(layout: &Layout) -> String {
    c_struct(layout.name)
}

/// Returns the name in C of the structure that Rust calls `name`.
fn c_struct(name: &str) -> String {
    let snake = upper_snake(name).to_ascii_lowercase();
    match name {
        // Their Rust names rest on the module they are in.
        "Header" | "Entry" => format!("pfnguard_manifest_{snake}"),
        _ => format!("pfnguard_{snake}"),
    }
}

/// Asserts the size of a structure and the offset of each field.
fn assertions(layout: &Layout) -> String {
    let name = struct_name(layout);
    let assertion =
        |claim: String, what: &str| format!("PFNGUARD_ASSERT({claim},\n\t\t\"{what}\");\n");
    let size = format!("sizeof(struct {name}) == {}", layout.size);
    let mut text = assertion(size, &format!("size of {name}"));
    for field in layout.fields {
        let claim = format!("offsetof(struct {name}, {}) == {}", c_name(field), field.offset);
        text.push_str(&assertion(claim, &format!("offset of {name}.{}", field.name)));
    }
    text
}

/// Writes a field as C declares it.
fn member(field: &Field) -> String {
    let array = field.rust_type.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    match array.and_then(|array| array.split_once(';')) {
        Some((element, count)) => {
            format!("{} {}[{}]", c_type(element), c_name(field), count.trim())
        }
        None => format!("{} {}", c_type(field.rust_type), c_name(field)),
    }
}

/// Returns a field's name in C, which C++ has to be able to read too.
fn c_name(field: &Field) -> &'static str {
    match field.name {
        "class" => "region_class",
        name => name,
    }
}

/// Writes a Rust type as the kernel calls it: `u32` is `__u32`, `i32` is `__s32`, `Decision` is
/// `struct pfnguard_decision`.
fn c_type(rust: &str) -> String {
    let rust = rust.trim();
    match rust.starts_with(char::is_uppercase) {
        true => format!("struct {}", c_struct(rust)),
        false => format!("__{}", rust.replace('i', "s")),
    }
}

/// Writes `HostShareHyp` and `HOST_SHARE_HYP` as `HOST_SHARE_HYP`.
fn upper_snake(name: &str) -> String {
    let mut text = String::new();
    let mut previous = '_';
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && previous.is_ascii_lowercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
        previous = letter;
    }
    text
}

/// Joins documentation lines, without Rust's mark-up.
fn prose(docs: &[&str]) -> String {
    let joined = docs.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    joined.replace("[`", "").replace("`]", "").replace('`', "").replace("*/", "* /")
}

/// Writes a comment: on one line if it fits, as a block otherwise.
fn comment(text: &str) -> String {
    let line = format!("/* {text} */\n");
    if line.len() <= WIDTH { line } else { format!("/*\n{} */\n", wrap(text, " * ")) }
}

/// Breaks a text into lines that start with `prefix`.
fn wrap(text: &str, prefix: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, String::len);
        if line > 0 && prefix.len() + line + 1 + word.len() > WIDTH {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.iter().map(|line| format!("{prefix}{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_upper_snake_whatever_they_are_written_in() {
        assert_eq!(upper_snake("HostShareHyp"), "HOST_SHARE_HYP");
        assert_eq!(upper_snake("ANY_UNCACHED"), "ANY_UNCACHED");
        assert_eq!(upper_snake("R04"), "R04");
    }

    #[test]
    fn members_are_the_kernels_types() {
        let field = |rust_type| Field { name: "f", rust_type, offset: 0, size: 0, docs: &[] };
        assert_eq!(member(&field("u64")), "__u64 f");
        assert_eq!(member(&field("i32")), "__s32 f");
        assert_eq!(member(&field("[u8; 32]")), "__u8 f[32]");
        assert_eq!(member(&field("RegionInfo")), "struct pfnguard_region_info f");
    }

    #[test]
    fn comments_stay_within_the_width() {
        let long = "word ".repeat(60);
        assert!(comment(&long).lines().all(|line| line.len() <= WIDTH));
        assert_eq!(comment("short"), "/* short */\n");
    }

    #[test]
    fn no_c_name_is_defined_twice() {
        let header = generate();
        let mut names: Vec<&str> = header
            .lines()
            .filter_map(|line| line.strip_prefix("#define ")?.split('\t').next())
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn the_first_difference_has_a_line() {
        assert_eq!(first_difference("a\nb", "a\nb"), None);
        let place = first_difference("a\nb", "a\nc\nd");
        assert_eq!(place.as_deref(), Some("line 2 is `b`, should be `c`"));
    }
}
