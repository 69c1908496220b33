//! Tokenizer faults: ways in which tokenizers for BERT were wrongly configured or written.
//!
//! A fault is imitated by the reference tokenizer with other options of the `tokenizers` library, so that
//! its token IDs are what a user would get; no ID is edited. [`attribution`] goes the other way and finds
//! the fault that explains what a tokenizer gave.
//!
//! The threads named at the faults are issues and pull requests on GitHub in which people met them.

use serde::{Deserialize, Serialize};
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{SplitDelimiterBehavior, TruncationDirection};

use crate::model::{Encoded, Input, Tokenizer};

pub mod attribution;

/// The part of CJK Unified Ideographs Extension E that the reference leaves out.
const EXTENSION_E_GAP: &str = "[\u{2B820}-\u{2B91F}]";
/// Longest word of [`TokenizerFault::LongWords`], in characters; the reference takes 100.
const LONG_WORD: usize = 200;
/// Longest sequence of [`TokenizerFault::Truncation128`].
const SHORT_LENGTH: usize = 128;

/// One way in which a tokenizer is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenizerFault {
    /// Keeps case where the model lower-cases, or lower-cases where it does not. Accents follow, unless
    /// the model says something about them. A wrong `do_lower_case`: huggingface/transformers#3823,
    /// allenai/scibert#79, dmis-lab/biobert-pytorch#24.
    LowerCase,
    /// Keeps accents where the model strips them, or strips them where it does not: ggml-org/llama.cpp#5496
    /// (`Kantō` became `Kant`), ollama/ollama#15609 (`strip_accents` lost in a conversion),
    /// huggingface/tokenizers#330.
    Accents,
    /// Chinese characters are not split, so that every run of them is one word: huggingface/transformers#15156,
    /// huggingface/swift-transformers#41 and #45.
    ChineseSplitting,
    /// U+2B820 to U+2B91F, the first 256 characters of CJK Extension E, are split off like all other
    /// Chinese characters. This is what Google's BERT does; the reference, `tokenizers` 0.23.2, has a
    /// wrong bound and does not (huggingface/tokenizers#2395, open). Where the reference is the one that is
    /// wrong, the difference is still one: the model gets other tokens.
    CjkExtensionE,
    /// Control and format characters are kept (`clean_text = false`), which mostly makes `[UNK]` of the
    /// word that they stand in: tensorflow/text#817, huggingface/tokenizers#340 and #576,
    /// guillaume-be/rust-tokenizers#37.
    CleanText,
    /// Neither `[CLS]` nor `[SEP]` is added: ggml-org/llama.cpp#14280 (their like of another model, lost in a
    /// conversion), openvinotoolkit/model_server#3248, microsoft/onnxruntime-extensions#623.
    NoSpecialTokens,
    /// `[CLS]` is added and the last `[SEP]` is not: 649453932/Bert-Chinese-Text-Classification-Pytorch#119;
    /// jackroos/VL-BERT#28 (for too long texts, which were cut after both had been added).
    NoFinalSep,
    /// Too long a text keeps its end instead of its beginning: vllm-project/vllm#11568 (the default side
    /// was `left`, mended in #12050).
    TruncationLeft,
    /// A limit of 128 tokens that the `tokenizer.json` of a sentence model carries beside a larger one of the
    /// model: martin-conur/quackformers#34 and #83, qdrant/fastembed#689, and all-MiniLM-L6-v2 itself.
    #[serde(rename = "truncation-128")]
    Truncation128,
    /// Words of 101 to 200 characters are split instead of being one `[UNK]`, because
    /// `max_input_chars_per_word` is another or missing: huggingface/transformers.js#398,
    /// huggingface/transformers#17551.
    LongWords,
    /// `[MASK]`, `[SEP]` and their like in a text are plain text: huggingface/tokenizers#160,
    /// guillaume-be/rust-tokenizers#33, huggingface/transformers#4229.
    SpecialTokensAsText,
    /// The second text of a pair is in the first segment: ggml-org/llama.cpp#21729 (`token_type_ids`
    /// hard-coded to zero), antonellof/ferrox#44 and #84, huggingface/optimum#2062.
    FirstSegmentOnly,
    /// The text is lower-cased as a whole and not letter by letter, so that a capital sigma at the end of a
    /// word becomes ς and not σ, as Python's `str.lower` and Rust's `str::to_lowercase` do:
    /// PaddlePaddle/PaddleNLP#2897; crusoecloud/fastokens#72 says why it does not.
    LowerCaseByString,
}

