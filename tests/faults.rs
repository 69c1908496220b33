//! What becomes of a run when a worker misbehaves: every kind of death, silence and nonsense is a
//! finding that says what happened, and the target beside it is not touched.
//!
//! The fake worker (`tests/fake-worker`) does what its target asks for. Every run has four batches:
//! the three cases of suite `single` and the two cases of suite `pair` in one.

#![cfg(test)]

mod support;

use std::path::Path;

use driftgauge_reports::record::{Class, FindingKind, Verdict};
use support::outcome::{
    ALL_LOST, Expected, SECOND_LOST, check, check_crash, check_damage, check_harmless,
    check_outcome, check_unusable, faulty, healthy, results,
};
use support::{DRIFTGAUGE, Scene, ends, fake_worker, kill};

#[test]
fn without_a_fault_everything_passes() {
    check_harmless("name=faultless");
}

// The worker dies.

#[test]
fn abort() {
    check_crash("abort", "worker `fake` was killed by signal 6 (SIGABRT)");
}

#[test]
fn segfault() {
    check_crash(
        "segfault",
        "worker `fake` was killed by signal 11 (SIGSEGV)",
    );
}

#[test]
fn kill_by_itself() {
    check_crash("kill", "worker `fake` was killed by signal 9 (SIGKILL");
}

#[test]
fn exit_status() {
    check_crash("exit", "worker `fake` ended with exit status 7");
}

#[test]
fn panic() {
    check_crash("panic", "worker `fake` ended with exit status 101");
}

#[test]
fn exit_before_hello() {
    check_unusable(
        "lib=exit",
        "broken",
        "ended with exit status 7 (while starting)",
    );
}

#[test]
fn crash_while_loading() {
    let message = "was killed by signal 11 (SIGSEGV) (while loading the model)";
    check_unusable("fault=segfault&at=load", "broken", message);
}

/// Batches share the fate of their worker: both cases of the fourth are lost.
#[test]
fn crash_in_a_batch_of_two() {
    let expected = Expected {
        options: "fault=abort&at=4",
        verdicts: "pass pass pass broken broken",
        restarts: 0,
        finding: "(while running `pair/moon`, `pair/school`)",
        stderr: "fake worker: Abort",
    };
    check(3, &expected);
}

#[test]
fn a_worker_that_breaks_three_times_in_a_row_is_given_up() {
    let expected = Expected {
        options: "fault=abort",
        verdicts: ALL_LOST,
        restarts: 2,
        finding: "was killed by signal 6 (SIGABRT) (while running `single/capital`)",
        stderr: "fake worker: Abort",
    };
    let finished = check(3, &expected);
    for result in &results(&finished, 0)[3..] {
        let message = &result.findings[0].message;
        let expected = "not run: the worker broke on 3 batches in a row and was given up";
        finished.expect_in(expected, message, &result.case);
    }
}

/// The first worker was on the CPU; its replacement says that it is not.
#[test]
fn a_fresh_worker_is_held_to_the_request_as_the_first_one_was() {
    let expected = Expected {
        options: "fault=abort&at=2&once=@&then=wrong-device",
        verdicts: "pass broken broken broken broken",
        restarts: 2,
        finding: "was killed by signal 6",
        stderr: "fake worker: Abort",
    };
    let finished = check(3, &expected);
    let message = &results(&finished, 0)[2].findings[0].message;
    finished.expect_in("loaded the model on cuda:0/f64", message, "the third case");
}

// The worker is silent.

/// All at once, so that only one deadline has to pass.
#[test]
fn hanging_workers_are_killed_at_the_deadline() {
    let silent = "worker `fake` gave no answer within 15 s and was killed";
    let hang = |options, stage| Expected {
        options,
        verdicts: ALL_LOST,
        restarts: 0,
        finding: stage,
        stderr: "fake worker: Hang",
    };
    let lost = |options, finding, stderr| Expected {
        options,
        verdicts: SECOND_LOST,
        restarts: 1,
        finding,
        stderr,
    };
    let expected = [
        hang("lib=hang", "(while starting)"),
        hang("fault=hang&at=load", "(while loading the model)"),
        lost(
            "fault=hang&at=2&once=@",
            "(while running `single/weather`)",
            "fake worker: Hang",
        ),
        lost(
            "fault=grandchild&at=2&once=@",
            silent,
            "fake worker: child ",
        ),
        // The child of the worker holds the pipe, so that the death is noticed late; what is said
        // is what happened all the same.
        lost(
            "fault=grandchild-abort&at=2&once=@",
            "killed by signal 6 (SIGABRT)",
            "child ",
        ),
    ];
    let (scene, targets) = (Scene::new(), [&faulty(&expected)[..], &healthy()].concat());
    let running = scene.start(Path::new(DRIFTGAUGE), &targets, &["--timeout", "15"]);
    let finished = scene.finish(running);
    check_outcome(&finished, 3, &expected);

    for index in 0..4 {
        let bad = results(&finished, index)
            .into_iter()
            .find(|r| r.verdict == Verdict::Broken);
        let finding = &bad.expect("there is one").findings[0];
        finished.expect_in(silent, &finding.message, "the finding");
        finished.expect(finding.hint.is_some(), "a deadline should come with a hint");
    }
    for index in 3..5 {
        let lost = &results(&finished, index)[1].findings[0];
        let child = lost
            .stderr
            .iter()
            .find_map(|line| line.strip_prefix("fake worker: child "));
        let child = child.and_then(|child| rustix::process::Pid::from_raw(child.parse().ok()?));
        let child = child.expect("the worker says which child it started");
        finished.expect(ends(child), "the worker's child should be dead");
    }
}

