//! A model of one's own: exports as they are found, and files that are none.

mod fixture;

use std::path::{Path, PathBuf};

use driftgauge_onnx::Onnx;
use driftgauge_onnx::graph;
use driftgauge_onnx::proto::{
    AttributeProto, DataLocation, DataType, ModelProto, NodeProto, TensorProto,
};
use driftgauge_protocol::fault::Change;
use driftgauge_protocol::{
    Backend, Dtype, Failure, FailureKind, LoadRequest, Loaded, Stage, Step, Tensor, Weights,
};
use fixture::faulty::{model, observe};
use fixture::{Stored, batch, converse, fault, library, load, loaded, open, run, under, unpadded};
use prost::Message;
use tempfile::TempDir;

/// A folder with a checkpoint, and exports of it.
struct Bench {
    stored: Stored,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            stored: model().write(Dtype::F32, str::to_owned),
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// Our own graph with its weights inside, as `last_hidden_state` and `logits`.
    fn export(&self, dtype: Dtype) -> ModelProto {
        let weights = Weights::open(&self.stored.weights).expect("weights");
        let outputs = ["hidden.3", "logits"].map(str::to_owned);
        let source = self.stored.source(&weights, dtype);
        let mut model = graph::write(source, &outputs).expect("a graph");
        let file = std::fs::read(&self.stored.weights.path).expect("the file");
        for tensor in &mut model.graph.as_mut().expect("a graph").initializer {
            let entries = tensor.external_data.drain(..);
            let numbers: Vec<usize> = entries
                .filter_map(|entry| entry.value.parse().ok())
                .collect();
            if let [offset, length] = numbers[..] {
                tensor.raw_data = file[offset..offset + length].to_vec();
                tensor.data_location = DataLocation::Default.into();
            }
        }
        rename(&mut model, "hidden.3", "last_hidden_state");
        model
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    }

    fn request(&self, path: &Path, options: &[(&str, &str)]) -> LoadRequest {
        let path = path.to_str().expect("a name");
        self.stored
            .load(Dtype::F32, &[&[("model", path)], options].concat())
    }

    fn write_model(&self, model: &ModelProto) -> PathBuf {
        self.write("model.onnx", &model.encode_to_vec())
    }
}

/// A value under another name, everywhere.
fn rename(model: &mut ModelProto, from: &str, to: &str) {
    let graph = model.graph.as_mut().expect("a graph");
    let nodes = graph.node.iter_mut();
    let values = nodes.flat_map(|node| node.input.iter_mut().chain(&mut node.output));
    let border = graph.input.iter_mut().chain(&mut graph.output);
    let names = values.chain(border.map(|value| &mut value.name));
    names
        .filter(|name| *name == from)
        .for_each(|name| *name = to.to_owned());
}

/// The dtype of an input or output.
fn retype(model: &mut ModelProto, name: &str, to: DataType) {
    let graph = model.graph.as_mut().expect("a graph");
    let values = graph.input.iter_mut().chain(&mut graph.output);
    for value in values.filter(|value| value.name == name) {
        let tensor = value
            .r#type
            .as_mut()
            .and_then(|kind| kind.tensor_type.as_mut());
        tensor.expect("a tensor").elem_type = to.into();
    }
}

/// Puts a node that makes one value of another before all others.
fn first(model: &mut ModelProto, operator: &str, input: &str, output: &str, to: Option<DataType>) {
    let attribute = to.map(|to| AttributeProto::int("to", i32::from(to).into()));
    let node = NodeProto {
        input: vec![input.to_owned()],
        output: vec![output.to_owned()],
        name: output.to_owned(),
        op_type: operator.to_owned(),
        attribute: attribute.into_iter().collect(),
        domain: String::new(),
    };
    model.graph.as_mut().expect("a graph").node.insert(0, node);
}

fn try_load(request: &LoadRequest) -> Result<Loaded, Failure> {
    let result = Onnx::with_library(library()).load(request);
    result.map(|(_, loaded)| loaded)
}

fn refused(request: &LoadRequest) -> Failure {
    try_load(request).expect_err("this should have been refused")
}

