//! driftgauge: is it still the same model?
//!
//! ```text
//! cases/*.toml ─load→ cases ─plan→ jobs ─run→ outcomes ─judge→ verdicts ─collect→ record ─render→ report
//! ```
//!
//! Each arrow is one module: [`suite`], [`plan`], [`run`], [`judge`], [`collect`]; rendering is the
//! crate `driftgauge-reports`. All are pure except `run`, which talks to the [`worker`] processes.
//! The truth comes from the [`oracle`]. This crate links no native inference library.

pub mod answer;
pub mod baseline;
pub mod budget;
pub mod bundle;
pub mod cache;
pub mod calibrate;
pub mod catalogue;
pub mod collect;
pub mod consistency;
pub mod day;
pub mod detect;
pub mod evidence;
pub mod exit;
pub mod extract;
pub mod history;
pub mod host;
pub mod install;
pub mod judge;
pub mod known;
pub mod locate;
pub mod measure;
pub mod merge;
pub mod model;
pub mod observed;
pub mod oracle;
pub mod output;
pub mod pairs;
pub mod plan;
pub mod predict;
mod problem;
pub mod repeat;
pub mod run;
pub mod selftest;
pub mod suite;
pub mod target;
pub mod worker;
