//! Runtimes: one that is missing, damaged or of a wrong version is a finding that names the file and
//! the next step, and the target beside it is not touched.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use checkpoint::Checkpoint;
use cli::{DRIFTGAUGE, Folder, HOME};
use driftgauge_reports::record::{FindingKind, ResultRecord, Verdict};

const HEALTHY: &str = "candle@cpu/f32";
const ARGUMENTS: [&str; 8] = [
    "--model",
    "model",
    "--suite",
    "tiny.toml",
    "--threads",
    "1",
    "--target",
    HEALTHY,
];

/// What the healthy target computes when nothing else runs.
static ALONE: LazyLock<Vec<ResultRecord>> = LazyLock::new(|| {
    let folder = Folder::with(&Checkpoint::new());
    folder.run(&ARGUMENTS).record(0).results
});

/// Runs a target that cannot start beside one that can. The finding and what the worker wrote to
/// stderr hold all of `expected`; `hint` is the next step.
#[track_caller]
fn check(scene: &Scene, target: &str, expected: &[&str], hint: &str) {
    let folder = Folder::with(&Checkpoint::new());
    let arguments = [&ARGUMENTS[..], &["--target", target]].concat();
    let run = folder.run_as(&scene.program, &scene.variables(), &arguments);
    let record = run.record(3);

    let (broken, healthy): (Vec<_>, Vec<_>) = record
        .results
        .into_iter()
        .partition(|result| result.target == target);
    run.expect(healthy == *ALONE, "the healthy target should not notice");
    run.expect(broken.len() == ALONE.len(), "no result should be missing");
    for result in &broken {
        let is_broken = result.verdict == Verdict::Broken && result.answer.is_none();
        run.expect(is_broken, format_args!("should be broken: {result:?}"));
    }
    let finding = record.targets[1].finding.as_ref();
    let finding = finding.unwrap_or_else(|| panic!("no finding\n{run}"));
    run.expect(finding.kind == FindingKind::Broken, "should be broken");
    let said = format!("{}\n{}", finding.message, finding.stderr.join("\n"));
    for expected in expected {
        let what = format_args!("should say {expected:?}: {said:?}");
        run.expect(said.contains(expected), what);
    }
    let what = format_args!("should hint {hint:?}: {:?}", finding.hint);
    run.expect(finding.hint.as_deref() == Some(hint), what);
    run.expect(
        run.stdout.contains(&format!("hint: {hint}")),
        "should be reported",
    );
}

/// What the program finds around it.
struct Scene {
    folder: Folder,
    program: PathBuf,
    variables: Vec<(&'static str, PathBuf)>,
}

impl Scene {
    /// The build as it is, with a variable set.
    fn with_variable(folder: Folder, name: &'static str, value: PathBuf) -> Self {
        Self {
            folder,
            program: DRIFTGAUGE.into(),
            variables: vec![(name, value)],
        }
    }

    /// A copy of the build, with these workers and without any runtime.
    fn without_runtimes(workers: &[&str]) -> Self {
        let folder = Folder::new();
        std::fs::create_dir_all(folder.path("home/snapshots")).unwrap();
        for part in ["cases", "snapshots/calibration.toml"] {
            let place = folder.path("home").join(part);
            std::os::unix::fs::symlink(Path::new(HOME).join(part), place).unwrap();
        }
        let workers = workers
            .iter()
            .map(|backend| format!("driftgauge-worker-{backend}"));
        for name in workers.chain(["driftgauge".to_owned()]) {
            let built = Path::new(DRIFTGAUGE).with_file_name(&name);
            // Both lie in the build's folder, so that nothing large is copied.
            std::fs::hard_link(built, folder.path(&name)).unwrap();
        }
        Self {
            program: folder.path("driftgauge"),
            variables: vec![("DRIFTGAUGE_HOME", folder.path("home"))],
            folder,
        }
    }

    fn variables(&self) -> Vec<(&str, &OsStr)> {
        let variables = self.variables.iter();
        variables
            .map(|(name, value)| (*name, value.as_os_str()))
            .collect()
    }
}

/// Compiles a shared library with the compiler that Rust links with.
#[expect(
    clippy::disallowed_methods,
    reason = "a library of a wrong version has to be made by somebody"
)]
fn library(folder: &Folder, name: &str, source: &str) -> PathBuf {
    let path = folder.path(name);
    let mut compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-nostdlib", "-x", "c", "-", "-o"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = compiler.stdin.take().unwrap();
    stdin.write_all(source.as_bytes()).unwrap();
    drop(stdin);
    assert!(compiler.wait().unwrap().success(), "cc failed on {source}");
    path
}

// ---- ONNX Runtime ------------------------------------------------------------------------------

/// The `lib` option of a target names a library that cannot be used.
#[track_caller]
fn bad_onnx_runtime(folder: Folder, library: &Path, problem: &str, hint: &str) {
    let scene = Scene::with_variable(folder, "NO_COLOR", "1".into());
    let library = library.display();
    let named = format!("`{library}`");
    check(
        &scene,
        &format!("onnx@cpu/f32?lib={library}"),
        &[&named, problem],
        hint,
    );
}

