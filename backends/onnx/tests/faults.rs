//! Faults as a whole: changed weights, where a fault is written, and what is refused.

mod fixture;

use driftgauge_onnx::Onnx;
use driftgauge_onnx::graph::{self, Source};
use driftgauge_onnx::proto::{DataLocation, ModelProto};
use driftgauge_protocol::fault::{
    Activation, Change, Edit, Fault, MaskChange, WeightChange, WeightEdit,
};
use driftgauge_protocol::{
    Backend, Dtype, FailureKind, HiddenAct, LoadRequest, Reply, Stage, Step, Weights,
};
use fixture::faulty::{LEVELS, model, observe, request};
use fixture::{Stored, batch, config, converse, fault, library, load, open, probe, run, under};
use prost::Message;

const QUERY: &str = "bert.encoder.layer.1.attention.self.query.weight";
const WORDS: &str = "bert.embeddings.word_embeddings.weight";
const DECODER: &str = "cls.predictions.decoder.weight";

fn weight(tensor: &str, change: WeightChange) -> Fault {
    let tensor = tensor.to_owned();
    Fault {
        name: "f".to_owned(),
        edits: vec![Edit::Weights(WeightEdit { tensor, change })],
    }
}

/// The bits of a checkpoint that holds the changed numbers, at every level, however the file stores them.
#[test]
fn a_changed_weight_is_another_checkpoint() {
    let mut other = model();
    let (_, values) = other.tensors.get_mut(QUERY).expect("a tensor");
    values.iter_mut().for_each(|value| *value *= 1.25);
    let other = other.write(Dtype::F32, str::to_owned);
    for stored in [Dtype::F32, Dtype::Bf16] {
        let stored = model().write(stored, str::to_owned);
        for level in LEVELS {
            let load = |stored: &Stored| stored.load(Dtype::F32, &[("opt", level)]);
            let changed = under(&load(&stored), weight(QUERY, WeightChange::Scale(1.25)));
            let (found, expected) = (observe(&changed), observe(&load(&other)));
            assert!(found == expected, "{level}");
            let clean = observe(&load(&stored));
            assert!(found["hidden.1"] == clean["hidden.1"], "{level}");
            assert!(found["hidden.2"] != clean["hidden.2"], "{level}");
            let steps = probe(&mut *open(&changed), Stage::Layer(2), &batch(), &clean);
            let expected = probe(&mut *open(&load(&other)), Stage::Layer(2), &batch(), &clean);
            assert!(steps == expected, "{level}");
        }
    }
}

/// Tied tensors are changed one by one, whichever is written first.
#[test]
fn a_tied_tensor_is_changed_alone() {
    for level in LEVELS {
        let (_file, request) = request(level);
        let clean = observe(&request);
        let words = observe(&under(&request, weight(WORDS, WeightChange::NextRow)));
        assert!(words["embeddings"] != clean["embeddings"]);
        let decoder = observe(&under(&request, weight(DECODER, WeightChange::NextRow)));
        assert!(decoder["hidden.3"] == clean["hidden.3"]);
        // Every token's score is what the next one's was; the bias stays.
        let biases = model().get("cls.predictions.decoder.bias").to_vec();
        let (found, clean) = (decoder["logits"].to_f64(), clean["logits"].to_f64());
        for (found, clean) in found.chunks_exact(37).zip(clean.chunks_exact(37)) {
            for token in 0..36 {
                let [found, clean] = [(found, token), (clean, token + 1)]
                    .map(|(row, token)| row[token] - biases[token]);
                assert!((found - clean).abs() < 1e-5, "token {token} at {level}");
            }
        }
    }
}

fn written(fault: Option<&Fault>) -> ModelProto {
    let stored = model().write(Dtype::F32, str::to_owned);
    let weights = Weights::open(&stored.weights)
        .expect("weights")
        .under(fault);
    let source = Source {
        fault,
        ..stored.source(&weights, Dtype::F32)
    };
    let outputs = graph::observations(&stored.config, true);
    let mut model = graph::write(source, &outputs).expect("a graph");
    // The file is another one every time.
    let graph = model.graph.as_mut().expect("a graph");
    let entries = graph
        .initializer
        .iter_mut()
        .flat_map(|tensor| &mut tensor.external_data);
    entries
        .filter(|entry| entry.key == "location")
        .for_each(|entry| entry.value.clear());
    model
}

