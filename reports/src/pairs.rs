//! Pairs of targets as a table: do they agree to the bit, do they agree within noise.

use std::fmt::Write;

use tabled::builder::Builder;

use crate::Style;
use crate::layout::{layout, visible_width};
use crate::record::Pair;
use crate::text::{plain, shorten_middle};

/// Pairs that are shown.
const SHOWN_PAIRS: usize = 6;
/// Columns that a target gets whatever happens.
const NARROWEST_TARGET: usize = 8;

/// The pairs of one run; nothing where there is none.
pub(crate) fn section(pairs: &[Pair], k: f64, style: Style) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    format!(
        "targets compared with each other, in units of their noise (limit {k})\n{}",
        table(pairs, ["a", "b"], true, style)
    )
}

/// The table of some pairs under the names of their two columns, the furthest apart first where not all
/// are shown. Distances that are not `exact` are lower bounds.
pub(crate) fn table(pairs: &[Pair], names: [&str; 2], exact: bool, style: Style) -> String {
    let mut shown: Vec<&Pair> = pairs.iter().collect();
    if shown.len() > SHOWN_PAIRS {
        shown.sort_by(|one, other| distance(other).total_cmp(&distance(one)));
        shown.truncate(SHOWN_PAIRS);
    }
    let heads = ["bitwise equal", "within noise", "furthest"];
    let rows: Vec<[String; 3]> = shown
        .iter()
        .map(|pair| {
            [
                share(pair.bitwise, pair.compared),
                within(pair, exact),
                furthest(pair, exact),
            ]
        })
        .collect();
    let widest = |column: usize| {
        let cells = rows.iter().map(|row| visible_width(&row[column]));
        cells.chain([heads[column].len()]).max().unwrap_or(0) + 2
    };
    let used: usize = (0..heads.len()).map(widest).sum();
    // Two columns of targets, each with a space on both sides.
    let free = style.width.saturating_sub(used + 4);
    let of_one = free.div_ceil(2).max(NARROWEST_TARGET);
    let name = |target: &str| shorten_middle(&plain(target), of_one.min(free / 2 + free % 2));
    let mut table = Builder::default();
    table.push_record(names.into_iter().chain(heads).map(str::to_owned));
    for (pair, cells) in shown.iter().zip(rows) {
        let names = [name(&pair.a), name(&pair.b)];
        table.push_record(names.into_iter().chain(cells));
    }
    let mut text = format!("{}\n", layout(table, 2));
    if pairs.len() > SHOWN_PAIRS {
        let hidden = pairs.len() - SHOWN_PAIRS;
        let _ = writeln!(
            text,
            " ... and {hidden} pairs that are nearer, all in the record"
        );
    }
    text
}

fn distance(pair: &Pair) -> f64 {
    match &pair.furthest {
        Some(furthest) => furthest.noise.unwrap_or(f64::INFINITY),
        None => -1.0,
    }
}

/// What is within noise. Where only lower bounds are known, that cannot be told of numbers that differ.
fn within(pair: &Pair, exact: bool) -> String {
    match pair.compared - pair.within {
        _ if exact || pair.bitwise == pair.compared => share(pair.within, pair.compared),
        0 => "not known".to_owned(),
        beyond => format!("{beyond} beyond"),
    }
}

/// A count as a word where it is one.
fn share(count: usize, all: usize) -> String {
    if all == 0 {
        "-".to_owned()
    } else if count == 0 {
        "never".to_owned()
    } else if count == all {
        "always".to_owned()
    } else {
        format!("{count} of {all}")
    }
}

fn furthest(pair: &Pair, exact: bool) -> String {
    let bound = if exact { "" } else { ">= " };
    match &pair.furthest {
        None => "nothing compared".to_owned(),
        Some(furthest) => match furthest.noise {
            Some(0.0) if pair.bitwise == pair.compared => "same".to_owned(),
            Some(noise) => format!("{} {bound}{noise:.2}", plain(&furthest.observation)),
            None => format!("{} not finite", plain(&furthest.observation)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Furthest;
    use crate::text::width;

    fn pair(b: &str, bitwise: usize, within: usize, noise: Option<f64>) -> Pair {
        Pair {
            a: "onnx@cpu/f32".to_owned(),
            b: b.to_owned(),
            compared: 1330,
            bitwise,
            within,
            furthest: Some(Furthest {
                case: "seed/capital".to_owned(),
                observation: "hidden.12".to_owned(),
                distance_u: noise,
                noise,
            }),
        }
    }

    #[test]
    fn pairs_fit_and_say_always_and_never() {
        let long = "onnx@cpu/f32?lib=/opt/北京/onnxruntime-1.23.2/libonnxruntime.so.1.23.2";
        let pairs = [
            pair(long, 0, 1330, Some(1.25)),
            pair("libtorch@cpu/f32", 1330, 1330, Some(0.0)),
            pair("fake@cpu/f32?fault=nan", 17, 100, None),
        ];
        for width_of in [40, 80, 200] {
            let style = Style {
                width: width_of,
                colour: false,
            };
            let text = section(&pairs, 2.5, style);
            if width_of >= 80 {
                assert!(text.lines().all(|line| width(line) <= width_of), "{text}");
                assert!(
                    text.contains("libonnxruntime.so.1.23.2") == (width_of == 200),
                    "{text}"
                );
                assert!(text.contains(".so.1.23.2") || width_of == 80, "{text}");
            }
            let row = text.lines().nth(3).unwrap();
            assert!(
                row.contains("never") && row.contains("always") && row.contains("hidden.12 1.25"),
                "{text}"
            );
            assert!(
                text.contains("17 of 1330") && text.contains("not finite"),
                "{text}"
            );
        }
        let many = vec![pair("x@cpu/f32", 0, 0, Some(1.0)); 7];
        let style = Style {
            width: 80,
            colour: false,
        };
        assert!(section(&many, 2.5, style).contains("1 pairs that are nearer"));
        assert_eq!(section(&[], 2.5, style), "");
    }
}
