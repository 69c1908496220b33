//! `driftgauge consistency`: does a target give the same numbers however a case is run?

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use driftgauge::budget::{self, Calibration};
use driftgauge::cache::Cache;
use driftgauge::collect::model_record;
use driftgauge::consistency::{
    Driven, Scale, Setup, Variant, assess, choose, drive, exit_code, outcomes, variants,
};
use driftgauge::install::Install;
use driftgauge::model::{Model, manifest};
use driftgauge::plan::{Plan, plan};
use driftgauge::predict;
use driftgauge::target::Target;
use driftgauge::{host, output};
use driftgauge_reports::consistency::{
    CONSISTENCY_FORMAT, CONSISTENCY_VERSION, ConsistencyMethod, ConsistencyRecord,
    ConsistencySummary, SequenceRecord, render, render_json,
};

use super::inputs::{self, EMBEDDED_MODEL, model_error, plan_error};
use super::progress::Bars;
use super::run::Clock;
use super::{Exit, TableOrJson, print, style};

/// Shown under `driftgauge consistency --help`.
pub const EXAMPLES: &str = "\
Every target is compared with itself: the same process twice, a fresh process, 1 and 2 threads, \
alone and in a batch, each place in the batch, right padding, sequences padded together, and these \
in the opposite order. Each check is bitwise, within what two correct results may differ by, or drift.

Examples:
  driftgauge consistency
  driftgauge consistency --target libtorch@cpu/f32 --threads 4
  driftgauge consistency --model ./bert-base-chinese --sequences 3
  driftgauge consistency --case 'features/*' --format json | jq .summary

Exit codes:
  0  every check is bitwise or within its budget
  1  a check drifted
  2  wrong usage, or a suite or model that is missing or damaged
  3  a target broke, or cannot do what was asked
  4  nothing was run";

