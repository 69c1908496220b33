//! The scripts that the GitHub action and the GitLab template call, as a runner calls them, with a `gh` that
//! only remembers.

#![cfg(test)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use driftgauge_reports::RunRecord;
use tempfile::TempDir;

const DRIFTGAUGE: &str = env!("CARGO_BIN_EXE_driftgauge");
const HOME: &str = env!("CARGO_MANIFEST_DIR");

/// A text that is a command for a runner where nobody prevents it, and one for a shell.
const HOSTILE: &str = r#"
[suite]
name = "hostile"
description = "Text that wants to be a command."
[[case]]
name = "command"
task = "features"
text = "::error title=stolen::$(touch stolen)"
[[case]]
name = "plain"
task = "features"
text = "科"
"#;

/// Answers with the IDs in `ids`, fails where `forbidden` is there, and remembers arguments and body.
const GH: &str = r#"#!/usr/bin/env bash
printf '%s\n' "$*" >>calls
for argument; do
    case $argument in body=@*) cp "${argument#body=@}" body ;; esac
done
case $* in
*--paginate*) cat ids 2>/dev/null || true ;;
*) [ ! -e forbidden ] ;;
esac
"#;

struct Scene(TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        scene.write("hostile.toml", HOSTILE);
        scene.write("bin/gh", GH);
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(scene.path("bin/gh"), executable).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Runs a script of `ci/action/` in this folder.
    #[expect(
        clippy::disallowed_methods,
        reason = "an end-to-end test starts the script under test"
    )]
    fn script(&self, name: &str, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        let path = format!(
            "{}:{}",
            self.path("bin").display(),
            std::env::var("PATH").unwrap()
        );
        let mut command = Command::new(Path::new(HOME).join("ci/action").join(name));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env("PATH", path)
            .env("DRIFTGAUGE", DRIFTGAUGE)
            .env("DRIFTGAUGE_HOME", HOME)
            .env(
                "DRIFTGAUGE_CACHE",
                concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"),
            )
            .env("GITHUB_OUTPUT", self.path("output"))
            .env("GITHUB_STEP_SUMMARY", self.path("summary"))
            .env("GITHUB_REPOSITORY", "someone/something")
            .env("PULL_REQUEST", "7");
        for variable in [
            "GITHUB_ACTIONS",
            "GITLAB_CI",
            "ARGUMENTS",
            "RECORDS",
            "DRIFTGAUGE_OUT",
        ] {
            command.env_remove(variable);
        }
        command.envs(variables.iter().copied()).output().unwrap()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs the hostile suite on a target.
fn gauge(scene: &Scene, out: &str, target: &str) -> Output {
    let arguments = format!(
        "--suite\nhostile.toml\n\n--no-float64\n--no-baselines\n--target\n{target}\n--threads\n1\n"
    );
    let variables = [
        ("ARGUMENTS", arguments.as_str()),
        ("DRIFTGAUGE_OUT", out),
        ("GITHUB_ACTIONS", "true"),
    ];
    scene.script("gauge", &variables, &[])
}

#[test]
fn a_run_leaves_its_exit_code_and_its_record() {
    let scene = Scene::new();
    for (target, code) in [
        ("fake@cpu/f64?name=a", 0),
        ("fake@cpu/f64?fault=nan", 1),
        ("fake@cpu/f64?fault=abort&at=1", 3),
    ] {
        scene.write("output", "");
        let run = gauge(&scene, "out", target);
        assert_eq!(run.status.code(), Some(code), "{run:?}");
        let output = scene.read("output");
        let expected = format!("exit-code={code}\nrecord=out/record.json\nprogram={DRIFTGAUGE}\n");
        assert_eq!(output, expected);
        // What the program prints stands where the runner listens to one word only.
        let text = stdout(&run);
        let (first, rest) = text.split_once('\n').unwrap();
        let token = first.strip_prefix("::stop-commands::").unwrap();
        assert!(token.len() == 32, "{token}");
        let end = format!("\n::{token}::\n");
        assert!(
            rest.contains("::error title=stolen") && rest.ends_with(&end),
            "{rest}"
        );
    }
    assert!(!scene.path("stolen").exists());
}

#[test]
fn a_run_that_is_refused_has_no_record() {
    let scene = Scene::new();
    let run = gauge(&scene, "out", "nothing@cpu/f32");
    assert_eq!(run.status.code(), Some(2));
    assert!(!scene.read("output").contains("record="));
    let report = scene.script("report", &[("DRIFTGAUGE_OUT", "out")], &[]);
    assert_eq!(report.status.code(), Some(2), "{report:?}");
}

#[test]
fn legs_are_merged() {
    let scene = Scene::new();
    assert_eq!(
        gauge(&scene, "legs/a b", "fake@cpu/f64?name=a")
            .status
            .code(),
        Some(0)
    );
    assert_eq!(
        gauge(&scene, "legs/c", "fake@cpu/f64?fault=nan")
            .status
            .code(),
        Some(1)
    );
    let variables = [
        ("RECORDS", "legs/*/record.json"),
        ("DRIFTGAUGE_OUT", "merged"),
    ];
    let merged = scene.script("gauge", &variables, &[]);
    assert_eq!(merged.status.code(), Some(1), "{merged:?}");
    let record = RunRecord::from_json(&scene.read("merged/record.json")).unwrap();
    assert_eq!((record.summary.targets, record.summary.cases), (2, 2));
    let none = scene.script("gauge", &[("RECORDS", "nowhere/*/record.json")], &[]);
    assert_eq!(none.status.code(), Some(4), "{none:?}");
}

/// One comment, however often it is written; only a bot's own is replaced.
#[test]
fn a_pull_request_has_one_comment() {
    let scene = Scene::new();
    let report = "# drift\n$(touch stolen) `touch stolen` \"quoted\" ::error::x\n";
    scene.write("report.md", report);
    let comment = |calls: &[&str]| {
        let _ = std::fs::remove_file(scene.path("calls"));
        let run = scene.script("comment", &[], &["report.md"]);
        assert!(run.status.success(), "{run:?}");
        let lines = scene.read("calls");
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("--paginate repos/someone/something/issues/7/comments --jq"));
        assert!(lines[0].contains(".user.type == \"Bot\""));
        for expected in calls {
            assert!(lines[1].contains(expected), "{lines:?}");
        }
        assert_eq!(
            scene.read("body"),
            format!("<!-- driftgauge report -->\n{report}")
        );
        stdout(&run)
    };
    comment(&["--method POST repos/someone/something/issues/7/comments"]);
    scene.write("ids", "41\n52\n");
    comment(&["--method PATCH repos/someone/something/issues/comments/41"]);
    scene.write("forbidden", "");
    let said = comment(&["--method PATCH"]);
    assert!(said.starts_with("::warning title=driftgauge::"), "{said}");
    assert!(!scene.path("stolen").exists());
    scene.write("long.md", &"长".repeat(65_536));
    let long = scene.script("comment", &[], &["long.md"]);
    assert_eq!(long.status.code(), Some(2), "{long:?}");
}
