//! The reference tokenizer: turns text into the token IDs that every target is fed.
//!
//! It is Hugging Face's `tokenizers`, built from `tokenizer.json` where there is one and otherwise
//! from `vocab.txt` and `tokenizer_config.json`. Truncation and special tokens are set here, never
//! left to a library's default.

use std::path::Path;

use driftgauge_protocol::BertConfig;
use tokenizers::{
    NormalizedString, Normalizer, PostProcessor, TruncationDirection, TruncationParams,
    TruncationStrategy, truncate_encodings,
};

mod files;

use self::files::{TokenizerConfig, beyond, from_tokenizer_json, from_vocabulary};
use super::ModelError;
use super::manifest::TokenizerFacts;

/// The text of the mask token in cases.
pub const MASK: &str = "[MASK]";
/// The text of the token for what is not in the vocabulary.
pub const UNKNOWN: &str = "[UNK]";

/// A tokenizer and the facts about it that a record keeps.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// The library's, without truncation and padding.
    pub(crate) inner: tokenizers::Tokenizer,
    mask_id: u32,
    vocab_size: usize,
    type_vocab_size: usize,
    /// Longest sequence in tokens, special tokens included.
    pub max_length: usize,
    /// At which end tokens are cut off.
    pub(crate) truncation: TruncationDirection,
    /// Whether `[CLS]` and `[SEP]` are added.
    pub(crate) special_tokens: bool,
    /// Options in force and where each comes from.
    pub facts: Vec<(&'static str, String)>,
}

/// What becomes one sequence: a text, or a pair of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input<'a> {
    /// The text, or the first of a pair.
    pub text: &'a str,
    /// The second text of a pair.
    pub pair: Option<&'a str>,
}

impl<'a> From<&'a str> for Input<'a> {
    fn from(text: &'a str) -> Self {
        Self { text, pair: None }
    }
}

