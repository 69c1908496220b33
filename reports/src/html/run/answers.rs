//! What the targets answer for each mask, beside what the truth answers.

use super::results::by_case;
use crate::phrases::{Phrases, fill};
use crate::record::{Answer, Margin, MaskAnswer, ResultRecord, RunRecord};
use crate::words::{NAME, TEXT, hidden, shown};

/// Tokens for each mask.
const RANKS: usize = 5;
/// Masks of a case, and targets side by side.
const MASKS: usize = 4;
const TARGETS: usize = 12;
/// Cases that are shown at once, and others that are folded.
const OPEN: usize = 3;
const FOLDED: usize = 97;

/// Answers of the cases that have some, the worst first.
pub(crate) struct Answers {
    pub open: Vec<CaseAnswers>,
    pub folded: Vec<CaseAnswers>,
    pub more: String,
    pub hidden: Option<String>,
}

impl Answers {
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// Answers to one case.
pub(crate) struct CaseAnswers {
    pub case: String,
    pub text: String,
    pub targets: Vec<String>,
    pub masks: Vec<Mask>,
    /// What changed places, a sentence each.
    pub margins: Vec<String>,
}

/// Answers for one mask: for each rank the truth's token and those of the targets.
pub(crate) struct Mask {
    pub name: String,
    pub rows: Vec<Vec<Token>>,
}

/// A token that fits.
pub(crate) struct Token {
    pub text: String,
    pub percent: String,
    pub differs: bool,
}

pub(crate) fn of(record: &RunRecord, t: &'static Phrases) -> Answers {
    let cases = by_case(record);
    let cases = cases.into_iter().filter(|results| {
        results
            .iter()
            .any(|one| masks_of(&one.truth_answer).is_some())
    });
    let mut cases: Vec<_> = cases.collect();
    let count = cases.len();
    cases.truncate(OPEN + FOLDED);
    let mut answers = cases.into_iter().map(|results| case(&results, t));
    let open = answers.by_ref().take(OPEN).collect();
    let folded: Vec<_> = answers.collect();
    Answers {
        open,
        more: fill(t.more_answers, &[("n", &folded.len().to_string())]),
        folded,
        hidden: hidden(count.saturating_sub(OPEN + FOLDED), t),
    }
}

fn masks_of(answer: &Option<Answer>) -> Option<&Vec<MaskAnswer>> {
    match answer {
        Some(Answer::FillMask { masks }) => Some(masks),
        _ => None,
    }
}

fn case(results: &[&ResultRecord], t: &'static Phrases) -> CaseAnswers {
    let first = results.first();
    let texts = first.iter().flat_map(|first| &first.texts);
    let texts: Vec<String> = texts.map(|text| shown(text, TEXT, t)).collect();
    let truth = first.and_then(|first| masks_of(&first.truth_answer));
    let results = &results[..results.len().min(TARGETS)];
    let masks = truth.into_iter().flatten().take(MASKS).enumerate();
    let masks = masks.map(|(index, truth)| mask(index, truth, results, t));
    let margins = results.iter().flat_map(|result| {
        let of_result = result.margins.iter();
        of_result.map(|margin| margin_in_words(margin, &result.target, t))
    });
    CaseAnswers {
        case: first.map_or(String::new(), |first| {
            shown(&format!("{}/{}", first.suite, first.case), NAME, t)
        }),
        text: texts.join(" | "),
        targets: results
            .iter()
            .map(|result| shown(&result.target, NAME, t))
            .collect(),
        masks: masks.collect(),
        margins: margins.take(RANKS).collect(),
    }
}

fn mask(index: usize, truth: &MaskAnswer, results: &[&ResultRecord], t: &'static Phrases) -> Mask {
    let answers = results
        .iter()
        .map(|result| masks_of(&result.answer)?.get(index));
    let answers: Vec<Option<&MaskAnswer>> = answers.collect();
    let row = |rank: usize| {
        let right = truth.top.get(rank);
        let own = answers
            .iter()
            .map(|answer| answer.and_then(|answer| answer.top.get(rank)));
        let all = std::iter::once(right).chain(own);
        all.map(|one| match one {
            None => Token {
                text: "–".to_owned(),
                percent: String::new(),
                differs: false,
            },
            Some(one) => Token {
                text: shown(&one.token, NAME / 4, t),
                percent: format!("{:.2} %", 100.0 * one.probability),
                differs: right.is_some_and(|right| right.id != one.id),
            },
        })
        .collect()
    };
    Mask {
        name: fill(t.mask_at, &[("n", &truth.position.to_string())]),
        rows: (0..truth.top.len().min(RANKS)).map(row).collect(),
    }
}

fn margin_in_words(margin: &Margin, target: &str, t: &Phrases) -> String {
    let phrase = if margin.tie { t.tie } else { t.flip };
    let values = [
        ("first", shown(&margin.first, NAME, t)),
        ("second", shown(&margin.second, NAME, t)),
        ("target", shown(target, NAME, t)),
        ("noise", format!("{:.2}", margin.noise)),
    ];
    let values = values
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    fill(phrase, &values)
}
