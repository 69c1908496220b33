//! The reference tokenizer: turns text into the token IDs that every target is fed.
//!
//! It is Hugging Face's `tokenizers`, built from `tokenizer.json` where there is one and otherwise
//! from `vocab.txt` and `tokenizer_config.json`. Truncation and special tokens are set here, never
//! left to a library's default.

use std::path::Path;

use ahash::AHashMap;
use driftgauge_protocol::BertConfig;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, NormalizedString, Normalizer, TruncationDirection};

use super::ModelError;
use super::manifest::TokenizerFacts;

/// The text of the mask token in cases.
pub const MASK: &str = "[MASK]";
/// The text of the token for what is not in the vocabulary.
pub const UNKNOWN: &str = "[UNK]";

/// A tokenizer and the facts about it that a record keeps.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    mask_id: u32,
    /// Longest sequence in tokens, special tokens included.
    pub max_length: usize,
    /// Options in force and where each comes from.
    pub facts: Vec<(&'static str, String)>,
}

/// Token IDs of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token IDs, `[CLS]` and `[SEP]` included.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub type_ids: Vec<u32>,
    /// Text of each token.
    pub tokens: Vec<String>,
    /// Positions of `[MASK]`.
    pub masks: Vec<usize>,
    /// Number of tokens before truncation.
    pub untruncated: usize,
}

/// `tokenizer_config.json`, as far as it changes token IDs.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    model_max_length: Option<f64>,
}

/// The files that a tokenizer is made of: path and bytes.
#[derive(Debug, Default, Clone, Copy)]
pub struct TokenizerFiles<'a> {
    /// `vocab.txt`.
    pub vocabulary: Option<(&'a Path, &'a [u8])>,
    /// `tokenizer_config.json`.
    pub config: Option<(&'a Path, &'a [u8])>,
    /// `tokenizer.json`.
    pub tokenizer: Option<(&'a Path, &'a [u8])>,
}

impl Tokenizer {
    /// Builds the tokenizer of a model with a certain architecture.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] that names the file and what is wrong with it.
    pub fn new(files: TokenizerFiles<'_>, architecture: &BertConfig) -> Result<Self, ModelError> {
        let config = match files.config {
            None => TokenizerConfig::default(),
            Some((path, bytes)) => {
                serde_json::from_slice(bytes).map_err(|cause| ModelError::Tokenizer {
                    path: path.to_owned(),
                    problem: format!("not understood: {cause}"),
                })?
            }
        };
        let mut facts = Vec::new();
        let (path, mut inner) = match (files.tokenizer, files.vocabulary) {
            (Some((path, bytes)), _) => {
                facts.push(("source", "tokenizer.json".to_owned()));
                (path, from_tokenizer_json(path, bytes)?)
            }
            (None, Some((path, bytes))) => {
                facts.push(("source", "vocab.txt".to_owned()));
                (path, from_vocabulary(path, bytes, &config, &mut facts)?)
            }
            (None, None) => unreachable!("the caller has looked for both files"),
        };
        let error = |problem: String| ModelError::Tokenizer {
            path: path.to_owned(),
            problem,
        };
        let vocab_size = architecture.vocab_size;
        let entries = inner.get_vocab_size(true);
        if entries != vocab_size {
            let relation = if entries < vocab_size { "only " } else { "" };
            return Err(error(format!(
                "has {relation}{entries} entries, config.json says `vocab_size` {vocab_size}"
            )));
        }
        if let Some((token, id)) = beyond(&inner, vocab_size) {
            return Err(error(format!(
                "gives `{}` the ID {id}, config.json says `vocab_size` {vocab_size}",
                token.escape_debug()
            )));
        }
        let mask_id = inner
            .token_to_id(MASK)
            .ok_or_else(|| error(format!("has no {MASK} token")))?;
        // Libraries write "no limit" as a huge float; the embeddings are the real limit.
        let stated = config.model_max_length.filter(|length| *length >= 2.0);
        let positions = architecture.max_position_embeddings;
        let max_length = stated.map_or(positions, |length| positions.min(length as usize));
        facts.push(("max_length", max_length.to_string()));
        // Truncation is ours, so that the number of tokens before it is known.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|cause| error(format!("truncation cannot be set: {cause}")))?;
        let tokenizer = Self {
            inner,
            mask_id,
            max_length,
            facts,
        };
        tokenizer
            .check_special_tokens(architecture)
            .map_err(error)?;
        Ok(tokenizer)
    }

