//! Every format renders the same record, which shows every verdict a run can give today and text that
//! tries to break out of its place.
#![cfg(test)]

use std::collections::BTreeMap;

use driftgauge_reports::record::{
    Answer, BaselineRecord, Candidate, Class, FileRecord, Finding, FindingKind, Margin, MaskAnswer,
    Method, ModelRecord, Observation, RECORD_FORMAT, RECORD_VERSION, ReadError, ResultRecord,
    RunTime, SuiteRecord, Summary, TargetRecord, TargetTime, Tokens, TruthRecord, Verdict,
};
use driftgauge_reports::{Format, RunRecord, Style, render, text};

fn target(name: &str, library: &str, version: &str) -> TargetRecord {
    TargetRecord {
        target: name.to_owned(),
        library: Some(library.to_owned()),
        library_version: Some(version.to_owned()),
        device: Some("cpu".to_owned()),
        dtype: Some("f32".to_owned()),
        threads: Some(1),
        observations: vec!["hidden.1".to_owned(), "logits".to_owned()],
        properties: BTreeMap::new(),
        finding: None,
        restarts: 0,
        semantic: None,
        semantic_missing: None,
        location: None,
        baseline: None,
        repeats: None,
        time: TargetTime::default(),
    }
}

fn observation(error_u: Option<f64>, budget_u: f64) -> Observation {
    Observation {
        shape: vec![1, 8],
        dtype: "f32".to_owned(),
        max_abs: error_u.map(|error| error * 1e-7),
        max_rel: error_u.map(|error| error * 1e-6),
        error_u,
        effective_bits: error_u.map(|error| 24.0 - error.log2()),
        cosine: error_u.map(|_| 1.0),
        predicted_u: budget_u / 2.0,
        budget_u,
        within: error_u.is_some_and(|error| error <= budget_u),
        digest: "0".repeat(32),
        moved: None,
    }
}

fn finding(kind: FindingKind, observation: Option<&str>, message: &str) -> Finding {
    Finding {
        observation: observation.map(str::to_owned),
        ..Finding::new(kind, message)
    }
}

fn fill_mask(token: &str, id: u32, probability: f64) -> Answer {
    let best = Candidate {
        token: token.to_owned(),
        id,
        probability,
    };
    let second = Candidate {
        token: "国".to_owned(),
        id: 1744,
        probability: 0.05,
    };
    Answer::FillMask {
        masks: vec![MaskAnswer {
            position: 6,
            top: vec![best, second],
        }],
    }
}

fn result(case: &str, target: &str, verdict: Verdict, error_u: Option<f64>) -> ResultRecord {
    let has_numbers = !matches!(verdict, Verdict::Broken | Verdict::Unsupported);
    let observations = [("hidden.1", 22.6), ("logits", 39.2)]
        .map(|(name, budget)| (name.to_owned(), observation(error_u, budget)));
    ResultRecord {
        suite: "seed".to_owned(),
        case: case.to_owned(),
        task: "fill-mask".to_owned(),
        target: target.to_owned(),
        verdict,
        texts: vec!["中国的首都是北[MASK]。".to_owned()],
        tokens: vec![Tokens {
            ids: vec![101, 1266, 103, 102],
            text: "[CLS] 北 [MASK] [SEP]".to_owned(),
            truncated: 0,
        }],
        answer: has_numbers.then(|| fill_mask("京", 776, 0.946)),
        truth_answer: Some(fill_mask("京", 776, 0.946)),
        observations: if has_numbers {
            observations.into()
        } else {
            BTreeMap::new()
        },
        margins: Vec::new(),
        findings: Vec::new(),
    }
}

