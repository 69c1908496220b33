//! The written model: its bytes, its constants, and where its weights lie.

mod fixture;

use driftgauge_onnx::graph;
use driftgauge_onnx::proto::{DataLocation, DataType, ModelProto};
use driftgauge_protocol::{Dtype, HiddenAct, Weights};
use fixture::{Checkpoint, Stored, config};
use prost::Message;

fn write(stored: &Stored, dtype: Dtype) -> ModelProto {
    let weights = Weights::open(&stored.weights).expect("weights");
    let outputs = graph::observations(&stored.config, true);
    graph::write(stored.source(&weights, dtype), &outputs).expect("a graph")
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let model = Checkpoint::new(config(HiddenAct::Gelu));
    let stored = model.write(Dtype::F32, str::to_owned);
    let bytes = write(&stored, Dtype::F32).encode_to_vec();
    assert_eq!(bytes, write(&stored, Dtype::F32).encode_to_vec());
    let decoded = ModelProto::decode(&bytes[..]).expect("an ONNX model");
    assert_eq!(
        (decoded.ir_version, decoded.opset_import[0].version),
        (8, 17)
    );
    // A graph of a few hundred small records: no weight is inside.
    assert!(bytes.len() < 40_000, "{} bytes", bytes.len());
}

#[test]
fn weights_are_the_bytes_of_the_file() {
    let model = Checkpoint::new(config(HiddenAct::Gelu));
    let stored = model.write(Dtype::F32, str::to_owned);
    let graph = write(&stored, Dtype::F32).graph.expect("a graph");
    let file = std::fs::read(&stored.weights.path).expect("the file");
    let mut found = 0;
    for tensor in &graph.initializer {
        if tensor.data_location() != DataLocation::External {
            continue;
        }
        let entry = |key: &str| {
            let entries = tensor.external_data.iter();
            let mut values = entries.filter(|entry| entry.key == key);
            values
                .next()
                .map(|entry| entry.value.as_str())
                .expect("an entry")
        };
        let number = |key: &str| entry(key).parse::<usize>().expect("a number");
        let bytes = &file[number("offset")..][..number("length")];
        let values: Vec<f64> = (bytes.as_chunks::<4>().0.iter())
            .map(|bytes| f32::from_le_bytes(*bytes).into())
            .collect();
        assert_eq!(values, model.get(&tensor.name), "{}", tensor.name);
        assert!(!entry("location").contains('/'));
        found += 1;
    }
    // Every tensor once: the tied decoder is the word embeddings.
    assert_eq!(found, model.tensors.len());
}

/// The mask holds the least number of the dtype, and no constant is of another dtype.
#[test]
fn constants_are_in_the_dtype_of_the_graph() {
    let model = Checkpoint::new(config(HiddenAct::GeluTanh));
    let stored = model.write(Dtype::F32, str::to_owned);
    for (dtype, data_type, minimum) in [
        (
            Dtype::F64,
            DataType::Double,
            f64::MIN.to_le_bytes().to_vec(),
        ),
        (Dtype::F32, DataType::Float, f32::MIN.to_le_bytes().to_vec()),
        (Dtype::F16, DataType::Float16, vec![0xff, 0xfb]),
        (Dtype::Bf16, DataType::Bfloat16, vec![0x7f, 0xff]),
    ] {
        let graph = write(&stored, dtype).graph.expect("a graph");
        let constants = graph.initializer.iter();
        let constants: Vec<_> = constants
            .filter(|tensor| tensor.data_location() == DataLocation::Default)
            .filter(|tensor| tensor.data_type() != DataType::Int64)
            .collect();
        assert!(
            constants
                .iter()
                .all(|tensor| tensor.data_type() == data_type)
        );
        let mask = constants
            .iter()
            .find(|tensor| tensor.name == "mask.minimum");
        assert_eq!(
            mask.map(|tensor| &tensor.raw_data),
            Some(&minimum),
            "{dtype}"
        );
    }
}

#[test]
fn weights_of_another_shape_are_refused() {
    let mut stored = Checkpoint::new(config(HiddenAct::Gelu)).write(Dtype::F32, str::to_owned);
    stored.config.intermediate_size = 24;
    let weights = Weights::open(&stored.weights).expect("weights");
    let failure = graph::write(stored.source(&weights, Dtype::F32), &[]);
    assert_eq!(
        failure.map(drop).map_err(|failure| failure.message),
        Err(
            "tensor `bert.encoder.layer.0.intermediate.dense.weight` has shape [20, 12], \
             the configuration makes it [24, 12]"
                .to_owned()
        )
    );
}
