//! Runs the variants in one target's workers. The only module of the command that is not pure.

use driftgauge_protocol::{BertConfig, Hello, LoadRequest, Loaded};

use super::compare::{Compared, Values, compare, take};
use super::variants::{Process, Run, Variant};
use crate::extract::Part;
use crate::plan::Plan;
use crate::run::{MOST_CRASHES_IN_A_ROW, Progress, given_up, start_loaded, wanted};
use crate::target::Target;
use crate::worker::{Launch, Trouble, Worker};

/// What driving one target needs.
pub struct Setup<'a> {
    /// The target.
    pub target: &'a Target,
    /// How to start a worker that is to use so many threads.
    pub launch: &'a (dyn Fn(usize) -> Launch + Sync),
    /// What to load; its threads are those of the variants that ask for no others.
    pub request: LoadRequest,
    /// The chosen sequences.
    pub plan: &'a Plan,
    /// In which ways to run them.
    pub variants: &'a [Variant],
}

/// What a target did with all variants.
#[derive(Debug)]
pub struct Driven {
    /// The target.
    pub target: Target,
    /// What its worker said of itself.
    pub hello: Option<Hello>,
    /// What its worker said of the loaded model.
    pub loaded: Option<Loaded>,
    /// Why it could not be used at all; then no variant was run.
    pub trouble: Option<Trouble>,
    /// One entry for each variant, in order.
    pub variants: Vec<Ran>,
    /// How often a worker had to be started again.
    pub restarts: usize,
}

/// What became of a variant.
#[derive(Debug)]
pub enum Ran {
    /// The comparisons of each sequence, by its index; empty where others are compared with it.
    Compared(Vec<(usize, Vec<Compared>)>),
    /// It was not run, for this reason.
    Skipped(String),
    /// The target broke or refused, here or where this is compared with.
    Lost(Trouble),
}

/// Runs every variant and compares it with its counterpart as soon as it is there, so that only
/// what others are compared with is kept. The thread that calls this owns the workers.
pub fn drive(index: usize, setup: &Setup<'_>, progress: &dyn Progress) -> Driven {
    let mut driven = Driven {
        target: setup.target.clone(),
        hello: None,
        loaded: None,
        trouble: None,
        variants: Vec::new(),
        restarts: 0,
    };
    progress.stage(index, "loading");
    match start_loaded(&(setup.launch)(setup.request.threads), &setup.request) {
        Err(trouble) => driven.trouble = Some(trouble),
        Ok((worker, hello, loaded)) => {
            driven.hello = Some(hello);
            let mut driver = Driver {
                setup,
                loaded: &loaded,
                shared: Some(worker),
                crashes: 0,
                restarts: 0,
                kept: Vec::new(),
            };
            for variant in setup.variants {
                progress.stage(index, &variant.name);
                let mut run_done = || progress.job_done(index);
                driven.variants.push(driver.run(variant, &mut run_done));
            }
            driven.restarts = driver.restarts;
            driven.loaded = Some(loaded);
        }
    }
    progress.stage(index, "done");
    driven
}

struct Driver<'a> {
    setup: &'a Setup<'a>,
    loaded: &'a Loaded,
    /// The worker of all variants that do not ask for one of their own.
    shared: Option<Worker>,
    /// Runs in a row on which a worker broke.
    crashes: usize,
    restarts: usize,
    /// The values of each variant so far: of each sequence that was run, as long as something is
    /// still compared with it.
    kept: Vec<Result<Vec<Option<Values>>, Trouble>>,
}

