//! `docs/manifest.md` says what the compiler does.

use std::fs;

use miette::{GraphicalReportHandler, GraphicalTheme};
use pfnguard_tools::manifest::{Constraint, Refusal, compile};

fn document() -> String {
    fs::read_to_string(super::repository().join("docs/manifest.md"))
        .expect("part of the repository")
}

fn blocks(document: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    document
        .split(&fence)
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0.to_owned()))
        .collect()
}

#[test]
fn the_document_lists_every_constraint_with_its_rule() {
    let document = document();
    for constraint in Constraint::ALL {
        let (id, rule) = (constraint.id(), constraint.rule().name());
        let line = format!("| {id} | {rule} | {} |\n", constraint.statement());
        assert!(document.contains(&line), "docs/manifest.md lacks this line:\n{line}");
    }
}

#[test]
fn the_documents_first_example_compiles() {
    let document = document();
    let example = &blocks(&document, "toml")[0];
    compile("docs/manifest.md", example).unwrap_or_else(|report| panic!("{report:?}"));
}

#[test]
fn the_document_shows_errors_as_they_are() {
    let document = document();
    let source = blocks(&document, "toml").pop().expect("the bad example is the last");
    let report = compile("board.toml", &source).expect_err("the example is bad");
    let refusal = report.downcast_ref::<Refusal>().expect("a refusal of text");
    let handler =
        GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(90);
    let mut shown = String::new();
    handler.render_report(&mut shown, refusal).expect("a String takes every write");
    let shown: String = shown.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    assert!(document.contains(shown.trim()), "docs/manifest.md must show:\n{shown}");
}
