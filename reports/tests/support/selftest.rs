//! A self-test that shows every status, a false alarm, tokens, and text that tries to break out of its place.

use driftgauge_reports::selftest::{
    BlindTrial, Control, SELFTEST_FORMAT, SELFTEST_VERSION, SelftestReport, Status, TargetTrials,
    TokenTrial, Trial,
};

const HOSTILE: &str = "worker said \u{1b}[2J\u{202e}<script>::error::";

fn blind(detected: bool, cause_right: Option<bool>, signal: f64) -> Option<BlindTrial> {
    Some(BlindTrial {
        detected,
        cause_right,
        note: "gelu-tanh in layer.1 (1.01 ± 0.02)".to_owned(),
        signal,
    })
}

/// A trial that found everything.
pub fn trial(fault: &str, kind: &str, stage: &str, step: &str) -> Trial {
    Trial {
        fault: fault.to_owned(),
        title: "what it is".to_owned(),
        kind: kind.to_owned(),
        stage: Some(stage.to_owned()),
        step: Some(step.to_owned()),
        status: Status::Detected,
        note: format!("{stage}, {step}: {fault}"),
        signal: Some(1234.5),
        by_budget: true,
        by_stage: true,
        by_repeat: false,
        class_right: Some(true),
        stage_right: Some(true),
        step_right: Some(true),
        cause_right: Some(true),
        blind: blind(true, Some(true), 300.0),
        gates: vec![true, true, false],
    }
}

/// A trial in which nothing was found.
fn unfound(trial: Trial, status: Status, signal: Option<f64>, note: &str) -> Trial {
    Trial {
        status,
        signal,
        note: note.to_owned(),
        by_budget: false,
        by_stage: false,
        class_right: None,
        stage_right: None,
        step_right: None,
        cause_right: None,
        blind: None,
        gates: vec![false, false, false],
        ..trial
    }
}

/// A trial of every status.
fn trials() -> Vec<Trial> {
    let gelu = |stage: &str| trial("gelu-tanh", "semantic", stage, "activation");
    let hidden = trial("hidden-f16", "precision", "layer.1", "norm");
    let swapped = trial("sequences-exchanged", "semantic", "", "");
    vec![
        gelu("layer.1"),
        Trial {
            step_right: None,
            blind: blind(false, None, 2.0),
            ..gelu("layer.4")
        },
        Trial {
            class_right: Some(false),
            cause_right: Some(false),
            note: "head, activation: silu: SiLU in place of GELU (0.412 ± 0.001)".to_owned(),
            blind: blind(true, Some(false), 40.0),
            ..gelu("head")
        },
        unfound(hidden, Status::Missed, Some(17.0), ""),
        Trial {
            stage: None,
            step: None,
            signal: None,
            stage_right: None,
            step_right: None,
            ..swapped
        },
        unfound(
            trial("eps-1e-5", "semantic", "layer.1", "norm"),
            Status::BelowNoise,
            Some(0.034),
            "",
        ),
        unfound(
            trial("weights-f16", "precision", "layer.1", "query"),
            Status::Void,
            Some(0.0),
            "",
        ),
        unfound(
            trial("mask-length-33", "semantic", "layer.1", "scores"),
            Status::NotExercised,
            Some(0.0),
            "no batch is 33 tokens long",
        ),
        unfound(
            trial(
                "softmax-over-queries",
                "semantic",
                "layer.1",
                "probabilities",
            ),
            Status::Unsupported,
            Some(2e6),
            HOSTILE,
        ),
        unfound(
            trial("noise-1e-3", "unsteady", "layer.1", "norm"),
            Status::Broken,
            None,
            "worker `candle` was killed by signal 9 (SIGKILL)",
        ),
        Trial {
            note: "layer.1, key: none of the known".to_owned(),
            ..trial("no-key-bias", "benign", "layer.1", "key")
        },
    ]
}

pub fn token(fault: &str, status: Status, cases: usize, note: &str) -> TokenTrial {
    TokenTrial {
        fault: fault.to_owned(),
        title: "what it is".to_owned(),
        status,
        cases,
        note: note.to_owned(),
        cause_right: (cases > 0).then_some(status == Status::Detected),
    }
}

pub fn target(name: &str, library: &str, trials: Vec<Trial>, alarms: &[&str]) -> TargetTrials {
    TargetTrials {
        target: name.to_owned(),
        library: library.to_owned(),
        trials,
        control: Control {
            runs: 20,
            alarms: alarms.iter().map(|&alarm| alarm.to_owned()).collect(),
            gates: vec![3, 20, 0],
            largest: 1.31,
        },
    }
}

/// Every status, a false alarm, and tokens.
pub fn fixture() -> SelftestReport {
    let steady = vec![trial("gelu-tanh", "semantic", "layer.1", "activation")];
    SelftestReport {
        format: SELFTEST_FORMAT.to_owned(),
        version: SELFTEST_VERSION,
        driftgauge: "0.1.0".to_owned(),
        model: "zh-mini".to_owned(),
        layers: 4,
        cases: 7,
        k: 2.5,
        unknown: false,
        gates: ["allclose 1e-5", "torch default", "cosine 0.999"]
            .map(str::to_owned)
            .into(),
        targets: vec![
            target(
                "candle@cpu/f32",
                "candle-transformers 0.11.1",
                trials(),
                &["layer.2 is 3.1 times its noise"],
            ),
            target("onnx@cpu/f32?opt=all", "onnxruntime 1.31.1", steady, &[]),
        ],
        tokens: vec![
            token(
                "no-final-sep",
                Status::Detected,
                40,
                "`seed/capital`: token 11 of 12 is missing",
            ),
            token("accents", Status::Missed, 2, HOSTILE),
            token(
                "long-words",
                Status::NotExercised,
                0,
                "no case has a word of more than 100 characters",
            ),
        ],
        time: 84.4,
    }
}