impl TokenizerFault {
    /// All faults, in the order of the catalogue.
    pub const ALL: [Self; 13] = [
        Self::LowerCase,
        Self::Accents,
        Self::ChineseSplitting,
        Self::CjkExtensionE,
        Self::CleanText,
        Self::NoSpecialTokens,
        Self::NoFinalSep,
        Self::TruncationLeft,
        Self::Truncation128,
        Self::LongWords,
        Self::SpecialTokensAsText,
        Self::FirstSegmentOnly,
        Self::LowerCaseByString,
    ];

    /// The word for it in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::LowerCase => "lower-case",
            Self::Accents => "accents",
            Self::ChineseSplitting => "chinese-splitting",
            Self::CjkExtensionE => "cjk-extension-e",
            Self::CleanText => "clean-text",
            Self::NoSpecialTokens => "no-special-tokens",
            Self::NoFinalSep => "no-final-sep",
            Self::TruncationLeft => "truncation-left",
            Self::Truncation128 => "truncation-128",
            Self::LongWords => "long-words",
            Self::SpecialTokensAsText => "special-tokens-as-text",
            Self::FirstSegmentOnly => "first-segment-only",
            Self::LowerCaseByString => "lower-case-by-string",
        }
    }

    /// What it is, in a few words.
    pub fn title(self) -> &'static str {
        match self {
            Self::LowerCase => "case kept where it should be lowered, or the reverse",
            Self::Accents => "accents kept where they should be stripped, or the reverse",
            Self::ChineseSplitting => "Chinese characters not split",
            Self::CjkExtensionE => "U+2B820 to U+2B91F split, or not, unlike the reference",
            Self::CleanText => "control and format characters kept",
            Self::NoSpecialTokens => "neither [CLS] nor [SEP] added",
            Self::NoFinalSep => "the last [SEP] not added",
            Self::TruncationLeft => "too long a text keeps its end",
            Self::Truncation128 => "truncated to 128 tokens",
            Self::LongWords => "words of up to 200 characters split, not 100",
            Self::SpecialTokensAsText => "[MASK] and [SEP] in the text are plain text",
            Self::FirstSegmentOnly => "the second text of a pair has type 0",
            Self::LowerCaseByString => "lower case by whole strings, so that a final sigma differs",
        }
    }

    /// A model's tokenizer with this fault.
    ///
    /// # Errors
    /// Why this tokenizer cannot have the fault, as a clause: "the tokenizer does not lower-case".
    pub fn configure(self, reference: &Tokenizer) -> Result<FaultyTokenizer, String> {
        let mut tokenizer = reference.clone();
        let mut lower_first = None;
        match self {
            Self::LowerCase => normalize(&mut tokenizer, |own| own.lowercase = !own.lowercase)?,
            Self::Accents => normalize(&mut tokenizer, |own| {
                own.strip_accents = Some(!own.strip_accents.unwrap_or(own.lowercase));
            })?,
            Self::ChineseSplitting => {
                normalize(&mut tokenizer, |own| own.handle_chinese_chars = false)?;
            }
            Self::CjkExtensionE => split_extension_e(&mut tokenizer)?,
            Self::CleanText => normalize(&mut tokenizer, |own| own.clean_text = false)?,
            Self::NoSpecialTokens => tokenizer.special_tokens = false,
            Self::NoFinalSep => frame(&mut tokenizer, "[CLS] $A", "[CLS] $A [SEP] $B:1")?,
            Self::TruncationLeft => tokenizer.truncation = TruncationDirection::Left,
            Self::Truncation128 => tokenizer.max_length = tokenizer.max_length.min(SHORT_LENGTH),
            Self::LongWords => split_long_words(&mut tokenizer)?,
            Self::SpecialTokensAsText => tokenizer.inner.set_encode_special_tokens(true),
            Self::FirstSegmentOnly => {
                frame(
                    &mut tokenizer,
                    "[CLS] $A [SEP]",
                    "[CLS] $A [SEP] $B:0 [SEP]",
                )?;
            }
            Self::LowerCaseByString => {
                if !bert_normalizer(&tokenizer)?.lowercase {
                    return Err("the tokenizer does not lower-case".to_owned());
                }
                lower_first = Some(special_tokens(&tokenizer));
            }
        }
        Ok(FaultyTokenizer {
            tokenizer,
            lower_first,
        })
    }
}

