//! The report of `driftgauge locate` as tables and as JSON: clean, one origin, several, none that is
//! known, nothing seen, and text that tries to break out of its place.
#![cfg(test)]

#[macro_use]
mod support;

use driftgauge_reports::location::{
    Cause, LOCATE_FORMAT, LOCATE_VERSION, LocateReport, Location, Origin, StageRecord,
    TargetLocation, render,
};
use driftgauge_reports::{Style, text};

const HOSTILE: &str = "worker said \u{1b}[2J\u{202e}<script>::error::";

fn stage(name: &str, error_u: f64) -> StageRecord {
    StageRecord {
        stage: name.to_owned(),
        error_u: Some(error_u),
        predicted_u: Some(2.0),
        reached: true,
        within: error_u <= 5.0,
    }
}

/// The stages of a model with two layers.
fn stages(errors: [f64; 4]) -> Vec<StageRecord> {
    let names = ["embeddings", "layer.1", "layer.2", "head"].into_iter();
    names
        .zip(errors)
        .map(|(name, error)| stage(name, error))
        .collect()
}

fn cause(name: &str, stage: Option<&str>, coefficient: f64) -> Cause {
    Cause {
        name: name.to_owned(),
        stage: stage.map(str::to_owned),
        title: "GELU by its tanh approximation".to_owned(),
        coefficient,
        uncertainty: 0.0004,
        explained: 0.998,
        means: "an optimiser that replaces the error function".to_owned(),
        evidence: vec![
            "huggingface/candle#900".to_owned(),
            "microsoft/onnxruntime#7131".to_owned(),
        ],
        advice: "compare `hidden_act` with the export's options".to_owned(),
    }
}

fn origin(stages: &[&str], step: Option<&str>, causes: Vec<Cause>) -> Origin {
    Origin {
        stages: stages.iter().map(|&stage| stage.to_owned()).collect(),
        step: step.map(str::to_owned),
        more_steps: Vec::new(),
        noise: Some(612.4),
        causes,
    }
}

fn target(name: &str, location: Location) -> TargetLocation {
    let cases = ["length-33", "padded-much", "pair", "padded-half", "capital"];
    TargetLocation {
        target: name.to_owned(),
        location: Location {
            cases: cases.map(|case| format!("selftest/{case}")).into(),
            ..location
        },
    }
}

fn fixture() -> LocateReport {
    let clean = Location {
        stages: stages([1.9, 2.1, 2.2, 1.4]),
        ..Location::default()
    };
    let gelu = Location {
        stages: stages([1.9, 1224.8, 310.0, 88.0]),
        origins: vec![origin(
            &["layer.1", "layer.2", "head"],
            Some("activation"),
            vec![
                cause("gelu-tanh", Some("layer.1"), 1.0002),
                cause("gelu-quick", Some("layer.1"), 0.031),
            ],
        )],
        followers: 4,
        notes: vec![
            "the optimiser `GeluApproximation` makes it: option `without` switches it off"
                .to_owned(),
        ],
        ..Location::default()
    };
    let mut damaged = stages([1.9, 2.1, 5000.0, 1.4]);
    damaged[1].error_u = None;
    damaged[1].within = false;
    damaged[3] = StageRecord {
        error_u: None,
        predicted_u: None,
        reached: false,
        ..stage("head", 0.0)
    };
    let unknown = Location {
        stages: damaged,
        origins: vec![
            Origin {
                noise: None,
                more_steps: vec!["scores".to_owned(), "norm".to_owned()],
                ..origin(&["layer.1"], Some("query"), Vec::new())
            },
            origin(
                &["layer.2"],
                None,
                vec![cause(HOSTILE, Some("layer.2"), -0.98)],
            ),
        ],
        followers: 1,
        notes: vec![HOSTILE.to_owned()],
        ..Location::default()
    };
    let blind = Location {
        stages: stages([0.0; 4])
            .into_iter()
            .map(|stage| StageRecord {
                error_u: None,
                predicted_u: None,
                reached: false,
                ..stage
            })
            .collect(),
        ..Location::default()
    };
    LocateReport {
        format: LOCATE_FORMAT.to_owned(),
        version: LOCATE_VERSION,
        driftgauge: "0.1.0".to_owned(),
        model: "zh-mini".to_owned(),
        k: 2.5,
        targets: vec![
            target("candle@cpu/f32", clean),
            target("onnx@cpu/f32?opt=all", gelu),
            target("libtorch@cpu/f32", unknown),
            target("onnx@cpu/f32?model=a.onnx", blind),
        ],
    }
}

fn table(report: &LocateReport, width: usize) -> String {
    let style = Style {
        width,
        colour: false,
    };
    render(report, style)
}

#[test]
fn table_at_80_columns() {
    assert_snapshot!("locate-80", table(&fixture(), 80));
}

#[test]
fn table_at_160_columns() {
    assert_snapshot!("locate-160", table(&fixture(), 160));
}

/// No stage is seen: no table of stages.
#[test]
fn table_from_logits_alone() {
    let mut report = fixture();
    report.targets.drain(..3);
    assert_snapshot!("locate-logits-80", table(&report, 80));
}

#[test]
fn json_keeps_everything() {
    let json = serde_json::to_string_pretty(&fixture()).unwrap();
    let read: LocateReport = serde_json::from_str(&json).unwrap();
    assert_eq!(read, fixture());
    assert_snapshot!("locate-json", json);
}

#[test]
fn no_line_is_wider_than_the_terminal_and_no_text_breaks_out() {
    let mut report = fixture();
    for width in [80, 100, 200] {
        for _ in 0..2 {
            let table = table(&report, width);
            let is_control = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!table.contains(is_control), "{table}");
            for line in table.lines() {
                assert!(text::width(line) <= width, "{}: {line}", text::width(line));
            }
            report.targets.rotate_left(1);
        }
    }
}

#[test]
fn sentences() {
    let report = fixture();
    let sentence = |index: usize| report.targets[index].location.sentence();
    assert_eq!(sentence(0), None);
    let gelu = "starts in layers 1 to 2 and head, activation (alone 612 times its noise); 4 later observations follow";
    assert_eq!(sentence(1).as_deref(), Some(gelu));
    let several = "starts in layer 1, query and 1 more place; 1 later observation follows";
    assert_eq!(sentence(2).as_deref(), Some(several));
    let cause = &report.targets[1].location.origins[0].causes[0];
    let said = "gelu-tanh: GELU by its tanh approximation (coefficient 1.000 ± 0.000)";
    assert_eq!(cause.sentence(), said);
}
