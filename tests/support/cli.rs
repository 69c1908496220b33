//! Runs the `driftgauge` program with any arguments, in a folder that vanishes with the test.

#![allow(dead_code, reason = "each test program uses the part that it needs")]

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use driftgauge_reports::RunRecord;
use tempfile::TempDir;

use crate::checkpoint::{Checkpoint, SUITE};

/// The program under test.
pub const DRIFTGAUGE: &str = env!("CARGO_BIN_EXE_driftgauge");
/// The repository.
pub const HOME: &str = env!("CARGO_MANIFEST_DIR");

/// What stands in `record.json` before a run that must not touch it.
const OLD_RECORD: &str = "the record of an earlier run";
/// Arguments of a run that succeeds in a folder [with](Folder::with) a good model.
pub const GOOD: [&str; 6] = [
    "--model",
    "model",
    "--suite",
    "tiny.toml",
    "--target",
    "candle",
];

/// The folder of one test.
pub struct Folder(TempDir);

impl Folder {
    /// A new folder, with no baselines.
    pub fn new() -> Self {
        let folder = Self(TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        std::fs::create_dir(folder.path("baselines")).unwrap();
        folder
    }

    /// A folder with `model/`, `tiny.toml` and an earlier record.
    pub fn with(checkpoint: &Checkpoint) -> Self {
        let folder = Self::new();
        folder.write("tiny.toml", SUITE);
        folder.write("out/record.json", OLD_RECORD);
        checkpoint.write(&folder.path("model"));
        folder
    }

    /// Puts the earlier record back in the place of what was run since.
    pub fn forget(&self) {
        std::fs::remove_dir_all(self.path("out")).unwrap();
        self.write("out/record.json", OLD_RECORD);
    }

    /// Gives the program in this folder a home of its own, with the repository's cases and runtimes
    /// and another calibration.
    pub fn calibrate(&self, calibration: &str) {
        self.write("home/snapshots/calibration.toml", calibration);
        for part in ["cases", ".runtimes"] {
            let place = self.path("home").join(part);
            std::os::unix::fs::symlink(Path::new(HOME).join(part), place).unwrap();
        }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file, and the folders above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// Runs `driftgauge run --out <folder>/out` with the given arguments.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Finished {
        self.run_as(Path::new(DRIFTGAUGE), &[], arguments)
    }

    /// Checks that a run ends with an error that contains all of `expected`, and that it leaves
    /// nothing behind.
    #[track_caller]
    pub fn refuses(&self, arguments: &[&str], code: i32, expected: &[&str]) {
        let run = self.run(arguments);
        run.expect(run.code == Some(code), format_args!("should exit {code}"));
        for expected in expected {
            let what = format_args!("stderr should contain {expected:?}");
            run.expect(run.stderr.contains(expected), what);
        }
        run.expect(run.stderr.starts_with("error: "), "should say `error:`");
        run.expect(!run.stderr.contains("panicked"), "nothing should panic");
        run.expect(run.stdout.is_empty(), "nothing should be on stdout");
        run.expect(run.json == OLD_RECORD, "the old record should stay");
        let left: Vec<_> = std::fs::read_dir(self.path("out")).unwrap().collect();
        run.expect(left.len() == 1, format_args!("left behind: {left:?}"));
    }

    /// Checks that `model/` is refused because of one of its files.
    #[track_caller]
    pub fn refuses_model(&self, file: &str, problem: &str) {
        let file = format!("`model/{file}`");
        self.refuses(&GOOD, 2, &[&file, problem, "\n  hint: "]);
    }

    /// Runs a certain copy of the program, with variables set. It is compared with the baselines of
    /// this folder, unless the arguments name others.
    pub fn run_as<A: AsRef<OsStr>>(
        &self,
        program: &Path,
        variables: &[(&str, &OsStr)],
        arguments: &[A],
    ) -> Finished {
        let (out, baselines) = (self.path("out"), self.path("baselines"));
        let mut all: Vec<&OsStr> = vec!["run".as_ref(), "--out".as_ref(), out.as_ref()];
        let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        let is_named = |argument: &&OsStr| argument.to_string_lossy().ends_with("-baselines");
        if !arguments.iter().any(is_named) {
            all.extend([OsStr::new("--baselines"), baselines.as_ref()]);
        }
        self.call(program, variables, &[all, arguments].concat())
    }

    /// Calls the program with any sub-command, with variables set.
    #[expect(
        clippy::disallowed_methods,
        reason = "an end-to-end test starts the program under test"
    )]
    pub fn call<A: AsRef<OsStr>>(
        &self,
        program: &Path,
        variables: &[(&str, &OsStr)],
        arguments: &[A],
    ) -> Finished {
        let mut command = Command::new(program);
        let home = self.path("home");
        match home.is_dir() {
            true => command.env("DRIFTGAUGE_HOME", home),
            false => command.env_remove("DRIFTGAUGE_HOME"),
        };
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("DRIFTGAUGE_LIBRARY")
            // Predictions are shared between tests and leave the user's cache alone.
            .env(
                "DRIFTGAUGE_CACHE",
                concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"),
            )
            .env_remove("CI")
            .envs(variables.iter().copied())
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Finished {
            command: format!("{command:?}"),
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            json: std::fs::read(self.path("out/record.json")).map_or_else(
                |error| format!("cannot read `out/record.json`: {error}"),
                |bytes| text(&bytes),
            ),
        }
    }
}

/// A run that has ended.
pub struct Finished {
    command: String,
    /// Its exit code; `None` where a signal killed it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// What is in `record.json`.
    pub json: String,
}

impl Finished {
    /// The record, of a run that ended with `code` and without a panic.
    #[track_caller]
    pub fn record(&self, code: i32) -> RunRecord {
        self.expect(self.code == Some(code), format_args!("should exit {code}"));
        self.expect(!self.stderr.contains("panicked"), "nothing should panic");
        RunRecord::from_json(&self.json)
            .unwrap_or_else(|error| panic!("no record: {error}\n{self}"))
    }

    /// Checks the exit code, and that stdout or stderr holds all of `expected`.
    #[track_caller]
    pub fn has(&self, code: i32, expected: &[&str]) {
        self.expect(self.code == Some(code), format_args!("should exit {code}"));
        for expected in expected {
            let is_there = self.stdout.contains(expected) || self.stderr.contains(expected);
            self.expect(is_there, format_args!("should say {expected:?}"));
        }
        self.expect(!self.stderr.contains("panicked"), "nothing should panic");
    }

    /// Fails the test with everything that there is to see.
    #[track_caller]
    pub fn expect(&self, holds: bool, what: impl fmt::Display) {
        assert!(holds, "{what}\n{self}");
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            code,
            stdout,
            stderr,
            ..
        } = self;
        write!(
            formatter,
            "command: {command}\nexit code: {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}
