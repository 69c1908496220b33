//! Hidden states are graph outputs of the production session. That is allowed only because it
//! changes neither what ONNX Runtime makes of the graph nor a bit of what it computes.

mod fixture;

use std::collections::BTreeMap;

use driftgauge_onnx::graph;
use driftgauge_onnx::proto::{ModelProto, NodeProto};
use driftgauge_onnx::runtime::Runtime;
use driftgauge_onnx::session::{self, Level, Optimisation, Settings};
use driftgauge_protocol::{Dtype, HiddenAct, Weights};
use fixture::{Checkpoint, Stored, batch, config, library};
use ort::value::DynValue;
use prost::Message;

/// The graph as ONNX Runtime runs it, and the bits that it computes.
struct Production {
    nodes: Vec<NodeProto>,
    bits: BTreeMap<String, Vec<u8>>,
}

/// Optimises a model, runs it, and returns the optimised nodes with the outputs.
fn run(
    stored: &Stored,
    model: &ModelProto,
    level: Level,
    inputs: Vec<(String, DynValue)>,
) -> (Vec<NodeProto>, BTreeMap<String, DynValue>) {
    let runtime = Runtime::start(&library()).expect("a runtime");
    let optimised = tempfile::NamedTempFile::new().expect("a temporary file");
    let settings = Settings {
        runtime,
        optimisation: Optimisation {
            level,
            ..Optimisation::default()
        },
        threads: 1,
    };
    let options = session::options(&settings)
        .and_then(|options| Ok(options.with_optimized_model_path(optimised.path())?))
        .expect("options");
    let mut session = session::commit(options, model, &stored.weights.path).expect("a session");
    let optimised = std::fs::read(optimised.path()).expect("the optimised model");
    let optimised = ModelProto::decode(&optimised[..]).expect("an ONNX model");
    let values = session.run(inputs).expect("a run");
    let values = values
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    (optimised.graph.expect("a graph").node, values)
}

fn feed() -> Vec<(String, DynValue)> {
    // A tensor is made by the library, so that has to be there first.
    Runtime::start(&library()).expect("a runtime");
    let batch = batch();
    let feed = |name: &str, values: &[i64]| {
        let shape = [batch.sequences, batch.length];
        let tensor = ort::value::Tensor::from_array((shape, values.to_vec())).expect("an input");
        (name.to_owned(), tensor.into_dyn())
    };
    vec![
        feed("input_ids", &batch.input_ids),
        feed("token_type_ids", &batch.token_type_ids),
        feed("attention_mask", &batch.attention_mask),
    ]
}

fn bits(values: &BTreeMap<String, DynValue>, dtype: Dtype) -> BTreeMap<String, Vec<u8>> {
    let bytes = |value: &DynValue| match dtype {
        Dtype::F16 => extract::<half::f16>(value)
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect(),
        _ => extract::<f32>(value)
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect(),
    };
    values
        .iter()
        .map(|(name, value)| (name.clone(), bytes(value)))
        .collect()
}

fn produce(stored: &Stored, dtype: Dtype, level: Level, outputs: &[String]) -> Production {
    let weights = Weights::open(&stored.weights).expect("weights");
    let model = graph::write(stored.source(&weights, dtype), outputs).expect("a graph");
    let (nodes, values) = run(stored, &model, level, feed());
    Production {
        nodes,
        bits: bits(&values, dtype),
    }
}

fn extract<T: ort::value::PrimitiveTensorElementType>(value: &DynValue) -> &[T] {
    value.try_extract_tensor::<T>().expect("a tensor").1
}

#[test]
fn exposing_hidden_states_changes_nothing() {
    let model = Checkpoint::new(config(HiddenAct::Gelu));
    let stored = model.write(Dtype::F32, str::to_owned);
    let last = ["hidden.3".to_owned(), "logits".to_owned()];
    let all = graph::observations(&model.config, true);
    assert_eq!(
        all,
        ["embeddings", "hidden.1", "hidden.2", "hidden.3", "logits"]
    );
    for (dtype, level) in [
        (Dtype::F32, Level::Disable),
        (Dtype::F32, Level::Basic),
        (Dtype::F32, Level::Extended),
        (Dtype::F32, Level::All),
        (Dtype::F16, Level::All),
    ] {
        let few = produce(&stored, dtype, level, &last);
        let many = produce(&stored, dtype, level, &all);
        assert!(few.nodes == many.nodes, "nodes of {dtype} at {level:?}");
        for name in &last {
            assert!(
                few.bits[name] == many.bits[name],
                "{name} of {dtype} at {level:?}"
            );
        }
        assert_eq!((few.bits.len(), many.bits.len()), (2, 5));
    }
}

/// The worker runs the head in a session of its own. That too is allowed only because no bit changes.
#[test]
fn cutting_off_the_head_changes_nothing() {
    let model = Checkpoint::new(config(HiddenAct::Gelu));
    let stored = model.write(Dtype::F32, str::to_owned);
    let weights = Weights::open(&stored.weights).expect("weights");
    let (states, all) = (
        graph::observations(&model.config, false),
        graph::observations(&model.config, true),
    );
    for (dtype, level) in [
        (Dtype::F32, Level::Disable),
        (Dtype::F32, Level::Basic),
        (Dtype::F32, Level::Extended),
        (Dtype::F32, Level::All),
        (Dtype::F16, Level::All),
    ] {
        let whole = produce(&stored, dtype, level, &all);
        let source = stored.source(&weights, dtype);
        let encoder = graph::write(source, &states).expect("a graph");
        let head = graph::write_head(source).expect("a graph");
        let (_, mut values) = run(&stored, &encoder, level, feed());
        let mut cut = bits(&values, dtype);
        let last = values.remove("hidden.3").expect("the last hidden state");
        let (_, scores) = run(&stored, &head, level, vec![("hidden.3".to_owned(), last)]);
        cut.extend(bits(&scores, dtype));
        assert!(cut == whole.bits, "{dtype} at {level:?}");
        assert_eq!(cut.len(), 5);
    }
}

/// The fusions that the declared shapes are there for do happen: both sums of every layer.
#[test]
fn residual_sums_are_fused() {
    let model = Checkpoint::new(config(HiddenAct::Gelu));
    let stored = model.write(Dtype::F32, str::to_owned);
    let last = ["hidden.3".to_owned()];
    let produced = produce(&stored, Dtype::F32, Level::All, &last);
    let count = |operator: &str| {
        let nodes = produced.nodes.iter();
        nodes.filter(|node| node.op_type == operator).count()
    };
    let layers = model.config.num_hidden_layers;
    assert_eq!(count("SkipLayerNormalization"), 2 * layers);
    assert_eq!((count("Gelu"), count("Erf")), (layers, 0));
    assert_eq!((count("FusedMatMul"), count("Div")), (layers, 0));
}