/// What a model computes, and what our own graph does at the same level.
fn check_bits(bench: &Bench, path: &Path, expected: &[&str]) {
    for level in ["disable", "basic", "extended", "all"] {
        let request = bench.request(path, &[("opt", level)]);
        let ours = observe(&bench.stored.load(Dtype::F32, &[("opt", level)]));
        let replies = converse(&[load(request), run(&batch(), expected)]);
        assert_eq!(loaded(&replies[1].0).observations, expected, "{level}");
        for name in expected {
            assert!(replies[2].1[*name] == ours[*name], "{name} at {level}");
        }
    }
}

#[test]
fn an_export_computes_what_is_in_it() {
    let bench = Bench::new();
    let path = bench.write_model(&bench.export(Dtype::F32));
    check_bits(&bench, &path, &["hidden.3", "logits"]);
    // Another checkpoint in the file than in the request is what is run.
    let mut other = bench.export(Dtype::F32);
    for tensor in &mut other.graph.as_mut().expect("a graph").initializer {
        if tensor.name == "cls.predictions.decoder.bias" {
            tensor.raw_data.fill(0);
        }
    }
    let request = bench.request(&bench.write_model(&other), &[]);
    let replies = converse(&[load(request), run(&batch(), &["hidden.3", "logits"])]);
    let ours = observe(&bench.stored.load(Dtype::F32, &[]));
    assert!(replies[2].1["hidden.3"] == ours["hidden.3"]);
    assert!(replies[2].1["logits"] != ours["logits"]);
}

#[test]
fn a_load_says_which_file_it_is() {
    let bench = Bench::new();
    let export = bench.export(Dtype::F32);
    let path = bench.write_model(&export);
    let properties = try_load(&bench.request(&path, &[("opt", "basic")]))
        .expect("a load")
        .properties;
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(
        export.encode_to_vec(),
    ));
    for (name, value) in [
        ("model_file", "model.onnx"),
        ("model_sha256", digest.as_str()),
        ("external_data", ""),
        ("ir_version", "8"),
        ("opset", "17"),
        ("optimization_level", "basic"),
        ("model_outputs_ignored", "none"),
        (
            "model_inputs",
            "`input_ids` (i64 [?, ?]), `token_type_ids` (i64 [?, ?]), `attention_mask` (i64 [?, ?])",
        ),
    ] {
        assert_eq!(properties[name], value, "{name}");
    }
    let optimisers: Vec<&str> = properties["optimisers"].split(',').collect();
    assert!(optimisers.contains(&"ConstantFolding") && optimisers.contains(&"MatMulAddFusion"));
    assert!(!optimisers.contains(&"GeluFusionL2"));
}

#[test]
fn inputs_are_taken_as_they_are_found() {
    let bench = Bench::new();
    // In another order, and two of them in i32.
    let mut export = bench.export(Dtype::F32);
    export.graph.as_mut().expect("a graph").input.reverse();
    for name in ["attention_mask", "input_ids"] {
        let inside = format!("{name}.wide");
        rename(&mut export, name, &inside);
        rename_input(&mut export, &inside, name);
        retype(&mut export, name, DataType::Int32);
        first(&mut export, "Cast", name, &inside, Some(DataType::Int64));
    }
    check_bits(&bench, &bench.write_model(&export), &["hidden.3", "logits"]);

    // Without segments: right where there is only the first, and refused where there are two.
    let mut export = bench.export(Dtype::F32);
    let graph = export.graph.as_mut().expect("a graph");
    graph.input.retain(|input| input.name != "token_type_ids");
    graph.initializer.push(TensorProto {
        dims: vec![1],
        data_type: DataType::Int64.into(),
        name: "no.segments".to_owned(),
        raw_data: vec![0; 8],
        ..TensorProto::default()
    });
    let node = NodeProto {
        input: ["no.segments", "shape"].map(str::to_owned).to_vec(),
        output: vec!["token_type_ids".to_owned()],
        name: "token_type_ids".to_owned(),
        op_type: "Expand".to_owned(),
        ..NodeProto::default()
    };
    let shape = graph
        .node
        .iter()
        .position(|node| node.name == "shape")
        .expect("the shape");
    graph.node.insert(shape + 1, node);
    let plain = [("opt", "disable")];
    let request = bench.request(&bench.write_model(&export), &plain);
    let wanted = ["hidden.3", "logits"];
    let replies = converse(&[
        load(request),
        run(&unpadded(), &wanted),
        run(&batch(), &wanted),
    ]);
    let ours = fixture::observe(bench.stored.load(Dtype::F32, &plain), &unpadded());
    for name in wanted {
        assert!(replies[2].1[name] == ours[name], "{name}");
    }
    let driftgauge_protocol::Reply::Failed(failure) = &replies[3].0 else {
        panic!("there are second segments: {:?}", replies[3].0);
    };
    assert_eq!(
        (failure.kind, failure.message.as_str()),
        (
            FailureKind::Unsupported,
            "the model has no input `token_type_ids`, and the batch has second segments"
        )
    );
}

