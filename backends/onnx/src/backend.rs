//! The backend: from the library to a loaded model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use driftgauge_protocol::fault::Change;
use driftgauge_protocol::{
    Arithmetic, Backend, Failure, Hello, LoadRequest, Loaded, LoadedModel, PROTOCOL_VERSION,
    Properties, Stage, Variance, Weights, environment, property::LIBRARY_PATH,
};

use crate::exported;
use crate::graph::{self, Source};
use crate::model::Model;
use crate::optimisers;
use crate::options::{Options, check_device};
use crate::proto::{DataLocation, ModelProto};
use crate::runtime::{self, ORT_CRATE, Runtime};
use crate::session::{self, Level, Settings};

/// The property that names the graph optimisers that may be applied.
const OPTIMISERS: &str = "optimisers";

/// ONNX Runtime, from a shared library that is chosen when the process starts.
#[derive(Debug, Default)]
pub struct Onnx {
    library: Option<PathBuf>,
}

impl Onnx {
    /// The backend that uses the library at a path.
    pub fn with_library(path: impl Into<PathBuf>) -> Self {
        Self {
            library: Some(path.into()),
        }
    }

    /// The backend that uses the library that the harness names, or else the newest one that
    /// `ci/setup` has brought.
    pub fn from_environment() -> Self {
        let path = |name| {
            let value = std::env::var_os(name).filter(|path| !path.is_empty());
            value.map(PathBuf::from)
        };
        let newest = || runtime::newest_in(&path(environment::RUNTIMES)?);
        Self {
            library: path(environment::LIBRARY).or_else(newest),
        }
    }

    fn runtime(&self) -> Result<Runtime, Failure> {
        let path = self.library.as_deref().ok_or_else(|| {
            Failure::error(
                "there is no libonnxruntime.so in `.runtimes/onnxruntime/`, and no target option \
                 `lib` names one",
            )
            .with_hint("run `ci/setup`")
        })?;
        Runtime::start(path)
    }
}

impl Backend for Onnx {
    fn hello(&mut self) -> Result<Hello, Failure> {
        let runtime = self.runtime()?;
        let properties = Properties::from([
            ("binding".to_owned(), format!("ort {ORT_CRATE}")),
            ("build".to_owned(), ort::info().to_owned()),
            (LIBRARY_PATH.to_owned(), runtime.path.display().to_string()),
            (
                "available_providers".to_owned(),
                runtime.providers()?.join(", "),
            ),
        ]);
        Ok(Hello {
            protocol: PROTOCOL_VERSION,
            backend: "onnx".to_owned(),
            library: "onnxruntime".to_owned(),
            version: runtime.version,
            properties,
        })
    }

    fn load(&mut self, request: &LoadRequest) -> Result<(Box<dyn LoadedModel>, Loaded), Failure> {
        let runtime = self.runtime()?;
        let options = Options::parse(&request.options)?;
        check_device(&request.device)?;
        if let Some(library) = &options.library {
            check_library(library, &runtime.path)?;
        }
        if request.threads == 0 {
            return Err(Failure::error("a session needs at least 1 thread"));
        }

        let settings = Settings {
            runtime: runtime.clone(),
            optimisation: options.optimisation.clone(),
            threads: request.threads,
        };
        let loaded = Loaded {
            device: request.device.clone(),
            dtype: request.dtype,
            threads: request.threads,
            observations: Vec::new(),
            arithmetic: arithmetic(&runtime.version),
            float64_options: float64_options(&options, request),
            properties: properties(&settings),
            seconds: 0.0,
        };
        match &options.model {
            None => written(settings, request, loaded),
            Some(path) => exported(path, &settings, request, loaded),
        }
    }

    fn has_faults(&self) -> bool {
        true
    }
}

/// Loads the graph that is written here. `loaded` is what holds of every model.
fn written(
    settings: Settings,
    request: &LoadRequest,
    mut loaded: Loaded,
) -> Result<(Box<dyn LoadedModel>, Loaded), Failure> {
    let weights = Weights::open(&request.weights)?.under(request.fault.as_ref());
    check_fault(request, &weights)?;
    let graphs = BertGraphs::write(request, &weights)?;
    let session = |model| {
        session::create(&settings, model, weights.path())
            .map_err(|error| session::failure(&error, request.dtype))
    };
    let encoder = session(&graphs.encoder)?;
    let head = graphs.head.as_ref().map(session).transpose()?;
    weights.check_unchanged()?;
    let optimisers = optimisers::OPTIMISERS;
    let optimisers = optimisers::applied(optimisers, &settings.optimisation);
    loaded.properties.extend(graphs.properties());
    loaded
        .properties
        .insert(OPTIMISERS.to_owned(), optimisers.join(","));
    loaded.observations = graph::observations(&request.config, request.mlm_head);
    let model = Model {
        encoder,
        head,
        stages: BTreeMap::new(),
        settings,
        config: request.config.clone(),
        dtype: request.dtype,
        weights,
        fault: request.fault.clone(),
    };
    Ok((Box::new(model), loaded))
}

