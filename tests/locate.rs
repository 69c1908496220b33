//! Where a target starts to differ, through the program: clean targets, an optimiser that changes the
//! formula, and exports that somebody else made.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use cli::{DRIFTGAUGE, Finished, Folder, HOME};
use driftgauge_reports::location::{LocateReport, Location, Origin};
use driftgauge_reports::record::{Class, Verdict};

/// ONNX Runtime with an optimiser that replaces the error function.
const APPROXIMATION: &str = "onnx@cpu/f32?gelu-approximation=on";

fn call(folder: &Folder, arguments: &[&str]) -> Finished {
    let all = [&["locate"], arguments].concat();
    folder.call(Path::new(DRIFTGAUGE), &[], &all)
}

/// What `driftgauge locate` says of targets.
#[track_caller]
fn locate(arguments: &[&str], code: i32) -> (Finished, LocateReport) {
    let arguments = [arguments, &["--format", "json"]].concat();
    let run = call(&Folder::new(), &arguments);
    run.has(code, &[]);
    let report = serde_json::from_str(&run.stdout);
    let report = report.unwrap_or_else(|error| panic!("no report: {error}\n{run}"));
    (run, report)
}

#[track_caller]
fn the_origin<'a>(run: &Finished, location: &'a Location) -> &'a Origin {
    run.expect(location.origins.len() == 1, "there should be one origin");
    &location.origins[0]
}

#[test]
fn clean_targets_are_clean() {
    let (run, report) = locate(&[], 0);
    let targets = report.targets.iter().map(|target| target.target.as_str());
    run.expect(
        targets.eq(["candle@cpu/f32", "libtorch@cpu/f32", "onnx@cpu/f32"]),
        "the usual targets",
    );
    for target in &report.targets {
        let Location {
            stages, origins, ..
        } = &target.location;
        let names = stages.iter().map(|stage| stage.stage.as_str());
        let expected = [
            "embeddings",
            "layer.1",
            "layer.2",
            "layer.3",
            "layer.4",
            "head",
        ];
        run.expect(names.eq(expected), "every stage");
        run.expect(origins.is_empty(), "no origin");
        for stage in stages {
            let ratio =
                stage.error_u.unwrap_or(f64::INFINITY) / stage.predicted_u.unwrap_or_default();
            let is_sane = stage.reached && stage.within && (0.1..2.5).contains(&ratio);
            run.expect(is_sane, format_args!("{}: {stage:?}", target.target));
        }
    }
}

#[test]
fn an_optimiser_that_changes_the_formula_is_named() {
    let (run, report) = locate(&["--target", APPROXIMATION], 1);
    let location = &report.targets[0].location;
    let origin = the_origin(&run, location);
    let stages = ["layer.1", "layer.2", "layer.3", "layer.4", "head"];
    run.expect(origin.stages == stages, "every stage with an activation");
    run.expect(origin.step.as_deref() == Some("activation"), "the step");
    let cause = &origin.causes[0];
    run.expect(cause.name == "gelu-tanh", &cause.name);
    run.expect((cause.coefficient - 1.0).abs() < 0.05, cause.coefficient);
    let embeddings = &location.stages[0];
    run.expect(embeddings.within, "the embedding stage is right");
    let notes = location.notes.join("; ");
    run.expect(
        notes.contains("from optimisation level `extended` on"),
        &notes,
    );
    run.expect(notes.contains("`GeluApproximation`"), &notes);
    let table = call(&Folder::new(), &["--target", APPROXIMATION]);
    table.has(
        1,
        &[
            "BEYOND",
            "layers 1 to 4 and head, activation",
            "gelu-tanh",
            "GeluApproximation",
        ],
    );
}

/// Only the seed suite: a short run.
fn run_seed(more: &[&str]) -> Finished {
    let suite = format!("{HOME}/cases/seed.toml");
    let arguments = [&["--target", APPROXIMATION, "--suite", &suite], more].concat();
    Folder::new().run(&arguments)
}

#[test]
fn a_run_says_where_and_what() {
    let run = run_seed(&[]);
    let record = run.record(1);
    let location = record.targets[0].location.as_ref().unwrap();
    let origin = the_origin(&run, location);
    run.expect(origin.causes[0].name == "gelu-tanh", "the cause");
    let results = record.results.iter();
    let findings: Vec<_> = results.flat_map(|result| &result.findings).collect();
    run.expect(!findings.is_empty(), "there should be findings");
    for finding in findings {
        let evidence = finding.evidence.join("; ");
        run.expect(
            finding.class == Some(Class::Semantic),
            format_args!("{finding:#?}"),
        );
        run.expect(
            evidence.contains("it starts in layers 1 to 4 and head, activation"),
            &evidence,
        );
        run.expect(evidence.contains("gelu-tanh"), &evidence);
        run.expect(evidence.contains("GeluApproximation"), &evidence);
    }
    run.expect(run.stdout.contains("gelu-tanh"), "the table should say so");
}

#[test]
fn a_run_that_does_not_look_says_nothing_of_it() {
    let run = run_seed(&["--no-locate"]);
    let record = run.record(1);
    run.expect(record.targets[0].location.is_none(), "not looked for");
    run.expect(!run.json.contains("gelu-tanh"), "no cause");
    let results = record.results.iter();
    let mut findings = results.flat_map(|result| &result.findings);
    run.expect(findings.next().is_some(), "the findings stay");
}

