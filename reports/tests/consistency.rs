//! The table and the JSON of a consistency record that shows every outcome, and text that tries to
//! break out of its place.
#![cfg(test)]

#[macro_use]
mod support;

use std::collections::BTreeMap;

use driftgauge_reports::consistency::{
    CONSISTENCY_FORMAT, CONSISTENCY_VERSION, CaseRecord, Check, CheckRecord, ConsistencyMethod,
    ConsistencyRecord, ConsistencySummary, Difference, Outcome, SequenceRecord, TargetConsistency,
    VariantRecord, render, render_json,
};
use driftgauge_reports::record::{Class, Finding, FindingKind, ModelRecord, RunTime};
use driftgauge_reports::{Style, text};

const CASE: &str = "seed/capital";
const HOSTILE: &str = "worker said \u{1b}[2J\u{202e}<script>::error::";

fn difference(variant: &str, distance_u: Option<f64>) -> Difference {
    Difference {
        variant: variant.to_owned(),
        case: CASE.to_owned(),
        observation: "hidden.2".to_owned(),
        max_abs: 1.25e-6,
        distance_u,
        noise: distance_u.map(|distance| distance / 4.0),
    }
}

fn variant(name: &str, outcome: Outcome, largest: Option<Difference>) -> VariantRecord {
    let differing = match outcome {
        Outcome::Within => 3,
        Outcome::Drift => 2304,
        _ => 0,
    };
    let case = CaseRecord {
        case: CASE.to_owned(),
        outcome,
        elements: 4608,
        differing,
        starts: (differing > 0).then(|| "hidden.1".to_owned()),
        largest,
    };
    let has_numbers = matches!(outcome, Outcome::Bitwise | Outcome::Within | Outcome::Drift);
    VariantRecord {
        variant: name.to_owned(),
        against: "alone".to_owned(),
        outcome,
        finding: None,
        skipped: Vec::new(),
        cases: if has_numbers { vec![case] } else { Vec::new() },
    }
}

fn check(check: Check, variant: VariantRecord) -> CheckRecord {
    let cases = || variant.cases.iter();
    CheckRecord {
        check,
        outcome: variant.outcome,
        elements: cases().map(|case| case.elements).sum(),
        differing: cases().map(|case| case.differing).sum(),
        largest: cases().find_map(|case| case.largest.clone()),
        variants: vec![variant],
    }
}

fn target(name: &str, library: &str) -> TargetConsistency {
    let bitwise = |own| check(own, variant("as before", Outcome::Bitwise, None));
    TargetConsistency {
        target: name.to_owned(),
        library: Some(library.to_owned()),
        library_version: Some("2.11.0".to_owned()),
        threads: Some(1),
        properties: BTreeMap::from([("simd".to_owned(), "AVX2".to_owned())]),
        finding: None,
        restarts: 0,
        checks: Check::ALL.map(bitwise).into(),
    }
}

