//! Suites and arguments: whatever is wrong with them ends in one clear error that says where it is
//! and what would be right, before anything is run.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use checkpoint::{Checkpoint, SUITE};
use cli::{Folder, GOOD};

// ---- suites ----------------------------------------------------------------------------------

/// A suite is refused after a replacement, with a caret under the place.
#[track_caller]
fn bad_suite(from: &str, to: &str, problem: &str, place: &str) {
    assert!(SUITE.contains(from), "{from}");
    let folder = Folder::with(&Checkpoint::new());
    folder.write("tiny.toml", SUITE.replacen(from, to, 1));
    let place = format!(" tiny.toml:{place}\n");
    folder.refuses(&GOOD, 2, &[problem, &place, "^"]);
}

#[test]
fn broken_toml() {
    bad_suite(
        "name = \"tiny\"",
        "name = \"ti",
        "invalid basic string",
        "3:11",
    );
}

#[test]
fn broken_toml_beside_wide_characters() {
    bad_suite("学\"", "学\" 学", "unexpected key or value", "17:18");
}

#[test]
fn toml_that_ends_too_early() {
    let folder = Folder::with(&Checkpoint::new());
    for (text, problem) in [
        ("", "missing field `suite`"),
        ("[suite", "unclosed table"),
        ("[suite]", "missing field `name`"),
    ] {
        folder.write("tiny.toml", text);
        folder.refuses(&GOOD, 2, &[problem, " tiny.toml:1:", "^"]);
    }
}

#[test]
fn a_misspelt_key() {
    bad_suite("batch", "bach", "unknown field `bach`", "5:1");
}

#[test]
fn an_unknown_task() {
    bad_suite(
        "similarity",
        "similar",
        "known: fill-mask, similarity, features",
        "20:8",
    );
}

#[test]
fn two_cases_of_one_name() {
    bad_suite(
        "\"weather\"",
        "\"capital\"",
        "two cases are named `capital`",
        "11:8",
    );
}

#[test]
fn a_text_without_a_mask() {
    bad_suite("[MASK]。", "。", "a fill-mask case needs a [MASK]", "9:8");
}

#[test]
fn a_similarity_case_with_a_pair() {
    bad_suite(
        "b = \"",
        "text_pair = \"学\"\nb = \"",
        "a similarity case has no `text_pair`",
        "22:13",
    );
}

#[test]
fn a_pair_without_a_mask() {
    bad_suite(
        "[MASK]。\"",
        "。\"\ntext_pair = \"我爱北京。\"",
        "the text or the text_pair of a fill-mask case needs a [MASK]",
        "9:8",
    );
}

#[test]
fn a_suite_that_is_not_text() {
    let folder = Folder::with(&Checkpoint::new());
    folder.write("tiny.toml", [b'a', 0xff]);
    folder.refuses(&GOOD, 2, &["suite `tiny.toml` is not UTF-8 at byte 1"]);
}

#[test]
fn no_such_suite() {
    let expected = ["cannot read suite `gone.toml`", "No such file or directory"];
    bad_arguments(&["--suite", "gone.toml"], 2, &expected);
}

#[test]
fn two_suites_of_one_name() {
    let expected = "suites `tiny.toml` and `./tiny.toml` are both named `tiny`";
    bad_arguments(&["--suite", "./tiny.toml"], 2, &[expected]);
}

/// The mask is there, but behind the last position that the model has.
#[test]
fn a_mask_that_truncation_cuts_off() {
    let folder = Folder::with(&Checkpoint::new());
    let long = format!("text = \"{}", "学".repeat(60));
    folder.write("tiny.toml", SUITE.replacen("text = \"", &long, 1));
    let problem = "case `tiny/capital`: no [MASK] is left among the first 40 tokens \
                   (the text has 70)";
    folder.refuses(&GOOD, 2, &[problem, "\n  hint: put the mask earlier"]);
}

/// A pair needs a second row of segment embeddings.
#[test]
fn a_pair_for_a_model_of_one_segment() {
    let mut checkpoint = Checkpoint::new().with("type_vocab_size", 1);
    let name = "bert.embeddings.token_type_embeddings.weight";
    let segments = checkpoint.tensors.get_mut(name).unwrap();
    segments.shape[0] = 1;
    segments.values.truncate(32);
    let folder = Folder::with(&checkpoint);
    let problem = "case `tiny/science` cannot be tokenized: puts tokens into segment 1, \
                   config.json says `type_vocab_size` 1";
    folder.refuses(&GOOD, 2, &[problem, "\n  hint: "]);
}

// ---- arguments -------------------------------------------------------------------------------

/// Arguments are refused although everything else is good.
#[track_caller]
fn bad_arguments(arguments: &[&str], code: i32, expected: &[&str]) {
    let folder = Folder::with(&Checkpoint::new());
    folder.refuses(&[&GOOD[..], arguments].concat(), code, expected);
}

#[test]
fn an_unknown_target() {
    let problem = "unknown target `onxx@cpu/f32` (known backends: candle, ";
    bad_arguments(&["--target", "onxx"], 2, &[problem]);
}

#[test]
fn what_is_not_a_target() {
    for (target, problem) in [
        ("", "`` is not a target, expected backend@device/dtype"),
        ("on nx", "`on nx` is not a target, expected backend@"),
        ("onnx/f8", "unknown dtype `f8` (known: f32, f64, f16, bf16)"),
        ("onnx@gpu", "unknown device `gpu` (known: cpu, cuda:0, "),
        ("onnx?opt", "`onnx?opt` is not a target, expected backend@"),
    ] {
        bad_arguments(&["--target", target], 2, &["'--target <TARGET>'", problem]);
    }
}

#[test]
fn a_target_twice() {
    let problem = "target `candle@cpu/f32` is given twice";
    bad_arguments(&["--target", "candle@cpu/f32"], 2, &[problem]);
}

#[test]
fn a_pattern_that_matches_nothing() {
    let expected = [
        "no case is selected by --case gone*",
        "\n  hint: patterns match",
    ];
    bad_arguments(&["--case", "gone*"], 4, &expected);
    // Not even beside one that matches.
    bad_arguments(&["--case", "*", "--case", "gone*"], 4, &expected);
}

#[test]
fn what_is_not_a_pattern() {
    let expected = [
        "`[` is not a pattern for --case",
        "unclosed character class",
    ];
    bad_arguments(&["--case", "["], 2, &expected);
}

#[test]
fn no_time_at_all() {
    let expected = [
        "'0' for '--timeout <S>'",
        "expected between 0.001 and 86400",
    ];
    bad_arguments(&["--timeout", "0"], 2, &expected);
}

/// A file stands where the record's folder should be; it is not replaced.
#[test]
fn a_file_for_the_output_folder() {
    let folder = Folder::with(&Checkpoint::new());
    std::fs::remove_dir_all(folder.path("out")).unwrap();
    folder.write("out", "a file");
    let run = folder.run(&GOOD);
    run.expect(run.code == Some(2), "should exit 2");
    for expected in [
        "error: cannot write `",
        "out/record.json`\n  caused by: `",
        "out` is not a folder\n  hint: choose another folder with --out",
    ] {
        let what = format_args!("stderr should contain {expected:?}");
        run.expect(run.stderr.contains(expected), what);
    }
    run.expect(run.stdout.is_empty(), "nothing should be on stdout");
    assert_eq!(std::fs::read(folder.path("out")).unwrap(), b"a file");
}