// The worker writes what nobody asked for.

#[test]
fn noise_on_stdout_is_kept_out_of_the_pipe() {
    check_harmless("fault=stdout-noise");
}

#[test]
fn noise_on_stdout_while_loading_is_kept_out_of_the_pipe() {
    check_harmless("fault=stdout-noise&at=load");
}

#[test]
fn a_flood_on_stderr_does_not_block() {
    check_harmless("fault=stderr-flood");
}

#[test]
fn garbage_before_hello() {
    let message = "answered with garbage: expected a frame, found the bytes \"Intel MKL WARNIN\" \
                   (while starting)";
    check_unusable("lib=garbage-frame", "broken", message);
}

#[test]
fn garbage_between_frames() {
    check_crash(
        "garbage-frame",
        "answered with garbage: expected a frame, found the bytes \"Intel",
    );
}

#[test]
fn half_a_frame() {
    check_crash(
        "truncated-frame",
        "worker `fake` ended with exit status 0 in the middle of an answer",
    );
}

#[test]
fn a_length_beyond_the_limit() {
    check_crash(
        "huge-length",
        "a frame's payload claims 18446744073709551615 bytes",
    );
}

#[test]
fn an_answer_of_an_unknown_kind() {
    check_crash(
        "wrong-header",
        "a frame's header is not understood: unknown variant `nonsense`",
    );
}

#[test]
fn a_payload_that_holds_no_tensors() {
    check_crash(
        "garbage-payload",
        "answered with a payload that cannot be read",
    );
}

#[test]
fn an_answer_out_of_turn() {
    check_crash("out-of-turn", "worker `fake` answered `hello` out of turn");
}

#[test]
fn an_answer_to_another_request() {
    check_crash("stale-answer", "answered request 0, asked was 2");
}

#[test]
fn another_protocol_version() {
    let message = format!(
        "speaks protocol version {}, this driftgauge",
        driftgauge_protocol::PROTOCOL_VERSION + 1
    );
    check_unusable("lib=protocol-version", "broken", &message);
}

// The worker refuses, or does not do what was asked.

#[test]
fn refusal_before_hello() {
    check_unusable("lib=fail", "broken", "the fake failed");
}

/// What the target cannot do is not a pass. The message has control characters, which must not
/// reach the terminal.
#[test]
fn refusal_while_loading() {
    check_unusable(
        "fault=refuse&at=load",
        "unsupported",
        "fake\u{7} can do this",
    );
}

#[test]
fn an_option_that_the_worker_does_not_know() {
    check_unusable("fualt=abort", "unsupported", "has no option `fualt`");
}

/// A worker that says that it failed is alive and goes on.
#[test]
fn failure_of_one_batch() {
    let expected = Expected {
        options: "fault=fail&at=2",
        verdicts: SECOND_LOST,
        restarts: 0,
        finding: "the fake failed",
        stderr: "",
    };
    check(3, &expected);
}

#[test]
fn another_device() {
    let message = "asked for cpu/f64, the worker loaded the model on cuda:0/f64";
    check_unusable("fault=wrong-device&at=load", "broken", message);
}

#[test]
fn an_observation_that_the_model_does_not_have() {
    let message = "offers `hidden.99`, which this model does not have";
    check_unusable("fault=unknown-observation&at=load", "broken", message);
}

// The worker answers with damaged numbers.

const ALL_DRIFT: &str = "drift drift drift drift drift";

/// The first finding is the origin: the embeddings are right.
#[test]
fn nan() {
    let finished = check_damage("fault=nan", ALL_DRIFT, "numbers are NaN");
    for result in results(&finished, 0) {
        let (first, damage) = (&result.findings[0], FindingKind::Damage);
        let is_first = first.kind == damage && first.observation.as_deref() == Some("hidden.1");
        finished.expect(is_first, format_args!("`{}` starts elsewhere", result.case));
        finished.expect(
            result.observations["embeddings"].within,
            "the embeddings are right",
        );
        let observation = &result.observations["hidden.1"];
        finished.expect(
            observation.error_u.is_none() && !observation.within,
            "NaN has no error",
        );
    }
}

