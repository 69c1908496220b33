//! What surrounds a target and can change its numbers.
//!
//! Two runs of one target in equal environments are expected to give the same bits. Times, places on
//! the machine, and facts that no arithmetic depends on (memory, the kernel) are left out.

use std::collections::BTreeMap;

use crate::record::{RunRecord, TargetRecord};
use crate::text::{plain, shorten, width};

/// Keys of an environment that differ: value of the one, value of the other.
pub type Changed = BTreeMap<String, [Option<String>; 2]>;

/// Facts about the machine that change no number: targets state the threads that they really use.
const HARMLESS: [&str; 3] = ["kernel", "logical_cpus", "memory_gib"];
/// Columns of a value in a sentence.
const VALUE: usize = 40;

/// The environment of a target: its library, device, dtype and threads, what its worker states about
/// itself, and the machine under keys that begin with `host.`.
pub fn of(record: &RunRecord, target: &TargetRecord) -> BTreeMap<String, String> {
    let threads = target.threads.map(|threads| threads.to_string());
    let own = [
        ("library", &target.library),
        ("library_version", &target.library_version),
        ("device", &target.device),
        ("dtype", &target.dtype),
        ("threads", &threads),
    ];
    let mut environment: BTreeMap<String, String> = own
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
        .collect();
    for (key, value) in &target.properties {
        // In a merged record, what differs between its machines stands among the properties.
        let harmless = key
            .strip_prefix("host.")
            .is_some_and(|key| HARMLESS.contains(&key));
        if harmless || key.ends_with("_path") {
            continue;
        }
        let key = if environment.contains_key(key) {
            format!("worker.{key}")
        } else {
            key.clone()
        };
        environment.insert(key, value.clone());
    }
    let host = record.host.iter();
    let host = host.filter(|(key, _)| !HARMLESS.contains(&key.as_str()));
    environment.extend(host.map(|(key, value)| (format!("host.{key}"), value.clone())));
    environment
}

/// The keys in which two environments differ.
pub fn changed(from: &BTreeMap<String, String>, to: &BTreeMap<String, String>) -> Changed {
    let keys = from.keys().chain(to.keys());
    let values = keys.map(|key| (key.clone(), [from.get(key).cloned(), to.get(key).cloned()]));
    values.filter(|(_, [from, to])| from != to).collect()
}

/// Changed keys in words, what usually matters first: `library_version 1.23.2 -> 1.31.1, threads 1 ->
/// 2`. At most `most` of them are named, the others counted.
pub fn in_words(changed: &Changed, most: usize) -> String {
    const FIRST: [&str; 5] = ["library", "library_version", "device", "dtype", "threads"];
    let rank = |key: &str| {
        let first = FIRST.iter().position(|first| *first == key);
        first.unwrap_or(FIRST.len() + usize::from(!key.starts_with("host.")))
    };
    let mut keys: Vec<&String> = changed.keys().collect();
    keys.sort_by_key(|key| (rank(key), *key));
    let named = keys.iter().take(most).map(|key| {
        let [from, to] = values(&changed[*key]);
        format!("{} {from} -> {to}", plain(key))
    });
    let mut words = named.collect::<Vec<_>>().join(", ");
    if keys.len() > most {
        words.push_str(&format!(" and {} more", keys.len() - most));
    }
    words
}

/// Two values in a few columns each. Of long ones what they begin with in common is left out.
fn values(values: &[Option<String>; 2]) -> [String; 2] {
    let whole = values.each_ref().map(|value| match value {
        Some(value) => plain(value),
        None => "(none)".to_owned(),
    });
    let [from, to] = &whole;
    let pairs = from.chars().zip(to.chars());
    let common = pairs.take_while(|(a, b)| a == b).count();
    whole.map(|value| {
        let is_long = width(&value) > VALUE && common > VALUE / 2;
        let kept = if is_long {
            common.saturating_sub(VALUE / 4)
        } else {
            0
        };
        let rest: String = value.chars().skip(kept).collect();
        let before = if kept > 0 { "…" } else { "" };
        shorten(&format!("{before}{rest}"), VALUE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn changes_are_named_in_the_order_of_their_weight() {
        let from = map(&[
            ("build", "a"),
            ("host.cpu", "Zen"),
            ("library_version", "1"),
            ("same", "x"),
        ]);
        let to = map(&[
            ("host.cpu", "Xeon"),
            ("library_version", "2"),
            ("same", "x"),
        ]);
        let changed = changed(&from, &to);
        let all = "library_version 1 -> 2, host.cpu Zen -> Xeon, build a -> (none)";
        assert_eq!(in_words(&changed, usize::MAX), all);
        assert_eq!(in_words(&changed, 1), "library_version 1 -> 2 and 2 more");
        assert_eq!(in_words(&Changed::new(), 3), "");
    }

    #[test]
    fn of_long_values_the_difference_is_shown() {
        let long = |id: &str| {
            Some(format!(
                "Build Info: git-branch=HEAD, git-commit-id={id}, Release"
            ))
        };
        let changed = Changed::from([("build".to_owned(), [long("6af1a93"), long("a83fc4d")])]);
        let expected = "build …commit-id=6af1a93, Release -> …commit-id=a83fc4d, Release";
        assert_eq!(in_words(&changed, 1), expected);
    }
}
