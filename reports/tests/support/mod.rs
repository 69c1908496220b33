//! The one record that every format is tested with, and one that is large.
#![allow(dead_code, reason = "not every test uses all of it")]

pub mod selftest;

#[allow(unused_macros, reason = "not every test uses all of it")]
/// Compares with an accepted text of `snapshots/reports`.
macro_rules! assert_snapshot {
    ($name:expr, $report:expr) => {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("../../snapshots/reports");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!($name, $report));
    };
}

use std::collections::BTreeMap;

use driftgauge_reports::RunRecord;
use driftgauge_reports::location::{Cause, Location, Origin, StageRecord};
use driftgauge_reports::record::{
    Answer, BaselineRecord, Candidate, Class, FileRecord, Finding, FindingKind, Furthest,
    KnownDeviations, KnownEntry, KnownRecord, Margin, MaskAnswer, Method, ModelRecord, Moved,
    Observation, Pair, RECORD_FORMAT, RECORD_VERSION, Repeats, ResultRecord, RunTime,
    SemanticCheck, SuiteRecord, Summary, TargetRecord, TargetTime, Tokens, TruthRecord, Verdict,
    suite_key,
};

/// Text that tries to break out of a terminal, a page, XML, Markdown and a workflow command.
pub const HOSTILE: &str = "\u{202e}<script>alert(1)</script>\n::error::\u{1b}[2J\u{0}]]>`|</details>\r\n@me ![x](//evil) &amp;中";
const CANDLE: &str = "candle@cpu/f32";
const LIBTORCH: &str = "libtorch@cpu/f32";
const ONNX: &str = "onnx@cpu/f32?opt=all";

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
        known: None,
    }
}

/// The record that every format is tested with: every verdict, every kind of finding, baselines, pairs, repeats, a
/// location, and text that tries to break out of its place.
pub fn record() -> RunRecord {
    let (candle, libtorch, onnx) = (CANDLE, LIBTORCH, ONNX);
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
        hostile.texts = vec![HOSTILE.to_owned(), "长".repeat(2_000)];
    }
    results.extend(accepted_before());
    results.extend(similar());
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
            cases: 4,
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
            selected: 4,
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
                repeats: Some(Repeats {
                    runs: 10,
                    verdicts: 36,
                    differing: 1,
                    rate_below: 0.1258,
                    not_bitwise: 2,
                    observations: 72,
                }),
                semantic: Some(SemanticCheck {
                    target: "libtorch@cpu/f64".to_owned(),
                    cases: 2,
                    error: Some(6.1e-15),
                    place: "seed/capital/logits".to_owned(),
                    limit: 1e-10,
                    within: true,
                }),
                time: TargetTime {
                    start: 1.0,
                    load: 0.25,
                    forward: 0.5,
                    total: 2.0,
                },
                ..target(libtorch, "libtorch", "2.11.0")
            },
            TargetRecord {
                location: Some(location()),
                properties: BTreeMap::from([("build".to_owned(), HOSTILE.to_owned())]),
                ..target(onnx, "onnxruntime", "1.31.1")
            },
        ],
        results,
        pairs: pairs(),
        known: known_deviations(),
        host: BTreeMap::from([("cpu".to_owned(), "a CPU".to_owned())]),
        paths: BTreeMap::from([
            ("model".to_owned(), "models/my bert".to_owned()),
            (suite_key("seed"), "cases/seed.toml".to_owned()),
        ]),
        time: RunTime {
            day: "2026-11-24".to_owned(),
            started: 1_795_534_700,
            seconds: BTreeMap::from([("total".to_owned(), 6.5)]),
        },
    }
}

/// A case that was run before: new, known and fixed.
fn accepted_before() -> [ResultRecord; 3] {
    let known = |target: &str, verdict: Verdict, error: f64| ResultRecord {
        known: Some(KnownRecord {
            file: "cases/known/libraries.toml".to_owned(),
            line: 3,
            reason: "the library's own GELU, see example/library#12".to_owned(),
            expires: "2027-06-30".to_owned(),
            finding: "numeric hidden.1".to_owned(),
        }),
        ..result("language", target, verdict, Some(error))
    };
    [
        result("language", CANDLE, Verdict::New, Some(9.0)),
        known(LIBTORCH, Verdict::Known, 30.0),
        known(ONNX, Verdict::Fixed, 8.0),
    ]
}

/// One that still happens, and one that does not.
fn known_deviations() -> KnownDeviations {
    let entry = |target: &str, line: usize, deviating: usize| KnownEntry {
        file: "cases/known/libraries.toml".to_owned(),
        line,
        target: target.to_owned(),
        case: "language".to_owned(),
        library_version: None,
        findings: vec!["numeric hidden.1".to_owned()],
        reason: "the library's own GELU, see example/library#12".to_owned(),
        expires: "2027-06-30".to_owned(),
        sometimes: false,
        expired: false,
        targets: 1,
        cases: 1,
        deviating,
        fixed: 1 - deviating,
        beyond: 0,
    };
    KnownDeviations {
        applied: true,
        full: false,
        entries: vec![entry(LIBTORCH, 3, 1), entry(ONNX, 11, 0)],
    }
}