    /// Whether the model has room for what is added to every text.
    fn check_special_tokens(&self, architecture: &BertConfig) -> Result<(), String> {
        let special = self.special_tokens();
        if special >= self.max_length {
            return Err(format!(
                "adds {special} tokens to every text, the model takes {} in all",
                self.max_length
            ));
        }
        let encoded = self.encode(MASK)?;
        let words = architecture.vocab_size;
        let highest = encoded.ids.into_iter().max().unwrap_or(0);
        if highest as usize >= words {
            return Err(format!(
                "adds a token of ID {highest}, config.json says `vocab_size` {words}"
            ));
        }
        let segments = architecture.type_vocab_size;
        let highest = encoded.type_ids.into_iter().max().unwrap_or(0);
        if highest as usize >= segments {
            return Err(format!(
                "puts tokens into segment {highest}, config.json says `type_vocab_size` {segments}"
            ));
        }
        Ok(())
    }

    /// Tokens that are added to every text.
    fn special_tokens(&self) -> usize {
        self.inner.get_post_processor().map_or(0, |post| {
            tokenizers::PostProcessor::added_tokens(post, false)
        })
    }

    /// In what the tokenizer does otherwise than a manifest says; empty where it agrees.
    pub fn differences(&self, facts: &TokenizerFacts) -> Vec<String> {
        let normalised = |text: &str| {
            let mut text = NormalizedString::from(text);
            let done = self
                .inner
                .get_normalizer()
                .map_or(Ok(()), |n| n.normalize(&mut text));
            done.map(|()| text.get().to_owned()).unwrap_or_default()
        };
        let does = |text: &str, changed: &str| normalised(text).contains(changed);
        let strips = facts.strip_accents.0.unwrap_or(facts.lowercase);
        let keeps_accents = does("É", "É") || does("É", "é");
        let mut differences = Vec::new();
        for (what, is, should) in [
            ("lower-case", does("A", "a"), facts.lowercase),
            ("strip accents", !keeps_accents, strips),
            (
                "split Chinese characters",
                does("中国", " "),
                facts.tokenize_chinese_chars,
            ),
        ] {
            if is != should {
                let says = |does: bool| if does { "does" } else { "does not" };
                let (is, should) = (says(is), says(should));
                differences.push(format!(
                    "the tokenizer {is} {what}, the manifest says it {should}"
                ));
            }
        }
        if self.max_length != facts.max_length {
            let (is, should) = (self.max_length, facts.max_length);
            differences.push(format!(
                "the tokenizer takes {is} tokens, the manifest says {should}"
            ));
        }
        differences
    }

    /// Token IDs of a text, cut on the right to the longest sequence the model has positions for.
    ///
    /// # Errors
    /// The tokenizer's own words, for a text that it cannot encode.
    pub fn encode(&self, text: &str) -> Result<Encoded, String> {
        let words = |cause: tokenizers::Error| cause.to_string();
        let mut plain = self.inner.encode(text, false).map_err(words)?;
        let special = self.special_tokens();
        let untruncated = plain.len() + special;
        let room = self.max_length.saturating_sub(special);
        if plain.len() > room {
            plain.truncate(room, 0, TruncationDirection::Right);
        }
        let encoding = self.inner.post_process(plain, None, true).map_err(words)?;
        let ids = encoding.get_ids().to_vec();
        let masks = (0..ids.len())
            .filter(|position| ids[*position] == self.mask_id)
            .collect();
        Ok(Encoded {
            type_ids: encoding.get_type_ids().to_vec(),
            tokens: encoding.get_tokens().to_vec(),
            masks,
            untruncated,
            ids,
        })
    }

