//! Which shared library is ONNX Runtime, and whether it can be used.
//!
//! A process has one ONNX Runtime for as long as it lives. `ort` panics on some libraries that it
//! cannot use, and once it has one it accepts any other path silently, so a library is looked at
//! here first and its version is what the library itself says.

use std::error::Error;
use std::ffi::{CStr, c_char};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use driftgauge_protocol::Failure;
use libloading::Library;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::sys::OrtApiBase;

/// The version of the `ort` crate that this worker is built with.
pub const ORT_CRATE: &str = "2.0.0-rc.15";

/// ONNX Runtime, loaded and ready.
#[derive(Clone)]
pub struct Runtime {
    /// What sessions are created in.
    pub environment: Environment,
    /// The library, with symbolic links resolved.
    pub path: PathBuf,
    /// What the library says its version is.
    pub version: String,
}

/// The newest ONNX Runtime in a folder of runtimes: `onnxruntime/<version>/libonnxruntime.so`.
pub fn newest_in(runtimes: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(runtimes.join("onnxruntime")).ok()?;
    let number = |name: &str| {
        name.split('.')
            .map(|part| part.parse().ok())
            .collect::<Option<Vec<u32>>>()
    };
    versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = number(entry.file_name().to_str()?)?;
            Some((version, entry.path().join("libonnxruntime.so")))
        })
        .filter(|(_, library)| library.exists())
        .max()
        .map(|(_, library)| library)
}

static STARTED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Loads the library at a path, or returns it where this process has loaded it already.
    ///
    /// # Errors
    /// Where the file is missing, is not ONNX Runtime, is too old, or is another library than the
    /// one that this process has.
    pub fn start(path: &Path) -> Result<Self, Failure> {
        let path = path.canonicalize().map_err(|error| {
            Failure::error(format!("cannot open `{}`: {error}", path.display()))
                .with_hint("run `ci/setup`, or give the target `?lib=` a libonnxruntime.so")
        })?;
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*started {
            if runtime.path == path {
                return Ok(runtime.clone());
            }
            return Err(Failure::error(format!(
                "`{}` cannot be loaded: this process has loaded `{}`",
                path.display(),
                runtime.path.display()
            )));
        }
        let version = probe(&path)?;
        let failed = |error: &dyn Error| {
            let words = in_full(error);
            Failure::error(format!("`{}` cannot be used: {words}", path.display()))
        };
        let environment = ort::init_from(&path)
            .map_err(|error| failed(&error))?
            .with_name("driftgauge")
            .with_telemetry(false)
            .build()
            .map_err(|error| failed(&error))?;
        environment.set_log_level(LogLevel::Warning);
        let runtime = Self {
            environment,
            path,
            version,
        };
        *started = Some(runtime.clone());
        Ok(runtime)
    }

    /// The execution providers that this build of ONNX Runtime has.
    ///
    /// # Errors
    /// With the library's own words.
    pub fn providers(&self) -> Result<Vec<String>, Failure> {
        let mut names: *mut *mut c_char = std::ptr::null_mut();
        let mut count = 0;
        // SAFETY: the library is loaded, because `self` exists, and both pointers are valid for the
        // one write that the function makes.
        unsafe {
            let status = (ort::api().GetAvailableProviders)(&mut names, &mut count);
            ort::Error::result_from_status(status)
        }
        .map_err(|error| Failure::error(format!("cannot list execution providers: {error}")))?;
        let found = (0..usize::try_from(count).unwrap_or(0))
            // SAFETY: the function succeeded, so `names` holds `count` strings that end in zero.
            .map(|index| unsafe { CStr::from_ptr(*names.add(index)) })
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        // SAFETY: `names` and `count` are what the library gave out, and nothing refers to them.
        unsafe {
            let status = (ort::api().ReleaseAvailableProviders)(names, count);
            ort::Error::result_from_status(status)
        }
        .map_err(|error| Failure::error(format!("cannot list execution providers: {error}")))?;
        Ok(found)
    }
}

/// The version of the ONNX Runtime library at a path; `ort` is not touched.
///
/// # Errors
/// Where the file is not a library, not ONNX Runtime, or too old.
pub fn probe(path: &Path) -> Result<String, Failure> {
    let hint = "give the target `?lib=` a libonnxruntime.so of version 1.17 or later";
    // SAFETY: loading runs the library's own start-up code; the user named it as their runtime.
    let library = unsafe { Library::new(path) }.map_err(|error| {
        let words = in_full(&error);
        Failure::error(format!("`{}` cannot be loaded: {words}", path.display())).with_hint(hint)
    })?;
    // A library that has started is never unloaded: it may have left threads or handlers behind.
    let library = ManuallyDrop::new(library);
    // SAFETY: the signature is that of `OrtGetApiBase` in onnxruntime_c_api.h, in every version.
    let base = unsafe { library.get::<extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase") };
    let base = base.map_err(|error| {
        let words = in_full(&error);
        Failure::error(format!("`{}` is not ONNX Runtime: {words}", path.display())).with_hint(hint)
    })?;
    // SAFETY: ONNX Runtime returns null or a pointer to a static structure.
    let base = unsafe { base().as_ref() };
    usable_version(base)
        .map_err(|reason| Failure::error(format!("`{}` {reason}", path.display())).with_hint(hint))
}

/// The version, where the library offers the C API that `ort` is built for.
fn usable_version(base: Option<&OrtApiBase>) -> Result<String, String> {
    let base = base.ok_or("is not ONNX Runtime: it offers no API")?;
    // SAFETY: both are functions of the library, which stays loaded; the first returns a static
    // string, and the second null for an API version that the library does not have.
    let (version, api) = unsafe {
        let version = CStr::from_ptr((base.GetVersionString)());
        (version, (base.GetApi)(ort::MINOR_VERSION))
    };
    let version = version.to_string_lossy().into_owned();
    if api.is_null() {
        let needed = ort::MINOR_VERSION;
        return Err(format!(
            "is ONNX Runtime {version}, too old: it has no C API version {needed}"
        ));
    }
    Ok(version)
}

/// An error and its causes: the dynamic linker's own words are in the cause.
fn in_full(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let words: Vec<String> = causes.map(ToString::to_string).collect();
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ort::sys::OrtApi;

    unsafe extern "system" fn no_api(_: u32) -> *const OrtApi {
        std::ptr::null()
    }

    unsafe extern "system" fn old_version() -> *const c_char {
        c"1.16.3".as_ptr()
    }

    #[test]
    fn a_library_without_the_needed_api_is_too_old() {
        let base = OrtApiBase {
            GetApi: no_api,
            GetVersionString: old_version,
        };
        assert_eq!(
            usable_version(Some(&base)),
            Err("is ONNX Runtime 1.16.3, too old: it has no C API version 17".to_owned())
        );
        assert!(usable_version(None).is_err());
    }

    /// `ort` does not say its own version, so the constant is held against the lock file.
    #[test]
    fn the_version_of_ort_is_stated_right() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let lock = std::fs::read_to_string(lock).expect("the workspace has a lock file");
        let entry = format!("name = \"ort\"\nversion = \"{ORT_CRATE}\"");
        assert!(lock.contains(&entry), "Cargo.lock has no {entry:?}");
    }
}
