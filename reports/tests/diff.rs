//! Comparisons of small records: what counts as drift, what is shown, and what is refused.
#![cfg(test)]

#[macro_use]
mod support;

use std::collections::BTreeMap;

use driftgauge_reports::apart::roundoff;
use driftgauge_reports::diff::{
    Comparison, Diff, DiffError, Direct, Matrix, Side, TwoWay, compare, render, render_json,
};
use driftgauge_reports::record::{
    FileRecord, Finding, FindingKind, KnownDeviations, Method, ModelRecord, Observation, Pair,
    RECORD_FORMAT, RECORD_VERSION, ResultRecord, RunTime, SuiteRecord, Summary, TargetRecord,
    TargetTime, Tokens, TruthRecord, Verdict,
};
use driftgauge_reports::{RunRecord, Style, text};

const ONNX: &str = "onnx@cpu/f32";
const CANDLE: &str = "candle@cpu/f32";

fn observation(error_u: Option<f64>) -> Observation {
    Observation {
        shape: vec![1, 8],
        dtype: "f32".to_owned(),
        max_abs: None,
        max_rel: None,
        error_u,
        effective_bits: None,
        cosine: None,
        predicted_u: 4.0,
        budget_u: 10.0,
        within: error_u.is_some_and(|error| error <= 10.0),
        digest: format!("{error_u:?}"),
        moved: None,
    }
}

/// A record with three cases for each target, in which every error of `logits` is 4 u, the noise.
fn record(targets: &[&str]) -> RunRecord {
    let target = |name: &&str| TargetRecord {
        target: (*name).to_owned(),
        library: Some("onnxruntime".to_owned()),
        library_version: Some("1.31.1".to_owned()),
        device: Some("cpu".to_owned()),
        dtype: Some("f32".to_owned()),
        threads: Some(1),
        observations: Vec::new(),
        properties: BTreeMap::from([("library_path".to_owned(), format!("/a/{name}"))]),
        finding: None,
        restarts: 0,
        semantic: None,
        semantic_missing: None,
        location: None,
        baseline: None,
        repeats: None,
        time: TargetTime::default(),
    };
    let mut results = Vec::new();
    for case in ["capital", "moon", "学"] {
        for target in targets {
            let observations =
                ["cls", "logits"].map(|name| (name.to_owned(), observation(Some(4.0))));
            results.push(ResultRecord {
                suite: "seed".to_owned(),
                case: case.to_owned(),
                task: "fill-mask".to_owned(),
                target: (*target).to_owned(),
                verdict: Verdict::Pass,
                texts: vec!["中国的首都是北[MASK]。".to_owned()],
                tokens: vec![Tokens {
                    ids: vec![101, 103, 102],
                    text: "[CLS] [MASK] [SEP]".to_owned(),
                    truncated: 0,
                }],
                answer: None,
                truth_answer: None,
                margins: Vec::new(),
                observations: observations.into(),
                findings: Vec::new(),
                known: None,
            });
        }
    }
    RunRecord {
        truth: TruthRecord::default(),
        format: RECORD_FORMAT.to_owned(),
        version: RECORD_VERSION,
        driftgauge: "0.1.0".to_owned(),
        summary: Summary {
            exit_code: 0,
            cases: 3,
            targets: targets.len(),
            verdicts: BTreeMap::new(),
        },
        method: Method {
            k: 2.5,
            k_overridden: false,
            move_limit: 1.0,
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
            tokenizer: BTreeMap::from([("lowercase".to_owned(), "true".to_owned())]),
            files: vec![FileRecord {
                name: "model.safetensors".to_owned(),
                size: 529,
                sha256: "0".repeat(64),
            }],
        },
        suites: vec![SuiteRecord {
            name: "seed".to_owned(),
            description: "d".to_owned(),
            sha256: "1".repeat(64),
            batch: 1,
            selected: 3,
            cases: 9,
        }],
        targets: targets.iter().map(target).collect(),
        results,
        pairs: Vec::new(),
        known: KnownDeviations {
            applied: true,
            ..KnownDeviations::default()
        },
        host: BTreeMap::from([("cpu".to_owned(), "a CPU".to_owned())]),
        paths: BTreeMap::from([("model".to_owned(), "/somewhere".to_owned())]),
        time: RunTime::default(),
    }
}

