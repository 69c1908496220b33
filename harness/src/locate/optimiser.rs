//! Which optimisation of a library makes the difference, where a library has them to switch.
//!
//! A worker states them: the property `optimisers` names those that its level may apply, and its targets
//! take the options `opt` and `without`.

use driftgauge_protocol::{Loaded, Stage};

use super::examine::Again;
use super::{Look, Sample};
use crate::plan::Plan;
use crate::run::{JobOutcome, start_loaded, wanted};
use crate::worker::{Trouble, Worker};

/// The property that names the optimisers in force.
const PROPERTY: &str = "optimisers";
/// Optimisers that are switched off one by one; more are halved first.
const ONE_BY_ONE: usize = 8;
/// Levels below which there is nothing to switch off, and the option that chooses one.
const LEVELS: [&str; 4] = ["disable", "basic", "extended", "all"];

/// Bisects, and says in sentences what was found; nothing where the library has no optimisers to switch.
pub(super) fn bisect(
    look: &Look<'_>,
    plan: &Plan,
    again: &Again,
    loaded: &Loaded,
    stage: Stage,
) -> Vec<String> {
    let Some(names) = loaded.properties.get(PROPERTY) else {
        return Vec::new();
    };
    let names: Vec<&str> = names
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    let mut bisection = Bisection {
        look,
        plan,
        again,
        stage,
        worker: None,
    };
    bisection.run(&names).unwrap_or_else(|trouble| {
        let message = crate::judge::describe(&trouble).message;
        vec![format!(
            "the optimisation levels could not be tried: {message}"
        )]
    })
}

struct Bisection<'a> {
    look: &'a Look<'a>,
    plan: &'a Plan,
    again: &'a Again,
    stage: Stage,
    worker: Option<Worker>,
}

impl Bisection<'_> {
    fn run(&mut self, names: &[&str]) -> Result<Vec<String>, Trouble> {
        let asked = self.again.request.options.get("opt").cloned();
        let asked = asked.unwrap_or_else(|| LEVELS[3].to_owned());
        let Some(top) = LEVELS.iter().position(|level| *level == asked) else {
            return Ok(Vec::new());
        };
        // At the level that was asked for it is there: nothing lower need be.
        let mut first = LEVELS[top];
        for level in &LEVELS[..top] {
            if self.is_bad(&[("opt", level)])? {
                first = level;
                break;
            }
        }
        if first == LEVELS[0] {
            let sentence = "it is in the graph itself: without any optimisation as well";
            return Ok(vec![sentence.to_owned()]);
        }
        Ok(vec![
            format!("it appears only from optimisation level `{first}` on"),
            self.named(names, first)?,
        ])
    }

    /// Names the optimisers without any one of which it is gone.
    fn named(&mut self, names: &[&str], level: &str) -> Result<String, Trouble> {
        let mut suspects: Vec<&str> = names.to_vec();
        let all_off = suspects.join(";");
        if suspects.is_empty() || self.is_bad(&[("opt", level), ("without", &all_off)])? {
            return Ok("no optimiser that can be switched off by name makes it".to_owned());
        }
        // Half of them off, as long as that mends it.
        while suspects.len() > ONE_BY_ONE {
            let (one, other) = suspects.split_at(suspects.len() / 2);
            suspects = match self.is_bad(&[("opt", level), ("without", &one.join(";"))])? {
                false => one.to_vec(),
                true => other.to_vec(),
            };
        }
        let mut guilty = Vec::new();
        for name in suspects {
            if !self.is_bad(&[("opt", level), ("without", name)])? {
                guilty.push(format!("`{name}`"));
            }
        }
        Ok(match &guilty[..] {
            [] => "several optimisers make it, each by itself".to_owned(),
            [one] => format!("the optimiser {one} makes it: option `without` switches it off"),
            some => format!(
                "the optimisers {} make it together: option `without` switches any of them off",
                some.join(" and ")
            ),
        })
    }

    /// Whether the stage is beyond its budget with other options.
    fn is_bad(&mut self, options: &[(&str, &str)]) -> Result<bool, Trouble> {
        let mut request = self.again.request.clone();
        for (key, value) in options {
            request
                .options
                .insert((*key).to_owned(), (*value).to_owned());
        }
        let (mut worker, loaded) = match self.worker.take() {
            Some(mut worker) => {
                let loaded = worker.load(&request)?;
                (worker, loaded)
            }
            None => {
                let (worker, _, loaded) = start_loaded(&self.again.launch, &request)?;
                (worker, loaded)
            }
        };
        let mut outcomes: Vec<JobOutcome> = Vec::new();
        for job in &self.plan.jobs {
            let (_, tensors) = worker.run(&job.batch, &wanted(&loaded, &job.batch), "a batch")?;
            outcomes.push(tensors);
        }
        self.worker = Some(worker);
        let jobs = self.plan.jobs.iter().zip(&outcomes);
        let parts = jobs.zip(self.look.samples);
        let samples: Vec<Sample<'_>> = parts
            .map(|((job, tensors), sample)| Sample {
                batch: &job.batch,
                tensors,
                predicted: sample.predicted,
            })
            .collect();
        let look = Look {
            samples: &samples,
            ..*self.look
        };
        let check = look.check(self.stage);
        Ok(check.is_ok_and(|check| !check.within(look.k)))
    }
}
