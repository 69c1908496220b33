//! The accepted truth: of each case the CLS vectors, and for each mask the logits of the tokens that
//! fit best. A safetensors file; whole hidden states would be tens of megabytes in git.
//!
//! For a case `capital` it holds `capital/cls` (f64, a row for each text) and, where there are masks,
//! `capital/top_ids` (i64) and `capital/top_logits` (f64, centred over the vocabulary), a row for
//! each mask. The metadata entry `driftgauge` is a JSON object that says what it was made for.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use driftgauge_protocol::observation;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::file::{BaselineError, Head, VERSION};
use super::{ModelIdentity, SuiteIdentity};
use crate::model::Model;
use crate::observed::{self, CLS};
use crate::oracle::Truth;
use crate::plan::Plan;

/// Name of the file, among the baselines and beside a record.
pub const FILE: &str = "truth.safetensors";
/// The `format` of the metadata.
const FORMAT: &str = "driftgauge-truth";
/// Key of the metadata.
const METADATA: &str = "driftgauge";
/// Logits that are kept for each mask.
const KEPT: usize = 16;

/// What is kept of the truth of many cases, by name.
pub type Sketch = BTreeMap<String, CaseTruth>;

/// What is kept of the truth of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseTruth {
    /// The CLS vectors of the last layer, one for each text.
    pub cls: Rows<f64>,
    /// The best tokens for each mask and their centred logits, the best first.
    pub top: Option<(Rows<i64>, Rows<f64>)>,
}

/// Rows of equal width.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows<T> {
    /// Numbers in a row.
    pub width: usize,
    /// The rows, one after the other.
    pub values: Vec<T>,
}

/// What an accepted truth was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFor {
    /// Day of the last change.
    pub accepted: String,
    /// The model.
    pub model: ModelIdentity,
    /// The suite.
    pub suite: SuiteIdentity,
}

#[derive(Serialize)]
struct Header<'a> {
    format: &'a str,
    version: u32,
    sha256: &'a str,
    #[serde(flatten)]
    made_for: Option<&'a MadeFor>,
}

/// What is kept of the truths of a plan, by suite and case.
pub fn sketch(model: &Model, plan: &Plan, truths: &[Truth]) -> Sketch {
    let (layers, vocabulary) = (model.config.num_hidden_layers, model.config.vocab_size);
    let kept = plan.cases.iter().map(|case| {
        let own: Vec<&Truth> = truths[case.sequences.clone()].iter().collect();
        let cls = Rows {
            width: model.config.hidden_size,
            values: observed::truth(&own, CLS, layers),
        };
        let logits = observed::truth(&own, observation::LOGITS, layers);
        let top = (!logits.is_empty()).then(|| top(&logits, vocabulary));
        (case.id(), CaseTruth { cls, top })
    });
    kept.collect()
}

fn top(logits: &[f64], vocabulary: usize) -> (Rows<i64>, Rows<f64>) {
    let width = KEPT.min(vocabulary);
    let (mut ids, mut values) = (Vec::new(), Vec::new());
    for row in logits.chunks(vocabulary) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        ids.extend(order[..width].iter().map(|id| *id as i64));
        values.extend(order[..width].iter().map(|id| row[*id]));
    }
    let ids = Rows { width, values: ids };
    (ids, Rows { width, values })
}

/// The largest relative difference between two truths of a case; infinite where they are of
/// different shapes. Tokens may change places where their logits are as near as that.
pub fn difference(accepted: &CaseTruth, now: &CaseTruth) -> f64 {
    let cls = relative(&accepted.cls, &now.cls);
    match (&accepted.top, &now.top) {
        (None, None) => cls,
        (Some((ids, logits)), Some((ids_now, logits_now))) => {
            let mut largest = cls.max(relative(logits, logits_now));
            if !largest.is_finite() || ids.width != ids_now.width {
                return f64::INFINITY;
            }
            let rows = (ids
                .values
                .chunks(ids.width)
                .zip(logits.values.chunks(ids.width)))
            .zip(
                ids_now
                    .values
                    .chunks(ids.width)
                    .zip(logits_now.values.chunks(ids.width)),
            );
            for ((ids, logits), (ids_now, logits_now)) in rows {
                let size = norm(logits);
                for (id, logit) in ids.iter().zip(logits) {
                    let place = ids_now.iter().position(|other| other == id);
                    // What is no longer among the best has at most the logit of the last of them.
                    let now = logits_now[place.unwrap_or(ids_now.len() - 1)];
                    largest = largest.max((now - logit).abs() / size);
                }
            }
            largest
        }
        _ => f64::INFINITY,
    }
}

