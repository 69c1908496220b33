//! Markdown: a comment on a pull request, and GitHub's summary of a step.
//!
//! Both say the same, the summary more of it. Text of a case, a model or a worker stands in code or has every
//! sign escaped that Markdown, or GitHub's mentions and links, would obey.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::conclusion::{self, place};
use crate::findings::{Group, grouped};
use crate::phrases::{Phrases, fill};
use crate::record::{RunRecord, TargetRecord, Verdict};
use crate::text::{plain, shorten};
use crate::words::{bare, hidden, in_u};
use crate::{Language, command};

/// How much is shown.
struct Limits {
    targets: usize,
    findings: usize,
    keys: usize,
    /// Columns of a text.
    text: usize,
}

/// A comment has at most 65,536 characters, and people read 60 lines.
const COMMENT: Limits = Limits {
    targets: 8,
    findings: 5,
    keys: 6,
    text: 200,
};
/// A summary has at most 1 MiB.
const SUMMARY: Limits = Limits {
    targets: 40,
    findings: 50,
    keys: 40,
    text: 400,
};

/// Renders a comment on a pull request.
pub(crate) fn render(record: &RunRecord, language: Language) -> String {
    within(&COMMENT, record, language)
}

/// Renders the summary of a step, for the file that `GITHUB_STEP_SUMMARY` names.
pub(crate) fn render_summary(record: &RunRecord, language: Language) -> String {
    within(&SUMMARY, record, language)
}

fn within(limits: &Limits, record: &RunRecord, language: Language) -> String {
    let t = Phrases::of(language);
    let page = Page { limits, record, t };
    let conclusion = conclusion::of(record, language);
    let mut text = format!(
        "### {} {}\n\n{}\n\n{}\n\n",
        conclusion.verdict.sign(),
        conclusion.answer,
        prose(&conclusion.reason, 2 * limits.text),
        conclusion.next
    );
    page.targets(&mut text);
    page.findings(&mut text);
    page.known(&mut text);
    page.environment(&mut text);
    page.provenance(&mut text);
    text
}

struct Page<'a> {
    limits: &'a Limits,
    record: &'a RunRecord,
    t: &'static Phrases,
}