/// A model's tokenizer with a fault.
#[derive(Debug, Clone)]
pub struct FaultyTokenizer {
    tokenizer: Tokenizer,
    /// Whether texts are lower-cased before they are tokenized: then the special tokens, which are not.
    lower_first: Option<Vec<String>>,
}

impl FaultyTokenizer {
    /// Token IDs of a text, or of a pair of texts. There may be none at all, where no special tokens are added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode<'a>(&self, input: impl Into<Input<'a>>) -> Result<Encoded, String> {
        let input = input.into();
        let Some(special) = &self.lower_first else {
            return self.tokenizer.encode(input);
        };
        let text = lower_case(input.text, special);
        let pair = input.pair.map(|pair| lower_case(pair, special));
        self.tokenizer.encode(Input {
            text: &text,
            pair: pair.as_deref(),
        })
    }
}

fn bert_normalizer(tokenizer: &Tokenizer) -> Result<BertNormalizer, String> {
    match tokenizer.inner.get_normalizer() {
        Some(NormalizerWrapper::BertNormalizer(own)) => Ok(*own),
        _ => Err("the tokenizer has no normalizer of type `BertNormalizer`".to_owned()),
    }
}

fn normalize(
    tokenizer: &mut Tokenizer,
    change: impl FnOnce(&mut BertNormalizer),
) -> Result<(), String> {
    let mut own = bert_normalizer(tokenizer)?;
    change(&mut own);
    tokenizer
        .inner
        .with_normalizer(Some(own))
        .map(drop)
        .map_err(|cause| cause.to_string())
}

