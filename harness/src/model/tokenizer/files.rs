//! The library's tokenizer, built from the files of a model.

use std::path::Path;

use ahash::AHashMap;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;

use super::{MASK, UNKNOWN};
use crate::model::ModelError;

/// `tokenizer_config.json`, as far as it changes token IDs.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    pub(super) model_max_length: Option<f64>,
}

/// From `tokenizer.json`.
pub(super) fn from_tokenizer_json(
    path: &Path,
    bytes: &[u8],
) -> Result<tokenizers::Tokenizer, ModelError> {
    let error = |problem: String| ModelError::Tokenizer {
        path: path.to_owned(),
        problem,
    };
    let json: Value =
        serde_json::from_slice(bytes).map_err(|cause| error(format!("not valid JSON: {cause}")))?;
    check_template(&json["post_processor"]).map_err(error)?;
    tokenizers::Tokenizer::from_bytes(bytes)
        .map_err(|cause| error(format!("not understood: {cause}")))
}

/// From `vocab.txt`, with the options of `tokenizer_config.json`; adds to `facts` which are in force.
pub(super) fn from_vocabulary(
    path: &Path,
    bytes: &[u8],
    config: &TokenizerConfig,
    facts: &mut Vec<(&'static str, String)>,
) -> Result<tokenizers::Tokenizer, ModelError> {
    let error = |problem: String| ModelError::Tokenizer {
        path: path.to_owned(),
        problem,
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|cause| error(format!("not UTF-8 at byte {}", cause.valid_up_to())))?;
    // Only line feeds end a line: entries hold U+2028 and other separators.
    let lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
    let mut vocabulary = AHashMap::new();
    for (id, line) in (0u32..).zip(lines) {
        let token = line.strip_suffix('\r').unwrap_or(line);
        if let Some(first) = vocabulary.insert(token.to_owned(), id) {
            return Err(error(format!(
                "line {} repeats line {}: `{}`",
                id + 1,
                first + 1,
                token.escape_debug()
            )));
        }
    }
    let id = |token: &str| {
        vocabulary
            .get(token)
            .copied()
            .ok_or_else(|| error(format!("has no {token} token")))
    };
    let (cls, sep) = (id("[CLS]")?, id("[SEP]")?);
    for token in ["[PAD]", UNKNOWN, MASK] {
        id(token)?;
    }
    // transformers' default for a local directory; recorded as a default where nothing is said.
    let lowercase = config.do_lower_case.unwrap_or(true);
    let chinese = config.tokenize_chinese_chars.unwrap_or(true);
    let said = |is_said: bool| {
        if is_said {
            "tokenizer_config.json"
        } else {
            "transformers' default"
        }
    };
    facts.push((
        "lowercase",
        format!("{lowercase} ({})", said(config.do_lower_case.is_some())),
    ));
    let accents = config
        .strip_accents
        .map_or("as lowercase".to_owned(), |strip| strip.to_string());
    facts.push(("strip_accents", accents));
    facts.push(("tokenize_chinese_chars", chinese.to_string()));
    let model = WordPiece::builder()
        .vocab(vocabulary)
        .unk_token(UNKNOWN.to_owned())
        .continuing_subword_prefix("##".to_owned())
        .max_input_chars_per_word(100)
        .build()
        .map_err(|cause| error(cause.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let normalizer = BertNormalizer::new(true, chinese, config.strip_accents, lowercase);
    tokenizer
        .with_normalizer(Some(normalizer))
        .map_err(|cause| error(cause.to_string()))?
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(Some(BertProcessing::new(
            ("[SEP]".to_owned(), sep),
            ("[CLS]".to_owned(), cls),
        )));
    let special = ["[PAD]", UNKNOWN, "[CLS]", "[SEP]", MASK];
    let special = special.map(|token| AddedToken::from(token, true));
    tokenizer
        .add_special_tokens(special)
        .map_err(|cause| error(cause.to_string()))?;
    Ok(tokenizer)
}

/// A token whose ID has no row in the embeddings.
pub(super) fn beyond(
    tokenizer: &tokenizers::Tokenizer,
    vocab_size: usize,
) -> Option<(String, u32)> {
    let all = tokenizer.get_vocab(true).into_iter();
    all.filter(|(_, id)| *id as usize >= vocab_size)
        .max_by_key(|(_, id)| *id)
}

/// Refuses templates on which `tokenizers` would panic later, and those that lose a text.
fn check_template(processor: &Value) -> Result<(), String> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    for inner in list(&processor["processors"]) {
        check_template(&inner)?;
    }
    let single = list(&processor["single"]);
    if single.iter().any(|piece| is_text(piece, "B")) {
        return Err("the template for one text has a place for a second one".to_owned());
    }
    let pair = list(&processor["pair"]);
    for text in ["A", "B"] {
        if !pair.is_empty() && !pair.iter().any(|piece| is_text(piece, text)) {
            return Err(format!(
                "the template for two texts has no place for `{text}`"
            ));
        }
    }
    for piece in single.iter().chain(&pair) {
        if let Some(token) = piece["SpecialToken"]["id"].as_str()
            && processor["special_tokens"].get(token).is_none()
        {
            let token = token.escape_debug();
            return Err(format!(
                "the template adds `{token}` and does not say its ID"
            ));
        }
    }
    Ok(())
}

/// Whether a piece of a template is the place of a text.
fn is_text(piece: &Value, text: &str) -> bool {
    piece["Sequence"]["id"] == text
}