/// What changes nothing writes nothing.
#[test]
fn a_fault_without_effect_is_the_same_graph() {
    let clean = written(None).encode_to_vec();
    let layer = Stage::Layer(1);
    let nothing = fault(&[
        (layer, Step::Activation, Change::Activate(Activation::Gelu)),
        (layer, Step::Norm, Change::Epsilon(1e-12)),
        (layer, Step::Norm, Change::Round(Dtype::F32)),
        (layer, Step::Query, Change::RoundInput(Dtype::F64)),
    ]);
    assert_eq!(written(Some(&nothing)).encode_to_vec(), clean);
    let something = fault(&[(layer, Step::Norm, Change::Round(Dtype::F16))]);
    assert_ne!(written(Some(&something)).encode_to_vec(), clean);
}

/// Everything before the changed step is written as it was, and of the tensors only the changed one is
/// inside the graph.
#[test]
fn a_fault_is_written_only_where_it_is() {
    let nodes = |model: ModelProto| model.graph.expect("a graph").node;
    let clean = nodes(written(None));
    for (step, change, count) in [
        (Step::Key, Change::Round(Dtype::F16), 2),
        (Step::Sum, Change::DropResidual, -1),
        (Step::Scores, Change::Mask(MaskChange::Shorter), 4),
        (Step::Scores, Change::Mask(MaskChange::AfterSoftmax), 2),
        (Step::Intermediate, Change::Flush(1e-3), 3),
        (
            Step::Output,
            Change::Accumulate {
                to: Dtype::F16,
                every: 10,
            },
            2 * 5 + 3 + 1 - 1,
        ),
    ] {
        let faulty = nodes(written(Some(&fault(&[(Stage::Layer(2), step, change)]))));
        let added = faulty.len() as i64 - clean.len() as i64;
        assert_eq!(added, count, "{change:?}");
        let same = clean
            .iter()
            .zip(&faulty)
            .take_while(|(clean, faulty)| clean == faulty);
        let last = clean.iter().position(|node| node.output[0] == "hidden.1");
        assert!(Some(same.count()) > last, "{change:?}");
    }
    let graph = written(Some(&weight(QUERY, WeightChange::Fill(0.5))))
        .graph
        .expect("a graph");
    let inline = graph
        .initializer
        .iter()
        .filter(|tensor| tensor.data_location() == DataLocation::Default && tensor.dims.len() > 1);
    let inline: Vec<_> = inline.collect();
    assert_eq!(inline.len(), 1);
    assert_eq!(inline[0].name, QUERY);
    assert_eq!(inline[0].raw_data, 0.5f32.to_le_bytes().repeat(144));
}

/// In other dtypes than `f32` everything loads that loads without a fault.
#[test]
fn every_change_runs_in_every_dtype() {
    use driftgauge_protocol::fault::Special;
    let relu = fixture::Checkpoint::new(config(HiddenAct::Relu)).write(Dtype::F32, str::to_owned);
    let layer = Stage::Layer(2);
    let changes = [
        (Step::Activation, Change::Activate(Activation::GeluQuick)),
        (Step::Norm, Change::Epsilon(0.1)),
        (Step::Sum, Change::DropResidual),
        (Step::Scores, Change::Mask(MaskChange::Fill(-3.0))),
        (Step::Scores, Change::Mask(MaskChange::AfterSoftmax)),
        (Step::Probabilities, Change::SoftmaxOverQueries),
        (Step::Output, Change::RoundInput(Dtype::Bf16)),
        (Step::Output, Change::Round(Dtype::Bf16)),
        (
            Step::Output,
            Change::Accumulate {
                to: Dtype::Bf16,
                every: 7,
            },
        ),
        (
            Step::Output,
            Change::Beyond {
                limit: 0.5,
                becomes: Special::Infinity,
            },
        ),
        (Step::Output, Change::Flush(0.5)),
        (Step::Output, Change::Noise(0.1)),
    ];
    for dtype in [Dtype::F64, Dtype::F32, Dtype::F16] {
        let request = relu.load(dtype, &[("opt", "basic")]);
        let clean = observe(&request);
        for (step, change) in changes {
            let faulty = under(&request, fault(&[(layer, step, change)]));
            let found = observe(&faulty);
            assert!(
                found["hidden.1"] == clean["hidden.1"],
                "{change:?} in {dtype}"
            );
            assert!(
                found["hidden.2"] != clean["hidden.2"],
                "{change:?} in {dtype}"
            );
            let steps = probe(&mut *open(&faulty), layer, &batch(), &clean);
            assert!(steps.values().all(|tensor| tensor.dtype() == dtype));
        }
        let changed = observe(&under(&request, weight(QUERY, WeightChange::Scale(2.0))));
        assert!(changed["hidden.2"] != clean["hidden.2"], "{dtype}");
    }
}