impl Page<'_> {
    fn targets(&self, text: &mut String) {
        let t = self.t;
        if self.record.targets.is_empty() {
            return;
        }
        let heads = [
            t.target,
            t.verdicts,
            t.nearest_limit,
            t.bits_left,
            t.library,
        ];
        let _ = writeln!(text, "| {} |\n|---|---|---|--:|---|", heads.join(" | "));
        for target in self.record.targets.iter().take(self.limits.targets) {
            let _ = writeln!(text, "| {} |", self.target(target).join(" | "));
        }
        let more = self
            .record
            .targets
            .len()
            .saturating_sub(self.limits.targets);
        if let Some(note) = hidden(more, t) {
            let _ = writeln!(text, "\n{note}");
        }
        text.push('\n');
    }

    fn target(&self, target: &TargetRecord) -> [String; 5] {
        let own = || {
            self.record
                .results
                .iter()
                .filter(|result| result.target == target.target)
        };
        let mut counts: BTreeMap<Verdict, usize> = BTreeMap::new();
        own().for_each(|result| *counts.entry(result.verdict).or_insert(0) += 1);
        let counts = counts.iter().map(|(verdict, count)| {
            format!("{} {count} {}", verdict.sign(), self.t.verdict(*verdict))
        });
        let all = || own().flat_map(|result| &result.observations);
        let nearest = all().max_by(|a, b| a.1.in_noise().total_cmp(&b.1.in_noise()));
        let nearest = nearest.map_or(String::new(), |(name, one)| {
            format!(
                "{} {}",
                code(name, self.limits.text),
                in_u(one.error_u, self.t)
            )
        });
        let bits = all()
            .filter_map(|(_, one)| one.effective_bits)
            .min_by(f64::total_cmp);
        let library = match (&target.library, &target.library_version) {
            (Some(library), Some(version)) => {
                prose(&format!("{library} {version}"), self.limits.text)
            }
            _ => self.t.not_available.to_owned(),
        };
        [
            code(&target.target, self.limits.text),
            counts.collect::<Vec<_>>().join(", "),
            nearest,
            bits.map_or(String::new(), |bits| format!("{bits:.1}")),
            library,
        ]
    }

    fn findings(&self, text: &mut String) {
        let groups = grouped(self.record);
        if groups.is_empty() {
            return;
        }
        let _ = writeln!(text, "**{}**\n", self.t.findings);
        for (index, group) in groups.iter().take(self.limits.findings).enumerate() {
            let _ = writeln!(text, "{}. {}", index + 1, self.finding(group));
            let command = command::reproducing(self.record, group.result);
            let command = code(&command, 4 * self.limits.text);
            let _ = writeln!(text, "   {}: {command}", self.t.reproduce);
        }
        let more = groups.len().saturating_sub(self.limits.findings);
        if let Some(note) = hidden(more, self.t) {
            let _ = writeln!(text, "\n{note}");
        }
        text.push('\n');
    }

    /// A finding on one line: what, where it starts, why, how bad, what to do.
    fn finding(&self, group: &Group<'_>) -> String {
        let (t, most) = (self.t, self.limits.text);
        let (finding, result) = (group.finding, group.result);
        let case = format!("{}/{}", result.suite, result.case);
        let mut text = format!(
            "{} {} {} {} {}",
            result.verdict.sign(),
            t.verdict(result.verdict),
            code(&result.target, most),
            t.kind(finding.kind),
            code(&case, most)
        );
        if group.cases > 1 {
            let more = fill(t.more_cases, &[("n", &(group.cases - 1).to_string())]);
            let _ = write!(text, " {more}");
        }
        let mut parts = vec![prose(&finding.message, most)];
        let mut targets = self.record.targets.iter();
        let target = targets.find(|target| target.target == result.target);
        let origins = target.and_then(|target| target.location.as_ref());
        let origin = origins.and_then(|location| location.origins.first());
        if let (Some(origin), Some(_)) = (origin, finding.measured_u) {
            let place = prose(&place(origin, t), most);
            parts.push(format!("{}: {place}", t.starts_in));
            if let Some(cause) = origin.causes.first() {
                let cause = prose(&cause.sentence(), most);
                parts.push(format!("{}: {cause}", t.probable_cause));
            }
        }
        if let (Some(measured), Some(allowed)) = (finding.measured_u, finding.allowed_u) {
            let times = fill(t.times_allowed, &[("times", &bare(measured / allowed, t))]);
            parts.push(times);
        }
        if let Some(hint) = &finding.hint {
            parts.push(format!("{}: {}", t.next_step, prose(hint, most)));
        }
        format!("{text}: {}", parts.join("; "))
    }

    fn known(&self, text: &mut String) {
        let t = self.t;
        let entries = self.record.known.entries.iter();
        let entries: Vec<_> = entries
            .filter(|entry| entry.unmatched().is_none())
            .collect();
        if entries.is_empty() {
            return;
        }
        let _ = writeln!(text, "<details><summary>{}</summary>\n", t.known_deviations);
        for entry in entries.iter().take(self.limits.keys) {
            let (most, counts) = (
                self.limits.text,
                [entry.deviating, entry.fixed, entry.beyond],
            );
            let words = [t.known_happens, t.known_gone, t.known_beyond];
            let counts = counts.iter().zip(words).filter(|(count, _)| **count > 0);
            let counts = counts.map(|(count, phrase)| fill(phrase, &[("n", &count.to_string())]));
            let mut outcome: Vec<String> = counts.collect();
            if entry.expired {
                outcome.push(t.known_expired.to_owned());
            }
            let _ = writeln!(
                text,
                "- {} {}: {} ({} {}; {})",
                code(&entry.target, most),
                code(&entry.case, most),
                prose(&entry.reason, most),
                t.known_until,
                prose(&entry.expires, most),
                outcome.join(t.comma)
            );
        }
        if let Some(note) = hidden(entries.len().saturating_sub(self.limits.keys), t) {
            let _ = writeln!(text, "\n{note}");
        }
        text.push_str("\n</details>\n\n");
    }

    fn environment(&self, text: &mut String) {
        let t = self.t;
        let changed = self.record.targets.iter().filter_map(|target| {
            let changed = &target.baseline.as_ref()?.changed;
            Some(changed.iter().map(move |change| (&target.target, change)))
        });
        let changed: Vec<_> = changed.flatten().collect();
        if changed.is_empty() {
            return;
        }
        let _ = writeln!(text, "<details><summary>{}</summary>\n", t.environment);
        let heads = [t.target, t.key, t.accepted, t.now];
        let _ = writeln!(text, "| {} |\n|---|---|---|---|", heads.join(" | "));
        for (target, (key, [accepted, now])) in changed.iter().take(self.limits.keys) {
            let value = |value: &Option<String>| match value {
                Some(value) => code(value, self.limits.text),
                None => t.none.to_owned(),
            };
            let (target, key) = (code(target, self.limits.text), code(key, self.limits.text));
            let _ = writeln!(
                text,
                "| {target} | {key} | {} | {} |",
                value(accepted),
                value(now)
            );
        }
        if let Some(note) = hidden(changed.len().saturating_sub(self.limits.keys), t) {
            let _ = writeln!(text, "\n{note}");
        }
        text.push_str("\n</details>\n\n");
    }

    fn provenance(&self, text: &mut String) {
        let (t, record) = (self.t, self.record);
        let verified = if record.model.verified {
            t.verified
        } else {
            t.not_verified
        };
        let _ = writeln!(text, "<details><summary>{}</summary>\n", t.provenance);
        let model = code(&record.model.id, self.limits.text);
        let _ = writeln!(text, "- {}: {model} ({verified})", t.model);
        let k = fill(t.method_k, &[("k", &record.method.k.to_string())]);
        let _ = writeln!(text, "- {}: {k}", t.method);
        let host: Vec<String> = ["cpu", "gpu", "os"]
            .iter()
            .filter_map(|key| Some(prose(record.host.get(*key)?, self.limits.text)))
            .collect();
        let _ = writeln!(text, "- {}: {}", t.machine, host.join(", "));
        let origin = fill(t.written_by, &[("version", &record.driftgauge)]);
        let _ = writeln!(text, "- {}\n\n</details>", prose(&origin, self.limits.text));
    }
}

