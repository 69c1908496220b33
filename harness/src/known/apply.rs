//! What known deviations make of the verdicts of a run.

use std::collections::BTreeMap;

use driftgauge_reports::record::{
    Finding, FindingKind, KnownDeviations, KnownEntry, KnownRecord, ResultRecord, RunRecord,
    Verdict,
};

use super::{Entry, Expected};
use crate::plan;

/// Compares every result with the known deviations and writes down what became of each. Afterwards
///
/// - drift that one entry explains wholly is [`Verdict::Known`];
/// - where that entry has expired it stays drift, and a finding says so;
/// - drift that no entry explains wholly stays drift, and says which entry falls short;
/// - a pass where an entry expects a deviation always is [`Verdict::Fixed`].
///
/// `day` is the day of the run, `full` whether everything was run that is usually run. The summary is the
/// caller's to renew.
pub fn apply(record: &mut RunRecord, entries: &[Entry], day: &str, full: bool) {
    let versions: BTreeMap<String, Option<String>> = record
        .targets
        .iter()
        .map(|target| (target.target.clone(), target.library_version.clone()))
        .collect();
    let mut seen: Vec<KnownEntry> = entries.iter().map(|entry| entry.unseen(day)).collect();
    for (entry, seen) in entries.iter().zip(&mut seen) {
        let matching = versions.iter();
        seen.targets = matching
            .filter(|(target, version)| entry.is_for(target, version.as_deref()))
            .count();
        let cases: std::collections::BTreeSet<(&str, &str)> = record
            .results
            .iter()
            .map(|result| (result.suite.as_str(), result.case.as_str()))
            .filter(|(suite, case)| plan::matches(&entry.case, suite, case))
            .collect();
        seen.cases = cases.len();
    }
    for result in &mut record.results {
        let version = versions.get(&result.target).cloned().flatten();
        let matching: Vec<usize> = (0..entries.len())
            .filter(|index| {
                let entry = &entries[*index];
                entry.is_for(&result.target, version.as_deref())
                    && plan::matches(&entry.case, &result.suite, &result.case)
            })
            .collect();
        judge(result, entries, &matching, &mut seen);
    }
    record.known = KnownDeviations {
        applied: true,
        full,
        entries: seen,
    };
}

/// What the entries that match a result make of it.
fn judge(
    result: &mut ResultRecord,
    entries: &[Entry],
    matching: &[usize],
    seen: &mut [KnownEntry],
) {
    match result.verdict {
        Verdict::Pass | Verdict::New => {
            for index in matching {
                seen[*index].fixed += 1;
            }
            let strict = matching.iter().find(|index| !entries[**index].sometimes);
            if let Some(index) = strict {
                result.verdict = Verdict::Fixed;
                result.known = Some(entries[*index].record());
            }
        }
        Verdict::Drift => {
            let is_explained = |index: &&usize| entries[**index].explains(result);
            let (explaining, short): (Vec<&usize>, Vec<&usize>) =
                matching.iter().partition(is_explained);
            for index in &explaining {
                seen[**index].deviating += 1;
            }
            for index in &short {
                seen[**index].beyond += 1;
            }
            let live = explaining.iter().find(|index| !seen[***index].expired);
            if let Some(index) = live {
                result.verdict = Verdict::Known;
                result.known = Some(entries[**index].record());
            } else if let Some(index) = explaining.first() {
                result.findings.push(entries[**index].expired());
            } else if let (Some(index), Some(first)) = (short.first(), result.findings.first_mut())
            {
                first.evidence.push(entries[**index].falls_short());
            }
        }
        Verdict::Known | Verdict::Fixed | Verdict::Unsupported | Verdict::Broken => {}
    }
}

impl Entry {
    fn is_for(&self, target: &str, version: Option<&str>) -> bool {
        let is_version = |pattern: &globset::GlobMatcher| {
            version.is_some_and(|version| pattern.is_match(version))
        };
        self.target.is_match(target) && self.library_version.as_ref().is_none_or(is_version)
    }

    /// Whether every finding of a result is expected. An error that moved from its accepted baseline is
    /// a finding, also where it stands as evidence beside another one.
    fn explains(&self, result: &ResultRecord) -> bool {
        let is_expected =
            |finding: &Finding| self.findings.iter().any(|one| one.is_met_by(finding));
        let is_moved = result.observations.iter().filter(|(_, observation)| {
            let moved = observation.moved.as_ref();
            moved.is_some_and(|moved| !moved.within)
        });
        let move_is_expected = |name: &str| {
            self.findings.iter().any(|one| {
                let is_observed = |pattern: &globset::GlobMatcher| pattern.is_match(name);
                one.kind == FindingKind::Moved && one.observation.as_ref().is_none_or(is_observed)
            })
        };
        !result.findings.is_empty()
            && result.findings.iter().all(is_expected)
            && is_moved.clone().all(|(name, _)| move_is_expected(name))
    }

    fn in_words(&self) -> String {
        let words: Vec<String> = self.findings.iter().map(Expected::in_words).collect();
        words.join("; ")
    }

