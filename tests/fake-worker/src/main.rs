//! A worker that misbehaves on request, for the end-to-end tests.
//!
//! Without a request it is a correct backend: it answers with the truth, in f64 or rounded to f32.
//! It talks through [`serve::main`] as every worker does. Options of the target:
//!
//! - `fault=NAME`: what goes wrong, see [`Fault`];
//! - `at=load` or `at=N`: only while loading, or only in the N-th run of this process, counted from
//!   1; without it, in every run;
//! - `once=PATH`: only where this file does not exist; it is then written and holds the process ID;
//! - `then=NAME`: goes wrong while loading where the file of `once` exists already;
//! - `lib=NAME`: goes wrong before the first message, or in what it says there, or in every run. This option and no other reaches a worker
//!   before its first message, as the variable `DRIFTGAUGE_LIBRARY`;
//! - `as=NAME`: passes itself off as a certain implementation, see [`Imitation`];
//! - `f64=no`: has no float64, as most libraries;
//! - `by=U`: how far off, in u, an answer is that depends on how it is run, a million by default;
//! - `first=PATH`: the process that makes this file is the first, see [`Fault::Process`];
//! - `name=TEXT`: does nothing, tells two targets apart.

mod damage;
mod fault;
mod imitate;
mod inconsistent;
mod truth;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use driftgauge_protocol::{
    Backend, Batch, Dtype, Failure, Hello, LoadRequest, Loaded, LoadedModel, PROTOCOL_VERSION,
    Properties, Tensor, serve,
};
use fault::Fault;
use imitate::Imitation;
use inconsistent::{Circumstances, distort};
use truth::TrueModel;

fn main() -> ExitCode {
    // A second descriptor of the pipe, before `serve::main` takes the first one away: some faults
    // write past the protocol. Child processes inherit it.
    match rustix::io::dup(std::io::stdout()) {
        Ok(pipe) => serve::main(Fake {
            pipe: Rc::new(File::from(pipe)),
        }),
        Err(error) => {
            eprintln!("fake worker: cannot duplicate the pipe: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Fake {
    pipe: Rc<File>,
}

impl Backend for Fake {
    fn hello(&mut self) -> Result<Hello, Failure> {
        let name = std::env::var("DRIFTGAUGE_LIBRARY").ok();
        let fault = name.as_deref().map(Fault::named).transpose()?;
        if let Some(fault) = fault {
            fault.strike(&self.pipe)?;
        }
        Ok(Hello {
            protocol: PROTOCOL_VERSION + u32::from(fault == Some(Fault::ProtocolVersion)),
            backend: "fake".to_owned(),
            library: "driftgauge-oracle".to_owned(),
            version: match fault {
                Some(Fault::NewVersion | Fault::OffInNewVersion) => "9.9.9".to_owned(),
                _ => env!("CARGO_PKG_VERSION").to_owned(),
            },
            properties: Properties::new(),
        })
    }

    fn load(&mut self, request: &LoadRequest) -> Result<(Box<dyn LoadedModel>, Loaded), Failure> {
        let plan = FaultPlan::of(&request.options)?;
        let fault = plan.due(Place::Load)?;
        if let Some(fault) = fault {
            fault.strike(&self.pipe)?;
        }
        let option = |name: &str| request.options.get(name).map(String::as_str);
        if request.dtype == Dtype::F64 && option("f64") == Some("no") {
            return Err(Failure::unsupported("this fake has no f64"));
        }
        let imitation = option("as").map(Imitation::named).transpose()?;
        let circumstances = circumstances(request)?;
        let (model, mut loaded) = TrueModel::load(request, imitation)?;
        match fault {
            Some(Fault::WrongDevice) => loaded.device = "cuda:0".to_owned(),
            Some(Fault::UnknownObservation) => loaded.observations.push("hidden.99".to_owned()),
            _ => {}
        }
        let model = FaultyModel {
            model,
            library: library(&request.options)?,
            plan,
            circumstances,
            runs: 0,
            pipe: Rc::clone(&self.pipe),
        };
        Ok((Box::new(model), loaded))
    }
}

/// The fault of the option `lib`.
fn library(options: &BTreeMap<String, String>) -> Result<Option<Fault>, Failure> {
    let name = options.get("lib");
    name.map(|name| Fault::named(name)).transpose()
}

struct FaultyModel {
    model: TrueModel,
    library: Option<Fault>,
    plan: FaultPlan,
    circumstances: Circumstances,
    /// Run requests so far.
    runs: usize,
    pipe: Rc<File>,
}

impl LoadedModel for FaultyModel {
    fn run(
        &mut self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        self.runs += 1;
        let mut tensors = self.model.run(batch, wanted)?;
        if let Some(fault) = self.library {
            damage::damage(fault, &mut tensors)?;
        }
        if let Some(fault) = self.plan.due(Place::Run(self.runs))? {
            fault.strike(&self.pipe)?;
            damage::damage(fault, &mut tensors)?;
            distort(fault, batch, self.circumstances, &mut tensors)?;
        }
        Ok(tensors)
    }
}

/// How this process is to answer. Makes the file of `first` where it is missing.
fn circumstances(request: &LoadRequest) -> Result<Circumstances, Failure> {
    let first = request.options.get("first");
    let by = match request.options.get("by") {
        None => 1e6,
        Some(by) => by
            .parse()
            .map_err(|_| Failure::unsupported(format!("`by={by}` is not a number")))?,
    };
    Ok(Circumstances {
        threads: request.threads,
        is_later: first.is_some_and(|path| File::create_new(path).is_err()),
        by,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Load,
    Run(usize),
}

/// What goes wrong where.
struct FaultPlan {
    fault: Option<Fault>,
    /// `None` is every run.
    at: Option<Place>,
    marker: Option<PathBuf>,
}

impl FaultPlan {
    fn of(options: &BTreeMap<String, String>) -> Result<Self, Failure> {
        const KNOWN: [&str; 10] = [
            "fault", "at", "once", "then", "lib", "as", "f64", "by", "first", "name",
        ];
        if let Some(option) = options.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            let message = format!("the fake worker has no option `{option}`");
            return Err(Failure::unsupported(message));
        }
        let fault = |key: &str| options.get(key).map(|name| Fault::named(name)).transpose();
        let marker = options.get("once").map(PathBuf::from);
        if marker.as_ref().is_some_and(|marker| marker.exists()) {
            return Ok(Self {
                fault: fault("then")?,
                at: Some(Place::Load),
                marker: None,
            });
        }
        let at = match options.get("at").map(String::as_str) {
            None => None,
            Some("load") => Some(Place::Load),
            Some(count) => Some(Place::Run(count.parse().map_err(|_| {
                Failure::unsupported(format!("`at={count}` is neither `load` nor a number"))
            })?)),
        };
        let fault = fault("fault")?;
        Ok(Self { fault, at, marker })
    }

    /// What goes wrong at this place. Leaves the marker behind.
    fn due(&self, place: Place) -> Result<Option<Fault>, Failure> {
        let is_here = self.at.map_or(place != Place::Load, |at| at == place);
        let Some(fault) = self.fault.filter(|_| is_here) else {
            return Ok(None);
        };
        if let Some(marker) = &self.marker {
            match File::create_new(marker) {
                Ok(mut file) => writeln!(file, "{}", std::process::id())
                    .map_err(|error| Failure::error(format!("cannot write the marker: {error}")))?,
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(fault))
    }
}