impl Driver<'_> {
    fn run(&mut self, variant: &Variant, run_done: &mut dyn FnMut()) -> Ran {
        let number = self.kept.len();
        let is_needed = |other: &Variant| other.against == Some(number);
        let keeps = self.setup.variants.iter().any(is_needed);
        self.kept.push(Ok(vec![None; self.setup.plan.cases.len()]));
        let own = match variant.process {
            Process::Shared => None,
            Process::Fresh { threads } => {
                // It is not needed any more: variants with workers of their own come last.
                self.shared = None;
                match self.start(threads) {
                    Ok((worker, loaded)) if loaded.threads == threads => Some(worker),
                    Ok((_, loaded)) => {
                        variant.runs.iter().for_each(|_| run_done());
                        return Ran::Skipped(format!(
                            "asked for {threads}, the worker uses {}",
                            loaded.threads
                        ));
                    }
                    Err(trouble) => {
                        variant.runs.iter().for_each(|_| run_done());
                        return Ran::Lost(trouble);
                    }
                }
            }
        };
        let is_own = own.is_some();
        let mut slot = if is_own { own } else { self.shared.take() };
        let mut compared = Vec::new();
        let mut lost = None;
        for run in &variant.runs {
            match self.run_once(&mut slot, variant, run) {
                Err(trouble) => lost = lost.or(Some(trouble)),
                Ok(values) => {
                    for (case, values) in values {
                        match self.against(variant, case) {
                            Ok(None) => {}
                            Ok(Some(against)) => {
                                let vocabulary = self.setup.request.config.vocab_size;
                                compared.push((case, compare(&values, against, vocabulary)));
                            }
                            Err(trouble) => lost = lost.or(Some(trouble.clone())),
                        }
                        if let (true, Ok(kept)) = (keeps, &mut self.kept[number]) {
                            kept[case] = Some(values);
                        }
                    }
                }
            }
            run_done();
        }
        if !is_own {
            self.shared = slot;
        }
        match lost {
            Some(trouble) => {
                self.kept[number] = Err(trouble.clone());
                Ran::Lost(trouble)
            }
            None => Ran::Compared(compared),
        }
    }

    /// What a variant is compared with.
    fn against(&self, variant: &Variant, case: usize) -> Result<Option<&Values>, &Trouble> {
        match variant.against.map(|against| &self.kept[against]) {
            None => Ok(None),
            Some(Ok(kept)) => Ok(kept[case].as_ref()),
            Some(Err(trouble)) => Err(trouble),
        }
    }

    /// Runs one batch; a worker that broke before is replaced by a fresh one.
    fn run_once(
        &mut self,
        slot: &mut Option<Worker>,
        variant: &Variant,
        run: &Run,
    ) -> Result<Vec<(usize, Values)>, Trouble> {
        if self.crashes == MOST_CRASHES_IN_A_ROW {
            return Err(given_up());
        }
        let result = self.ask(slot, variant, run);
        self.crashes = match &result {
            Err(Trouble::Broken(_)) => self.crashes + 1,
            _ => 0,
        };
        result
    }

    fn ask(
        &mut self,
        slot: &mut Option<Worker>,
        variant: &Variant,
        run: &Run,
    ) -> Result<Vec<(usize, Values)>, Trouble> {
        let mut worker = match slot.take() {
            Some(worker) => worker,
            None => {
                self.restarts += 1;
                let threads = match variant.process {
                    Process::Shared => self.setup.request.threads,
                    Process::Fresh { threads } => threads,
                };
                self.start(threads)?.0
            }
        };
        let wanted = wanted(self.loaded, &run.batch);
        let names = self.names(run);
        let result = worker.run(&run.batch, &wanted, &names);
        if !matches!(result, Err(Trouble::Broken(_))) {
            *slot = Some(worker);
        }
        let (_, tensors) = result?;
        let config: &BertConfig = &self.setup.request.config;
        let read = run.read.iter().map(|read| {
            let part = Part {
                row: read.row,
                tokens: self.setup.plan.sequences[read.case].ids.len(),
            };
            let values = take(&tensors, &wanted, &run.batch, part, self.loaded, config);
            (read.case, values)
        });
        Ok(read.collect())
    }

    fn start(&self, threads: usize) -> Result<(Worker, Loaded), Trouble> {
        let request = LoadRequest {
            threads,
            ..self.setup.request.clone()
        };
        let (worker, _, loaded) = start_loaded(&(self.setup.launch)(threads), &request)?;
        Ok((worker, loaded))
    }

    fn names(&self, run: &Run) -> String {
        let name = |case: usize| format!("`{}`", self.setup.plan.cases[case].id());
        let names: Vec<String> = run.read.iter().map(|read| name(read.case)).collect();
        names.join(", ")
    }
}
