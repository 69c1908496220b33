//! The claim that this worker runs candle's production path.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertForMaskedLM, BertModel, Config};
use driftgauge_protocol::Stage;

use super::bench::{Bench, bits};
use crate::backend::config_for_candle;

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Each observation has the bits of the stock model, which got the same numbers from candle's own map
/// of tensors.
#[test]
fn every_observation_is_bitwise_that_of_stock_candle() {
    let bench = Bench::tiny();
    let stock = VarBuilder::from_tensors(bench.checkpoint.stock(), DType::F32, &Device::Cpu);
    let config = config_for_candle(&bench.config).unwrap();
    let batch = &bench.batch;
    let tensor = |values: &[i64]| {
        let values: Vec<u32> = values.iter().map(|value| *value as u32).collect();
        Tensor::from_vec(values, (batch.sequences, batch.length), &Device::Cpu).unwrap()
    };
    let ids = tensor(&batch.input_ids);
    let types = tensor(&batch.token_type_ids);
    let mask = tensor(&batch.attention_mask);

    for (layers, stage) in bench.stages()[..=3].iter().enumerate() {
        let shallow = Config {
            num_hidden_layers: layers,
            ..config.clone()
        };
        let expected = BertModel::load(stock.pp("bert"), &shallow)
            .and_then(|stock| stock.forward(&ids, &types, Some(&mask)))
            .unwrap();
        let observed = bench.observed[&stage.observation()].to_f32();
        assert_eq!(bits(&observed), bits(&numbers(&expected)), "{stage}");
    }
    let expected = BertForMaskedLM::load(stock, &config)
        .and_then(|stock| stock.forward(&ids, &types, Some(&mask)))
        .unwrap();
    let logits = &bench.observed[&Stage::Head.observation()];
    assert_eq!(logits.shape(), &[28, bench.config.vocab_size]);
    assert_eq!(bits(&logits.to_f32()), bits(&numbers(&expected)));
    assert!(logits.to_f32().iter().any(|value| *value != 0.0));
}
