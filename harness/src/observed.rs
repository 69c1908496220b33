//! The observations of a case: which there are, in which order, and the truth of each.

use std::collections::BTreeMap;

use driftgauge_protocol::observation;

use crate::measure::centre_rows;
use crate::oracle::{Element, Matrix, Truth};
use crate::plan::PlannedCase;

/// Name of the observation that is the first row of the last layer, for each text. No target offers
/// it: it is taken from the last hidden state.
pub const CLS: &str = "cls";

/// Sorts names into the order of the computation.
pub fn sort(names: &mut [String]) {
    names.sort_by_key(|name| match name.as_str() {
        observation::EMBEDDINGS => 0,
        CLS => usize::MAX - 1,
        observation::LOGITS => usize::MAX,
        other => observation::hidden_layer(other).unwrap_or(usize::MAX - 2),
    });
}

/// The truth of an observation of a model with `layers` layers, as it is compared: the texts of the
/// case below each other, logits centred row by row. Empty where there is no such observation.
pub fn truth(truths: &[&Truth], name: &str, layers: usize) -> Vec<f64> {
    stacked(truths, name, layers, |value| value)
}

/// The [errors](crate::oracle::Sampled::errors) of one sample, as they are compared with the
/// [`truth`].
pub fn errors(errors: &[&BTreeMap<String, Matrix<f32>>], name: &str, layers: usize) -> Vec<f64> {
    stacked(errors, name, layers, f64::from)
}

fn stacked<T: Element>(
    texts: &[&BTreeMap<String, Matrix<T>>],
    name: &str,
    layers: usize,
    widen: impl Fn(T) -> f64,
) -> Vec<f64> {
    if name == CLS {
        let last = observation::hidden(layers);
        let rows = texts.iter().filter_map(|text| text.get(&last));
        return rows
            .flat_map(|hidden| hidden.row(0))
            .map(|x| widen(*x))
            .collect();
    }
    let parts: Vec<&Matrix<T>> = texts.iter().filter_map(|text| text.get(name)).collect();
    let values = parts.iter().flat_map(|part| part.values());
    let mut values: Vec<f64> = values.map(|x| widen(*x)).collect();
    if name == observation::LOGITS
        && let Some(part) = parts.first()
    {
        centre_rows(&mut values, part.width());
    }
    values
}

/// The first row of each text of a case.
pub fn first_rows(case: &PlannedCase, values: &[f64], width: usize) -> Vec<f64> {
    let lengths = case.encoded.iter().map(|encoded| encoded.ids.len());
    first_rows_of(lengths, values, width)
}

/// The first row of each of some texts of given lengths that stand below each other.
pub fn first_rows_of(
    lengths: impl Iterator<Item = usize>,
    values: &[f64],
    width: usize,
) -> Vec<f64> {
    let mut start = 0;
    let mut rows = Vec::new();
    for length in lengths {
        rows.extend_from_slice(&values[start * width..(start + 1) * width]);
        start += length;
    }
    rows
}
