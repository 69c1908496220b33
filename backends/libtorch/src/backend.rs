//! The libtorch backend: what is loaded where, what is refused, what is reported.

use std::collections::BTreeMap;

use driftgauge_protocol::{
    Arithmetic, Backend, Batch, Bias, Dtype, Failure, Hello, LoadRequest, Loaded, LoadedModel,
    PROTOCOL_VERSION, Properties, Stage, Tensor as Numbers, Weights,
};
use tch::{Cuda, Device, Kind, Tensor};

use crate::fault;
use crate::model::Bert;
use crate::runtime::{self, Version};
use crate::tensors::{Input, Loader, dtype_of, from_numbers, kind_of, refusal, to_numbers};

/// BERT in libtorch operations.
#[derive(Debug, Clone, Copy)]
pub struct LibTorch;

impl Backend for LibTorch {
    fn hello(&mut self) -> Result<Hello, Failure> {
        let version = Version::loaded();
        version.check()?;
        runtime::prepare();
        Ok(Hello {
            protocol: PROTOCOL_VERSION,
            backend: "libtorch".to_owned(),
            library: "libtorch".to_owned(),
            version: version.to_string(),
            properties: runtime::build_properties(),
        })
    }

    fn load(&mut self, request: &LoadRequest) -> Result<(Box<dyn LoadedModel>, Loaded), Failure> {
        if let Some(option) = request.options.keys().next() {
            return Err(Failure::unsupported(format!(
                "libtorch has no option `{option}`"
            )));
        }
        let device = find_device(&request.device)?;
        let kind = computing_kind(request.dtype)?;
        let threads = i32::try_from(request.threads)
            .ok()
            .filter(|threads| *threads > 0);
        let threads = threads.ok_or_else(|| {
            Failure::error(format!("{} is no number of threads", request.threads))
        })?;
        tch::set_num_threads(threads);

        let fault = request.fault.as_ref();
        if let Some(fault) = fault {
            fault::check(fault, request)?;
        }
        let weights = Weights::open(&request.weights)?.under(fault);
        let mut loader = Loader::new(&weights, kind, device);
        let (config, mlm_head) = (&request.config, request.mlm_head);
        let bert = Bert::load(&mut loader, config, mlm_head, fault.cloned())?;
        weights.check_unchanged()?;
        let model = LoadedBert {
            observations: bert.observations(),
            bert,
            device,
        };
        model.try_out(&request.device, request.dtype)?;
        let loaded = Loaded {
            // What has just been seen, not merely what was asked.
            device: request.device.clone(),
            dtype: request.dtype,
            threads: usize::try_from(tch::get_num_threads()).unwrap_or_default(),
            observations: model.observations.clone(),
            arithmetic: arithmetic(request.dtype),
            float64_options: request.options.clone(),
            properties: settings()?,
            seconds: 0.0,
        };
        Ok((Box::new(model), loaded))
    }

    fn has_faults(&self) -> bool {
        true
    }
}

/// Device of a request, or why it cannot be had. A GPU that is not there is never replaced by the
/// CPU.
fn find_device(name: &str) -> Result<Device, Failure> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let index = name
        .strip_prefix("cuda:")
        .and_then(|index| index.parse().ok());
    let Some(index) = index else {
        return Err(
            Failure::unsupported(format!("libtorch knows no device `{name}` here"))
                .with_hint("use `cpu` or `cuda:N`"),
        );
    };
    if !tch::utils::has_cudart() {
        return Err(Failure::unsupported("this libtorch was built without CUDA")
            .with_hint("point LIBTORCH to a libtorch with CUDA and build the worker again"));
    }
    if !Cuda::is_available() {
        return Err(Failure::unsupported("libtorch finds no usable GPU")
            .with_hint("check the driver with `nvidia-smi`"));
    }
    let count = Cuda::device_count();
    if i64::try_from(index).is_ok_and(|index| index < count) {
        return Ok(Device::Cuda(index));
    }
    Err(Failure::unsupported(format!(
        "there is no `{name}`, libtorch finds {count} GPUs"
    )))
}

/// libtorch's name of the format to compute in.
fn computing_kind(dtype: Dtype) -> Result<Kind, Failure> {
    match dtype {
        Dtype::I64 => Err(Failure::unsupported("BERT cannot be computed in i64")),
        _ => Ok(kind_of(dtype)),
    }
}

/// How libtorch adds up. In f64 its `addmm` accumulates onto the bias: on zh-mini's decoder, whose
/// biases are some fifteen times larger than the sums, the error is that of this order to 1 % (37.3
/// times f64's roundoff, against 3.1 for the bias added last). In f32 it is that of the other order.
fn arithmetic(dtype: Dtype) -> Arithmetic {
    Arithmetic {
        bias: match dtype {
            Dtype::F64 => Bias::First,
            _ => Bias::Last,
        },
        ..Arithmetic::default()
    }
}

fn settings() -> Result<Properties, Failure> {
    let mut settings = runtime::settings().map_err(refusal)?;
    settings.insert("attention".to_owned(), "eager".to_owned());
    Ok(settings)
}

/// A model on its device.
struct LoadedBert {
    bert: Bert,
    device: Device,
    observations: Vec<String>,
}

impl LoadedBert {
    fn forward(
        &self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        let input = Input::new(batch, self.device)?;
        tch::no_grad(|| self.bert.forward(&input, wanted)).map_err(refusal)
    }

    /// Runs one token through the whole model: what libtorch lacks for this dtype on this device
    /// shows now and not in the middle of a suite.
    ///
    /// # Errors
    /// What libtorch refuses, or that it computed elsewhere or otherwise than asked.
    fn try_out(&self, device: &str, dtype: Dtype) -> Result<(), Failure> {
        for (name, tensor) in self.forward(&Batch::one_token(), &self.observations)? {
            let used_device = match tensor.device() {
                Device::Cpu => "cpu".to_owned(),
                Device::Cuda(index) => format!("cuda:{index}"),
                other => format!("{other:?}"),
            };
            let used_dtype = dtype_of(tensor.f_kind().map_err(refusal)?)?;
            if (used_device.as_str(), used_dtype) != (device, dtype) {
                return Err(Failure::error(format!(
                    "libtorch computed `{name}` in {used_dtype} on `{used_device}`, \
                     asked for {dtype} on `{device}`"
                )));
            }
        }
        Ok(())
    }
}

impl LoadedModel for LoadedBert {
    fn run(
        &mut self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Numbers>, Failure> {
        self.forward(batch, wanted)?
            .into_iter()
            .map(|(name, tensor)| Ok((name, to_numbers(&tensor)?)))
            .collect()
    }

    fn probe(
        &mut self,
        stage: Stage,
        batch: &Batch,
        input: Option<&Numbers>,
    ) -> Result<BTreeMap<String, Numbers>, Failure> {
        let on_device = |numbers| from_numbers(numbers)?.f_to_device(self.device);
        let hidden = input.map(on_device).transpose().map_err(refusal)?;
        let input = Input::new(batch, self.device)?;
        let steps = tch::no_grad(|| self.bert.probe(stage, &input, hidden.as_ref()));
        let steps = steps.map_err(refusal)?;
        let steps = steps.ok_or_else(|| Failure::error(format!("there is no `{stage}`")))?;
        steps
            .into_iter()
            .map(|(step, tensor)| Ok((step.name().to_owned(), to_numbers(&tensor)?)))
            .collect()
    }
}