/// Token IDs of one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token IDs, `[CLS]` and `[SEP]` included.
    pub ids: Vec<u32>,
    /// Segment of each token: 1 for the second text of a pair and the `[SEP]` after it, otherwise 0.
    pub type_ids: Vec<u32>,
    /// Text of each token.
    pub tokens: Vec<String>,
    /// Positions of `[MASK]`.
    pub masks: Vec<usize>,
    /// Number of tokens before truncation.
    pub untruncated: usize,
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
            vocab_size,
            type_vocab_size: architecture.type_vocab_size,
            max_length,
            truncation: TruncationDirection::Right,
            special_tokens: true,
            facts,
        };
        tokenizer.check_special_tokens().map_err(error)?;
        Ok(tokenizer)
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

    /// Token IDs of a text, or of a pair of texts, cut to the longest sequence that the model has
    /// positions for: of a pair the longer text first, both to the same length where both are too long.
    ///
    /// # Errors
    /// The tokenizer's own words, for a text that it cannot encode; what the model has no room or no
    /// embedding for.
    pub fn encode<'a>(&self, input: impl Into<Input<'a>>) -> Result<Encoded, String> {
        let words = |cause: tokenizers::Error| cause.to_string();
        let Input { text, pair } = input.into();
        let plain = self.inner.encode(text, false).map_err(words)?;
        let pair = match pair {
            None => None,
            Some(pair) => {
                let mut second = self.inner.encode(pair, false).map_err(words)?;
                // Not every post-processor sets the segments of what it is given.
                second.set_type_ids(vec![1; second.len()]);
                Some(second)
            }
        };
        let special = self.added_tokens(pair.is_some());
        let max_length = self.max_length.checked_sub(special).ok_or_else(|| {
            let most = self.max_length;
            format!("adds {special} tokens to every pair of texts, the model takes {most} in all")
        })?;
        let untruncated = plain.len() + pair.as_ref().map_or(0, |second| second.len()) + special;
        let truncation = TruncationParams {
            direction: self.truncation,
            max_length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        let (plain, pair) = truncate_encodings(plain, pair, &truncation).map_err(words)?;
        let encoding = self
            .inner
            .post_process(plain, pair, self.special_tokens)
            .map_err(words)?;
        let ids = encoding.get_ids().to_vec();
        let masks = (0..ids.len())
            .filter(|position| ids[*position] == self.mask_id)
            .collect();
        let encoded = Encoded {
            type_ids: encoding.get_type_ids().to_vec(),
            tokens: encoding.get_tokens().to_vec(),
            masks,
            untruncated,
            ids,
        };
        self.check_embeddings(&encoded)?;
        Ok(encoded)
    }

    /// Text of a token ID.
    pub fn token(&self, id: u32) -> String {
        self.inner
            .id_to_token(id)
            .unwrap_or_else(|| format!("<{id}>"))
    }

    /// Whether the model has room and embeddings for what is added to every text.
    fn check_special_tokens(&self) -> Result<(), String> {
        let special = self.added_tokens(false);
        if special >= self.max_length {
            return Err(format!(
                "adds {special} tokens to every text, the model takes {} in all",
                self.max_length
            ));
        }
        self.encode(MASK).map(drop)
    }

    /// Tokens that are added to every text, or to every pair.
    fn added_tokens(&self, is_pair: bool) -> usize {
        match self.inner.get_post_processor() {
            Some(post) if self.special_tokens => post.added_tokens(is_pair),
            _ => 0,
        }
    }

    /// Whether every token has an embedding, and its segment too.
    fn check_embeddings(&self, encoded: &Encoded) -> Result<(), String> {
        let words = self.vocab_size;
        let highest = encoded.ids.iter().copied().max().unwrap_or(0);
        if highest as usize >= words {
            return Err(format!(
                "adds a token of ID {highest}, config.json says `vocab_size` {words}"
            ));
        }
        let segments = self.type_vocab_size;
        let highest = encoded.type_ids.iter().copied().max().unwrap_or(0);
        if highest as usize >= segments {
            return Err(format!(
                "puts tokens into segment {highest}, config.json says `type_vocab_size` {segments}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use driftgauge_protocol::HiddenAct;
    use tokenizers::EncodeInput;

    use super::*;
    use crate::model::manifest::StripAccents;

    const VOCABULARY: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n中\n国\na\n\u{2028}\n##b\n";

    fn tokenizer(config: &str) -> Tokenizer {
        with_segments(config, 2)
    }

    fn with_segments(config: &str, type_vocab_size: usize) -> Tokenizer {
        let architecture = BertConfig {
            vocab_size: 10,
            hidden_size: 4,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            intermediate_size: 4,
            hidden_act: HiddenAct::Gelu,
            max_position_embeddings: 6,
            type_vocab_size,
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

    /// The second text of a pair and its `[SEP]` are segment 1. The longer text is cut first; where both
    /// are too long, they are cut to the same length.
    #[test]
    fn pairs_become_one_sequence_of_two_segments() {
        let tokenizer = tokenizer("{}");
        let check = |text, pair, ids: &[u32], type_ids: &[u32], untruncated| {
            let pair = Some(pair);
            let encoded = tokenizer.encode(Input { text, pair }).unwrap();
            assert_eq!((&encoded.ids[..], &encoded.type_ids[..]), (ids, type_ids));
            assert_eq!(encoded.untruncated, untruncated);
        };
        check("中", "国", &[2, 5, 3, 6, 3], &[0, 0, 0, 1, 1], 5);
        check("", "[MASK]", &[2, 3, 4, 3], &[0, 0, 1, 1], 4);
        check("中", "", &[2, 5, 3, 3], &[0, 0, 0, 1], 4);
        check(
            "中国国国",
            "国",
            &[2, 5, 6, 3, 6, 3],
            &[0, 0, 0, 0, 1, 1],
            8,
        );
        check(
            "中",
            "国国国国",
            &[2, 5, 3, 6, 6, 3],
            &[0, 0, 0, 1, 1, 1],
            8,
        );
        check(
            "国国国国",
            "中中中中",
            &[2, 6, 3, 5, 5, 3],
            &[0, 0, 0, 1, 1, 1],
            11,
        );
    }

    /// Truncation is done here and not by the library, with the same result.
    #[test]
    fn truncation_is_that_of_the_library() {
        let ours = tokenizer("{}");
        let mut library = ours.inner.clone();
        let params = TruncationParams {
            max_length: ours.max_length,
            ..TruncationParams::default()
        };
        library.with_truncation(Some(params)).unwrap();
        let texts = ["", "中", "中国", "中国中", "中国中国", "国国国国国国国国"];
        for text in texts {
            for pair in [None].into_iter().chain(texts.map(Some)) {
                let input = match pair {
                    None => EncodeInput::from(text),
                    Some(pair) => EncodeInput::from((text, pair)),
                };
                let expected = library.encode(input, true).unwrap();
                let encoded = ours.encode(Input { text, pair }).unwrap();
                assert_eq!(encoded.ids, expected.get_ids(), "{text} {pair:?}");
                assert_eq!(encoded.type_ids, expected.get_type_ids(), "{text} {pair:?}");
            }
        }
    }

    #[test]
    fn a_model_of_one_segment_takes_no_pairs() {
        let tokenizer = with_segments("{}", 1);
        assert_eq!(tokenizer.encode("中").unwrap().ids, [2, 5, 3]);
        let pair = Some("国");
        assert_eq!(
            tokenizer.encode(Input { text: "中", pair }).unwrap_err(),
            "puts tokens into segment 1, config.json says `type_vocab_size` 1"
        );
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