/// The record that every format is tested with.
fn fixture() -> RunRecord {
    let (candle, libtorch, onnx) = ("candle@cpu/f32", "libtorch@cpu/f32", "onnx@cpu/f32?opt=all");
    let mut drifted = result("capital", onnx, Verdict::Drift, Some(5243.7));
    drifted.answer = Some(fill_mask("海", 3862, 0.41));
    drifted.findings = vec![
        Finding {
            class: Some(Class::Precision),
            measured_u: Some(5243.7),
            allowed_u: Some(22.6),
            predicted_u: Some(11.3),
            evidence: vec![
                "every observation has the error of TF32: products of operands rounded to 11 bits, \
                 to a factor of 1.06; about 12 bits are right"
                    .to_owned(),
            ],
            ..finding(
                FindingKind::Numeric,
                Some("hidden.1"),
                "`hidden.1` is 5243.7 u from the truth, 22.6 u are allowed",
            )
        },
        finding(FindingKind::Numeric, Some("logits"), "`logits` follows"),
    ];
    let mut tied = result("capital", libtorch, Verdict::Pass, Some(8.5));
    tied.margins = vec![Margin {
        position: Some(6),
        first: "京".to_owned(),
        second: "海".to_owned(),
        gap: 2.5e-7,
        noise: 0.83,
        tie: true,
    }];
    let mut damaged = result("hostile", candle, Verdict::Drift, None);
    damaged.findings = vec![finding(
        FindingKind::Damage,
        Some("logits"),
        "`logits`: 3 of 8 numbers are NaN or infinite",
    )];
    let mut broken = result("hostile", libtorch, Verdict::Broken, None);
    broken.findings = vec![Finding {
        hint: Some("raise --timeout if the machine is slow".to_owned()),
        stderr: vec!["\u{1b}[31mterminate called\u{1b}[0m ::error::now".to_owned()],
        ..finding(
            FindingKind::Broken,
            None,
            "worker `libtorch` was killed by signal 6 (SIGABRT) (while running `seed/hostile`)",
        )
    }];
    let mut unsupported = result("hostile", onnx, Verdict::Unsupported, None);
    unsupported.findings = vec![finding(
        FindingKind::Unsupported,
        None,
        "the target offers no logits",
    )];
    let mut results = vec![
        result("capital", candle, Verdict::Pass, Some(12.25)),
        tied,
        drifted,
        damaged,
        broken,
        unsupported,
    ];
    for hostile in &mut results[3..] {
        hostile.texts = vec!["\u{202e}<script>::error::\u{1b}[2J\u{0}]]>`|".to_owned()];
    }
    let mut verdicts = BTreeMap::new();
    results
        .iter()
        .for_each(|result| *verdicts.entry(result.verdict).or_insert(0) += 1);
    RunRecord {
        format: RECORD_FORMAT.to_owned(),
        version: RECORD_VERSION,
        driftgauge: "0.1.0".to_owned(),
        summary: Summary {
            exit_code: 3,
            cases: 2,
            targets: 3,
            verdicts,
        },
        method: Method {
            k: 2.0,
            k_overridden: false,
            move_limit: 1.0,
            samples: 8,
            seed: 1,
        },
        truth: TruthRecord {
            sha256: "0".repeat(64),
            baselines: true,
            compared: 2,
            difference: Some(2.5e-16),
            place: "seed/capital".to_owned(),
            limit: 1e-10,
            finding: None,
        },
        model: ModelRecord {
            id: "zh-mini".to_owned(),
            verified: true,
            revision: None,
            licence: Some("MIT OR Apache-2.0".to_owned()),
            architecture: BTreeMap::from([("num_hidden_layers".to_owned(), 1.into())]),
            parameters: 6_026_952,
            weights_dtypes: vec!["f16".to_owned()],
            naming: BTreeMap::from([("decoder".to_owned(), "tied".to_owned())]),
            tokenizer: BTreeMap::from([("max_length".to_owned(), "512".to_owned())]),
            files: vec![FileRecord {
                name: "config.json".to_owned(),
                size: 529,
                sha256: "0".repeat(64),
            }],
        },
        suites: vec![SuiteRecord {
            name: "seed".to_owned(),
            description: "d".to_owned(),
            sha256: "0".repeat(64),
            batch: 1,
            selected: 2,
            cases: 9,
        }],
        targets: vec![
            TargetRecord {
                baseline: Some(BaselineRecord {
                    name: "candle-cpu-f32.01234567".to_owned(),
                    changed: ["library_version", "threads", "\u{1b}[2J"]
                        .map(|key| (key.to_owned(), [Some("1\u{7}".to_owned()), None]))
                        .into(),
                    bitwise: 0,
                    within: 3,
                    drifted: 1,
                    improved: 0,
                    unknown: 2,
                    reason: Some("a reason".to_owned()),
                }),
                ..target(candle, "candle-transformers", "0.11.1")
            },
            TargetRecord {
                restarts: 1,
                ..target(libtorch, "libtorch", "2.11.0")
            },
            target(onnx, "onnxruntime", "1.31.1"),
        ],
        results,
        pairs: Vec::new(),
        host: BTreeMap::from([("cpu".to_owned(), "a CPU".to_owned())]),
        paths: BTreeMap::new(),
        time: RunTime::default(),
    }
}

fn table(width: usize) -> String {
    render(
        &fixture(),
        Format::Table,
        Style {
            width,
            colour: false,
        },
    )
    .unwrap()
}

macro_rules! assert_format {
    ($name:literal, $report:expr) => {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("../../snapshots/reports");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!($name, $report));
    };
}

#[test]
fn table_at_80_columns() {
    assert_format!("table-80", table(80));
}

#[test]
fn table_at_160_columns() {
    assert_format!("table-160", table(160));
}

#[test]
fn json() {
    let style = Style {
        width: 80,
        colour: false,
    };
    assert_format!("json", render(&fixture(), Format::Json, style).unwrap());
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    for width in [80, 100, 200] {
        for line in table(width).lines() {
            assert!(
                text::width(line) <= width,
                "{} columns: {line}",
                text::width(line)
            );
        }
    }
}

/// Colour adds escape sequences of ours and lets none of the text's own through.
#[test]
fn text_cannot_break_out_of_the_table() {
    let coloured = render(
        &fixture(),
        Format::Table,
        Style {
            width: 80,
            colour: true,
        },
    )
    .unwrap();
    for report in [table(80), coloured] {
        assert!(
            !report.contains("\u{1b}[2J") && !report.contains("\u{202e}"),
            "{report}"
        );
        assert!(
            report
                .chars()
                .all(|c| c == '\n' || c == '\u{1b}' || !c.is_control())
        );
    }
}

#[test]
fn a_record_survives_json_and_other_records_are_refused() {
    let style = Style {
        width: 80,
        colour: false,
    };
    let json = render(&fixture(), Format::Json, style).unwrap();
    assert_eq!(RunRecord::from_json(&json).unwrap(), fixture());
    let other =
        |from: &str, to: &str| RunRecord::from_json(&json.replacen(from, to, 1)).unwrap_err();
    assert!(matches!(
        other("driftgauge-record", "junit"),
        ReadError::Format(_)
    ));
    let version = format!("\"version\": {RECORD_VERSION}");
    let newer = other(&version, "\"version\": 99");
    assert!(matches!(newer, ReadError::Newer(99)));
    let older = other(&version, "\"version\": 1");
    assert!(matches!(older, ReadError::Older(1)));
    assert!(matches!(
        RunRecord::from_json(&json[..json.len() / 2]),
        Err(ReadError::Json(_))
    ));
}