const ANOTHER: &str = "give the target `?lib=` a libonnxruntime.so of version 1.17 or later";

#[test]
fn onnx_runtime_that_is_no_library() {
    let folder = Folder::new();
    let library = folder.write("garbage.so", "not a library");
    bad_onnx_runtime(folder, &library, "cannot be loaded: ", ANOTHER);
}

#[test]
fn onnx_runtime_that_is_another_library() {
    let folder = Folder::new();
    let library = library(&folder, "libother.so", "int nothing(void) { return 0; }");
    bad_onnx_runtime(folder, &library, "is not ONNX Runtime: ", ANOTHER);
}

#[test]
fn onnx_runtime_that_is_too_old() {
    let folder = Folder::new();
    let source = r#"
        typedef struct { const void *(*api)(unsigned); const char *(*version)(void); } Base;
        static const void *api(unsigned wanted) { return wanted > 16 ? 0 : &api; }
        static const char *version(void) { return "1.16.3"; }
        static const Base base = {api, version};
        const Base *OrtGetApiBase(void) { return &base; }
    "#;
    let library = library(&folder, "libonnxruntime.so", source);
    let problem = "is ONNX Runtime 1.16.3, too old: it has no C API version 17";
    bad_onnx_runtime(folder, &library, problem, ANOTHER);
}

#[test]
fn onnx_runtime_that_is_not_there() {
    let folder = Folder::new();
    let library = folder.path("gone.so");
    let hint = "run `ci/setup`, or give the target `?lib=` a libonnxruntime.so";
    bad_onnx_runtime(folder, &library, "No such file or directory", hint);
}

#[test]
fn no_onnx_runtime_at_all() {
    let scene = Scene::without_runtimes(&["candle", "onnx"]);
    let problem = "there is no libonnxruntime.so in `.runtimes/onnxruntime/`";
    check(&scene, "onnx@cpu/f32", &[problem], "run `ci/setup`");
}

// ---- libtorch ----------------------------------------------------------------------------------

const SET_UP: &str = "run `ci/setup` and build again, then `driftgauge doctor`";

#[test]
fn libtorch_that_is_no_library() {
    let folder = Folder::new();
    let library = folder.write("lib/libtorch_cpu.so", "not a library");
    let scene = Scene::with_variable(folder, "LD_LIBRARY_PATH", library.parent().unwrap().into());
    let library = library.display().to_string();
    let expected = ["worker `libtorch` ended with exit status 127", &library];
    check(&scene, "libtorch@cpu/f32", &expected, SET_UP);
}

#[test]
fn libtorch_that_is_not_there() {
    let scene = Scene::without_runtimes(&["candle", "libtorch"]);
    // The worker knows the folder that it was linked against; the copy knows one that is not there.
    let worker = scene.folder.path("driftgauge-worker-libtorch");
    let mut bytes = std::fs::read(&worker).unwrap();
    let known =
        option_env!("LIBTORCH").map_or(Path::new(HOME).join(".runtimes/libtorch"), PathBuf::from);
    let known = known.to_str().unwrap().as_bytes();
    let places: Vec<usize> = (0..bytes.len().saturating_sub(known.len()))
        .filter(|start| bytes[*start..].starts_with(known))
        .collect();
    assert!(!places.is_empty(), "{worker:?} does not know {known:?}");
    for start in places {
        bytes[start + 1..start + known.len()].fill(b'-');
    }
    // Not written into: that is the worker of the build under another name.
    std::fs::remove_file(&worker).unwrap();
    std::fs::write(&worker, bytes).unwrap();
    let built = std::fs::metadata(DRIFTGAUGE).unwrap();
    std::fs::set_permissions(&worker, built.permissions()).unwrap();
    let expected = [
        "worker `libtorch` ended with exit status 127",
        "libtorch_cpu.so: cannot open shared object file",
    ];
    check(&scene, "libtorch@cpu/f32", &expected, SET_UP);
}

#[test]
fn libtorch_of_another_version() {
    let folder = Folder::new();
    let source = "unsigned long long aoti_torch_abi_version(void) { return 0x020a000000000000; }";
    let library = library(&folder, "libversion.so", source);
    let scene = Scene::with_variable(folder, "LD_PRELOAD", library);
    let problem = "is 2.10.0, this worker needs 2.11";
    check(
        &scene,
        "libtorch@cpu/f32",
        &["/libtorch_cpu.so`", problem],
        "run `ci/setup`",
    );
}

// ---- workers -----------------------------------------------------------------------------------

#[test]
fn a_worker_that_is_not_there() {
    let scene = Scene::without_runtimes(&["candle"]);
    let worker = scene.folder.path("driftgauge-worker-libtorch");
    let worker = format!("`{}`: No such file", worker.display());
    let expected = ["worker `libtorch` cannot be started: ", &worker];
    let hint = "cargo build --release -p driftgauge-libtorch";
    check(&scene, "libtorch@cpu/f32", &expected, hint);
}
