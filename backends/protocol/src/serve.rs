//! The worker's side of the conversation.

use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::process::ExitCode;
use std::time::Instant;

use crate::fault::{Fault, SELFTEST};
use crate::frame::{FrameError, read_frame, write_frame};
use crate::{
    Backend, Batch, BertConfig, Dtype, Failure, LoadRequest, Loaded, LoadedModel, ProbeRequest,
    Ran, Reply, Request, RunRequest, Stage, Tensor, TensorError, decode_tensors, encode_tensors,
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
    let purpose = match std::env::args().any(|argument| argument == SELFTEST) {
        true => Purpose::SelfTest,
        false => Purpose::Conformance,
    };
    let result = take_stdout().map_err(ServeError::from).and_then(|output| {
        let mut input = BufReader::new(io::stdin().lock());
        let mut output = BufWriter::new(output);
        serve(&mut backend, purpose, &mut input, &mut output)
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

/// What a worker was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To compute what the model computes: faults are refused.
    Conformance,
    /// To deviate from it on request.
    SelfTest,
}

/// Serves requests until `input` ends. Has no globals, so that tests feed it bytes.
///
/// # Errors
/// [`ServeError`] where the conversation itself breaks; what a backend cannot do is a
/// [`Reply::Failed`] and the loop goes on.
pub fn serve(
    backend: &mut dyn Backend,
    purpose: Purpose,
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
            Request::Load(request) => load(backend, purpose, *request, &mut served),
            Request::Run(request) => run(served.as_mut(), request, &payload),
            Request::Probe(request) => probe(served.as_mut(), request, &payload),
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
    dtype: Dtype,
    offered: Vec<String>,
    fault: Option<Fault>,
}

fn load(
    backend: &mut dyn Backend,
    purpose: Purpose,
    request: LoadRequest,
    served: &mut Option<Served>,
) -> Outcome {
    let start = Instant::now();
    // Before the next one: there may be no room for two.
    *served = None;
    if let Some(fault) = &request.fault {
        check_fault(fault, purpose, backend)?;
    }
    let (model, loaded) = backend.load(&request)?;
    *served = Some(Served {
        model,
        config: request.config,
        dtype: loaded.dtype,
        offered: loaded.observations.clone(),
        fault: request.fault,
    });
    let loaded = Loaded {
        seconds: start.elapsed().as_secs_f64(),
        ..loaded
    };
    Ok((Reply::Loaded(loaded), BTreeMap::new()))
}

fn check_fault(fault: &Fault, purpose: Purpose, backend: &dyn Backend) -> Result<(), Failure> {
    if purpose == Purpose::Conformance {
        return Err(Failure::error(
            "asked for a fault outside of a self-test: this worker computes the model as it is",
        ));
    }
    if !backend.has_faults() {
        return Err(Failure::unsupported("this worker has no faults"));
    }
    let misplaced = fault
        .step_edits()
        .find(|edit| !edit.change.fits(edit.stage, edit.step));
    match misplaced {
        None => Ok(()),
        Some(edit) => Err(Failure::error(format!(
            "fault `{}`: {:?} is no change of `{}` in `{}`",
            fault.name, edit.change, edit.step, edit.stage
        ))),
    }
}

fn run(served: Option<&mut Served>, request: RunRequest, payload: &[u8]) -> Outcome {
    let served = served.ok_or_else(not_loaded)?;
    let tensors = decode_tensors(payload).map_err(|error| unreadable(&error))?;
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
    let observations = match &served.fault {
        None => served.model.run(&batch, &wanted)?,
        Some(fault) => {
            let fed = fault.feed(&batch, &wanted);
            let computed = served.model.run(&fed.batch, &fed.wanted)?;
            fault.answer(&batch, &wanted, computed)
        }
    };
    let ran = Ran {
        number,
        seconds: start.elapsed().as_secs_f64(),
    };
    Ok((Reply::Ran(ran), observations))
}

fn probe(served: Option<&mut Served>, request: ProbeRequest, payload: &[u8]) -> Outcome {
    let served = served.ok_or_else(not_loaded)?;
    let mut tensors = decode_tensors(payload).map_err(|error| unreadable(&error))?;
    let ProbeRequest {
        number,
        stage,
        logit_rows,
    } = request;
    let input = tensors.remove("input");
    let batch = Batch::from_tensors(tensors, logit_rows)?;
    batch.check(&served.config)?;
    let wanted = match stage {
        Stage::Layer(layer) if layer > served.config.num_hidden_layers => {
            let layers = served.config.num_hidden_layers;
            return Err(Failure::error(format!(
                "there is no `{stage}`, the model has {layers} layers"
            )));
        }
        Stage::Embeddings => None,
        _ => {
            let shape = vec![batch.sequences, batch.length, served.config.hidden_size];
            Some((served.dtype, shape))
        }
    };
    let found = input
        .as_ref()
        .map(|input| (input.dtype(), input.shape().to_vec()));
    if found != wanted {
        return Err(Failure::error(format!(
            "the input of `{stage}` is {found:?}, expected {wanted:?}"
        )));
    }
    let start = Instant::now();
    let steps = served.model.probe(stage, &batch, input.as_ref())?;
    let ran = Ran {
        number,
        seconds: start.elapsed().as_secs_f64(),
    };
    Ok((Reply::Ran(ran), steps))
}

fn not_loaded() -> Failure {
    Failure::error("asked to run before a model was loaded")
}

fn unreadable(error: &TensorError) -> Failure {
    Failure::error(format!("the batch cannot be read: {error}"))
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
    use crate::fault::{Change, Edit, OutputChange, StepEdit};
    use crate::{Arithmetic, Dtype, FileIdentity, Hello, HiddenAct, PROTOCOL_VERSION, Properties};
    use crate::{FailureKind, Step};
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
            fault: None,
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
        converse_for(Purpose::Conformance, &mut Echo, requests)
    }

    fn converse_for(
        purpose: Purpose,
        backend: &mut dyn Backend,
        requests: &[(Request, Vec<u8>)],
    ) -> Vec<(Reply, Vec<u8>)> {
        let mut input = Vec::new();
        for (request, payload) in requests {
            write_frame(&mut input, request, payload).unwrap();
        }
        let mut output = Vec::new();
        serve(backend, purpose, &mut &input[..], &mut output).unwrap();
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

    /// An echo that can be made to deviate, as far as what is fed and answered goes.
    struct Faulty;

    impl Backend for Faulty {
        fn hello(&mut self) -> Result<Hello, Failure> {
            Echo.hello()
        }

        fn load(
            &mut self,
            request: &LoadRequest,
        ) -> Result<(Box<dyn LoadedModel>, Loaded), Failure> {
            Echo.load(request)
        }

        fn has_faults(&self) -> bool {
            true
        }
    }

    fn load_under(edits: Vec<Edit>) -> (Request, Vec<u8>) {
        let Request::Load(mut request) = load_request(Dtype::F32) else {
            panic!("not a request to load");
        };
        let name = "test".to_owned();
        request.fault = Some(Fault { name, edits });
        (Request::Load(request), vec![])
    }

    fn message((reply, _): &(Reply, Vec<u8>)) -> &str {
        match reply {
            Reply::Failed(failure) => &failure.message,
            _ => "ok",
        }
    }

    #[test]
    fn faults_are_for_self_tests_and_for_backends_that_have_them() {
        let change = Edit::Output(OutputChange::NextToken);
        let requests = [load_under(vec![change]), run_request(&batch())];
        let replies = converse_for(Purpose::Conformance, &mut Faulty, &requests);
        let refusal = "asked for a fault outside of a self-test";
        assert!(message(&replies[1]).starts_with(refusal), "{replies:?}");
        // And what was loaded before is gone: nothing runs by mistake.
        assert!(message(&replies[2]).contains("before a model was loaded"));

        let replies = converse_for(Purpose::SelfTest, &mut Echo, &requests);
        assert_eq!(message(&replies[1]), "this worker has no faults");
        assert!(matches!(
            &replies[1].0,
            Reply::Failed(failure) if failure.kind == FailureKind::Unsupported
        ));

        let replies = converse_for(Purpose::SelfTest, &mut Faulty, &requests);
        let tensors = decode_tensors(&replies[2].1).unwrap();
        assert_eq!(tensors[observation::EMBEDDINGS].to_f64(), [7.0, 5.0]);
    }

    #[test]
    fn a_change_of_a_step_that_does_not_have_it_is_refused() {
        let edit = |stage, step| {
            Edit::Step(StepEdit {
                stage,
                step,
                change: Change::Epsilon(1e-5),
            })
        };
        for (stage, step, expected) in [
            (Stage::Layer(1), Step::Norm, "ok"),
            (
                Stage::Layer(1),
                Step::Query,
                "fault `test`: Epsilon(1e-5) is no change of `query` in `layer.1`",
            ),
            (
                Stage::Head,
                Step::AttentionNorm,
                "fault `test`: Epsilon(1e-5) is no change of `attention-norm` in `head`",
            ),
        ] {
            let requests = [load_under(vec![edit(stage, step)])];
            let replies = converse_for(Purpose::SelfTest, &mut Faulty, &requests);
            assert_eq!(message(&replies[1]), expected);
        }
    }

    fn probe_request(stage: Stage, batch: &Batch, input: Option<Tensor>) -> (Request, Vec<u8>) {
        let request = ProbeRequest {
            number: 3,
            stage,
            logit_rows: batch.logit_rows.clone(),
        };
        let mut tensors = batch.to_tensors();
        tensors.extend(input.map(|input| ("input".to_owned(), input)));
        (Request::Probe(request), encode_tensors(&tensors).unwrap())
    }

    #[test]
    fn an_impossible_probe_names_the_limit() {
        let input = |width: usize| Tensor::from_f32(vec![1, 2, width], &vec![0.0; 2 * width]).ok();
        let unloaded = converse(&[probe_request(Stage::Embeddings, &batch(), None)]);
        assert!(message(&unloaded[1]).contains("before a model was loaded"));
        for (stage, input, expected) in [
            (
                Stage::Layer(2),
                input(4),
                "there is no `layer.2`, the model has 1 layers",
            ),
            (
                Stage::Layer(1),
                None,
                "the input of `layer.1` is None, expected Some((F32, [1, 2, 4]))",
            ),
            (
                Stage::Layer(1),
                input(3),
                "the input of `layer.1` is Some((F32, [1, 2, 3])), expected Some((F32, [1, 2, 4]))",
            ),
            (
                Stage::Embeddings,
                input(4),
                "the input of `embeddings` is Some((F32, [1, 2, 4])), expected None",
            ),
            (
                Stage::Layer(1),
                input(4),
                "this worker cannot show the steps inside a stage",
            ),
        ] {
            let requests = [
                (load_request(Dtype::F32), vec![]),
                probe_request(stage, &batch(), input),
                run_request(&batch()),
            ];
            let replies = converse(&requests);
            assert_eq!(message(&replies[2]), expected);
            assert_eq!(message(&replies[3]), "ok", "the worker should go on");
        }
    }

    #[test]
    fn noise_on_the_pipe_ends_the_worker() {
        let error = serve(
            &mut Echo,
            Purpose::Conformance,
            &mut &b"hello worker"[..],
            &mut Vec::new(),
        )
        .unwrap_err();
        assert!(matches!(
            error,
            ServeError::Read(FrameError::NotAFrame { .. })
        ));
    }
}
