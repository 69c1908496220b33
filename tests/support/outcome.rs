//! What must become of a run with a faulty target, and the comparison with what did.

use std::path::Path;

use driftgauge_reports::record::{ResultRecord, Verdict};

use super::{DRIFTGAUGE, Finished, Scene};

/// The targets that must not notice anything.
const HEALTHY: [&str; 2] = ["fake@cpu/f64?name=healthy", "fake@cpu/f32?name=healthy"];
/// Nothing is wrong.
const INTACT: &str = "pass pass pass pass pass";
/// The second batch is lost and no other.
pub const SECOND_LOST: &str = "pass broken pass pass pass";
/// Everything is lost.
pub const ALL_LOST: &str = "broken broken broken broken broken";

/// What must become of one target.
pub struct Expected<'a> {
    /// Its options; `@` stands for a marker in the test's folder.
    pub options: &'a str,
    /// Its verdicts: `capital`, `weather`, `science`; `moon`, `school`.
    pub verdicts: &'a str,
    /// How often a fresh worker had to be started.
    pub restarts: usize,
    /// Part of the first finding of the first case that does not pass.
    pub finding: &'a str,
    /// Part of the stderr that this finding shows.
    pub stderr: &'a str,
}

/// Runs one faulty target beside the healthy ones.
#[track_caller]
pub fn check(exit: i32, expected: &Expected) -> Finished {
    let expected = std::slice::from_ref(expected);
    let (scene, targets) = (Scene::new(), [&faulty(expected)[..], &healthy()].concat());
    let finished = scene.finish(scene.start(Path::new(DRIFTGAUGE), &targets, &[]));
    check_outcome(&finished, exit, expected);
    finished
}

/// The worker breaks on the second batch; a fresh one does the rest.
#[track_caller]
pub fn check_crash(fault: &str, finding: &str) {
    let options = format!("fault={fault}&at=2&once=@");
    let finished = check(
        3,
        &Expected {
            options: &options,
            verdicts: SECOND_LOST,
            restarts: 1,
            finding,
            stderr: "fake worker: ",
        },
    );
    let lost = &results(&finished, 0)[1].findings[0];
    let stage = "(while running `single/weather`)";
    finished.expect_in(stage, &lost.message, "the finding");
}

/// The worker never comes as far as a batch.
#[track_caller]
pub fn check_unusable(options: &str, verdict: &str, finding: &str) {
    let verdicts = [verdict; 5].join(" ");
    let finished = check(
        3,
        &Expected {
            options,
            verdicts: &verdicts,
            restarts: 0,
            finding,
            stderr: "",
        },
    );
    let of_target = finished.record().targets[0].finding.as_ref();
    let message = of_target.map_or("", |finding| &finding.message);
    finished.expect_in(finding, message, "the finding of the target");
}

/// The worker answers, and what it answers is wrong.
#[track_caller]
pub fn check_damage(options: &str, verdicts: &str, finding: &str) -> Finished {
    check(
        1,
        &Expected {
            options,
            verdicts,
            restarts: 0,
            finding,
            stderr: "",
        },
    )
}

/// The worker does something odd that must not matter.
#[track_caller]
pub fn check_harmless(options: &str) {
    check(
        0,
        &Expected {
            options,
            verdicts: INTACT,
            restarts: 0,
            finding: "",
            stderr: "",
        },
    );
}

/// The faulty targets of a test; each has a marker of its own: `marker-0`, `marker-1`, …
pub fn faulty(expected: &[Expected]) -> Vec<String> {
    let target = |(index, expected): (usize, &Expected)| {
        let options = expected.options.replace('@', &format!("marker-{index}"));
        format!("fake@cpu/f64?{options}")
    };
    expected.iter().enumerate().map(target).collect()
}

/// The targets that come last in every run.
pub fn healthy() -> Vec<String> {
    HEALTHY.map(str::to_owned).to_vec()
}

/// The results of one target, case by case.
pub fn results(finished: &Finished, target: usize) -> Vec<&ResultRecord> {
    let results = &finished.record().results;
    let targets = finished.record().targets.len();
    results.iter().skip(target).step_by(targets).collect()
}

fn verdicts(results: &[&ResultRecord]) -> String {
    let names: Vec<&str> = results.iter().map(|result| result.verdict.name()).collect();
    names.join(" ")
}

/// Checks faulty targets, which come first, and the healthy ones behind them.
#[track_caller]
pub fn check_outcome(finished: &Finished, exit: i32, expected: &[Expected]) {
    let code = finished.status.and_then(|status| status.code());
    finished.expect(
        code == Some(exit),
        format_args!("the exit code should be {exit}"),
    );
    let record = finished.record();
    finished.expect(
        i32::from(record.summary.exit_code) == exit,
        "the record says otherwise",
    );
    finished.expect_in("record: out/record.json\n", &finished.stdout, "stdout");
    finished.expect_in("name=healthy", &finished.stdout, "the table");
    finished.expect(finished.stderr.is_empty(), "nothing should be on stderr");
    let is_control = |c: char| c.is_control() && c != '\n';
    finished.expect(
        !finished.stdout.contains(is_control),
        "stdout holds control characters",
    );

    for (index, expected) in expected.iter().enumerate() {
        check_faulty(finished, index, expected);
    }
    for index in expected.len()..record.targets.len() {
        let (target, results) = (&record.targets[index], results(finished, index));
        let is_intact = |result: &&ResultRecord| {
            let has_all = result.observations.len() >= 6 && result.answer.is_some();
            result.verdict == Verdict::Pass && result.findings.is_empty() && has_all
        };
        finished.expect(
            results.len() == 5 && results.iter().all(is_intact),
            format_args!("`{}` should be intact", target.target),
        );
        finished.expect(
            target.finding.is_none() && target.restarts == 0,
            "it should be healthy",
        );
    }
}

#[track_caller]
fn check_faulty(finished: &Finished, index: usize, expected: &Expected) {
    let (target, results) = (&finished.record().targets[index], results(finished, index));
    let (name, found) = (&target.target, verdicts(&results));
    finished.expect(
        found == expected.verdicts,
        format_args!(
            "`{name}` should have {:?}, has {found:?}",
            expected.verdicts
        ),
    );
    finished.expect(
        target.restarts == expected.restarts,
        format_args!("`{name}` should have {} restarts", expected.restarts),
    );
    let Some(bad) = results
        .iter()
        .find(|result| result.verdict != Verdict::Pass)
    else {
        return;
    };
    finished.expect_in(expected.finding, &bad.findings[0].message, name);
    finished.expect_in(expected.stderr, &bad.findings[0].stderr.join("\n"), name);
}