/// Changes the error of `logits` in case `index`.
fn set_error(record: &mut RunRecord, index: usize, error_u: Option<f64>) {
    let observations = &mut record.results[index].observations;
    observations.insert("logits".to_owned(), observation(error_u));
}

fn drift(record: &mut RunRecord, index: usize, verdict: Verdict, message: &str) {
    record.results[index].verdict = verdict;
    record.results[index].findings = vec![Finding::new(FindingKind::Numeric, message)];
}

fn sides<'a>(records: &'a [RunRecord]) -> Vec<Side<'a>> {
    let names = ["a.json", "b.json", "c.json", "d.json"];
    records
        .iter()
        .enumerate()
        .map(|(file, record)| Side {
            name: names[file],
            file,
            record,
        })
        .collect()
}

fn diff(records: &[RunRecord]) -> Diff {
    compare(&sides(records), &|_, _| None).unwrap()
}

fn two(diff: &Diff) -> &TwoWay {
    match &diff.comparison {
        Comparison::Two(two) => two,
        Comparison::Many(_) => panic!("of two runs: {diff:#?}"),
    }
}

fn many(diff: &Diff) -> &[Matrix] {
    match &diff.comparison {
        Comparison::Many(matrices) => matrices,
        Comparison::Two(_) => panic!("of many runs: {diff:#?}"),
    }
}

fn table(diff: &Diff, width: usize) -> String {
    let colour = false;
    let table = render(diff, Style { width, colour });
    for line in table.lines() {
        assert!(text::width(line) <= width, "{width}: {line}");
    }
    table
}

/// A change of the second of two equal records, whether it is drift, and what the table says.
#[track_caller]
fn check(change: impl Fn(&mut RunRecord), drifted: bool, expected: &[&str]) -> Diff {
    let mut records = [record(&[ONNX]), record(&[ONNX])];
    change(&mut records[1]);
    let diff = diff(&records);
    let table = table(&diff, 80);
    assert_eq!(diff.drifted, drifted, "{table}");
    for expected in expected {
        assert!(table.contains(expected), "no {expected:?} in\n{table}");
    }
    diff
}

#[test]
fn equal_records_do_not_differ() {
    let diff = check(
        |_| (),
        false,
        &["NO DIFFERENCE: all 6 observations of 3 cases"],
    );
    assert!(!table(&diff, 80).contains("moved"));
}

#[test]
fn times_and_places_are_no_difference() {
    let change = |record: &mut RunRecord| {
        record.time.started = 7;
        record
            .paths
            .insert("model".to_owned(), "/elsewhere".to_owned());
        let properties = &mut record.targets[0].properties;
        properties.insert("library_path".to_owned(), "/b".to_owned());
    };
    let diff = check(change, false, &["NO DIFFERENCE"]);
    assert!(!table(&diff, 80).contains("around the numbers"));
}

#[test]
fn the_environment_alone_is_no_drift() {
    let change = |record: &mut RunRecord| {
        record.targets[0].library_version = Some("1.23.2".to_owned());
        record.targets[0]
            .properties
            .insert("mkl".to_owned(), "true".to_owned());
        record
            .host
            .insert("cpu".to_owned(), "another CPU".to_owned());
    };
    let expected = [
        "NO DIFFERENCE",
        "host cpu: a CPU -> another CPU",
        "library_version: 1.31.1 -> 1.23.2",
        "mkl: (none) -> true",
    ];
    check(change, false, &expected);
}

#[test]
fn errors_that_move_within_noise_are_no_drift() {
    let expected = [
        "NO DRIFT: 5 of 6",
        "+0.97",
        "0 of 3",
        "seed/moon",
        "not known",
    ];
    check(|record| set_error(record, 1, Some(7.88)), false, &expected);
    // Whatever shrinks is no drift.
    check(
        |record| set_error(record, 1, Some(0.12)),
        false,
        &["NO DRIFT", "-0.97"],
    );
}

#[test]
fn errors_that_grow_by_more_than_noise_are_drift() {
    let expected = [
        "DRIFT: onnx@cpu/f32: 1 error grew by more than noise",
        "+1.02",
        "logits",
    ];
    check(|record| set_error(record, 1, Some(8.1)), true, &expected);
    check(
        |record| set_error(record, 1, None),
        true,
        &["+inf", "not finite"],
    );
}

