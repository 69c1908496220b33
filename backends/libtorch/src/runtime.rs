//! The loaded libtorch itself: which one it is, how it was built, how it is set.
//!
//! tch exposes neither the version nor the determinism switches, but `libtorch_cpu.so` exports
//! them. This is the only file with `unsafe` code; a symbol that is missing fails the link.

use std::ffi::c_void;
use std::sync::Once;

use driftgauge_protocol::{Failure, Properties, property};
use tch::{Kind, TchError, Tensor};

/// Version of tch, pinned in the root `Cargo.toml`; tch does not state it itself.
const TCH_VERSION: &str = "0.24.0";

/// The libtorch release that this tch is made for. Operators change between releases, so another
/// one may link and still compute something else.
const EXPECTED: (u8, u8) = (2, 11);

/// Beginnings of the names of variables that change what libtorch and the libraries below it
/// compute. They are recorded where they are set, because a difference between two machines may lie
/// in nothing else.
const VARIABLES: [&str; 10] = [
    "ATEN_",
    "CUBLAS_",
    "CUDA_",
    "DNNL_",
    "GOMP_",
    "MKL_",
    "NVIDIA_TF32",
    "OMP_",
    "ONEDNN_",
    "TORCH_",
];

/// Version of the loaded library, as it states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    major: u8,
    minor: u8,
    patch: u8,
}

impl Version {
    /// The version of the library that this process has loaded.
    pub fn loaded() -> Self {
        Self::of_abi(aoti_torch_abi_version())
    }

    /// `include/torch/headeronly/version.h`: one byte each for major, minor and patch, from the
    /// top.
    fn of_abi(abi: u64) -> Self {
        let [major, minor, patch, ..] = abi.to_be_bytes();
        Self {
            major,
            minor,
            patch,
        }
    }

    /// Refuses every release but the one that tch is made for.
    ///
    /// # Errors
    /// [`Failure`] that names both versions.
    pub fn check(self) -> Result<(), Failure> {
        if (self.major, self.minor) == EXPECTED {
            return Ok(());
        }
        let (major, minor) = EXPECTED;
        let maps = std::fs::read_to_string("/proc/self/maps").ok();
        let place = maps.as_deref().and_then(library_path);
        let place = place.map(|path| format!(", `{path}`,")).unwrap_or_default();
        let message =
            format!("the loaded libtorch{place} is {self}, this worker needs {major}.{minor}");
        Err(Failure::error(message).with_hint("run `ci/setup`"))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Makes the process deterministic as far as libtorch can: no parallelism between operations, and
/// an operation without a deterministic implementation is an error.
pub fn prepare() {
    // libtorch accepts the number of inter-op threads once per process.
    static INTEROP: Once = Once::new();
    INTEROP.call_once(|| tch::set_num_interop_threads(1));
    // SAFETY: the context is a process-wide object that is never destroyed, and the signatures are
    // those of `at::Context` in this release.
    unsafe { set_deterministic_algorithms(global_context(), true, false) };
}

/// What the library says about itself: build, kernels, the file it was loaded from, and the
/// variables that change it.
pub fn build_properties() -> Properties {
    let mut properties = Properties::from([
        ("tch".to_owned(), TCH_VERSION.to_owned()),
        ("mkl".to_owned(), tch::utils::has_mkl().to_string()),
        ("mkldnn".to_owned(), tch::utils::has_mkldnn().to_string()),
        ("openmp".to_owned(), tch::utils::has_openmp().to_string()),
        ("cuda".to_owned(), tch::utils::has_cudart().to_string()),
    ]);
    properties.extend(parse_config(&config_text()));
    let library = std::fs::read_to_string("/proc/self/maps").ok();
    if let Some(path) = library.as_deref().and_then(library_path) {
        properties.insert(property::LIBRARY_PATH.to_owned(), path.to_owned());
    }
    for (name, value) in std::env::vars_os() {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        if VARIABLES.iter().any(|start| name.starts_with(start)) {
            properties.insert(format!("env.{name}"), value.into_owned());
        }
    }
    properties
}

/// The settings in force, asked of the library after they were made.
///
/// # Errors
/// Where libtorch cannot multiply two numbers.
pub fn settings() -> Result<Properties, TchError> {
    // SAFETY: as in `prepare`; the getter only reads.
    let deterministic = unsafe { deterministic_algorithms(global_context()) };
    // Half of the smallest normal number is a denormal one, and zero where those are flushed.
    let half = Tensor::f_from_slice(&[f32::MIN_POSITIVE])?.f_mul_scalar(0.5)?;
    let flushed = half.f_to_kind(Kind::Double)?.f_double_value(&[0])? == 0.0;
    Ok(Properties::from([
        (
            "deterministic_algorithms".to_owned(),
            deterministic.to_string(),
        ),
        ("flush_denormal".to_owned(), flushed.to_string()),
        (
            "interop_threads".to_owned(),
            tch::get_num_interop_threads().to_string(),
        ),
    ]))
}

/// The lines of `at::show_config` that decide which kernels run.
fn parse_config(text: &str) -> Properties {
    [
        ("cpu_capability", "CPU capability usage: "),
        (
            "mkl_version",
            "Intel(R) oneAPI Math Kernel Library Version ",
        ),
        ("onednn_version", "Intel(R) MKL-DNN "),
        ("openmp_version", "OpenMP "),
        ("cuda_runtime", "CUDA Runtime "),
        ("cudnn_version", "CuDNN "),
    ]
    .into_iter()
    .filter_map(|(name, start)| {
        let lines = text.lines().map(|line| line.trim_start_matches([' ', '-']));
        let value = lines.filter_map(|line| line.strip_prefix(start)).next()?;
        Some((name.to_owned(), value.trim().to_owned()))
    })
    .collect()
}

/// The file that a process with these `/proc/self/maps` has loaded libtorch from.
fn library_path(maps: &str) -> Option<&str> {
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| &line[start..]))
        .find(|path| path.rsplit('/').next() == Some("libtorch_cpu.so"))
}