/// Every outcome that there is.
fn fixture() -> ConsistencyRecord {
    let steady = target("onnx@cpu/f32?opt=all", "onnxruntime");
    let mut uneven = target("libtorch@cpu/f32", "libtorch");
    uneven.threads = Some(2);
    let far = difference("place 3 of 4", Some(50_000.0));
    let infinite = difference("7 tokens of padding", None);
    uneven.checks[2] = check(
        Check::Threads,
        variant(
            "1 thread",
            Outcome::Within,
            Some(difference("1 thread", Some(3.5))),
        ),
    );
    uneven.checks[4] = check(
        Check::Position,
        variant("place 3 of 4", Outcome::Drift, Some(far)),
    );
    let mut padded = variant("7 tokens of padding", Outcome::Drift, Some(infinite));
    padded.skipped = vec!["seed/long has 512 tokens, the model has 512 positions".to_owned()];
    uneven.checks[5] = check(Check::Padding, padded);
    let mut broken = target("candle@cpu/f32", "candle-transformers");
    broken.restarts = 1;
    let mut lost = variant("first of 4", Outcome::Broken, None);
    lost.finding = Some(Finding {
        hint: Some("raise --timeout if the machine is slow".to_owned()),
        stderr: vec![HOSTILE.to_owned()],
        ..Finding::new(FindingKind::Broken, HOSTILE)
    });
    broken.checks[3] = check(Check::Batch, lost);
    let mut damaged = variant("once more", Outcome::Drift, None);
    damaged.finding = Some(Finding {
        class: Some(Class::Damage),
        ..Finding::new(
            FindingKind::Damage,
            "`hidden.1`: 3 of 8 numbers are NaN or infinite",
        )
    });
    broken.checks[0] = check(Check::Again, damaged);
    let mut alone = variant("last first", Outcome::Skipped, None);
    alone.skipped = vec!["there is only one sequence".to_owned()];
    broken.checks[7] = check(Check::Order, alone);
    let absent = TargetConsistency {
        library: None,
        library_version: None,
        threads: None,
        properties: BTreeMap::new(),
        finding: Some(Finding::new(FindingKind::Unsupported, "there is no cuda:0")),
        checks: Vec::new(),
        ..target("onnx@cuda:0/f16", "")
    };
    let targets = vec![steady, uneven, broken, absent];
    let mut outcomes = BTreeMap::from([(Outcome::Unsupported, 1)]);
    for check in targets.iter().flat_map(|target| &target.checks) {
        *outcomes.entry(check.outcome).or_insert(0) += 1;
    }
    ConsistencyRecord {
        format: CONSISTENCY_FORMAT.to_owned(),
        version: CONSISTENCY_VERSION,
        driftgauge: "0.1.0".to_owned(),
        summary: ConsistencySummary {
            exit_code: 3,
            outcomes,
        },
        method: ConsistencyMethod {
            k: 2.5,
            limit: 3.5,
            samples: 8,
            seed: 1,
        },
        model: ModelRecord {
            id: "zh-mini".to_owned(),
            verified: true,
            revision: None,
            licence: None,
            architecture: BTreeMap::new(),
            parameters: 6_026_952,
            weights_dtypes: vec!["f16".to_owned()],
            naming: BTreeMap::new(),
            tokenizer: BTreeMap::new(),
            files: Vec::new(),
        },
        sequences: [(CASE, 10, 1), ("seed/long", 512, 0)]
            .map(|(case, tokens, logits)| SequenceRecord {
                case: case.to_owned(),
                tokens,
                logits,
            })
            .into(),
        targets,
        host: BTreeMap::from([("cpu".to_owned(), "a CPU".to_owned())]),
        paths: BTreeMap::new(),
        time: RunTime::default(),
    }
}

fn report(record: &ConsistencyRecord, width: usize, colour: bool) -> String {
    render(record, Style { width, colour })
}

#[test]
fn table_at_80_columns() {
    assert_snapshot!("consistency-80", report(&fixture(), 80, false));
}

#[test]
fn table_at_160_columns() {
    assert_snapshot!("consistency-160", report(&fixture(), 160, false));
}

/// Nothing is wrong: one table, one line.
#[test]
fn table_without_differences() {
    let mut record = fixture();
    record.targets.truncate(1);
    record.summary.exit_code = 0;
    record.summary.outcomes = BTreeMap::from([(Outcome::Bitwise, 8)]);
    assert_snapshot!("consistency-steady", report(&record, 80, false));
}

#[test]
fn json_keeps_everything() {
    let json = render_json(&fixture()).unwrap();
    let read: ConsistencyRecord = serde_json::from_str(&json).unwrap();
    assert_eq!(read, fixture());
    assert_snapshot!("consistency-json", json);
}

#[test]
fn no_line_is_wider_than_the_terminal_and_no_text_breaks_out() {
    for (width, colour) in [(80, false), (100, false), (200, false), (80, true)] {
        let table = report(&fixture(), width, colour);
        let is_control = |c: char| c.is_control() && c != '\n' && !(colour && c == '\u{1b}');
        assert!(
            !table.contains(is_control) && !table.contains("\u{1b}[2J"),
            "{table}"
        );
        assert!(!table.contains('\u{202e}'), "{table}");
        for line in table.lines().filter(|_| !colour) {
            assert!(text::width(line) <= width, "{}: {line}", text::width(line));
        }
    }
}