/// The input alone under another name.
fn rename_input(model: &mut ModelProto, from: &str, to: &str) {
    let inputs = model.graph.as_mut().expect("a graph").input.iter_mut();
    inputs
        .filter(|input| input.name == from)
        .for_each(|input| input.name = to.to_owned());
}

#[test]
fn outputs_are_taken_as_they_are_found() {
    let bench = Bench::new();
    let mut renamed = bench.export(Dtype::F32);
    rename(&mut renamed, "last_hidden_state", "output_0");
    rename(&mut renamed, "logits", "output_1");
    renamed.graph.as_mut().expect("a graph").output.reverse();
    check_bits(
        &bench,
        &bench.write_model(&renamed),
        &["hidden.3", "logits"],
    );

    let mut encoder = bench.export(Dtype::F32);
    encoder.graph.as_mut().expect("a graph").output.truncate(1);
    check_bits(&bench, &bench.write_model(&encoder), &["hidden.3"]);

    // A checkpoint without a head in the request has no logits to compare.
    let path = bench.write_model(&bench.export(Dtype::F32));
    let headless = LoadRequest {
        mlm_head: false,
        ..bench.request(&path, &[])
    };
    let loaded = try_load(&headless).expect("a load");
    assert_eq!(loaded.observations, ["hidden.3"]);
    let ignored = &loaded.properties["model_outputs_ignored"];
    assert_eq!(ignored, "`logits` (f32 [?, ?, 37])");
}

#[test]
fn a_dtype_is_that_of_the_outputs() {
    let bench = Bench::new();
    let f16 = bench.write("f16.onnx", &bench.export(Dtype::F16).encode_to_vec());
    let f32 = bench.write("f32.onnx", &bench.export(Dtype::F32).encode_to_vec());
    let as_dtype = |path: &Path, dtype| LoadRequest {
        dtype,
        ..bench.request(path, &[])
    };
    assert_eq!(
        try_load(&as_dtype(&f16, Dtype::F16)).expect("a load").dtype,
        Dtype::F16
    );
    let observed = run_open(&as_dtype(&f16, Dtype::F16));
    assert!(observed.iter().all(|tensor| tensor.dtype() == Dtype::F16));
    for (path, dtype, expected) in [
        (
            &f32,
            Dtype::F16,
            "the model computes `last_hidden_state` (f32 [?, ?, 12]), and f16 was asked for",
        ),
        (
            &f16,
            Dtype::F32,
            "the model computes `last_hidden_state` (f16 [?, ?, 12]), and f32 was asked for",
        ),
        (
            &f32,
            Dtype::F64,
            "has no f64 twin: its file says what it computes in",
        ),
    ] {
        let failure = refused(&as_dtype(path, dtype));
        assert_eq!(failure.kind, FailureKind::Unsupported);
        assert!(failure.message.ends_with(expected), "{failure}");
    }
}

fn run_open(request: &LoadRequest) -> Vec<Tensor> {
    let wanted = ["hidden.3", "logits"].map(str::to_owned);
    let observed = open(request).run(&batch(), &wanted).expect("a run");
    observed.into_values().collect()
}