#[test]
fn each_error_is_taken_in_units_of_its_own_noise() {
    let change = |record: &mut RunRecord| {
        for result in &mut record.results {
            for observation in result.observations.values_mut() {
                observation.dtype = "bf16".to_owned();
                observation.digest = "other".to_owned();
            }
        }
    };
    let diff = check(change, false, &["NO DRIFT", "0.00 x noise"]);
    // In f32 the errors are 4 · 2^-24, in bf16 4 · 2^-8: the second noise is all there is.
    let noise = two(&diff).targets[0]
        .apart
        .furthest
        .as_ref()
        .unwrap()
        .noise
        .unwrap();
    assert!((0.999..1.0).contains(&noise), "{noise}");
}

#[test]
fn verdicts_that_get_worse_are_drift() {
    let change = |record: &mut RunRecord| drift(record, 0, Verdict::Broken, "killed by signal 9");
    let expected = [
        "pass -> broken  onnx@cpu/f32 on seed/capital",
        "killed by signal 9",
        "1 verdict got worse",
    ];
    check(change, true, &expected);
    for (before, after, worse) in [
        (Verdict::Drift, Verdict::Pass, false),
        (Verdict::Pass, Verdict::Known, true),
        (Verdict::Known, Verdict::Fixed, false),
        (Verdict::New, Verdict::Pass, false),
        (Verdict::Pass, Verdict::New, false),
        (Verdict::Unsupported, Verdict::Drift, true),
        (Verdict::Drift, Verdict::Broken, true),
    ] {
        let mut records = [record(&[ONNX]), record(&[ONNX])];
        records[0].results[0].verdict = before;
        records[1].results[0].verdict = after;
        let diff = diff(&records);
        assert_eq!(
            two(&diff).targets[0].verdicts[0].worse,
            worse,
            "{before:?} {after:?}"
        );
        assert_eq!(diff.drifted, worse);
    }
}

#[test]
fn what_vanished_is_drift_and_what_appeared_is_not() {
    let remove = |record: &mut RunRecord| drop(record.results[2].observations.remove("cls"));
    check(
        remove,
        true,
        &[
            "onnx@cpu/f32 lost `cls` in 1 case",
            "1 observation vanished",
        ],
    );
    let add = |record: &mut RunRecord| {
        let observations = &mut record.results[2].observations;
        observations.insert("hidden.1".to_owned(), observation(Some(1.0)));
    };
    check(add, false, &["onnx@cpu/f32 gained `hidden.1` in 1 case"]);
}

#[test]
fn cases_that_are_not_the_same_are_not_compared() {
    let remove = |record: &mut RunRecord| drop(record.results.remove(0));
    check(
        remove,
        false,
        &["1 only before: seed/capital", "observations of 2 cases"],
    );
    let other_text = |record: &mut RunRecord| {
        record.suites[0].sha256 = "2".repeat(64);
        record.results[0].texts = vec!["学".to_owned()];
        record.results[0].tokens[0].ids = vec![101, 102];
        set_error(record, 0, Some(99.0));
    };
    let expected = [
        "1 with another text under the same name",
        "suite seed file: 111111111111 -> 222222222222",
    ];
    check(other_text, false, &expected);
    let other_tokens = |record: &mut RunRecord| {
        record.results[0].tokens[0].ids = vec![101, 100, 102];
        set_error(record, 0, Some(99.0));
    };
    let expected = [
        "1 with other tokens for the same text",
        "DRIFT: 1 case became other tokens",
    ];
    check(other_tokens, true, &expected);
}

#[test]
fn another_model_is_said_first() {
    let change = |record: &mut RunRecord| {
        record.model.files[0].sha256 = "f".repeat(64);
        record.results[0].tokens[0].ids = vec![101, 100, 102];
    };
    let expected = [
        "OTHER MODEL",
        "model file model.safetensors: 000000000000 -> ffffffffffff",
    ];
    let diff = check(change, false, &expected);
    assert_eq!(
        table(&diff, 80)
            .lines()
            .position(|line| line.contains("OTHER MODEL")),
        Some(2)
    );
}

