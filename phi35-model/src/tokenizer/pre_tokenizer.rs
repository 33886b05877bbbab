//! How a text is cut into words before they become tokens: as `tokenizers` does it, but for regular expressions.
//!
//! `tokenizers` ends a text where its engine of regular expressions gives up, without an error, and the engine gives up
//! after a million steps back, which a long run of blanks takes. Here the engine may go on much longer, a run that is too
//! long for its stack is searched in short, and where it gives up all the same that is an error.

use fancy_regex::{Regex, RegexBuilder};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;
use std::ops::Range;
use tokenizers::{
    Offsets, PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Result, SplitDelimiterBehavior,
    normalizer::NormalizedString, pattern::Pattern, pre_tokenizers::byte_level::ByteLevel,
};

/// The `pre_tokenizer` of a `tokenizer.json`.
#[derive(Debug, Clone)]
pub(super) enum WordSplitter {
    Sequence(Vec<WordSplitter>),
    Regex(RegexSplit),
    /// GPT-2's words, and then their bytes.
    ByteLevel {
        words: RegexSplit,
        add_prefix_space: bool,
        bytes: ByteLevel,
    },
    /// Without a regular expression that could give up.
    Other(PreTokenizerWrapper),
}

/// `Split` with a regular expression.
#[derive(Debug, Clone)]
pub(super) struct RegexSplit {
    regex: Regex,
    behavior: SplitDelimiterBehavior,
    invert: bool,
}

/// Steps back that the engine may take in one search. The stack of a run of blanks takes one for each.
const BACKTRACK_LIMIT: usize = 1_000_000_000;

/// The words of `ByteLevel`, as GPT-2 has them.
const GPT2_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

impl RegexSplit {
    fn new(pattern: &str, behavior: SplitDelimiterBehavior, invert: bool) -> Result<Self> {
        let regex = RegexBuilder::new(pattern).backtrack_limit(BACKTRACK_LIMIT).build()?;
        Ok(Self { regex, behavior, invert })
    }

    fn split(&self, text: &NormalizedString) -> Result<Vec<NormalizedString>> {
        text.split(self, self.behavior)
    }
}

impl Pattern for &RegexSplit {
    fn find_matches(&self, text: &str) -> Result<Vec<(Offsets, bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let words = match self.words(text) {
            Ok(words) => words,
            Err(error) => self.words_of_shortened(text)?.ok_or(error)?,
        };
        let mut found = Vec::new();
        let mut end = 0;
        for word in words {
            if end != word.start {
                found.push(((end, word.start), self.invert));
            }
            end = word.end;
            found.push(((word.start, word.end), !self.invert));
        }
        if end != text.len() {
            found.push(((end, text.len()), self.invert));
        }
        Ok(found)
    }
}

/// Equal characters in a row that the engine can always search; those of a longer run are searched as so many.
const SEARCHED_RUN: usize = 10_000;

impl RegexSplit {
    /// Where the expression matches.
    fn words(&self, text: &str) -> std::result::Result<Vec<Range<usize>>, Box<fancy_regex::Error>> {
        self.regex.find_iter(text).map(|word| Ok(word.map_err(Box::new)?.range())).collect()
    }

    /// The same for a text whose long runs of one character are too much for the engine's stack: found with shorter runs.
    /// `None` if that says nothing of the longer ones, because a run is cut in its middle.
    fn words_of_shortened(&self, text: &str) -> Result<Option<Vec<Range<usize>>>> {
        let mut shortened = String::new();
        // Where bytes were left out of the shortened text, and how many.
        let mut cuts: Vec<(usize, usize)> = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let run = rest.find(|other| other != c).unwrap_or(rest.len());
            let kept = run.min(SEARCHED_RUN * c.len_utf8());
            if kept < run {
                cuts.push((shortened.len() + kept / c.len_utf8() / 2 * c.len_utf8(), run - kept));
            }
            shortened.push_str(&rest[..kept]);
            rest = &rest[run..];
        }
        let mut words = self.words(&shortened)?;
        let is_near = |place: usize| cuts.iter().any(|&(cut, _)| place.abs_diff(cut) < SEARCHED_RUN / 4);
        if cuts.is_empty() || words.iter().any(|word| is_near(word.start) || is_near(word.end)) {
            return Ok(None);
        }
        let moved =
            |place: usize| place + cuts.iter().filter(|(cut, _)| *cut < place).map(|(_, bytes)| bytes).sum::<usize>();
        words.iter_mut().for_each(|word| *word = moved(word.start)..moved(word.end));
        Ok(Some(words))
    }
}

impl PreTokenizer for WordSplitter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> Result<()> {
        match self {
            Self::Sequence(all) => all.iter().try_for_each(|one| one.pre_tokenize(text)),
            Self::Regex(split) => text.split(|_, part| split.split(&part)),
            Self::ByteLevel { words, add_prefix_space, bytes } => {
                text.split(|_, mut part| {
                    if *add_prefix_space && !part.get().starts_with(' ') {
                        part.prepend(" ");
                    }
                    words.split(&part)
                })?;
                bytes.pre_tokenize(text)
            }
            Self::Other(other) => other.pre_tokenize(text),
        }
    }
}

impl<'de> Deserialize<'de> for WordSplitter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::from_json(Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl WordSplitter {
    fn from_json(json: Value) -> Result<Self> {
        #[derive(Deserialize)]
        struct Split {
            behavior: SplitDelimiterBehavior,
            invert: bool,
        }
        match json.get("type").and_then(Value::as_str) {
            Some("Sequence") => {
                let all =
                    json.get("pretokenizers").and_then(Value::as_array).ok_or("a Sequence has `pretokenizers`")?;
                Ok(Self::Sequence(all.iter().map(|one| Self::from_json(one.clone())).collect::<Result<_>>()?))
            }
            Some("Split") if json["pattern"].get("Regex").is_some() => {
                let pattern: String = serde_json::from_value(json["pattern"]["Regex"].clone())?;
                let Split { behavior, invert } = serde_json::from_value(json)?;
                Ok(Self::Regex(RegexSplit::new(&pattern, behavior, invert)?))
            }
            Some("ByteLevel") => {
                let bytes: ByteLevel = serde_json::from_value(json)?;
                if !bytes.use_regex {
                    return Ok(Self::Other(PreTokenizerWrapper::ByteLevel(bytes)));
                }
                Ok(Self::ByteLevel {
                    words: RegexSplit::new(GPT2_WORDS, SplitDelimiterBehavior::Isolated, false)?,
                    add_prefix_space: bytes.add_prefix_space,
                    bytes: bytes.add_prefix_space(false).use_regex(false),
                })
            }
            _ => Ok(Self::Other(serde_json::from_value(json)?)),
        }
    }
}