/// Text as code, where nothing in it is obeyed.
fn code(text: &str, columns: usize) -> String {
    let text = shorten(&plain(text), columns);
    let is_plain = !text.contains(['`', '|']) && !text.trim().is_empty();
    match is_plain {
        true => format!("`{text}`"),
        false => format!("<code>{}</code>", entities(&text)),
    }
}

/// Text as text, where nothing in it is obeyed.
fn prose(text: &str, columns: usize) -> String {
    entities(&shorten(&plain(text), columns))
}

/// Every sign that Markdown, HTML, mentions or links could be made of as an entity.
fn entities(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.replace("www.", "www\0").chars() {
        match c {
            // Stood in for the dot, which by itself is harmless; `plain` has left no other.
            '\0' => safe.push_str("&#46;"),
            '-' | '.' | ',' | ';' | '?' | '%' | '=' | '+' | '(' | ')' => safe.push(c),
            c if c.is_ascii_punctuation() => {
                let _ = write!(safe, "&#{};", u32::from(c));
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_obeyed() {
        for (text, expected) in [
            ("onnx@cpu/f32", "`onnx@cpu/f32`"),
            ("a`|b", "<code>a&#96;&#124;b</code>"),
            ("", "<code></code>"),
        ] {
            assert_eq!(code(text, 80), expected);
        }
        let hostile = "<b> @me [x](http://y) **b** www.z.org";
        let expected = "&#60;b&#62; &#64;me &#91;x&#93;(http&#58;&#47;&#47;y) &#42;&#42;b&#42;&#42; www&#46;z.org";
        assert_eq!(prose(hostile, 80), expected);
    }
}
