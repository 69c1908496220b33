//! The self-test, through the program: known faults are found in every backend, as what they are, and
//! nothing is found where there is nothing.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use cli::{DRIFTGAUGE, Finished, Folder, HOME};
use driftgauge_reports::selftest::{SelftestReport, Status, TargetTrials, Trial};

/// Faults of every sort: a formula, a constant, a mask, and two that change nothing.
const FAULTS: [&str; 5] = [
    "gelu-tanh",
    "eps-1e-5",
    "mask-ignored",
    "weights-f16",
    "mask-fill-10000",
];

fn call(arguments: &[&str]) -> Finished {
    let all = [&["selftest"], arguments].concat();
    Folder::new().call(Path::new(DRIFTGAUGE), &[], &all)
}

/// The self-test of one target with some faults.
fn selftest(target: &str, faults: &[&str], more: &[&str]) -> Finished {
    let mut arguments = vec!["--quiet", "--backend", target, "--format", "json"];
    arguments.extend(faults.iter().flat_map(|fault| ["--fault", fault]));
    arguments.extend(more);
    call(&arguments)
}

#[track_caller]
fn report(run: &Finished, code: i32) -> SelftestReport {
    run.has(code, &[]);
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("no report: {error}\n{run}"))
}

#[test]
fn the_catalogue_is_listed() {
    let run = call(&["--list"]);
    run.has(0, &FAULTS);
    run.has(0, &["GELU by its tanh approximation", "truncation-left"]);
    run.expect(run.stdout.lines().count() > 60, "more than 60 faults");
    let run = call(&["--list", "--fault", "gelu-*"]);
    run.has(0, &["gelu-tanh", "gelu-quick"]);
    run.expect(!run.stdout.contains("eps-"), "only what is asked for");
}

#[test]
fn what_cannot_be_selected_is_said() {
    let run = call(&["--fault", "nope"]);
    run.has(
        4,
        &[
            "error: no fault is selected by --fault nope",
            "there are: ",
            "gelu-tanh",
        ],
    );
    run.expect(run.stdout.is_empty(), "nothing should be on stdout");
    let run = call(&["--fault", "gelu-[", "--list"]);
    run.has(
        2,
        &[
            "error: `gelu-[` is not a pattern for --fault",
            "--fault 'mask-*'",
        ],
    );
    let run = call(&["--backend", "nosuch"]);
    run.has(2, &["error: unknown target `nosuch@cpu/f32`"]);
    // One pattern that fits does not hide another that does not.
    call(&["--fault", "gelu-tanh", "--fault", "nope"]).has(4, &["--fault nope"]);
}

/// Checks the trials of [`FAULTS`] on zh-mini.
#[track_caller]
fn check_trials(run: &Finished, target: &TargetTrials) {
    let trials = |name: &str| -> Vec<&Trial> {
        let trials = target.trials.iter().filter(|trial| trial.fault == name);
        trials.collect()
    };
    for (name, places, first_step) in [
        // Layers 1 and 4, the head, and everywhere.
        ("gelu-tanh", 4, "activation"),
        // Both norms of layers 1 and 4, the embedding stage, the head, and everywhere.
        ("eps-1e-5", 7, "norm"),
        ("mask-ignored", 3, "scores"),
    ] {
        let found = trials(name);
        run.expect(found.len() == places, format_args!("{name}: {found:#?}"));
        run.expect(
            found
                .iter()
                .any(|trial| trial.step.as_deref() == Some(first_step)),
            name,
        );
        for trial in found {
            let all_right = trial.status == Status::Detected
                && trial.kind == "semantic"
                && [
                    trial.class_right,
                    trial.stage_right,
                    trial.step_right,
                    trial.cause_right,
                ] == [Some(true); 4];
            run.expect(all_right, format_args!("{name}: {trial:#?}"));
            run.expect(trial.signal.is_some_and(|signal| signal > 3.0), name);
        }
    }
    // zh-mini is stored in f16, and exp(-10000) is 0.
    for name in ["weights-f16", "mask-fill-10000"] {
        let found = trials(name);
        run.expect(!found.is_empty(), name);
        for trial in found {
            let is_void = trial.status == Status::Void && trial.cause_right.is_none();
            run.expect(is_void, format_args!("{name}: {trial:#?}"));
        }
    }
    let control = &target.control;
    run.expect(control.runs == 10, format_args!("{control:#?}"));
    run.expect(control.alarms.is_empty(), format_args!("{control:#?}"));
    run.expect(
        (0.1..3.0).contains(&control.largest),
        format_args!("{control:#?}"),
    );
}

#[track_caller]
fn check_backend(target: &str, library: &str) {
    let run = selftest(target, &FAULTS, &["--controls", "10"]);
    let report = report(&run, 0);
    run.expect(
        report.targets.len() == 1 && report.layers == 4,
        "one target",
    );
    run.expect(report.targets[0].library.starts_with(library), library);
    run.expect(
        report.tokens.is_empty(),
        "no fault of the tokenizer was asked for",
    );
    check_trials(&run, &report.targets[0]);
}