#[test]
fn a_clean_run_has_a_location_without_origins() {
    let suite = format!("{HOME}/cases/seed.toml");
    let run = Folder::new().run(&["--target", "candle", "--suite", &suite]);
    let record = run.record(0);
    let location = record.targets[0].location.as_ref().unwrap();
    run.expect(
        location.origins.is_empty() && location.stages.len() == 6,
        "clean",
    );
    run.expect(location.stages.iter().all(|stage| stage.within), "clean");
}

// ---- exports of others -------------------------------------------------------------------------

fn export(name: &str) -> String {
    format!("onnx@cpu/f32?model={HOME}/tests/exports/{name}.onnx")
}

fn tiny_bert() -> String {
    format!("{HOME}/tests/exports/tiny-bert")
}

/// From nothing but logits: the layer, and what it looks like.
#[test]
fn an_export_with_another_activation_in_one_layer() {
    let target = export("tanh-layer-3");
    let (run, report) = locate(&["--model", &tiny_bert(), "--target", &target], 1);
    let location = &report.targets[0].location;
    let origin = the_origin(&run, location);
    run.expect(origin.stages == ["layer.3"], "the layer");
    run.expect(origin.step.is_none(), "no step can be seen");
    let cause = &origin.causes[0];
    let is_right = cause.name == "gelu-tanh" && cause.stage.as_deref() == Some("layer.3");
    run.expect(is_right, format_args!("{cause:#?}"));
    run.expect((cause.coefficient - 1.0).abs() < 0.05, cause.coefficient);
    let reached = location.stages.iter().any(|stage| stage.reached);
    run.expect(!reached, "no stage can be judged alone");
    let notes = location.notes.join("; ");
    run.expect(
        notes.contains("only the logits of this model are seen"),
        &notes,
    );
}

#[test]
fn a_faithful_export() {
    let target = export("faithful");
    let (run, report) = locate(&["--model", &tiny_bert(), "--target", &target], 0);
    run.expect(report.targets[0].location.origins.is_empty(), "no origin");
}

/// What an export does not answer is unsupported; what it answers is judged.
#[test]
fn a_run_of_an_export() {
    let (model, target) = (tiny_bert(), export("faithful"));
    let suite = format!("{HOME}/cases/selftest.toml");
    let common = ["--model", &model, "--target", &target, "--suite", &suite];
    let run = Folder::new().run(&common);
    let record = run.record(3);
    for result in &record.results {
        let expected = match result.task.as_str() {
            "fill-mask" => Verdict::Pass,
            _ => Verdict::Unsupported,
        };
        run.expect(result.verdict == expected, format_args!("{result:#?}"));
        if expected == Verdict::Unsupported {
            let reason = &result.findings[0].message;
            run.expect(reason.contains("hidden"), reason);
        }
    }
    let one = Folder::new().run(&[&common[..], &["--case", "selftest/capital"]].concat());
    let record = one.record(0);
    one.expect(record.results.len() == 1, "one case");
}

#[test]
fn a_run_of_a_wrong_export() {
    let (model, target) = (tiny_bert(), export("tanh-layer-3"));
    let suite = format!("{HOME}/cases/selftest.toml");
    let run = Folder::new().run(&[
        "--model",
        &model,
        "--target",
        &target,
        "--suite",
        &suite,
        "--case",
        "selftest/capital",
    ]);
    let record = run.record(1);
    let finding = &record.results[0].findings[0];
    run.expect(
        finding.class == Some(Class::Semantic),
        format_args!("{finding:#?}"),
    );
    let evidence = finding.evidence.join("; ");
    run.expect(evidence.contains("gelu-tanh"), &evidence);
    run.expect(evidence.contains("layer 3"), &evidence);
}

// ---- troubles ----------------------------------------------------------------------------------

/// A worker that cannot be opened: the stages are judged all the same, and the cause is told from
/// their results.
#[test]
fn a_worker_that_cannot_be_opened() {
    let (run, report) = locate(&["--target", "fake?as=tanh-gelu"], 1);
    let location = &report.targets[0].location;
    let notes = location.notes.join("; ");
    run.expect(
        notes.contains("cannot show the steps inside a stage"),
        &notes,
    );
    let origin = &location.origins[0];
    run.expect(origin.step.is_none(), "no step is seen");
    run.expect(
        origin.causes[0].name == "gelu-tanh",
        format_args!("{origin:#?}"),
    );
}

/// What is wrong once and right the next time is no formula.
#[test]
fn another_result_in_every_run() {
    let folder = Folder::new();
    let target = format!("fake?fault=drift&once={}", folder.path("marker").display());
    let (run, report) = locate(&["--target", &target], 1);
    let location = &report.targets[0].location;
    let notes = location.notes.join("; ");
    run.expect(notes.contains("another result in every run"), &notes);
    let origin = the_origin(&run, location);
    run.expect(origin.stages == ["head"], "the first stage that differs");
}

#[test]
fn what_breaks_is_said() {
    let run = call(&Folder::new(), &["--target", "fake?fault=abort"]);
    run.has(
        3,
        &["error: fake@cpu/f32?fault=abort: ", "SIGABRT", "hint: "],
    );
    let run = call(&Folder::new(), &["--case", "nosuch"]);
    run.has(4, &["error: ", "nosuch"]);
    let run = call(&Folder::new(), &["--model", "nowhere"]);
    run.has(2, &["error: ", "nowhere"]);
}
