//! How similar texts are, as a matrix and as a list.

use std::collections::BTreeMap;

use super::results::by_case;
use crate::phrases::{Phrases, fill};
use crate::record::{Answer, ResultRecord, RunRecord};
use crate::words::{NAME, TEXT, hidden, shown};

/// Texts of the matrix.
const MATRIX: usize = 12;
/// Pairs of the list.
const LIST: usize = 100;
/// Steps of the colour scale.
const STEPS: f64 = 8.0;

/// Similarities of a run.
pub(crate) struct Similarity {
    pub matrix: Option<Matrix>,
    pub count: String,
    pub targets: Vec<String>,
    pub pairs: Vec<PairRow>,
    pub hidden: Option<String>,
}

/// Texts against texts, in the truth.
pub(crate) struct Matrix {
    pub texts: Vec<String>,
    pub rows: Vec<Vec<MatrixCell>>,
}

/// A cosine, or nothing.
pub(crate) struct MatrixCell {
    pub class: String,
    pub text: String,
}

/// Two texts on all targets.
pub(crate) struct PairRow {
    pub texts: [String; 2],
    pub truth: String,
    pub targets: Vec<String>,
}

/// Two texts and the truth's cosine, with the results of the case.
struct Known<'a> {
    texts: [&'a str; 2],
    cosine: f64,
    results: Vec<&'a ResultRecord>,
}

pub(crate) fn of(record: &RunRecord, t: &'static Phrases) -> Option<Similarity> {
    let known: Vec<Known<'_>> = by_case(record).into_iter().filter_map(known).collect();
    if known.is_empty() {
        return None;
    }
    let row = |pair: &Known<'_>| PairRow {
        texts: pair.texts.map(|text| shown(text, TEXT / 3, t)),
        truth: format!("{:.6}", pair.cosine),
        targets: pair
            .results
            .iter()
            .map(|result| difference(pair, result))
            .collect(),
    };
    Some(Similarity {
        matrix: matrix(&known, t),
        count: fill(t.similarity_list, &[("n", &known.len().to_string())]),
        targets: record
            .targets
            .iter()
            .map(|target| shown(&target.target, NAME, t))
            .collect(),
        pairs: known.iter().take(LIST).map(row).collect(),
        hidden: hidden(known.len().saturating_sub(LIST), t),
    })
}

fn known(results: Vec<&ResultRecord>) -> Option<Known<'_>> {
    let first = results.first()?;
    let Some(Answer::Similarity { cosine }) = first.truth_answer else {
        return None;
    };
    let [one, other] = &first.texts[..] else {
        return None;
    };
    Some(Known {
        texts: [one, other],
        cosine,
        results,
    })
}

/// The cosine of a target as its difference from the truth's.
fn difference(pair: &Known<'_>, result: &ResultRecord) -> String {
    match result.answer {
        Some(Answer::Similarity { cosine }) => format!("{:+.1e}", cosine - pair.cosine),
        _ => "–".to_owned(),
    }
}

/// The texts that most others are compared with; nothing where there are no such texts.
fn matrix(known: &[Known<'_>], t: &Phrases) -> Option<Matrix> {
    let mut partners: BTreeMap<&str, usize> = BTreeMap::new();
    let mut cosines: BTreeMap<[&str; 2], f64> = BTreeMap::new();
    for pair in known {
        let [one, other] = pair.texts;
        cosines.insert([one, other], pair.cosine);
        cosines.insert([other, one], pair.cosine);
        *partners.entry(one).or_insert(0) += 1;
        *partners.entry(other).or_insert(0) += 1;
    }
    let mut texts: Vec<&str> = partners
        .keys()
        .copied()
        .filter(|text| partners[text] > 1)
        .collect();
    texts.sort_by_key(|text| std::cmp::Reverse(partners[text]));
    texts.truncate(MATRIX);
    if texts.len() < 3 {
        return None;
    }
    let cell = |one: &str, other: &str| match cosines.get(&[one, other]) {
        None => MatrixCell {
            class: "empty".to_owned(),
            text: if one == other { "1" } else { "" }.to_owned(),
        },
        Some(cosine) => MatrixCell {
            class: format!("s{:.0}", (cosine.clamp(0.0, 1.0) * STEPS).round()),
            text: format!("{cosine:.3}"),
        },
    };
    let row = |one: &&str| texts.iter().map(|other| cell(one, other)).collect();
    Some(Matrix {
        rows: texts.iter().map(row).collect(),
        texts: texts.iter().map(|text| shown(text, TEXT / 10, t)).collect(),
    })
}