/// Through the serve loop, which changes what is fed and answered.
#[test]
fn a_worker_in_a_self_test_takes_a_fault() {
    let (_file, request) = request("all");
    assert!(Onnx::with_library(library()).has_faults());
    let changed = fault(&[(Stage::Layer(3), Step::Norm, Change::Round(Dtype::Bf16))]);
    let replies = converse(&[load(under(&request, changed)), run(&batch(), &["hidden.3"])]);
    let Reply::Loaded(loaded) = &replies[1].0 else {
        panic!("the model did not load: {:?}", replies[1].0);
    };
    assert_eq!(loaded.properties["external_data"], "59 tensors");
    let numbers = replies[2].1["hidden.3"].to_f32().into_iter();
    let mut low = numbers.map(|number| number.to_bits() & 0xffff);
    assert!(low.all(|bits| bits == 0));
}

#[test]
fn what_fits_nowhere_is_refused() {
    let (_file, request) = request("all");
    let headless = LoadRequest {
        mlm_head: false,
        ..request.clone()
    };
    let drop = Change::DropResidual;
    let accumulate = Change::Accumulate {
        to: Dtype::F16,
        every: 0,
    };
    for (request, fault, expected) in [
        (
            &request,
            fault(&[(Stage::Layer(4), Step::Sum, drop)]),
            "fault `f`: the model has no `layer.4`",
        ),
        (
            &headless,
            fault(&[(Stage::Head, Step::Logits, Change::Flush(1.0))]),
            "fault `f`: the model has no `head`",
        ),
        (
            &request,
            fault(&[(Stage::Layer(1), Step::Query, accumulate)]),
            "fault `f`: a partial sum has at least one input",
        ),
        (
            &request,
            weight("bert.pooler.dense.weight", WeightChange::Transpose),
            "has no tensor `bert.pooler.dense.weight`",
        ),
        (
            &request,
            weight(WORDS, WeightChange::Transpose),
            "tensor `bert.embeddings.word_embeddings.weight`: shape [37, 12] is not square",
        ),
    ] {
        let result = Onnx::with_library(library()).load(&under(request, fault));
        let failure = result.map(|_| ()).expect_err(expected);
        assert_eq!(failure.kind, FailureKind::Error);
        assert!(failure.message.ends_with(expected), "{failure}");
    }
}

/// However many changes there are in one graph, no two values have the same name.
#[test]
fn names_are_unique() {
    use driftgauge_protocol::fault::Special;
    let of_a_step = |stage: Stage, step: Step| {
        let changes = [
            Change::Activate(Activation::GeluTanh),
            Change::DropResidual,
            Change::Mask(MaskChange::Fill(-1.0)),
            Change::RoundInput(Dtype::F16),
            Change::RoundInput(Dtype::Bf16),
            Change::Accumulate {
                to: Dtype::F16,
                every: 5,
            },
            Change::Round(Dtype::F16),
            Change::Round(Dtype::Bf16),
            Change::Beyond {
                limit: 1.0,
                becomes: Special::Nan,
            },
            Change::Beyond {
                limit: 2.0,
                becomes: Special::Nan,
            },
            Change::Flush(0.1),
            Change::Flush(0.2),
            Change::Noise(0.1),
            Change::Noise(0.2),
        ];
        let fitting = changes
            .into_iter()
            .filter(move |change| change.fits(stage, step));
        fitting.map(move |change| (stage, step, change))
    };
    let places = Stage::all(3, true).into_iter();
    let places = places.flat_map(|stage| stage.steps().iter().map(move |step| (stage, *step)));
    let edits: Vec<_> = places
        .flat_map(|(stage, step)| of_a_step(stage, step))
        .collect();
    let graph = written(Some(&fault(&edits))).graph.expect("a graph");
    let outputs = graph.node.iter().flat_map(|node| &node.output);
    let constants = graph.initializer.iter().map(|tensor| &tensor.name);
    let inputs = graph.input.iter().map(|input| &input.name);
    let mut names: Vec<&String> = outputs.chain(constants).chain(inputs).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    let (_file, request) = request("all");
    observe(&under(&request, fault(&edits)));
}
