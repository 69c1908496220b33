//! HTML pages: what is common to all of them.
//!
//! A page is one file that needs no network and no script. Its content policy allows exactly the style and the
//! script that stand in it, by their SHA-256, so that it also works where an artifact server adds a strict
//! policy of its own. The script only filters and sorts.
//!
//! To add a page: a template that extends `base.html`, a struct with a field `page`, and its sections.

pub(crate) mod chart;
pub(crate) mod escape;
pub(crate) mod run;
pub(crate) mod selftest;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::Language;
use crate::phrases::{Phrases, fill};
use crate::words::{NAME, shown};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// What the base template needs of every page.
pub(crate) struct Page {
    /// Shown in the tab; text.
    pub title: String,
    /// Language of the page.
    pub lang: &'static str,
    /// The words of that language.
    pub t: &'static Phrases,
    /// Where the page comes from.
    pub origin: String,
    /// Links to the sections: ID and heading.
    pub sections: Vec<(&'static str, &'static str)>,
    /// Content of the `<style>`.
    pub style: &'static str,
    /// Content of the `<script>`.
    pub script: &'static str,
    /// The content policy that allows these two and nothing else.
    pub policy: String,
}

impl Page {
    /// A page with a title, without links to sections.
    pub fn new(title: String, driftgauge: &str, language: Language) -> Self {
        let policy = format!(
            "default-src 'none'; style-src '{}'; script-src '{}'; img-src data:; base-uri 'none'; \
             form-action 'none'",
            digest(STYLE),
            digest(SCRIPT)
        );
        let t = Phrases::of(language);
        Self {
            title,
            lang: language.name(),
            origin: fill(t.written_by, &[("version", &shown(driftgauge, NAME, t))]),
            t,
            sections: Vec::new(),
            style: STYLE,
            script: SCRIPT,
            policy,
        }
    }
}

/// How a content policy names a style or a script.
fn digest(content: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content)))
}
