//! Where driftgauge's own files are: suites and models, workers, native runtimes.
//!
//! Everything is found from the executable's place, so that a build works from any folder:
//! workers lie beside it, `cases/` and `.runtimes/` in a folder above it. `DRIFTGAUGE_HOME` names
//! that folder where they were moved apart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use driftgauge_protocol::environment;

use crate::worker::Launch;

/// The backends that a complete build has, and that are run where no target is named.
pub const DEFAULT_BACKENDS: [&str; 3] = ["candle", "libtorch", "onnx"];

/// The folder that holds `cases/` and `.runtimes/`.
#[derive(Debug, Clone)]
pub struct Install {
    home: PathBuf,
    workers: PathBuf,
}

/// Why the files cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is no `cases/models` above the executable.
    #[error("cannot find the folder that holds `cases/` and `.runtimes/`, looked above `{looked}`")]
    NoHome {
        /// Where the search began.
        looked: PathBuf,
    },
    /// `DRIFTGAUGE_HOME` names a folder without `cases/`.
    #[error("DRIFTGAUGE_HOME is `{home}`, which has no `cases/models`")]
    WrongHome {
        /// The value of the variable.
        home: PathBuf,
    },
    /// The system does not say where the executable is.
    #[error("cannot find out where this program is")]
    NoExecutable(#[from] std::io::Error),
}

impl Install {
    /// Finds everything from the running executable.
    ///
    /// # Errors
    /// [`InstallError`] that says where was looked.
    pub fn find() -> Result<Self, InstallError> {
        let executable = std::env::current_exe()?;
        let workers = executable.parent().unwrap_or(Path::new(".")).to_owned();
        if let Some(home) = std::env::var_os("DRIFTGAUGE_HOME").map(PathBuf::from) {
            if !is_home(&home) {
                return Err(InstallError::WrongHome { home });
            }
            return Ok(Self { home, workers });
        }
        let home = workers
            .ancestors()
            .chain([Path::new(env!("CARGO_MANIFEST_DIR"))])
            .find(|folder| is_home(folder))
            .map(Path::to_owned);
        match home {
            Some(home) => Ok(Self { home, workers }),
            None => Err(InstallError::NoHome { looked: workers }),
        }
    }

    /// The folder of suites.
    pub fn cases(&self) -> PathBuf {
        self.home.join("cases")
    }

    /// The folder of model manifests and of the embedded model.
    pub fn models(&self) -> PathBuf {
        self.cases().join("models")
    }

    /// The folder of known deviations; it need not exist.
    pub fn known(&self) -> PathBuf {
        self.cases().join("known")
    }

    /// The calibration that budgets rest on.
    pub fn calibration(&self) -> PathBuf {
        self.home.join("snapshots/calibration.toml")
    }

    /// The folder of accepted baselines; it need not exist.
    pub fn baselines(&self) -> PathBuf {
        self.home.join("snapshots/baselines")
    }

    /// The executable of a backend's worker; it need not exist.
    pub fn worker(&self, backend: &str) -> PathBuf {
        self.workers.join(format!("driftgauge-worker-{backend}"))
    }

    /// How to start a backend's worker: where it is, and where the native runtimes are.
    pub fn launch(&self, backend: &str, deadline: Duration) -> Launch {
        let mut libraries: Vec<PathBuf> = std::env::var_os("LD_LIBRARY_PATH")
            .map(|paths| std::env::split_paths(&paths).collect())
            .unwrap_or_default();
        libraries.push(self.runtimes().join("libtorch/lib"));
        let mut variables = vec![(environment::RUNTIMES.to_owned(), self.runtimes().into())];
        if let Ok(paths) = std::env::join_paths(libraries) {
            variables.push(("LD_LIBRARY_PATH".to_owned(), paths));
        }
        // glibc would give every large activation back to the kernel and fault it in again.
        for variable in ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"] {
            variables.push((variable.to_owned(), (1u32 << 30).to_string().into()));
        }
        let program = self.worker(backend);
        Launch {
            backend: backend.to_owned(),
            program,
            environment: variables,
            deadline,
            selftest: false,
        }
    }

    /// Names of the backends whose workers are there, sorted.
    pub fn backends(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.workers)
            .into_iter()
            .flatten()
            .flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some(name.strip_prefix("driftgauge-worker-")?.to_owned())
            })
            // The worker of the tests is not for users, though it may lie here after a build.
            .filter(|name| !name.contains('.') && name != "fake")
            .collect();
        names.sort();
        names
    }

    /// The folder of native runtimes that `ci/setup` fills.
    pub fn runtimes(&self) -> PathBuf {
        self.home.join(".runtimes")
    }
}

fn is_home(folder: &Path) -> bool {
    folder.join("cases/models").is_dir()
}
