//! Libraries that are not a usable ONNX Runtime: each is a failure that names the file and what is
//! wrong with it, and none of them ends the process.

mod fixture;

use std::io::Write;
use std::path::PathBuf;

use driftgauge_onnx::Onnx;
use driftgauge_onnx::runtime::Runtime;
use driftgauge_protocol::{Backend, Failure, FailureKind};
use fixture::library;

fn hello(path: impl Into<PathBuf>) -> Failure {
    let result = Onnx::with_library(path).hello();
    result.expect_err("this is no ONNX Runtime")
}

/// Some library that this process runs in: a real one, and not ONNX Runtime.
fn some_library() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the memory map");
    let paths = maps.split_whitespace();
    let found = paths.filter(|path| path.starts_with('/') && path.contains("/libc"));
    found.map(PathBuf::from).next().expect("a C library")
}

/// In one test, because a process has one ONNX Runtime: once it is loaded, asking for another one is
/// refused, not ignored.
#[test]
fn each_wrong_library_says_what_is_wrong() {
    let mut noise = tempfile::Builder::new()
        .suffix(".so")
        .tempfile()
        .expect("a file");
    noise.write_all(b"not a library").expect("written");
    for (path, expected) in [
        (
            PathBuf::from("no/such/libonnxruntime.so"),
            "No such file or directory",
        ),
        (noise.path().to_owned(), "file too short"),
        (some_library(), "undefined symbol: OrtGetApiBase"),
        (std::env::temp_dir(), "cannot be loaded: "),
    ] {
        let failure = hello(&path);
        assert_eq!(failure.kind, FailureKind::Error);
        assert!(failure.message.contains(expected), "{failure}");
        let name = path.file_name().and_then(|name| name.to_str());
        assert!(failure.message.contains(name.expect("a name")), "{failure}");
        assert!(failure.hint.is_some(), "{failure}");
    }

    let first = Runtime::start(&library()).expect("a runtime");
    assert!(Runtime::start(&library()).is_ok());
    let message = hello(some_library()).message;
    let expected = format!("this process has loaded `{}`", first.path.display());
    assert!(message.ends_with(&expected), "{message}");
}