/// Two texts that are compared: what changed order, what is flaky, what moved.
fn similar() -> [ResultRecord; 3] {
    let message = "a sentence about it";
    let one =
        |target: &str, kind: FindingKind, observation: Option<&str>, cosine: f64| ResultRecord {
            task: "similarity".to_owned(),
            texts: vec!["猫在睡觉。".to_owned(), "The cat sleeps.".to_owned()],
            answer: Some(Answer::Similarity { cosine }),
            truth_answer: Some(Answer::Similarity { cosine: 0.6268 }),
            findings: vec![finding(kind, observation, message)],
            ..result("similar", target, Verdict::Drift, Some(12.0))
        };
    let mut order = one(CANDLE, FindingKind::Order, None, 0.6301);
    order.margins = vec![Margin {
        position: None,
        first: "similar".to_owned(),
        second: "other".to_owned(),
        gap: 0.003,
        noise: 11.5,
        tie: false,
    }];
    let mut moved = one(ONNX, FindingKind::Moved, Some("logits"), 0.6268);
    for observation in moved.observations.values_mut() {
        observation.moved = Some(Moved {
            accepted_u: Some(8.0),
            bitwise: false,
            noise: Some(1.7),
            within: false,
        });
    }
    [
        order,
        one(LIBTORCH, FindingKind::Flaky, None, 0.6268),
        moved,
    ]
}

/// Where the drift of the one that drifted starts.
fn location() -> Location {
    let stage = |name: &str, error_u: f64| StageRecord {
        stage: name.to_owned(),
        error_u: Some(error_u),
        predicted_u: Some(3.0),
        reached: true,
        within: error_u < 6.0,
    };
    Location {
        cases: vec!["seed/capital".to_owned()],
        stages: vec![
            stage("embeddings", 2.5),
            stage("layer.1", 2854.9),
            stage("head", 1226.5),
        ],
        origins: vec![Origin {
            stages: vec!["layer.1".to_owned(), "head".to_owned()],
            step: Some("activation".to_owned()),
            more_steps: Vec::new(),
            noise: Some(951.6),
            causes: vec![Cause {
                name: "gelu-tanh".to_owned(),
                stage: Some("layer.1".to_owned()),
                title: "GELU by its tanh approximation".to_owned(),
                coefficient: 0.9999,
                uncertainty: 0.0004,
                explained: 0.998,
                means: "an optimiser that replaces the error function".to_owned(),
                evidence: vec!["huggingface/candle#900".to_owned()],
                advice: "compare `hidden_act` with the export's options".to_owned(),
            }],
        }],
        followers: 1,
        notes: vec![HOSTILE.to_owned()],
    }
}

/// Within noise, beyond it, not finite.
fn pairs() -> Vec<Pair> {
    let pair = |a: &str, b: &str, within: usize, noise: Option<f64>| Pair {
        a: a.to_owned(),
        b: b.to_owned(),
        compared: 8,
        bitwise: 0,
        within,
        furthest: Some(Furthest {
            case: "seed/capital".to_owned(),
            observation: "logits".to_owned(),
            distance_u: noise.map(|noise| 12.0 * noise),
            noise,
        }),
    };
    vec![
        pair(CANDLE, LIBTORCH, 8, Some(1.5)),
        pair(CANDLE, ONNX, 2, Some(1799.9)),
        pair(LIBTORCH, ONNX, 2, None),
    ]
}

/// A record as large as asked for: cases that pass, with a deviating one among ten, and long texts.
pub fn large(cases: usize, targets: usize) -> RunRecord {
    let mut record = record();
    let names: Vec<String> = (0..targets)
        .map(|index| format!("onnx@cpu/f32?lib={index}"))
        .collect();
    record.targets = names
        .iter()
        .map(|name| TargetRecord {
            target: name.clone(),
            ..record.targets[2].clone()
        })
        .collect();
    record.results = (0..cases)
        .flat_map(|case| {
            let pick = move |(index, name): (usize, &String)| {
                let (verdict, error) = match (case % 10, index % 3) {
                    (0, 0) => (Verdict::Drift, 5243.7),
                    _ => (Verdict::Pass, 8.5),
                };
                let mut one = result(&format!("case-{case}"), name, verdict, Some(error));
                one.texts = vec![format!("第{case}句：{}[MASK]。", "很长的文本".repeat(60))];
                one.findings = match verdict {
                    Verdict::Drift => vec![finding(
                        FindingKind::Numeric,
                        Some(&format!("hidden.{}", case % 12)),
                        &format!("`hidden.1` of case {case} is off"),
                    )],
                    _ => Vec::new(),
                };
                for layer in 2..13 {
                    let name = format!("hidden.{layer}");
                    one.observations
                        .insert(name, observation(Some(error), 22.6));
                }
                one
            };
            names.iter().enumerate().map(pick).collect::<Vec<_>>()
        })
        .collect();
    record.summary.cases = cases;
    record.summary.targets = targets;
    record.summary.verdicts = BTreeMap::new();
    for result in &record.results {
        *record.summary.verdicts.entry(result.verdict).or_insert(0) += 1;
    }
    record
}
