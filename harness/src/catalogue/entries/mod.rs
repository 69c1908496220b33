//! The entries, by topic. Evidence was read as of November 2026; where it is empty, none was found.

mod activation;
mod answers;
mod attention;
mod batching;
mod embeddings;
mod normalisation;
mod precision;
mod weights;

use super::Entry;

pub(super) const ALL: &[&[Entry]] = &[
    activation::ENTRIES,
    normalisation::ENTRIES,
    attention::ENTRIES,
    embeddings::ENTRIES,
    weights::ENTRIES,
    precision::ENTRIES,
    batching::ENTRIES,
    answers::ENTRIES,
];