fn relative(accepted: &Rows<f64>, now: &Rows<f64>) -> f64 {
    if (accepted.width, accepted.values.len()) != (now.width, now.values.len()) {
        return f64::INFINITY;
    }
    let pairs = accepted.values.iter().zip(&now.values);
    let differences: Vec<f64> = pairs.map(|(a, b)| a - b).collect();
    match norm(&differences) {
        0.0 => 0.0,
        difference if difference.is_nan() => f64::INFINITY,
        difference => difference / norm(&accepted.values),
    }
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// The content of a file; the same truth gives the same bytes.
///
/// # Errors
/// What cannot be written down.
pub fn encode(sketch: &Sketch, made_for: Option<&MadeFor>) -> Result<Vec<u8>, String> {
    let mut tensors: Vec<(String, Dtype, [usize; 2], Vec<u8>)> = Vec::new();
    for (case, truth) in sketch {
        let mut add = |name: &str, dtype, width: usize, bytes: Vec<u8>| {
            let shape = [bytes.len() / 8 / width.max(1), width];
            tensors.push((format!("{case}/{name}"), dtype, shape, bytes));
        };
        let floats = |rows: &Rows<f64>| rows.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        add("cls", Dtype::F64, truth.cls.width, floats(&truth.cls));
        if let Some((ids, logits)) = &truth.top {
            let bytes = ids.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            add("top_ids", Dtype::I64, ids.width, bytes);
            add("top_logits", Dtype::F64, logits.width, floats(logits));
        }
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.to_vec(), bytes);
        view.map(|view| (name.clone(), view))
    });
    let views: Vec<(String, TensorView)> = views
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let sha256 = digest(views.iter().map(|(name, view)| (name.as_str(), view)));
    let header = Header {
        format: FORMAT,
        version: VERSION,
        sha256: &sha256,
        made_for,
    };
    let header = serde_json::to_string(&header).map_err(|error| error.to_string())?;
    let metadata = HashMap::from([(METADATA.to_owned(), header)]);
    safetensors::serialize(views, Some(metadata)).map_err(|error| error.to_string())
}

/// Reads what [`encode`] wrote; what it was made for where it says so.
///
/// # Errors
/// [`BaselineError`] that names the file.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<(Sketch, Option<MadeFor>), BaselineError> {
    let bad = |problem: &dyn std::fmt::Display| {
        BaselineError::content(
            path,
            format!("not an accepted truth, or only a part of one: {problem}"),
        )
    };
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| bad(&error))?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| bad(&error))?;
    let header = metadata
        .metadata()
        .as_ref()
        .and_then(|map| map.get(METADATA));
    let header = header.ok_or_else(|| bad(&"it does not say what it was made for"))?;
    let head: Head = serde_json::from_str(header).map_err(|error| bad(&error))?;
    head.check(path, FORMAT)?;
    let mut views: Vec<(&str, TensorView)> = tensors.iter().collect();
    views.sort_by(|a, b| a.0.cmp(b.0));
    let found = digest(views.iter().map(|(name, view)| (*name, view)));
    if found != head.sha256 {
        return Err(BaselineError::Tampered {
            path: path.to_owned(),
            found,
            stated: head.sha256,
        });
    }
    let mut sketch = Sketch::new();
    for (name, view) in &views {
        if let Some(case) = name.strip_suffix("/cls") {
            let cls = rows(view, Dtype::F64, f64::from_le_bytes).ok_or_else(|| bad(name))?;
            let part = |name| tensors.tensor(&format!("{case}/{name}")).ok();
            let ids = part("top_ids").and_then(|view| rows(&view, Dtype::I64, i64::from_le_bytes));
            let logits =
                part("top_logits").and_then(|view| rows(&view, Dtype::F64, f64::from_le_bytes));
            let top = ids.zip(logits);
            sketch.insert(case.to_owned(), CaseTruth { cls, top });
        }
    }
    Ok((sketch, serde_json::from_str(header).ok()))
}

fn rows<T>(view: &TensorView, dtype: Dtype, number: fn([u8; 8]) -> T) -> Option<Rows<T>> {
    let [_, width] = view.shape() else {
        return None;
    };
    let (values, _) = view.data().as_chunks::<8>();
    (view.dtype() == dtype && *width > 0).then(|| Rows {
        width: *width,
        values: values.iter().map(|bytes| number(*bytes)).collect(),
    })
}

/// SHA-256 of tensors with their names and shapes.
fn digest<'a>(tensors: impl Iterator<Item = (&'a str, &'a TensorView<'a>)>) -> String {
    let mut hash = Sha256::new();
    for (name, view) in tensors {
        hash.update(format!("{name} {:?} {:?}\n", view.dtype(), view.shape()));
        hash.update(view.data());
    }
    hex::encode(hash.finalize())
}