/// Loads a user's own model.
fn exported(
    path: &Path,
    settings: &Settings,
    request: &LoadRequest,
    mut loaded: Loaded,
) -> Result<(Box<dyn LoadedModel>, Loaded), Failure> {
    let (model, facts) = exported::load(path, settings, request)?;
    let every = optimisers::OPTIMISERS.into_iter().chain(optimisers::OTHERS);
    let optimisers = optimisers::applied(every, &settings.optimisation);
    loaded.properties.extend(facts.properties);
    loaded
        .properties
        .insert(OPTIMISERS.to_owned(), optimisers.join(","));
    loaded.observations = facts.observations;
    Ok((Box::new(model), loaded))
}

/// The two graphs of a model.
struct BertGraphs {
    encoder: ModelProto,
    head: Option<ModelProto>,
}

impl BertGraphs {
    fn write(request: &LoadRequest, weights: &Weights) -> Result<Self, Failure> {
        let source = Source {
            config: &request.config,
            weights,
            dtype: request.dtype,
            fault: request.fault.as_ref(),
        };
        let states = graph::observations(source.config, false);
        let encoder = graph::write(source, &states)?;
        let head = request.mlm_head.then(|| graph::write_head(source));
        Ok(Self {
            encoder,
            head: head.transpose()?,
        })
    }

    fn properties(&self) -> Properties {
        let models = [Some(&self.encoder), self.head.as_ref()];
        let graphs = models.into_iter().flatten();
        let graphs: Vec<_> = graphs.filter_map(|model| model.graph.as_ref()).collect();
        let weights: BTreeSet<&str> = graphs
            .iter()
            .flat_map(|graph| &graph.initializer)
            .filter(|tensor| tensor.data_location() == DataLocation::External)
            .map(|tensor| tensor.name.as_str())
            .collect();
        let external = weights.len();
        let nodes: usize = graphs.iter().map(|graph| graph.node.len()).sum();
        [
            ("external_data", format!("{external} tensors")),
            ("ir_version", graph::IR_VERSION.to_string()),
            ("nodes_written", nodes.to_string()),
            ("opset", graph::OPSET.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// Checks that a fault is one of this model: what is changed nowhere would go unnoticed.
fn check_fault(request: &LoadRequest, weights: &Weights) -> Result<(), Failure> {
    let Some(fault) = &request.fault else {
        return Ok(());
    };
    let refused = |why: String| Err(Failure::error(format!("fault `{}`: {why}", fault.name)));
    let stages = Stage::all(request.config.num_hidden_layers, request.mlm_head);
    for edit in fault.step_edits() {
        if !stages.contains(&edit.stage) {
            return refused(format!("the model has no `{}`", edit.stage));
        }
        if let Change::Accumulate { every: 0, .. } = edit.change {
            return refused("a partial sum has at least one input".to_owned());
        }
    }
    for edit in fault.weight_edits() {
        weights.location(&edit.tensor)?;
    }
    Ok(())
}

/// The `lib` option only states which library the worker should have been started with.
fn check_library(wanted: &Path, loaded: &Path) -> Result<(), Failure> {
    if wanted
        .canonicalize()
        .is_ok_and(|resolved| resolved == loaded)
    {
        return Ok(());
    }
    Err(Failure::unsupported(format!(
        "option `lib` is `{}`, this worker was started with `{}`",
        wanted.display(),
        loaded.display()
    )))
}

/// From level `extended` on, ONNX Runtime rounds the attention scale to f32 in an f64 graph as well.
fn float64_options(options: &Options, request: &LoadRequest) -> BTreeMap<String, String> {
    let mut changed = request.options.clone();
    if !matches!(options.optimisation.level, Level::Disable | Level::Basic) {
        changed.insert("opt".to_owned(), Level::Basic.name().to_owned());
    }
    changed
}

/// How a version of ONNX Runtime adds up on the CPU. Up to 1.29 its layer norm takes the sum and the
/// sum of squares of a row in one pass, one number after the other; 1.30 brought vectors. Seen in the
/// error of the embeddings of 65 cases, over that of the default arithmetic: 1.56 to 1.58 in the median
/// with 1.23.2, 1.27.0, 1.28.0 and 1.29.0, and 0.88 with 1.30.0, 1.31.0 and 1.31.1.
fn arithmetic(version: &str) -> Arithmetic {
    let mut numbers = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (1, 30) {
        return Arithmetic {
            reduction_lanes: 1,
            variance: Variance::OnePass,
            ..Arithmetic::default()
        };
    }
    Arithmetic::default()
}

/// The settings in force. No execution provider but the CPU's is ever registered, so every node
/// runs there or the session cannot be created.
fn properties(settings: &Settings) -> Properties {
    let optimisation = &settings.optimisation;
    let approximates = match optimisation.gelu_approximation {
        true => "on",
        false => "off",
    };
    [
        ("deterministic_compute", "true".to_owned()),
        ("execution_mode", "sequential".to_owned()),
        ("execution_provider", "CPUExecutionProvider".to_owned()),
        ("gelu_approximation", approximates.to_owned()),
        ("inter_op_threads", "1".to_owned()),
        ("intra_op_threads", settings.threads.to_string()),
        ("optimization_level", optimisation.level.name().to_owned()),
        ("spinning", "false".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_norm_changed_with_1_30() {
        for (version, lanes) in [("1.23.2", 1), ("1.29.0", 1), ("1.30.0", 16), ("2.0.0", 16)] {
            assert_eq!(arithmetic(version).reduction_lanes, lanes, "{version}");
        }
    }
}
