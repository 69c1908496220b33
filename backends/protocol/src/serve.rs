//! The worker's side of the conversation.

use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::process::ExitCode;
use std::time::Instant;

use crate::frame::{FrameError, read_frame, write_frame};
use crate::{
    Backend, Batch, BertConfig, Failure, LoadRequest, Loaded, LoadedModel, Ran, Reply, Request,
    RunRequest, Tensor, TensorError, decode_tensors, encode_tensors,
};

/// Why the serve loop ended other than by the harness closing the pipe.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What arrived is not a request.
    #[error("cannot read a request")]
    Read(#[from] FrameError),
    /// The reply could not be sent.
    #[error("cannot send a reply")]
    Write(#[from] io::Error),
    /// The observations could not be put into a payload.
    #[error("cannot encode the observations")]
    Encode(#[from] TensorError),
}

/// The whole `main` of a worker: takes standard output away from native code, binds the worker's
/// life to the harness's, and serves until the pipe closes.
///
/// Returns 0 after a clean end and 1 after a broken conversation, with the reason on stderr.
pub fn main(mut backend: impl Backend) -> ExitCode {
    let result = take_stdout().map_err(ServeError::from).and_then(|output| {
        let mut input = BufReader::new(io::stdin().lock());
        serve(&mut backend, &mut input, &mut BufWriter::new(output))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("driftgauge worker: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}

/// Serves requests until `input` ends. Has no globals, so that tests feed it bytes.
///
/// # Errors
/// [`ServeError`] where the conversation itself breaks; what a backend cannot do is a
/// [`Reply::Failed`] and the loop goes on.
pub fn serve(
    backend: &mut dyn Backend,
    input: &mut dyn Read,
    output: &mut dyn Write,
) -> Result<(), ServeError> {
    match backend.hello() {
        Ok(hello) => write_frame(output, &Reply::Hello(hello), &[])?,
        Err(failure) => return Ok(write_frame(output, &Reply::Failed(failure), &[])?),
    }
    let mut served = None;
    while let Some((request, payload)) = read_frame::<Request>(input)? {
        let outcome = match request {
            Request::Load(request) => load(backend, *request, &mut served),
            Request::Run(request) => run(served.as_mut(), request, &payload),
        };
        let (reply, tensors) =
            outcome.unwrap_or_else(|failure| (Reply::Failed(failure), BTreeMap::new()));
        write_frame(output, &reply, &encode_tensors(&tensors)?)?;
    }
    Ok(())
}

type Outcome = Result<(Reply, BTreeMap<String, Tensor>), Failure>;

/// A loaded model and what may be asked of it.
struct Served {
    model: Box<dyn LoadedModel>,
    config: BertConfig,
    offered: Vec<String>,
}

fn load(backend: &mut dyn Backend, request: LoadRequest, served: &mut Option<Served>) -> Outcome {
    let start = Instant::now();
    let (model, loaded) = backend.load(&request)?;
    *served = Some(Served {
        model,
        config: request.config,
        offered: loaded.observations.clone(),
    });
    let loaded = Loaded {
        seconds: start.elapsed().as_secs_f64(),
        ..loaded
    };
    Ok((Reply::Loaded(loaded), BTreeMap::new()))
}

fn run(served: Option<&mut Served>, request: RunRequest, payload: &[u8]) -> Outcome {
    let served = served.ok_or_else(|| Failure::error("asked to run before a model was loaded"))?;
    let tensors = decode_tensors(payload)
        .map_err(|error| Failure::error(format!("the batch cannot be read: {error}")))?;
    let RunRequest {
        number,
        wanted,
        logit_rows,
    } = request;
    if let Some(name) = wanted.iter().find(|name| !served.offered.contains(name)) {
        let offered = served.offered.join(", ");
        return Err(Failure::error(format!(
            "no observation `{name}` (offered: {offered})"
        )));
    }
    let batch = Batch::from_tensors(tensors, logit_rows)?;
    batch.check(&served.config)?;
    let start = Instant::now();
    let observations = served.model.run(&batch, &wanted)?;
    let ran = Ran {
        number,
        seconds: start.elapsed().as_secs_f64(),
    };
    Ok((Reply::Ran(ran), observations))
}

/// Moves standard output to a descriptor of our own and lets descriptor 1 point at stderr, so that
/// nothing a native library prints can get between two frames. On Linux it also asks the kernel to
/// kill this process when the harness dies.
#[cfg(unix)]
fn take_stdout() -> io::Result<impl Write> {
    #[cfg(target_os = "linux")]
    {
        let parent = rustix::process::getppid();
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        if rustix::process::getppid() != parent {
            return Err(io::Error::other(
                "the harness died while this worker started",
            ));
        }
    }
    // Not for children: one that outlived this process would keep the pipe open.
    let output = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(std::fs::File::from(output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arithmetic, Dtype, FileIdentity, Hello, HiddenAct, PROTOCOL_VERSION, Properties};
    use crate::{WeightsFile, observation};

    /// Returns the token IDs as `embeddings`, so that a test sees what arrived.
    struct Echo;

    impl Backend for Echo {
        fn hello(&mut self) -> Result<Hello, Failure> {
            Ok(Hello {
                protocol: PROTOCOL_VERSION,
                backend: "echo".to_owned(),
                library: "echo".to_owned(),
                version: "1".to_owned(),
                properties: Properties::new(),
            })
        }

        fn load(
            &mut self,
            request: &LoadRequest,
        ) -> Result<(Box<dyn LoadedModel>, Loaded), Failure> {
            if request.dtype != Dtype::F32 {
                return Err(Failure::unsupported("echo speaks f32 only"));
            }
            let loaded = Loaded {
                device: request.device.clone(),
                dtype: request.dtype,
                threads: request.threads,
                observations: vec![observation::EMBEDDINGS.to_owned()],
                arithmetic: Arithmetic::default(),
                float64_options: request.options.clone(),
                properties: Properties::new(),
                seconds: 0.0,
            };
            Ok((Box::new(Echo), loaded))
        }
    }

    impl LoadedModel for Echo {
        fn run(
            &mut self,
            batch: &Batch,
            wanted: &[String],
        ) -> Result<BTreeMap<String, Tensor>, Failure> {
            let ids: Vec<f32> = batch.input_ids.iter().map(|id| *id as f32).collect();
            let tensor = Tensor::from_f32(vec![batch.sequences, batch.length, 1], &ids)
                .map_err(|error| Failure::error(error.to_string()))?;
            Ok(wanted
                .iter()
                .map(|name| (name.clone(), tensor.clone()))
                .collect())
        }
    }

    fn load_request(dtype: Dtype) -> Request {
        let identity = FileIdentity {
            size: 0,
            device: 0,
            inode: 0,
            modified: (0, 0),
            changed: (0, 0),
        };
        Request::Load(Box::new(LoadRequest {
            config: BertConfig {
                vocab_size: 8,
                hidden_size: 4,
                num_hidden_layers: 1,
                num_attention_heads: 1,
                intermediate_size: 4,
                hidden_act: HiddenAct::Gelu,
                max_position_embeddings: 8,
                type_vocab_size: 2,
                layer_norm_eps: 1e-12,
                pad_token_id: 0,
            },
            weights: WeightsFile {
                path: "weights".into(),
                identity,
                names: BTreeMap::new(),
            },
            mlm_head: false,
            device: "cpu".to_owned(),
            dtype,
            threads: 1,
            options: BTreeMap::new(),
        }))
    }

    fn batch() -> Batch {
        Batch {
            sequences: 1,
            length: 2,
            input_ids: vec![5, 7],
            token_type_ids: vec![0, 0],
            attention_mask: vec![1, 1],
            logit_rows: vec![],
        }
    }

    fn converse(requests: &[(Request, Vec<u8>)]) -> Vec<(Reply, Vec<u8>)> {
        let mut input = Vec::new();
        for (request, payload) in requests {
            write_frame(&mut input, request, payload).unwrap();
        }
        let mut output = Vec::new();
        serve(&mut Echo, &mut &input[..], &mut output).unwrap();
        let mut output = &output[..];
        std::iter::from_fn(|| read_frame(&mut output).unwrap()).collect()
    }

    fn run_request(batch: &Batch) -> (Request, Vec<u8>) {
        let wanted = vec![observation::EMBEDDINGS.to_owned()];
        let request = RunRequest {
            number: 7,
            wanted,
            logit_rows: batch.logit_rows.clone(),
        };
        (
            Request::Run(request),
            encode_tensors(&batch.to_tensors()).unwrap(),
        )
    }

    #[test]
    fn a_whole_conversation() {
        let replies = converse(&[(load_request(Dtype::F32), vec![]), run_request(&batch())]);
        assert!(matches!(replies[0].0, Reply::Hello(_)));
        assert!(matches!(&replies[1].0, Reply::Loaded(loaded) if loaded.device == "cpu"));
        assert!(matches!(replies[2].0, Reply::Ran(Ran { number: 7, .. })));
        let tensors = decode_tensors(&replies[2].1).unwrap();
        assert_eq!(tensors[observation::EMBEDDINGS].to_f64(), vec![5.0, 7.0]);
    }

    /// A request that cannot be carried out is answered, and the worker goes on.
    #[test]
    fn refusals_do_not_end_the_worker() {
        let unknown = Batch {
            input_ids: vec![5, 8],
            ..batch()
        };
        let unoffered = Request::Run(RunRequest {
            number: 1,
            wanted: vec![observation::LOGITS.to_owned()],
            logit_rows: vec![],
        });
        let outside = Batch {
            logit_rows: vec![(0, 2)],
            ..batch()
        };
        let replies = converse(&[
            run_request(&batch()),
            (load_request(Dtype::Bf16), vec![]),
            (load_request(Dtype::F32), vec![]),
            (run_request(&batch()).0, b"noise".to_vec()),
            run_request(&outside),
            run_request(&unknown),
            (unoffered, run_request(&batch()).1),
            run_request(&batch()),
        ]);
        let messages: Vec<&str> = replies
            .iter()
            .map(|(reply, _)| match reply {
                Reply::Failed(failure) => failure.message.as_str(),
                _ => "ok",
            })
            .collect();
        for (message, expected) in messages.iter().zip([
            "ok",
            "asked to run before a model was loaded",
            "echo speaks f32 only",
            "ok",
            "the batch cannot be read",
            "row (0, 2) is outside the batch",
            "`input_ids` holds 8, the limit is 8",
            "no observation `logits` (offered: embeddings)",
            "ok",
        ]) {
            assert!(
                message.starts_with(expected),
                "{message:?} should start with {expected:?}"
            );
        }
        assert_eq!(messages.len(), 9);
    }

    #[test]
    fn noise_on_the_pipe_ends_the_worker() {
        let error = serve(&mut Echo, &mut &b"hello worker"[..], &mut Vec::new()).unwrap_err();
        assert!(matches!(
            error,
            ServeError::Read(FrameError::NotAFrame { .. })
        ));
    }
}