/// Distances of 1 and 4 noises of a difference.
fn distances(noises: [f64; 3]) -> Direct {
    let noise = 32f64.sqrt() * roundoff("f32");
    let cases = ["capital", "moon", "学"].into_iter().zip(noises);
    let all = cases.flat_map(|(case, distance)| {
        ["cls", "logits"].map(|name| (format!("seed/{case}/{name}"), distance * noise))
    });
    Direct::Each(all.collect())
}

#[test]
fn tensors_that_are_too_far_apart_are_drift() {
    let records = [record(&[ONNX]), record(&[ONNX])];
    for (noises, drifted, within) in [([0.0, 1.0, 2.4], false, 6), ([0.0, 2.6, 1.0], true, 4)] {
        let diff = compare(&sides(&records), &|_, _| Some(distances(noises))).unwrap();
        let target = &two(&diff).targets[0];
        assert!(target.exact);
        assert_eq!((diff.drifted, target.apart.within), (drifted, within));
        let table = table(&diff, 80);
        assert!(table.contains("tensors compared directly"), "{table}");
    }
    // A tensor that has no distance is beyond it.
    let none = Direct::Each(BTreeMap::new());
    let diff = compare(&sides(&records), &|_, _| Some(none.clone())).unwrap();
    assert_eq!(
        (diff.drifted, two(&diff).targets[0].apart.within),
        (true, 0)
    );
}

#[test]
fn targets_are_matched_by_name_or_are_the_only_ones() {
    let records = [
        record(&[ONNX, CANDLE]),
        record(&[CANDLE, "libtorch@cpu/f32"]),
    ];
    let diff = diff(&records);
    let two = two(&diff);
    assert_eq!((two.targets.len(), &*two.targets[0].before), (1, CANDLE));
    assert_eq!(
        (&two.only_before, &two.only_after),
        (&vec![ONNX.to_owned()], &vec!["libtorch@cpu/f32".to_owned()])
    );
    let singles = [record(&[ONNX]), record(&[CANDLE])];
    let table = table(&self::diff(&singles), 80);
    assert!(
        table.contains("target: onnx@cpu/f32 -> candle@cpu/f32"),
        "{table}"
    );
}

#[test]
fn targets_of_one_run_have_no_before_and_after() {
    let mut both = [record(&[ONNX]), record(&[CANDLE])];
    set_error(&mut both[1], 0, Some(9.9));
    let mut sides = sides(&both);
    sides[1].file = 0;
    let known = Pair {
        a: CANDLE.to_owned(),
        b: ONNX.to_owned(),
        compared: 6,
        bitwise: 0,
        within: 6,
        furthest: None,
    };
    let diff = compare(&sides, &|_, _| Some(Direct::Summary(known.clone()))).unwrap();
    assert!(!diff.drifted, "{diff:#?}");
    assert_eq!((&*diff.sides[0].label, &*diff.sides[1].label), ("A", "B"));
}

#[test]
fn of_three_runs_the_odd_one_out_is_named_with_what_only_it_has() {
    let mut records = [record(&[ONNX]), record(&[ONNX]), record(&[ONNX])];
    set_error(&mut records[1], 0, Some(60.0));
    drift(
        &mut records[1],
        0,
        Verdict::Drift,
        "`logits` is 60.0 u from the truth",
    );
    records[1].targets[0].library_version = Some("1.23.2".to_owned());
    let diff = diff(&records);
    let matrix = &many(&diff)[0];
    let odd = matrix.odd.as_ref().unwrap();
    assert_eq!(
        (odd.entry, odd.environment.keys().count(), diff.drifted),
        (1, 1, true)
    );
    let table = table(&diff, 80);
    for expected in [
        "ODD ONE OUT: B (b.json) is at least 9.90 x noise away",
        "library_version: 1.31.1 -> 1.23.2",
        "triangle inequality",
        "seed/capital: A pass, B drift, C pass",
        ">=9.90",
        "same",
    ] {
        assert!(table.contains(expected), "no {expected:?} in\n{table}");
    }
    let agreed = [record(&[ONNX]), record(&[ONNX]), record(&[ONNX])];
    let diff = self::diff(&agreed);
    assert!(!diff.drifted && many(&diff)[0].odd.is_none());
    assert!(self::table(&diff, 80).contains("NO DIFFERENCE: 3 runs"));
    // Each target that two have is a matrix of its own.
    let several = [
        record(&[ONNX, CANDLE]),
        record(&[CANDLE]),
        record(&[ONNX, "x@cpu/f32"]),
    ];
    let diff = self::diff(&several);
    let names: Vec<_> = many(&diff)
        .iter()
        .map(|m| (&*m.target, m.entries.clone()))
        .collect();
    assert_eq!(names, [(ONNX, vec![0, 2]), (CANDLE, vec![0, 1])]);
}