#[test]
fn candle() {
    check_backend("candle", "candle");
}

#[test]
fn libtorch() {
    check_backend("libtorch", "libtorch");
}

#[test]
fn onnx_runtime() {
    check_backend("onnx", "onnxruntime");
}

/// Damage, precision, another result in every run, and what is fed and answered: each is taken for what
/// it is.
#[test]
fn every_kind_is_told_apart() {
    let faults = [
        "gelu-overflow",
        "weights-bf16",
        "noise-*",
        "sequences-exchanged",
        "mask-and-types-swapped",
    ];
    let run = selftest("candle", &faults, &["--controls", "1"]);
    let report = report(&run, 0);
    let trials = &report.targets[0].trials;
    for kind in ["semantic", "precision", "damage", "unsteady"] {
        run.expect(trials.iter().any(|trial| trial.kind == kind), kind);
    }
    for trial in trials.iter().filter(|trial| trial.counts()) {
        let is_right = trial.status == Status::Detected && trial.class_right == Some(true);
        run.expect(is_right, format_args!("{trial:#?}"));
        run.expect(
            (trial.kind == "unsteady") == trial.by_repeat,
            format_args!("{trial:#?}"),
        );
        run.expect(trial.cause_right == Some(true), format_args!("{trial:#?}"));
    }
}

/// A fault that the catalogue does not have is found all the same, and not taken for another one.
#[test]
fn what_is_unknown_is_none_of_the_known() {
    let run = selftest("candle", &["one-sign"], &["--unknown", "--controls", "1"]);
    let report = report(&run, 0);
    run.expect(report.unknown, "in the report");
    for trial in &report.targets[0].trials {
        let is_right = trial.status == Status::Detected
            && [trial.stage_right, trial.step_right, trial.cause_right] == [Some(true); 3];
        run.expect(is_right, format_args!("{trial:#?}"));
    }
}

/// A target without faults: nothing can be said of it, and that is said.
#[test]
fn a_target_without_faults_is_no_success() {
    let run = selftest("fake", &["gelu-tanh"], &["--controls", "1"]);
    let report = report(&run, 3);
    let trials = &report.targets[0].trials;
    run.expect(!trials.is_empty(), "they should be listed");
    for trial in trials {
        run.expect(
            trial.status == Status::Unsupported,
            format_args!("{trial:#?}"),
        );
        run.expect(
            trial.note == "this worker has no faults",
            format_args!("{trial:#?}"),
        );
    }
    let run = call(&[
        "--quiet",
        "--backend",
        "fake",
        "--fault",
        "gelu-tanh",
        "--controls",
        "1",
    ]);
    run.has(3, &["unsupported", "this worker has no faults"]);
}

/// What is found in runs without a fault is a false alarm.
#[test]
fn an_alarm_in_the_control_group_is_a_failure() {
    let run = selftest("fake?as=eps", &["gelu-tanh"], &["--controls", "2"]);
    run.expect(run.code != Some(0), "should not succeed");
    let report: SelftestReport = serde_json::from_str(&run.stdout).unwrap();
    let control = &report.targets[0].control;
    run.expect(
        control.runs == 2 && control.alarms.len() == 2,
        format_args!("{control:#?}"),
    );
}

/// Tokens of the repository's own cases: what shows is told apart from what they do not reach.
#[test]
fn faults_of_the_tokenizer() {
    let run = selftest(
        "candle",
        &["no-final-sep", "truncation-*"],
        &["--controls", "0"],
    );
    let report = report(&run, 0);
    run.expect(
        report.targets.iter().all(|target| target.trials.is_empty()),
        "none of the numbers",
    );
    let tokens = &report.tokens;
    run.expect(tokens.len() == 3, format_args!("{tokens:#?}"));
    let sep = &tokens.iter().find(|one| one.fault == "no-final-sep");
    run.expect(
        sep.is_some_and(|one| {
            one.status == Status::Detected && one.cases > 10 && one.cause_right == Some(true)
        }),
        format_args!("{tokens:#?}"),
    );
}

/// The report is written where it is asked for, and is what is printed.
#[test]
fn the_report_is_written() {
    let folder = Folder::new();
    let out = folder.path("selftest.json");
    let suite = format!("{HOME}/cases/selftest.toml");
    let run = folder.call(
        Path::new(DRIFTGAUGE),
        &[],
        &[
            "selftest".as_ref(),
            "--quiet".as_ref(),
            "--backend=candle".as_ref(),
            "--fault=relu".as_ref(),
            "--controls=1".as_ref(),
            "--format=json".as_ref(),
            "--suite".as_ref(),
            suite.as_ref(),
            "--out".as_ref(),
            out.as_os_str(),
        ],
    );
    let printed = report(&run, 0);
    let written = std::fs::read_to_string(out).unwrap();
    assert_eq!(written, run.stdout);
    assert_eq!(printed.cases, 7, "cases of the suite");
}
