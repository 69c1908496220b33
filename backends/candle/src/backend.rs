//! What candle can and cannot load, in the words of the protocol.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Error};
use candle_nn::VarBuilder;
use candle_transformers::models::bert;
use driftgauge_protocol::{
    Arithmetic, Backend, BertConfig, Bias, Failure, Hello, HiddenAct, LoadRequest, Loaded,
    LoadedModel, PROTOCOL_VERSION, Properties, Variance, Weights,
};

use crate::changes;
use crate::loaded::Ready;
use crate::threads;
use crate::weights::{Checkpointed, candle_dtype};

/// How candle adds up on the CPU. Its [layer norm] takes the sum and the sum of squares of a row in one
/// pass, one number after the other in a single f32 each.
///
/// [layer norm]: https://github.com/huggingface/candle/blob/59f8e903ca80a32ea7f8514b39748fc979e69e82/candle-nn/src/ops.rs#L741-L751
const ARITHMETIC: Arithmetic = Arithmetic {
    product_run: 256,
    reduction_lanes: 1,
    bias: Bias::Last,
    variance: Variance::OnePass,
};

/// The backend `candle`.
pub struct Candle;

impl Backend for Candle {
    fn hello(&mut self) -> Result<Hello, Failure> {
        Ok(Hello {
            protocol: PROTOCOL_VERSION,
            backend: "candle".to_owned(),
            library: "candle-transformers".to_owned(),
            version: env!("CANDLE_TRANSFORMERS_VERSION").to_owned(),
            properties: properties(),
        })
    }

    fn load(&mut self, request: &LoadRequest) -> Result<(Box<dyn LoadedModel>, Loaded), Failure> {
        refuse_options(&request.options)?;
        let device = device(&request.device)?;
        let config = config_for_candle(&request.config)?;
        threads::settle(request.threads)?;
        refuse_dtype(request, &device)?;
        let fault = request.fault.as_ref();
        if let Some(fault) = fault {
            changes::refuse(fault, config.num_hidden_layers, request.mlm_head)?;
        }

        let weights = Weights::open(&request.weights)?.under(fault);
        let builder = Checkpointed::builder(&weights, candle_dtype(request.dtype), &device);
        let model = Ready::load(builder, &config, request.mlm_head, fault)
            .map_err(|error| Failure::error(words(error)))?;
        weights.check_unchanged()?;

        let dtype = model.try_one_token()?;
        let loaded = Loaded {
            device: model.device(),
            dtype,
            threads: request.threads,
            observations: model.observations().to_vec(),
            arithmetic: ARITHMETIC,
            float64_options: request.options.clone(),
            properties: Properties::from([("weights_dtype".to_owned(), stored_dtypes(&weights))]),
            seconds: 0.0,
        };
        Ok((Box::new(model), loaded))
    }

    fn has_faults(&self) -> bool {
        true
    }
}

/// The architecture as candle takes it. Dropout and the like do not take part in inference.
///
/// # Errors
/// [`driftgauge_protocol::FailureKind::Unsupported`] for an activation that candle's BERT lacks.
pub fn config_for_candle(config: &BertConfig) -> Result<bert::Config, Failure> {
    let hidden_act = match config.hidden_act {
        HiddenAct::Gelu => bert::HiddenAct::Gelu,
        HiddenAct::GeluTanh => bert::HiddenAct::GeluApproximate,
        HiddenAct::Relu => bert::HiddenAct::Relu,
        HiddenAct::Silu => {
            return Err(Failure::unsupported(
                "candle's BERT has no activation `silu` (it has gelu, gelu_tanh, relu)",
            ));
        }
    };
    Ok(bert::Config {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        intermediate_size: config.intermediate_size,
        hidden_act,
        max_position_embeddings: config.max_position_embeddings,
        type_vocab_size: config.type_vocab_size,
        layer_norm_eps: config.layer_norm_eps,
        pad_token_id: config.pad_token_id,
        ..bert::Config::default()
    })
}

/// candle's own words for an error, without the backtrace that it adds under `RUST_BACKTRACE`.
pub fn words(error: Error) -> String {
    match error {
        Error::WithBacktrace { inner, .. } => words(*inner),
        error => error.to_string(),
    }
}

fn refuse_options(options: &BTreeMap<String, String>) -> Result<(), Failure> {
    match options.keys().next() {
        None => Ok(()),
        Some(option) => Err(Failure::unsupported(format!(
            "candle has no option `{option}` (known: none)"
        ))),
    }
}

/// Whether candle can compute in a dtype is known only by trying: a model of one layer and of zeros
/// shows it before a large checkpoint is read.
fn refuse_dtype(request: &LoadRequest, device: &Device) -> Result<(), Failure> {
    let small = BertConfig {
        vocab_size: 1,
        hidden_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        intermediate_size: 8,
        max_position_embeddings: 1,
        type_vocab_size: 1,
        ..request.config.clone()
    };
    let zeros = VarBuilder::zeros(candle_dtype(request.dtype), device);
    Ready::load(zeros, &config_for_candle(&small)?, true, None)
        .map_err(|error| Failure::error(words(error)))
        .and_then(|model| model.try_one_token())
        .map(drop)
        .map_err(|failure| {
            let dtype = request.dtype;
            Failure::unsupported(format!("candle cannot compute in {dtype}: {failure}"))
        })
}