fn split_extension_e(tokenizer: &mut Tokenizer) -> Result<(), String> {
    if !bert_normalizer(tokenizer)?.handle_chinese_chars {
        return Err("the tokenizer does not split Chinese characters".to_owned());
    }
    let split = Split::new(
        SplitPattern::Regex(EXTENSION_E_GAP.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    );
    let split = split.map_err(|cause| cause.to_string())?;
    let own = tokenizer.inner.get_pre_tokenizer().cloned();
    let both = [Some(split.into()), own].into_iter().flatten().collect();
    tokenizer
        .inner
        .with_pre_tokenizer(Some(Sequence::new(both)));
    Ok(())
}

fn split_long_words(tokenizer: &mut Tokenizer) -> Result<(), String> {
    let ModelWrapper::WordPiece(own) = tokenizer.inner.get_model() else {
        return Err("the tokenizer's model is not WordPiece".to_owned());
    };
    let mut model = own.clone();
    model.max_input_chars_per_word = LONG_WORD;
    tokenizer.inner.with_model(model);
    Ok(())
}

/// Puts texts and special tokens together as the templates for one text and for two say.
fn frame(tokenizer: &mut Tokenizer, single: &str, pair: &str) -> Result<(), String> {
    let mut special = Vec::new();
    for token in ["[CLS]", "[SEP]"] {
        let id = tokenizer.inner.token_to_id(token);
        let id = id.ok_or_else(|| format!("the tokenizer has no {token} token"))?;
        special.push((token, id));
    }
    let template = TemplateProcessing::builder()
        .try_single(single)
        .and_then(|builder| builder.try_pair(pair))
        .map(|builder| builder.special_tokens(special).build());
    let template = template
        .map_err(|cause| cause.to_string())?
        .map_err(|cause| cause.to_string())?;
    tokenizer.inner.with_post_processor(Some(template));
    Ok(())
}

fn special_tokens(tokenizer: &Tokenizer) -> Vec<String> {
    let added = tokenizer.inner.get_added_tokens_decoder();
    let special = added.into_values().filter(|token| token.special);
    special.map(|token| token.content).collect()
}

/// Lower-cases a text as a whole, apart from the special tokens in it: these are found before anything else
/// is done to a text.
fn lower_case(text: &str, special: &[String]) -> String {
    let mut lowered = String::with_capacity(text.len());
    let mut rest = text;
    let next = |rest: &str| {
        let places = special.iter();
        let places = places.filter_map(|token| Some((rest.find(token)?, token.len())));
        places.min()
    };
    while let Some((start, length)) = next(rest) {
        lowered += &rest[..start].to_lowercase();
        lowered += &rest[start..start + length];
        rest = &rest[start + length..];
    }
    lowered + &rest.to_lowercase()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Model;

    fn reference() -> Tokenizer {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/models/zh-mini");
        Model::open(&directory, &[]).unwrap().tokenizer
    }

    /// `text` or `text | pair`, as tokens, those of the second segment in brackets.
    fn tokens(encoded: &Encoded) -> String {
        let tokens = encoded.tokens.iter().zip(&encoded.type_ids);
        let shown = tokens.map(|(token, segment)| match segment {
            0 => token.clone(),
            _ => format!("<{token}>"),
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    fn input(text: &str) -> Input<'_> {
        match text.split_once('|') {
            None => text.into(),
            Some((text, pair)) => Input {
                text,
                pair: Some(pair),
            },
        }
    }

    #[test]
    fn each_fault_gives_what_such_a_tokenizer_gives() {
        use TokenizerFault as Fault;
        let reference = reference();
        let long = "a".repeat(101);
        let split = format!("[CLS] aaa{} [SEP]", " ##aa".repeat(49));
        let framed = "[CLS] 中 [SEP] <国> <[SEP]>";
        for (fault, text, right, wrong) in [
            (
                Fault::LowerCase,
                "iPhone手机",
                "[CLS] iphone 手 机 [SEP]",
                "[CLS] [UNK] 手 机 [SEP]",
            ),
            (
                Fault::Accents,
                "Café",
                "[CLS] cafe [SEP]",
                "[CLS] [UNK] [SEP]",
            ),
            (
                Fault::ChineseSplitting,
                "中国",
                "[CLS] 中 国 [SEP]",
                "[CLS] 中 ##国 [SEP]",
            ),
            (
                Fault::CleanText,
                "中\u{200B}国",
                "[CLS] 中 国 [SEP]",
                "[CLS] 中 [UNK] 国 [SEP]",
            ),
            (Fault::NoSpecialTokens, "中|国", framed, "中 <国>"),
            (Fault::NoSpecialTokens, "", "[CLS] [SEP]", ""),
            (Fault::NoFinalSep, "中|国", framed, "[CLS] 中 [SEP] <国>"),
            (Fault::NoFinalSep, "中", "[CLS] 中 [SEP]", "[CLS] 中"),
            (Fault::LongWords, &long, "[CLS] [UNK] [SEP]", &split),
            (
                Fault::SpecialTokensAsText,
                "中[SEP]国",
                "[CLS] 中 [SEP] 国 [SEP]",
                "[CLS] 中 [ sep ] 国 [SEP]",
            ),
            (
                Fault::FirstSegmentOnly,
                "中|国",
                framed,
                "[CLS] 中 [SEP] 国 [SEP]",
            ),
            (
                Fault::LowerCaseByString,
                "ΟΔΟΣ[SEP]",
                "[CLS] ο ##δ ##ο ##σ [SEP] [SEP]",
                "[CLS] ο ##δ ##ο ##ς [SEP] [SEP]",
            ),
        ] {
            let faulty = fault.configure(&reference).unwrap();
            let found = tokens(&reference.encode(input(text)).unwrap());
            assert_eq!(found, right, "{text} in the reference");
            let found = tokens(&faulty.encode(input(text)).unwrap());
            assert_eq!(found, wrong, "{text} under {}", fault.name());
        }
    }

    /// The reference has the gap of `tokenizers` 0.23.2. When the library mends it, this fault must be turned
    /// round: then it is the gap that is the fault.
    #[test]
    fn the_reference_leaves_out_the_beginning_of_extension_e() {
        let reference = reference();
        let faulty = TokenizerFault::CjkExtensionE.configure(&reference).unwrap();
        for (character, in_reference, in_faulty) in [
            ('\u{2B81F}', "a [UNK] b", "a [UNK] b"),
            ('\u{2B820}', "[UNK]", "a [UNK] b"),
            ('\u{2B91F}', "[UNK]", "a [UNK] b"),
            ('\u{2B920}', "a [UNK] b", "a [UNK] b"),
        ] {
            let text = format!("a{character}b");
            for (found, expected) in [
                (reference.encode(&text[..]), in_reference),
                (faulty.encode(&text[..]), in_faulty),
            ] {
                let expected = format!("[CLS] {expected} [SEP]");
                assert_eq!(tokens(&found.unwrap()), expected, "{character:?}");
            }
        }
    }

    #[test]
    fn truncation_keeps_another_part() {
        let reference = reference();
        let text = ["中", "国"].map(|character| character.repeat(300)).concat();
        let right = reference.encode(&text[..]).unwrap();
        for (fault, length, first, last) in [
            (TokenizerFault::TruncationLeft, 512, 210, 300),
            (TokenizerFault::Truncation128, 128, 126, 0),
        ] {
            let faulty = fault.configure(&reference).unwrap();
            let encoded = faulty.encode(&text[..]).unwrap();
            let count = |of: &str| encoded.tokens.iter().filter(|token| *token == of).count();
            assert_eq!((encoded.ids.len(), encoded.untruncated), (length, 602));
            assert_eq!(
                (count("中"), count("国")),
                (first, last),
                "{}",
                fault.name()
            );
            assert_eq!((&encoded.tokens[0][..], count("[SEP]")), ("[CLS]", 1));
            assert_ne!(encoded.ids, right.ids);
        }
    }

    /// What is left out or changed is all that the templates of the faults change.
    #[test]
    fn the_templates_are_otherwise_those_of_the_model() {
        let reference = reference();
        let mut framed = reference.clone();
        frame(&mut framed, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1").unwrap();
        for text in ["", "中", "|", "中|国", "|中国"] {
            let input = input(text);
            assert_eq!(framed.encode(input), reference.encode(input), "{text}");
        }
    }

    #[test]
    fn a_tokenizer_that_cannot_have_a_fault_says_why() {
        let mut cased = reference();
        normalize(&mut cased, |own| own.lowercase = false).unwrap();
        let reason = |fault: TokenizerFault, tokenizer: &Tokenizer| {
            fault.configure(tokenizer).map(drop).unwrap_err()
        };
        assert_eq!(
            reason(TokenizerFault::LowerCaseByString, &cased),
            "the tokenizer does not lower-case"
        );
        normalize(&mut cased, |own| own.handle_chinese_chars = false).unwrap();
        assert_eq!(
            reason(TokenizerFault::CjkExtensionE, &cased),
            "the tokenizer does not split Chinese characters"
        );
        cased.inner.with_normalizer(None::<BertNormalizer>).unwrap();
        assert_eq!(
            reason(TokenizerFault::Accents, &cased),
            "the tokenizer has no normalizer of type `BertNormalizer`"
        );
    }

    #[test]
    fn names_are_what_files_say() {
        for fault in TokenizerFault::ALL {
            let name = serde_json::Value::from(fault.name());
            assert_eq!(serde_json::to_value(fault).unwrap(), name);
            assert_eq!(
                serde_json::from_value::<TokenizerFault>(name).unwrap(),
                fault
            );
        }
    }
}
