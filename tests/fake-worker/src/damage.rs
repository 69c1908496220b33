//! What the faults do that strike the numbers.

use std::collections::BTreeMap;

use driftgauge_protocol::{Dtype, Failure, Tensor, TensorError, observation};

use crate::fault::Fault;
use crate::truth::tensor;

/// Size of [`Fault::Drift`].
const DRIFT: f64 = 1e-3;
/// Sizes of [`Fault::SlightlyOff`] and [`Fault::Off`]. Rounding to f32 explains 1.3 times 2^-24 at the
/// embeddings.
const SLIGHTLY_OFF: f64 = 0.75 / (1 << 24) as f64;
const OFF: f64 = 2.5 / (1 << 24) as f64;

/// Damages an answer; does nothing where the fault is of another kind.
///
/// # Errors
/// Where there is nothing to damage.
pub fn damage(fault: Fault, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), Failure> {
    let result = match fault {
        Fault::Nan => change(tensors, is_after_first_layer, |old| {
            let nans = vec![f64::NAN; old.to_f64().len()];
            tensor(old.dtype(), old.shape().to_vec(), nans)
        }),
        Fault::WrongShape => change(tensors, is_first_layer, |old| {
            let shape = old.shape().iter().rev().copied().collect();
            Tensor::new(old.dtype(), shape, old.bytes().to_vec())
        }),
        Fault::WrongDtype => change(tensors, is_first_layer, |old| {
            let other = match old.dtype() {
                Dtype::F64 => Dtype::F32,
                _ => Dtype::F64,
            };
            tensor(other, old.shape().to_vec(), old.to_f64())
        }),
        Fault::Drift => change(tensors, |name| name == observation::LOGITS, scaled(DRIFT)),
        Fault::SlightlyOff => change(tensors, is_embeddings, scaled(SLIGHTLY_OFF)),
        Fault::Off | Fault::OffInNewVersion => change(tensors, is_embeddings, scaled(OFF)),
        Fault::SwappedRows => change(tensors, |name| name != observation::LOGITS, swapped),
        Fault::MissingObservation => {
            tensors.remove("hidden.2");
            Ok(())
        }
        Fault::WrongName => {
            let moved = tensors.remove("hidden.2");
            tensors.extend(moved.map(|tensor| ("hidden_2".to_owned(), tensor)));
            Ok(())
        }
        _ => Ok(()),
    };
    result.map_err(|error| Failure::error(error.to_string()))
}

fn change(
    tensors: &mut BTreeMap<String, Tensor>,
    is_meant: fn(&str) -> bool,
    make: impl Fn(&Tensor) -> Result<Tensor, TensorError>,
) -> Result<(), TensorError> {
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| is_meant(name)) {
        *tensor = make(tensor)?;
        eprintln!("fake worker: changed `{name}`");
    }
    Ok(())
}

fn scaled(by: f64) -> impl Fn(&Tensor) -> Result<Tensor, TensorError> {
    move |old| {
        let values = old.to_f64().into_iter().map(|value| value * (1.0 + by));
        tensor(old.dtype(), old.shape().to_vec(), values.collect())
    }
}

fn is_embeddings(name: &str) -> bool {
    name == observation::EMBEDDINGS
}

fn is_first_layer(name: &str) -> bool {
    name == observation::hidden(1)
}

fn is_after_first_layer(name: &str) -> bool {
    name != observation::EMBEDDINGS
}

fn swapped(old: &Tensor) -> Result<Tensor, TensorError> {
    let sequence = old.bytes().len() / old.shape()[0];
    let reversed = old.bytes().chunks(sequence).rev().flatten().copied();
    Tensor::new(old.dtype(), old.shape().to_vec(), reversed.collect())
}