    fn record(&self) -> KnownRecord {
        KnownRecord {
            file: self.file.clone(),
            line: self.line,
            reason: self.reason.clone(),
            expires: self.expires.clone(),
            finding: self.in_words(),
        }
    }

    /// The entry before anything was compared with it.
    fn unseen(&self, day: &str) -> KnownEntry {
        KnownEntry {
            file: self.file.clone(),
            line: self.line,
            target: self.target.glob().to_string(),
            case: self.case.glob().to_string(),
            library_version: self
                .library_version
                .as_ref()
                .map(|pattern| pattern.glob().to_string()),
            findings: self.findings.iter().map(Expected::in_words).collect(),
            reason: self.reason.clone(),
            expires: self.expires.clone(),
            sometimes: self.sometimes,
            // Days as text sort as the days do.
            expired: *day > *self.expires,
            targets: 0,
            cases: 0,
            deviating: 0,
            fixed: 0,
            beyond: 0,
        }
    }

    fn expired(&self) -> Finding {
        let (file, line, day) = (&self.file, self.line, &self.expires);
        let message = format!(
            "the known deviation `{file}:{line}` expired on {day}: {}",
            self.reason
        );
        Finding {
            hint: Some(format!(
                "mend it, or decide anew how long it may stay and change `expires` in `{file}`"
            )),
            ..Finding::new(FindingKind::Expired, message)
        }
    }

    fn falls_short(&self) -> String {
        let (file, line) = (&self.file, self.line);
        format!(
            "the known deviation `{file}:{line}` does not explain all of it: it expects {}",
            self.in_words()
        )
    }
}

impl Expected {
    fn is_met_by(&self, finding: &Finding) -> bool {
        let is_observed = |pattern: &globset::GlobMatcher| {
            let observation = finding.observation.as_deref();
            observation.is_some_and(|observation| pattern.is_match(observation))
        };
        let is_small = |bound: f64| finding.measured_u.is_some_and(|measured| measured <= bound);
        self.kind == finding.kind
            && self.class.is_none_or(|class| finding.class == Some(class))
            && self.observation.as_ref().is_none_or(is_observed)
            && self.up_to_u.is_none_or(is_small)
    }
}

#[cfg(test)]
mod tests {
    use driftgauge_reports::record::{Class, Moved, Observation};
    use globset::Glob;

    use super::*;

    fn expected(kind: FindingKind, observation: Option<&str>, up_to_u: Option<f64>) -> Expected {
        let pattern = |text: &str| Glob::new(text).unwrap().compile_matcher();
        Expected {
            kind,
            class: None,
            observation: observation.map(pattern),
            up_to_u,
        }
    }

    fn entry(findings: Vec<Expected>) -> Entry {
        Entry {
            file: "known/x.toml".to_owned(),
            line: 3,
            target: Glob::new("x*").unwrap().compile_matcher(),
            case: Glob::new("s/*").unwrap().compile_matcher(),
            library_version: None,
            findings,
            reason: "because".to_owned(),
            expires: "2026-12-31".to_owned(),
            sometimes: false,
        }
    }

    fn finding(kind: FindingKind, observation: Option<&str>, measured_u: Option<f64>) -> Finding {
        Finding {
            observation: observation.map(str::to_owned),
            measured_u,
            class: Some(Class::Precision),
            ..Finding::new(kind, "m")
        }
    }

    fn result(verdict: Verdict, findings: Vec<Finding>) -> ResultRecord {
        ResultRecord {
            suite: "s".to_owned(),
            case: "c".to_owned(),
            task: "features".to_owned(),
            target: "x@cpu/f32".to_owned(),
            verdict,
            texts: Vec::new(),
            tokens: Vec::new(),
            answer: None,
            truth_answer: None,
            margins: Vec::new(),
            observations: BTreeMap::new(),
            findings,
            known: None,
        }
    }

    /// The verdict that entries make of a result on a day.
    fn judged(
        entries: &[Entry],
        mut result: ResultRecord,
        day: &str,
    ) -> (Verdict, Vec<KnownEntry>) {
        let mut seen: Vec<KnownEntry> = entries.iter().map(|entry| entry.unseen(day)).collect();
        let all: Vec<usize> = (0..entries.len()).collect();
        judge(&mut result, entries, &all, &mut seen);
        let decided = matches!(result.verdict, Verdict::Known | Verdict::Fixed);
        assert_eq!(result.known.is_some(), decided);
        (result.verdict, seen)
    }