/// What `at::show_config` answers.
fn config_text() -> String {
    // SAFETY: a `std::string` is returned through memory like any large C structure. Its pointer
    // may be used when the characters are on the heap, that is from 16 characters on; shorter ones
    // stand in the structure itself, where the pointer does not follow a move.
    unsafe {
        let text = show_config();
        let characters = if text.length < text.local.len() {
            &text.local[..text.length]
        } else {
            std::slice::from_raw_parts(text.characters, text.length)
        };
        // The heap part is leaked: freeing it takes C++'s allocator, and this runs once.
        String::from_utf8_lossy(characters).into_owned()
    }
}

/// `std::string` of libstdc++.
#[repr(C)]
struct CxxString {
    characters: *const u8,
    length: usize,
    local: [u8; 16],
}

unsafe extern "C" {
    /// `torch/csrc/inductor/aoti_torch/c/shim.h`.
    safe fn aoti_torch_abi_version() -> u64;

    /// `at::Context& at::globalContext()`.
    #[link_name = "_ZN2at13globalContextEv"]
    fn global_context() -> *mut c_void;

    /// `void at::Context::setDeterministicAlgorithms(bool on, bool warn_only)`.
    #[link_name = "_ZN2at7Context26setDeterministicAlgorithmsEbb"]
    fn set_deterministic_algorithms(context: *mut c_void, on: bool, warn_only: bool);

    /// `bool at::Context::deterministicAlgorithms() const`.
    #[link_name = "_ZNK2at7Context23deterministicAlgorithmsEv"]
    fn deterministic_algorithms(context: *const c_void) -> bool;

    /// `std::string at::show_config()`.
    #[link_name = "_ZN2at11show_configB5cxx11Ev"]
    fn show_config() -> CxxString;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let version = Version::of_abi(0x020b_0100_0000_0000);
        assert_eq!(version.to_string(), "2.11.1");
        version.check().unwrap();
        let failure = Version::of_abi(0x020a_0000_0000_0000).check().unwrap_err();
        assert!(failure.message.contains("/libtorch_cpu.so`"), "{failure}");
        let versions = "is 2.10.0, this worker needs 2.11";
        assert!(failure.message.ends_with(versions), "{failure}");
        assert_eq!(failure.hint.as_deref(), Some("run `ci/setup`"));
        Version::loaded().check().unwrap();
    }

    /// The constant cannot fall behind the lock file.
    #[test]
    fn the_version_of_tch_is_the_locked_one() {
        let lock = include_str!("../../../Cargo.lock");
        let entry = format!("name = \"tch\"\nversion = \"{TCH_VERSION}\"\n");
        assert!(lock.contains(&entry));
    }

    #[test]
    fn the_library_describes_itself() {
        let text = config_text();
        assert!(text.starts_with("PyTorch built with:"), "{text}");
        let properties = build_properties();
        assert!(properties.contains_key("cpu_capability"), "{text}");
        assert!(properties.contains_key("onednn_version"), "{text}");
        assert!(properties["library_path"].ends_with("/libtorch_cpu.so"));
    }

    #[test]
    fn a_path_with_spaces_is_found() {
        let maps = "7f00-7f01 r-xp 00000000 fe:00 1  /usr/lib/libc.so.6\n\
                    7f01-7f02 r-xp 00000000 fe:00 2  /a b/lib/libtorch_cpu.so\n";
        assert_eq!(library_path(maps), Some("/a b/lib/libtorch_cpu.so"));
        assert_eq!(library_path("7f00-7f01 rw-p 00000000 00:00 0\n"), None);
    }

    #[test]
    fn settings_are_in_force() {
        prepare();
        let settings = settings().unwrap();
        let expected = [
            ("deterministic_algorithms", "true"),
            ("flush_denormal", "false"),
            ("interop_threads", "1"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(settings, Properties::from(expected));
    }
}
