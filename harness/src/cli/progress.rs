//! Progress on stderr; nothing where stderr is not a terminal.

use std::io::Write;
use std::time::Duration;

use driftgauge::run::Progress;
use driftgauge::target::Target;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line for each target and one for the truth.
pub struct Bars {
    all: MultiProgress,
    targets: Vec<ProgressBar>,
    truth: ProgressBar,
}

impl Bars {
    /// Lines for some targets, or nothing at all.
    pub fn new(targets: &[Target], quiet: bool) -> Self {
        let all = MultiProgress::with_draw_target(if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        });
        let line = |name: String| {
            let bar = all.add(ProgressBar::new(0));
            bar.set_style(
                ProgressStyle::with_template("{prefix:24} {bar:24} {pos:>4}/{len:4} {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_prefix(name);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        };
        let truth = line("truth (f64)".to_owned());
        let targets = targets
            .iter()
            .map(|target| line(target.to_string()))
            .collect();
        truth.set_message("hashing the model");
        Self {
            all,
            targets,
            truth,
        }
    }

    /// The number of batches and sequences is known.
    pub fn planned(&self, jobs: usize, sequences: usize) {
        self.targets
            .iter()
            .for_each(|bar| bar.set_length(jobs as u64));
        self.truth.set_length(sequences as u64);
        self.truth.set_message("computing");
    }

    /// All batches are run so many times.
    pub fn repeated(&self, runs: usize) {
        for bar in &self.targets {
            bar.set_length(bar.length().unwrap_or(0) * runs as u64);
        }
    }

    /// The truth is there.
    pub fn truth_done(&self) {
        self.truth.set_position(self.truth.length().unwrap_or(0));
        self.truth.set_message("done");
    }

    /// Errors are being predicted.
    pub fn predicting(&self) {
        self.truth.set_message("predicting errors");
    }

    /// Prints a line on stderr, above the lines.
    pub fn warn(&self, text: &str) {
        self.all.suspend(|| {
            let _ = writeln!(std::io::stderr(), "{text}");
        });
    }

    /// Removes all lines.
    pub fn clear(&self) {
        // Each on its own: a line that is still ticking would be drawn again.
        self.targets.iter().for_each(ProgressBar::finish_and_clear);
        self.truth.finish_and_clear();
        let _ = self.all.clear();
    }
}

impl Progress for Bars {
    fn stage(&self, target: usize, stage: &str) {
        self.targets[target].set_message(stage.to_owned());
    }

    fn job_done(&self, target: usize) {
        self.targets[target].inc(1);
    }
}