/// Arguments of `driftgauge consistency`.
#[derive(Debug, clap::Args)]
pub struct ConsistencyArguments {
    #[command(flatten)]
    selection: inputs::Selection,
    /// Model directory in Hugging Face layout [default: the embedded zh-mini]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Most sequences to run, chosen to be of different lengths
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    sequences: u16,
    /// Folder for consistency.json
    #[arg(long, value_name = "DIR", default_value = "driftgauge-out")]
    out: PathBuf,
    /// What to print
    #[arg(long, value_enum, default_value_t = TableOrJson::Table)]
    format: TableOrJson,
    /// Threads of each target [default: the machine's CPUs, shared out]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

/// Runs the checks and prints the table.
///
/// # Errors
/// [`Exit`] where nothing could be run; what happens to a target is in the record.
pub fn consistency(arguments: &ConsistencyArguments) -> Result<u8, Exit> {
    let mut clock = Clock::start();
    let file = arguments.out.join("consistency.json");
    let cannot_write = |error: std::io::Error| {
        let error = anyhow!(error).context(format!("cannot write `{}`", file.display()));
        Exit::input(error).with_hint("choose another folder with --out")
    };
    output::check_writable(&arguments.out).map_err(cannot_write)?;
    let install = super::find_install()?;
    let targets = inputs::targets(&arguments.selection.targets, &install)?;
    let suites = inputs::suites(&arguments.selection.suites, &install)?;
    let calibration = Calibration::read(&install.calibration())
        .map_err(|error| Exit::input(error).with_hint(budget::HINT))?;
    let manifests = manifest::load_all(&install.models()).map_err(model_error)?;
    let directory = arguments
        .model
        .clone()
        .unwrap_or_else(|| install.models().join(EMBEDDED_MODEL));
    let threads = match arguments.threads {
        Some(threads) => usize::from(threads),
        None => (host::logical_cpus() / targets.len()).max(1),
    };
    let model = Model::open(&directory, &manifests).map_err(model_error)?;
    clock.lap("model");
    let pad = model.config.pad_token_id;
    let all = plan(&suites, &arguments.selection.cases, &model).map_err(plan_error)?;
    let plan = choose(&all, usize::from(arguments.sequences), pad);
    let positions = model.config.max_position_embeddings;
    let variants = variants(&plan, threads, positions, pad);
    clock.lap("plan");

    let bars = Bars::new(&targets, arguments.quiet);
    let runs = variants.iter().map(|variant| variant.runs.len()).sum();
    bars.planned(runs, plan.sequences.len());
    let driving = Driving {
        arguments,
        install: &install,
        threads,
        model: &model,
        plan: &plan,
        variants: &variants,
    };
    let driven = driving.all(&targets, &bars);
    clock.lap("targets");
    let loaded = driven
        .iter()
        .flatten()
        .filter_map(|own| own.loaded.as_ref());
    let predictions = inputs::predictions_of(&Cache::find(), &model, &plan, loaded, &bars);
    bars.clear();
    clock.lap("predictions");

    let scale = Scale {
        plan: &plan,
        predictions: &predictions,
        k: calibration.k,
    };
    let mut records = Vec::new();
    for driven in &driven {
        let driven = driven.as_ref().ok_or_else(|| {
            Exit::input(anyhow!("a thread of the harness ended without an outcome"))
        })?;
        records.push(assess(scale, &variants, driven));
    }
    let outcomes = outcomes(&records);
    let record = ConsistencyRecord {
        format: CONSISTENCY_FORMAT.to_owned(),
        version: CONSISTENCY_VERSION,
        driftgauge: env!("CARGO_PKG_VERSION").to_owned(),
        summary: ConsistencySummary {
            exit_code: exit_code(&outcomes),
            outcomes,
        },
        method: ConsistencyMethod {
            k: calibration.k,
            limit: budget::pair_budget(calibration.k),
            samples: predict::SAMPLES,
            seed: predict::SEED,
        },
        model: model_record(&model),
        sequences: sequences(&plan),
        targets: records,
        host: host::describe(),
        paths: BTreeMap::from([("model".to_owned(), directory.display().to_string())]),
        time: clock.finish(),
    };
    let json = render_json(&record)
        .context("cannot write the record as JSON")
        .map_err(Exit::input)?;
    output::write_whole(&file, json.as_bytes()).map_err(cannot_write)?;
    match arguments.format {
        TableOrJson::Json => print(&json)?,
        TableOrJson::Table => {
            let report = render(&record, style());
            print(&format!("{report}\nrecord: {}\n", file.display()))?;
        }
    }
    Ok(record.summary.exit_code)
}

fn sequences(plan: &Plan) -> Vec<SequenceRecord> {
    let cases = plan.cases.iter().zip(&plan.sequences);
    cases
        .map(|(case, sequence)| SequenceRecord {
            case: case.id(),
            tokens: sequence.ids.len(),
            logits: sequence.logit_positions.len(),
        })
        .collect()
}

struct Driving<'a> {
    arguments: &'a ConsistencyArguments,
    install: &'a Install,
    threads: usize,
    model: &'a Model,
    plan: &'a Plan,
    variants: &'a [Variant],
}

impl Driving<'_> {
    /// All targets side by side, each in a thread of its own.
    fn all(&self, targets: &[Target], bars: &Bars) -> Vec<Option<Driven>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = targets
                .iter()
                .enumerate()
                .map(|(index, target)| scope.spawn(move || self.one(index, target, bars)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().ok())
                .collect()
        })
    }

    fn one(&self, index: usize, target: &Target, bars: &Bars) -> Driven {
        let launch = |threads| {
            inputs::launch(
                self.install,
                target,
                threads,
                self.arguments.selection.timeout,
            )
        };
        let mut request = self
            .model
            .load_request(&target.device, target.dtype, self.threads);
        request.options = target.options.clone();
        let setup = Setup {
            target,
            launch: &launch,
            request,
            plan: self.plan,
            variants: self.variants,
        };
        drive(index, &setup, bars)
    }
}
