//! Runs the `driftgauge` program in a folder of its own and keeps everything that it said.

pub mod outcome;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use driftgauge_reports::RunRecord;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The program under test.
pub const DRIFTGAUGE: &str = env!("CARGO_BIN_EXE_driftgauge");
/// The repository.
pub const HOME: &str = env!("CARGO_MANIFEST_DIR");
/// Time for what must happen at some time. Only a test that fails waits this long.
const PATIENCE: Duration = Duration::from_secs(300);

/// One case after the other.
const SINGLE: &str = r#"
[suite]
name = "single"
description = "One case in each batch."
[[case]]
name = "capital"
task = "fill-mask"
text = "中国的首都是[MASK]京。"
[[case]]
name = "weather"
task = "similarity"
a = "今天天气很好。"
b = "今天的天气真不错,我们去公园吧。"
[[case]]
name = "science"
task = "features"
text = "自然语言处理很有趣。"
"#;

/// Two cases of different lengths in one batch.
const PAIR: &str = r#"
[suite]
name = "pair"
description = "Two cases in one batch."
batch = 2
[[case]]
name = "moon"
task = "fill-mask"
text = "床前明月光,疑是地上[MASK]。"
[[case]]
name = "school"
task = "fill-mask"
text = "学[MASK]。"
"#;

/// The folder of one test, with its suites.
pub struct Scene {
    folder: TempDir,
}

impl Scene {
    /// Makes the folder; it lies on the file system of the build, so that programs can be linked
    /// into it.
    pub fn new() -> Self {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::write(folder.path().join("single.toml"), SINGLE).unwrap();
        std::fs::write(folder.path().join("pair.toml"), PAIR).unwrap();
        Self { folder }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts `driftgauge run` on the suites of this folder.
    #[expect(
        clippy::disallowed_methods,
        reason = "an end-to-end test starts the program under test"
    )]
    pub fn start(&self, program: &Path, targets: &[String], arguments: &[&str]) -> Running {
        let worker = fake_worker();
        assert!(
            worker.exists(),
            "`{}` is missing\n  hint: cargo build --release -p driftgauge-fake-worker",
            worker.display()
        );
        let output = |name: &str| File::create(self.path(name)).unwrap();
        let mut command = Command::new(program);
        command
            // A fault strikes the worker of the float64 check as well, which is of no interest here.
            .args(["run", "--quiet", "--no-float64", "--threads", "1"])
            .args(["--out", "out"])
            .args(["--suite", "single.toml", "--suite", "pair.toml"])
            .args(targets.iter().flat_map(|target| ["--target", target]))
            .args(arguments)
            .current_dir(self.folder.path())
            .env("DRIFTGAUGE_HOME", HOME)
            .env_remove("DRIFTGAUGE_LIBRARY")
            // Predictions are shared between tests and leave the user's cache alone.
            .env(
                "DRIFTGAUGE_CACHE",
                concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"),
            )
            .stdin(std::process::Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"));
        Running {
            child: command.spawn().unwrap(),
            command: format!("{command:?}"),
        }
    }

    /// Waits until the program has ended and reads what it left behind.
    pub fn finish(&self, mut running: Running) -> Finished {
        let waited = within_patience(|| running.child.try_wait().unwrap());
        let read = |name: &str| {
            let bytes = std::fs::read(self.path(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let finished = Finished {
            command: running.command.clone(),
            status: waited,
            stdout: read("stdout"),
            stderr: read("stderr"),
            record: RunRecord::from_json(&read("out/record.json")).map_err(|e| e.to_string()),
        };
        finished.expect(waited.is_some(), "the program should end");
        finished
    }

    /// Waits for the process ID that a fake worker leaves in its marker when its fault strikes.
    pub fn process_of(&self, marker: &str) -> Pid {
        let read = || {
            let text = std::fs::read_to_string(self.path(marker)).ok()?;
            text.strip_suffix('\n')?
                .parse()
                .ok()
                .and_then(Pid::from_raw)
        };
        within_patience(read).expect("the fault should strike")
    }
}

/// The fake worker, beside the program under test.
pub fn fake_worker() -> PathBuf {
    Path::new(DRIFTGAUGE).with_file_name("driftgauge-worker-fake")
}

/// Kills a process as an operator or the kernel would.
pub fn kill(process: Pid) {
    kill_process(process, Signal::KILL).unwrap();
}

/// Whether a process ends in time. One that nobody has waited for yet has ended.
pub fn ends(process: Pid) -> bool {
    let ended = || {
        let stat = format!("/proc/{}/stat", process.as_raw_nonzero());
        let stat = std::fs::read_to_string(stat).unwrap_or_default();
        // The state follows the name, which stands in parentheses and may hold anything.
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        matches!(state, None | Some('Z' | 'X')).then_some(())
    };
    within_patience(ended).is_some()
}

/// Asks again and again until there is an answer.
fn within_patience<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let answer = ask();
        if answer.is_some() || start.elapsed() > PATIENCE {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A run that has not ended. Dropping it kills the harness, and so its workers.
pub struct Running {
    child: Child,
    command: String,
}

impl Running {
    /// The process of the harness.
    pub fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run that has ended, and everything that it said.
pub struct Finished {
    command: String,
    /// `None` where it did not end in time.
    pub status: Option<ExitStatus>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The record, or why it cannot be read.
    pub record: Result<RunRecord, String>,
}

impl Finished {
    /// Fails the test with everything that there is to see.
    #[track_caller]
    pub fn expect(&self, holds: bool, what: impl fmt::Display) {
        assert!(holds, "{what}\n{self}");
    }

    /// Fails the test where a text does not hold another one.
    #[track_caller]
    pub fn expect_in(&self, expected: &str, text: &str, place: impl fmt::Display) {
        self.expect(
            text.contains(expected),
            format_args!("{place} should contain {expected:?}, is {text:?}"),
        );
    }

    /// The record.
    #[track_caller]
    pub fn record(&self) -> &RunRecord {
        match &self.record {
            Ok(record) => record,
            Err(error) => panic!("no record: {error}\n{self}"),
        }
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (command, status) = (&self.command, &self.status);
        writeln!(formatter, "command: {command}\nstatus: {status:?}")?;
        let (stdout, stderr) = (&self.stdout, &self.stderr);
        writeln!(
            formatter,
            "--- stdout\n{stdout}\n--- stderr\n{stderr}\n--- record"
        )?;
        let record = match &self.record {
            Ok(record) => record,
            Err(error) => return writeln!(formatter, "none: {error}"),
        };
        for target in &record.targets {
            writeln!(formatter, "{}: {} restarts", target.target, target.restarts)?;
        }
        for result in &record.results {
            let (case, target, verdict) = (&result.case, &result.target, result.verdict.name());
            writeln!(formatter, "{case} on {target}: {verdict}")?;
            for finding in &result.findings {
                writeln!(formatter, "  {} {:?}", finding.message, finding.stderr)?;
            }
        }
        Ok(())
    }
}