#[test]
fn what_has_nothing_in_common_is_refused() {
    let one = record(&[ONNX]);
    let refused = |records: &[RunRecord]| compare(&sides(records), &|_, _| None).unwrap_err();
    assert_eq!(
        refused(std::slice::from_ref(&one)),
        DiffError::One("a.json".to_owned())
    );
    let other = record(&[CANDLE, "x@cpu/f32"]);
    assert!(matches!(
        refused(&[one.clone(), other.clone()]),
        DiffError::NoTarget(_)
    ));
    assert!(matches!(
        refused(&[one.clone(), other, record(&[])]),
        DiffError::NoTarget(_)
    ));
    let mut elsewhere = record(&[ONNX]);
    for result in &mut elsewhere.results {
        result.suite = "other".to_owned();
    }
    assert_eq!(
        refused(&[one.clone(), elsewhere.clone()]),
        DiffError::NoCase
    );
    let mut third = elsewhere.clone();
    third.results.clear();
    assert_eq!(refused(&[one, elsewhere, third]), DiffError::NoCase);
}

/// Text that tries to break out of its place.
const HOSTILE: &str = "\u{202e}\u{1b}[2J\u{0}学|";

fn hostile() -> Diff {
    let mut records = [record(&[ONNX, CANDLE]), record(&[ONNX, CANDLE])];
    let after = &mut records[1];
    set_error(after, 2, Some(44.0));
    set_error(after, 0, Some(5.5));
    drift(
        after,
        2,
        Verdict::Drift,
        "`logits` is 44.0 u from the truth, 11.0 times what rounding explains (4.0 u); 10.0 u are allowed",
    );
    drift(after, 4, Verdict::Drift, "another");
    drift(after, 5, Verdict::Unsupported, HOSTILE);
    after.results[5].observations.clear();
    after.targets[0].library_version = Some("1.23.2".to_owned());
    after.targets[1]
        .properties
        .insert(HOSTILE.to_owned(), HOSTILE.to_owned());
    after
        .host
        .insert("cpu".to_owned(), "a CPU of another maker".to_owned());
    after
        .model
        .tokenizer
        .insert("lowercase".to_owned(), HOSTILE.to_owned());
    diff(&records)
}

#[test]
fn text_cannot_break_out() {
    for width in [80, 100, 200] {
        for colour in [false, true] {
            let table = render(&hostile(), Style { width, colour });
            assert!(
                !table.contains("\u{1b}[2J") && !table.contains('\u{202e}'),
                "{table}"
            );
            assert!(
                table
                    .chars()
                    .all(|c| c == '\n' || c == '\u{1b}' || !c.is_control())
            );
        }
    }
}

#[test]
fn diff_at_80_columns() {
    assert_snapshot!("diff-80", table(&hostile(), 80));
}

#[test]
fn diff_at_160_columns() {
    assert_snapshot!("diff-160", table(&hostile(), 160));
}

#[test]
fn diff_of_three_at_80_columns() {
    let mut records = [record(&[ONNX]), record(&[ONNX]), record(&[CANDLE])];
    set_error(&mut records[1], 0, Some(60.0));
    set_error(&mut records[2], 1, Some(5.0));
    drift(&mut records[1], 0, Verdict::Drift, HOSTILE);
    let properties = &mut records[1].targets[0].properties;
    properties.insert("mkl".to_owned(), HOSTILE.to_owned());
    assert_snapshot!("diff-three-80", table(&diff(&records), 80));
}

#[test]
fn diff_json() {
    assert_snapshot!("diff-json", render_json(&hostile()).unwrap());
}
