//! Budgets: how large an error a correct implementation may have.
//!
//! A budget is K times the error that Monte-Carlo arithmetic [predicts](crate::predict) for this case,
//! this observation and this dtype. K is the one number that is set by hand, or rather by
//! `driftgauge calibrate`, from many clean runs; it stands in `snapshots/calibration.toml` with the
//! ratios that it rests on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What clean runs have shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Budgets are this many times the predicted error.
    pub k: f64,
    /// How far an error may move from its baseline, in predicted errors.
    pub move_limit: f64,
    /// What the numbers rest on, in a sentence.
    pub evidence: String,
}

/// What is wrong with a calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The file cannot be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: std::io::Error,
    },
    /// The content is wrong.
    #[error("calibration `{path}`: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where there is one.
        problem: String,
    },
}

/// The next step where a calibration is missing or wrong.
pub const HINT: &str = "`driftgauge calibrate --write` measures it anew";

impl Calibration {
    /// Reads a calibration.
    ///
    /// # Errors
    /// [`CalibrationError`] that names the file.
    pub fn read(path: &Path) -> Result<Self, CalibrationError> {
        let text = std::fs::read_to_string(path).map_err(|source| CalibrationError::Io {
            path: path.to_owned(),
            source,
        })?;
        let content = |problem: String| CalibrationError::Content {
            path: path.to_owned(),
            problem,
        };
        let calibration: Self =
            toml::from_str(&text).map_err(|error| content(error.to_string()))?;
        for (name, value) in [("k", calibration.k), ("move_limit", calibration.move_limit)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(content(format!(
                    "`{name}` is {value}, expected a positive number"
                )));
            }
        }
        Ok(calibration)
    }
}

/// How far apart two correct implementations may be, in the noise of one: each is within K, and their
/// errors are independent.
pub fn pair_budget(k: f64) -> f64 {
    k * std::f64::consts::SQRT_2
}

/// A float64 target is compared with a truth that is itself rounded to float64, by the same amount.
pub fn against_rounded_truth(dtype: driftgauge_protocol::Dtype) -> f64 {
    match dtype {
        driftgauge_protocol::Dtype::F64 => std::f64::consts::SQRT_2,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calibration_is_read_or_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.toml");
        let error = Calibration::read(&path).unwrap_err().to_string();
        assert!(error.contains("calibration.toml"), "{error}");
        for (text, expected) in [
            ("k = 2\nmove_limit = 0.5\nevidence = 'x'", Ok(2.0)),
            ("k = 0\nmove_limit = 0.5\nevidence = 'x'", Err("`k` is 0")),
            (
                "k = nan\nmove_limit = 0.5\nevidence = 'x'",
                Err("`k` is NaN"),
            ),
            ("k = 2\nevidence = 'x'", Err("missing field `move_limit`")),
        ] {
            std::fs::write(&path, text).unwrap();
            match (Calibration::read(&path), expected) {
                (Ok(found), Ok(k)) => assert_eq!(found.k, k),
                (Err(error), Err(expected)) => {
                    let error = error.to_string();
                    assert!(
                        error.contains(expected) && error.contains("calibration.toml"),
                        "{error}"
                    );
                }
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