/// Weights in a file beside the model: hashed, and not run once they changed.
#[test]
fn weights_may_lie_beside_the_model() {
    let bench = Bench::new();
    let mut export = bench.export(Dtype::F32);
    let mut beside = Vec::new();
    for tensor in &mut export.graph.as_mut().expect("a graph").initializer {
        if tensor.raw_data.len() < 64 {
            continue;
        }
        let (offset, bytes) = (beside.len(), std::mem::take(&mut tensor.raw_data));
        beside.extend_from_slice(&bytes);
        let entries = [
            ("location", "weights.bin".to_owned()),
            ("offset", offset.to_string()),
            ("length", bytes.len().to_string()),
        ];
        let entries = entries.map(
            |(key, value)| driftgauge_onnx::proto::StringStringEntryProto {
                key: key.to_owned(),
                value,
            },
        );
        tensor.external_data = entries.to_vec();
        tensor.data_location = DataLocation::External.into();
    }
    let path = bench.write_model(&export);
    let failure = refused(&bench.request(&path, &[]));
    assert!(
        failure
            .message
            .contains("weights.bin`, which holds weights of `"),
        "{failure}"
    );

    let weights = bench.write("weights.bin", &beside);
    check_bits(&bench, &path, &["hidden.3", "logits"]);
    let loaded = try_load(&bench.request(&path, &[])).expect("a load");
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&beside));
    assert_eq!(
        loaded.properties["external_data"],
        format!("weights.bin {digest}")
    );

    let mut opened = open(&bench.request(&path, &[]));
    let wanted = ["hidden.3".to_owned()];
    assert!(opened.run(&batch(), &wanted).is_ok());
    beside.push(0);
    std::fs::write(weights, &beside).expect("written");
    let failure = opened
        .run(&batch(), &wanted)
        .expect_err("the file has changed");
    assert!(
        failure
            .message
            .ends_with("weights.bin` changed after it was loaded"),
        "{failure}"
    );
}

#[test]
fn files_that_are_no_model_are_errors() {
    let bench = Bench::new();
    let truncated = bench.export(Dtype::F32).encode_to_vec();
    let mut unknown = bench.export(Dtype::F32);
    first(&mut unknown, "Unheard", "input_ids", "unheard", None);
    for (path, expected) in [
        (
            bench.folder.path().join("none.onnx"),
            "No such file or directory",
        ),
        (bench.folder.path().to_owned(), "Is a directory"),
        (bench.write("empty.onnx", b""), "is not an ONNX model"),
        (
            bench.write("text.onnx", b"not a model\n"),
            "is not an ONNX model",
        ),
        (
            bench.write("cut.onnx", &truncated[..truncated.len() / 2]),
            "is not an ONNX model",
        ),
        (
            bench.write("unknown.onnx", &unknown.encode_to_vec()),
            "cannot be loaded: ",
        ),
    ] {
        let failure = refused(&bench.request(&path, &[]));
        assert_eq!(failure.kind, FailureKind::Error, "{failure}");
        assert!(failure.message.contains(expected), "{failure}");
        assert!(
            failure.message.contains(&path.display().to_string()),
            "{failure}"
        );
    }
}

/// What an output declares need not be what comes out.
#[test]
fn an_output_of_another_shape_is_an_error() {
    let bench = Bench::new();
    let mut export = bench.export(Dtype::F32);
    // The other way round: rows of the vocabulary under the name of the hidden state.
    rename(&mut export, "logits", "x");
    rename(&mut export, "last_hidden_state", "logits");
    rename(&mut export, "x", "last_hidden_state");
    for output in &mut export.graph.as_mut().expect("a graph").output {
        let tensor = output
            .r#type
            .as_mut()
            .and_then(|kind| kind.tensor_type.as_mut());
        tensor.expect("a tensor").shape = None;
    }
    let failure = refused(&bench.request(&bench.write_model(&export), &[]));
    assert_eq!(failure.kind, FailureKind::Error);
    let expected = "cannot run one token: output `last_hidden_state` has the shape [1, 1, 37], \
                    expected [1, 1, 12]";
    assert!(failure.message.ends_with(expected), "{failure}");
}

#[test]
fn faults_and_probes_are_unsupported() {
    let bench = Bench::new();
    let path = bench.write_model(&bench.export(Dtype::F32));
    let request = bench.request(&path, &[]);
    let changed = fault(&[(Stage::Layer(1), Step::Norm, Change::Flush(1.0))]);
    let probed = open(&request).probe(Stage::Embeddings, &batch(), None);
    for failure in [
        refused(&under(&request, changed)),
        probed.map(drop).expect_err("there are no steps"),
    ] {
        assert_eq!(failure.kind, FailureKind::Unsupported);
        assert!(
            failure.message.contains("a model of one's own"),
            "{failure}"
        );
    }
}