    /// Text of a token ID.
    pub fn token(&self, id: u32) -> String {
        self.inner
            .id_to_token(id)
            .unwrap_or_else(|| format!("<{id}>"))
    }
}

fn from_tokenizer_json(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer, ModelError> {
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

/// Refuses templates on which `tokenizers` would panic later.
fn check_template(processor: &Value) -> Result<(), String> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    for inner in list(&processor["processors"]) {
        check_template(&inner)?;
    }
    for piece in list(&processor["single"]) {
        if piece["Sequence"]["id"] == "B" {
            return Err("the template for one text has a place for a second one".to_owned());
        }
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

/// A token whose ID has no row in the embeddings.
fn beyond(tokenizer: &tokenizers::Tokenizer, vocab_size: usize) -> Option<(String, u32)> {
    let all = tokenizer.get_vocab(true).into_iter();
    all.filter(|(_, id)| *id as usize >= vocab_size)
        .max_by_key(|(_, id)| *id)
}

fn from_vocabulary(
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

#[cfg(test)]
mod tests {
    use driftgauge_protocol::HiddenAct;

    use super::*;
    use crate::model::manifest::StripAccents;

    const VOCABULARY: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n中\n国\na\n\u{2028}\n##b\n";

    fn tokenizer(config: &str) -> Tokenizer {
        let architecture = BertConfig {
            vocab_size: 10,
            hidden_size: 4,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            intermediate_size: 4,
            hidden_act: HiddenAct::Gelu,
            max_position_embeddings: 6,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
        };
        let files = TokenizerFiles {
            vocabulary: Some((Path::new("vocab.txt"), VOCABULARY.as_bytes())),
            config: Some((Path::new("tokenizer_config.json"), config.as_bytes())),
            tokenizer: None,
        };
        Tokenizer::new(files, &architecture).unwrap()
    }

    /// U+2028 is an entry and not a line end; special tokens in a text are special; truncation keeps
    /// `[SEP]` and says how much it cut.
    #[test]
    fn texts_become_ids() {
        let tokenizer = tokenizer(r#"{"do_lower_case": true}"#);
        let encoded = tokenizer.encode("中Ab[MASK]").unwrap();
        assert_eq!(encoded.ids, [2, 5, 7, 9, 4, 3]);
        assert_eq!((encoded.masks, encoded.untruncated), (vec![4], 6));
        let encoded = tokenizer.encode("中国中国[MASK]").unwrap();
        assert_eq!(encoded.ids, [2, 5, 6, 5, 6, 3]);
        assert_eq!((encoded.masks, encoded.untruncated), (vec![], 7));
        assert_eq!(tokenizer.encode("").unwrap().ids, [2, 3]);
    }

    #[test]
    fn what_the_manifest_says_is_compared_with_what_the_tokenizer_does() {
        let facts = TokenizerFacts {
            lowercase: false,
            strip_accents: StripAccents(None),
            tokenize_chinese_chars: true,
            max_length: 6,
        };
        let cased = tokenizer(r#"{"do_lower_case": false}"#);
        assert_eq!(cased.differences(&facts), Vec::<String>::new());
        let differences = tokenizer("{}").differences(&facts);
        assert_eq!(
            differences,
            [
                "the tokenizer does lower-case, the manifest says it does not",
                "the tokenizer does strip accents, the manifest says it does not"
            ]
        );
        let short = tokenizer(r#"{"do_lower_case": false, "model_max_length": 4}"#);
        assert_eq!(
            short.differences(&facts),
            ["the tokenizer takes 4 tokens, the manifest says 6"]
        );
    }
}