    #[test]
    fn every_finding_must_be_expected() {
        use FindingKind::{Damage, Flaky, Moved, Numeric, Order};
        let (logits, hidden) = (Some("logits"), Some("hidden.1"));
        let numeric = |observation, u| finding(Numeric, observation, Some(u));
        for (expects, findings, verdict) in [
            (
                vec![expected(Numeric, None, None)],
                vec![numeric(logits, 9.0)],
                Verdict::Known,
            ),
            (
                vec![expected(Numeric, None, None)],
                vec![finding(Numeric, None, None)],
                Verdict::Known,
            ),
            (
                vec![expected(Numeric, Some("hid*"), None)],
                vec![numeric(hidden, 9.0)],
                Verdict::Known,
            ),
            (
                vec![expected(Numeric, None, Some(9.0))],
                vec![numeric(logits, 9.0)],
                Verdict::Known,
            ),
            (
                vec![expected(Numeric, None, Some(9.0))],
                vec![numeric(logits, 9.1)],
                Verdict::Drift,
            ),
            (
                vec![expected(Numeric, None, Some(9.0))],
                vec![finding(Numeric, logits, None)],
                Verdict::Drift,
            ),
            (
                vec![expected(Numeric, Some("hid*"), None)],
                vec![numeric(hidden, 9.0), numeric(logits, 9.0)],
                Verdict::Drift,
            ),
            (
                vec![expected(Numeric, Some("*"), None)],
                vec![finding(Numeric, None, None)],
                Verdict::Drift,
            ),
            (
                vec![expected(Damage, None, None)],
                vec![numeric(logits, 9.0)],
                Verdict::Drift,
            ),
            (
                vec![expected(Numeric, None, None)],
                vec![numeric(logits, 9.0), finding(Order, None, None)],
                Verdict::Drift,
            ),
            (
                vec![expected(Numeric, None, None), expected(Order, None, None)],
                vec![numeric(logits, 9.0), finding(Order, None, None)],
                Verdict::Known,
            ),
            (
                vec![expected(Numeric, None, None)],
                vec![numeric(logits, 9.0), finding(Flaky, None, None)],
                Verdict::Drift,
            ),
            (
                vec![expected(Moved, logits, None)],
                vec![finding(Moved, logits, Some(9.0))],
                Verdict::Known,
            ),
            (
                vec![expected(Numeric, None, None)],
                Vec::new(),
                Verdict::Drift,
            ),
        ] {
            let what = format!("{expects:?} of {findings:?}");
            let entry = entry(expects);
            let (found, seen) = judged(&[entry], result(Verdict::Drift, findings), "2026-11-24");
            assert_eq!(found, verdict, "{what}");
            let counts = (seen[0].deviating, seen[0].fixed, seen[0].beyond);
            let known = usize::from(verdict == Verdict::Known);
            assert_eq!(counts, (known, 0, 1 - known), "{what}");
        }
    }

    #[test]
    fn verdicts_without_drift() {
        for (verdict, sometimes, expected_verdict) in [
            (Verdict::Pass, false, Verdict::Fixed),
            (Verdict::Pass, true, Verdict::Pass),
            (Verdict::New, false, Verdict::Fixed),
            (Verdict::Broken, false, Verdict::Broken),
            (Verdict::Unsupported, false, Verdict::Unsupported),
        ] {
            let entry = Entry {
                sometimes,
                ..entry(vec![expected(FindingKind::Numeric, None, None)])
            };
            let (found, _) = judged(&[entry], result(verdict, Vec::new()), "2026-11-24");
            assert_eq!(found, expected_verdict);
        }
    }

    #[test]
    fn an_entry_counts_through_its_last_day_and_another_one_may_take_over() {
        let one = entry(vec![expected(FindingKind::Numeric, None, None)]);
        let later = Entry {
            expires: "2027-06-30".to_owned(),
            ..one.clone()
        };
        let numeric = || {
            let findings = vec![finding(FindingKind::Numeric, None, Some(9.0))];
            result(Verdict::Drift, findings)
        };
        for (day, alone, both) in [
            ("2026-12-31", Verdict::Known, Verdict::Known),
            ("2027-01-01", Verdict::Drift, Verdict::Known),
            ("2027-07-01", Verdict::Drift, Verdict::Drift),
        ] {
            let entries = [one.clone(), later.clone()];
            assert_eq!(judged(&entries[..1], numeric(), day).0, alone, "{day}");
            assert_eq!(judged(&entries, numeric(), day).0, both, "{day}");
        }
    }

    /// A baseline's finding stands as evidence beside another one, and is a finding all the same.
    #[test]
    fn an_error_that_grew_beyond_its_baseline_is_no_part_of_it() {
        let observation = Observation {
            shape: vec![1, 2],
            dtype: "f32".to_owned(),
            max_abs: None,
            max_rel: None,
            error_u: Some(9.0),
            effective_bits: None,
            cosine: None,
            predicted_u: 1.0,
            budget_u: 2.0,
            within: false,
            digest: String::new(),
            moved: Some(Moved {
                accepted_u: Some(4.0),
                bitwise: false,
                noise: Some(5.0),
                within: false,
            }),
        };
        let mut grown = result(
            Verdict::Drift,
            vec![finding(FindingKind::Numeric, Some("cls"), Some(9.0))],
        );
        grown.observations.insert("cls".to_owned(), observation);
        let numeric = entry(vec![expected(FindingKind::Numeric, None, None)]);
        let both = entry(vec![
            expected(FindingKind::Numeric, None, None),
            expected(FindingKind::Moved, Some("cls"), None),
        ]);
        let day = "2026-11-24";
        assert_eq!(judged(&[numeric], grown.clone(), day).0, Verdict::Drift);
        assert_eq!(judged(&[both], grown, day).0, Verdict::Known);
    }
}