#[test]
fn wrong_shape() {
    let message = "`hidden.1`: has shape [192, 11, 1], expected [1, 11, 192]";
    check_damage(
        "fault=wrong-shape&at=1",
        "drift pass pass pass pass",
        message,
    );
}

#[test]
fn wrong_dtype() {
    let message = "`hidden.1`: is of dtype f32, the target is declared f64";
    check_damage(
        "fault=wrong-dtype&at=3",
        "pass pass drift pass pass",
        message,
    );
}

#[test]
fn missing_observation() {
    let message = "`hidden.2`: the observation is missing from the answer";
    check_damage(
        "fault=missing-observation&at=2",
        "pass drift pass pass pass",
        message,
    );
}

#[test]
fn wrong_name() {
    let message = "`hidden.2`: the observation is missing from the answer";
    check_damage(
        "fault=wrong-name&at=2",
        "pass drift pass pass pass",
        message,
    );
}

/// The logits are too large by 1e-3: cases that use no logits pass, and the error is measured right.
#[test]
fn drift() {
    let finished = check_damage("fault=drift", "drift pass pass drift drift", "`logits` is ");
    for index in [0, 3, 4] {
        let findings = &results(&finished, 0)[index].findings;
        let kinds: Vec<FindingKind> = findings.iter().map(|finding| finding.kind).collect();
        finished.expect(kinds == [FindingKind::Numeric], "one cause is one finding");
        let bits = findings[0].measured_u.map_or(0.0, f64::log2);
        let expected = (1e-3 * 2f64.powi(53)).log2();
        finished.expect(
            (bits - expected).abs() < 1e-6,
            "2^53 u are the whole of a number",
        );
    }
}

/// Nothing is wrong with the numbers but their place: batches of one sequence pass, and the two
/// texts of a similarity case are a batch of two.
#[test]
fn swapped_rows() {
    let verdicts = "pass drift pass drift drift";
    let finished = check_damage("fault=swapped-rows", verdicts, "`embeddings`");
    for (case, other) in [(3, "pair/school"), (4, "pair/moon")] {
        let finding = &results(&finished, 0)[case].findings[0];
        let is_damage = finding.kind == FindingKind::Damage && finding.class == Some(Class::Damage);
        finished.expect(is_damage, "what has changed places is damage");
        let message = format!("holds the rows of `{other}`");
        finished.expect_in(&message, &finding.message, "the finding");
    }
}

// Blows from outside.

#[test]
fn a_worker_without_executable_does_not_touch_the_others() {
    let scene = Scene::new();
    let program = scene.path("driftgauge");
    std::fs::hard_link(DRIFTGAUGE, &program).unwrap();
    std::fs::hard_link(fake_worker(), scene.path("driftgauge-worker-fake")).unwrap();
    let targets = [vec!["onnx@cpu/f32".to_owned()], healthy()].concat();
    let finished = scene.finish(scene.start(&program, &targets, &[]));
    let expected = Expected {
        options: "",
        verdicts: ALL_LOST,
        restarts: 0,
        finding: "worker `onnx` cannot be started: ",
        stderr: "",
    };
    check_outcome(&finished, 3, &[expected]);
    let finding = finished.record().targets[0].finding.as_ref();
    let hint = finding.and_then(|finding| finding.hint.as_deref());
    finished.expect(
        hint == Some("cargo build --release -p driftgauge-onnx"),
        format_args!("the hint should mend it, is {hint:?}"),
    );
}

#[test]
fn a_worker_that_is_killed_from_outside() {
    let expected = [Expected {
        options: "fault=hang&at=2&once=@",
        verdicts: SECOND_LOST,
        restarts: 1,
        finding: "worker `fake` was killed by signal 9",
        stderr: "fake worker: Hang",
    }];
    let (scene, targets) = (Scene::new(), [&faulty(&expected)[..], &healthy()].concat());
    let running = scene.start(Path::new(DRIFTGAUGE), &targets, &[]);
    kill(scene.process_of("marker-0"));
    check_outcome(&scene.finish(running), 3, &expected);
}

/// Workers of a harness that was killed do not stay behind, not even one that never looks at its
/// pipe again.
#[test]
fn workers_die_with_the_harness() {
    let scene = Scene::new();
    let targets = ["fake@cpu/f64?fault=hang&at=2&once=marker-0".to_owned()];
    let running = scene.start(Path::new(DRIFTGAUGE), &targets, &[]);
    let worker = scene.process_of("marker-0");
    kill(running.process());
    let finished = scene.finish(running);
    let is_dead = ends(worker);
    if !is_dead {
        kill(worker);
    }
    finished.expect(is_dead, "the worker should be dead");
    finished.expect(
        finished.record.is_err(),
        "a killed run should leave no record",
    );
}