fn device(name: &str) -> Result<Device, Failure> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let Some(Ok(ordinal)) = name.strip_prefix("cuda:").map(str::parse) else {
        let message = format!("candle has no device `{name}` (known: cpu, cuda:N)");
        return Err(Failure::unsupported(message));
    };
    Device::new_cuda(ordinal).map_err(|error| {
        Failure::unsupported(format!("candle cannot use `{name}`: {}", words(error)))
            .with_hint("this candle worker computes on `cpu` only")
    })
}

/// Dtypes that the tensors of the checkpoint are stored in.
fn stored_dtypes(weights: &Weights) -> String {
    let dtypes: BTreeSet<&str> = weights
        .names()
        .filter_map(|name| Some(weights.location(name).ok()?.dtype.name()))
        .collect();
    dtypes.into_iter().collect::<Vec<_>>().join(",")
}

/// What decides about bits: versions, what was compiled in, and what candle found on this CPU.
fn properties() -> Properties {
    use candle_core::utils;
    #[cfg(target_arch = "x86_64")]
    let fma = is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let fma = false;
    let flags = [
        ("accelerate", utils::has_accelerate()),
        ("cuda", utils::cuda_is_available()),
        ("mkl", utils::has_mkl()),
        ("cpu_avx2", utils::with_avx()),
        ("cpu_f16c", utils::with_f16c()),
        ("cpu_fma", fma),
        ("cpu_neon", utils::with_neon()),
        ("cpu_simd128", utils::with_simd128()),
    ];
    let texts = [
        ("candle_core", env!("CANDLE_CORE_VERSION")),
        ("candle_nn", env!("CANDLE_NN_VERSION")),
        ("gemm", env!("GEMM_VERSION")),
        ("target", env!("TARGET")),
        ("target_features", env!("TARGET_FEATURES")),
    ];
    flags
        .into_iter()
        .map(|(name, flag)| (name.to_owned(), flag.to_string()))
        .chain(texts.map(|(name, text)| (name.to_owned(), text.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use driftgauge_protocol::{Dtype, FailureKind};

    use super::*;
    use crate::fixture::{Checkpoint, load_request, tiny};

    /// Loads after one change of a request that would succeed.
    fn failure(change: impl FnOnce(&mut LoadRequest)) -> Failure {
        let checkpoint = Checkpoint::random(&tiny(), Dtype::F32);
        let mut request = load_request(&checkpoint, Dtype::F32);
        change(&mut request);
        match Candle.load(&request) {
            Ok((_, loaded)) => panic!("should have failed: {loaded:?}"),
            Err(failure) => failure,
        }
    }

    fn check(change: impl FnOnce(&mut LoadRequest), kind: FailureKind, message: &str) {
        let failure = failure(change);
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(
            failure.message.contains(message),
            "{:?} should contain {message:?}",
            failure.message
        );
    }

    #[test]
    fn what_candle_cannot_do_is_unsupported_in_its_own_words() {
        let kind = FailureKind::Unsupported;
        check(
            |request| request.dtype = Dtype::F64,
            kind,
            "candle cannot compute in f64: unsupported dtype for rmsnorm F64",
        );
        check(
            |request| request.dtype = Dtype::I64,
            kind,
            "candle cannot compute in i64: ",
        );
        check(
            |request| request.device = "cuda:0".to_owned(),
            kind,
            "candle cannot use `cuda:0`: the candle crate has not been built with cuda support",
        );
        check(
            |request| request.device = "cuda".to_owned(),
            kind,
            "candle has no device `cuda` (known: cpu, cuda:N)",
        );
        check(
            |request| request.config.hidden_act = HiddenAct::Silu,
            kind,
            "no activation `silu`",
        );
        check(
            |request| request.options = BTreeMap::from([("opt".to_owned(), "basic".to_owned())]),
            kind,
            "candle has no option `opt` (known: none)",
        );
    }

    #[test]
    fn what_should_have_worked_is_an_error() {
        let kind = FailureKind::Error;
        check(
            |request| request.weights.identity.size += 1,
            kind,
            "changed after it was hashed",
        );
        let name = "bert.encoder.layer.2.output.dense.weight";
        check(
            |request| drop(request.weights.names.remove(name)),
            kind,
            "has no tensor `bert.encoder.layer.2.output.dense.weight`",
        );
        check(
            |request| request.config.vocab_size += 1,
            kind,
            "shape mismatch for bert.embeddings.word_embeddings.weight",
        );
        check(
            |request| request.threads += 1,
            kind,
            "uses 2 threads, asked for 3",
        );
    }

    #[test]
    fn the_versions_are_those_that_are_compiled_in() {
        let hello = Candle.hello().unwrap();
        assert_eq!(
            (hello.backend.as_str(), hello.library.as_str()),
            ("candle", "candle-transformers")
        );
        for version in [&hello.version, &hello.properties["gemm"]] {
            assert_eq!(version.split('.').count(), 3, "{version}");
        }
        assert_eq!(hello.properties["cuda"], "false");
    }
}
