//! Worker processes. Nothing else starts one.
//!
//! A worker may crash, abort, hang, print, or answer garbage: each of these is a [`Trouble`] that
//! says what happened, and never ends the run. Every request has a deadline; stderr is always
//! drained; the whole process group is killed.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::{BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use driftgauge_protocol::frame::{FrameError, read_frame, write_frame};
use driftgauge_protocol::{
    Batch, Failure, Hello, LoadRequest, Loaded, PROTOCOL_VERSION, ProbeRequest, Ran, Reply,
    Request, RunRequest, Tensor, decode_tensors, encode_tensors, environment, fault,
};

/// What arrives on a worker's pipe: a reply with its payload, the end, or garbage.
type Received = Result<Option<(Reply, Vec<u8>)>, FrameError>;

/// Last lines of stderr that are kept.
const STDERR_LINES: usize = 20;
/// Longest line of stderr that is kept, in bytes.
const STDERR_LINE_BYTES: usize = 500;
/// Time a worker gets to die after its pipe closed.
const EXIT_PATIENCE: Duration = Duration::from_millis(2000);

/// How to start a worker.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The backend, for messages.
    pub backend: String,
    /// The executable.
    pub program: PathBuf,
    /// Variables that are set on top of the harness's environment.
    pub environment: Vec<(String, OsString)>,
    /// Time for each answer.
    pub deadline: Duration,
    /// Whether faults may be injected.
    pub selftest: bool,
}

/// What a worker was doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Starting, until its first message.
    Start,
    /// Loading the model.
    Load,
    /// Running a batch; holds its cases.
    Run(String),
}

impl std::fmt::Display for Stage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stage::Start => formatter.write_str("starting"),
            Stage::Load => formatter.write_str("loading the model"),
            Stage::Run(cases) => write!(formatter, "running {cases}"),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// The worker says that it cannot; it is still alive.
    Refused(Failure),
    /// The worker is gone.
    Broken(Broken),
}

/// A worker that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// What it was doing.
    pub stage: Stage,
    /// What happened, with signal or exit status.
    pub message: String,
    /// The next step, where there is one.
    pub hint: Option<String>,
    /// Last lines it wrote to stderr.
    pub stderr: Vec<String>,
}

/// A running worker. Dropping it kills its process group.
#[derive(Debug)]
pub struct Worker {
    launch: Launch,
    child: Child,
    is_reaped: bool,
    requests: Sender<Vec<u8>>,
    replies: Receiver<Received>,
    stderr: Arc<Mutex<VecDeque<String>>>,
    stderr_closed: Receiver<()>,
    /// Number of the last request to run.
    asked: u64,
}

impl Worker {
    /// Starts a worker and waits for its first message.
    ///
    /// The thread that calls this must live as long as the worker: on Linux the kernel kills the
    /// worker when that thread ends.
    ///
    /// # Errors
    /// [`Trouble`] where it cannot be started or does not introduce itself.
    pub fn start(launch: Launch) -> Result<(Self, Hello), Trouble> {
        let mut child = spawn(&launch)?;
        let (requests, stdin_queue) = mpsc::channel();
        if let Some(stdin) = child.stdin.take() {
            std::thread::spawn(move || feed(stdin, &stdin_queue));
        }
        let (reply_sender, replies) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || listen(BufReader::new(stdout), &reply_sender));
        }
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        let (closed_sender, stderr_closed) = mpsc::channel();
        if let Some(pipe) = child.stderr.take() {
            let tail = Arc::clone(&stderr);
            std::thread::spawn(move || {
                drain(pipe, &tail);
                drop(closed_sender);
            });
        }
        let mut worker = Self {
            launch,
            child,
            is_reaped: false,
            requests,
            replies,
            stderr,
            stderr_closed,
            asked: 0,
        };
        let hello = match worker.receive(&Stage::Start)? {
            (Reply::Hello(hello), _) => hello,
            (Reply::Failed(failure), _) => return Err(Trouble::Refused(failure)),
            (other, _) => return Err(worker.out_of_turn(Stage::Start, &other)),
        };
        if hello.backend != worker.launch.backend {
            let message = format!("introduced itself as `{}`", hello.backend);
            return Err(worker.broken(Stage::Start, message, None));
        }
        if hello.protocol != PROTOCOL_VERSION {
            let message = format!(
                "speaks protocol version {}, this driftgauge speaks {PROTOCOL_VERSION}",
                hello.protocol
            );
            let hint = format!(
                "build both from the same commit: `{}` is of another one",
                worker.launch.program.display()
            );
            return Err(worker.broken(Stage::Start, message, Some(hint)));
        }
        Ok((worker, hello))
    }

    /// Loads a model.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn load(&mut self, request: &LoadRequest) -> Result<Loaded, Trouble> {
        let request = Request::Load(Box::new(request.clone()));
        match self.ask(&request, &[], &Stage::Load)? {
            (Reply::Loaded(loaded), _) => Ok(loaded),
            (other, _) => Err(self.out_of_turn(Stage::Load, &other)),
        }
    }

    /// Runs a batch; `cases` names it in messages.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn run(
        &mut self,
        batch: &Batch,
        wanted: &[String],
        cases: &str,
    ) -> Result<(Ran, BTreeMap<String, Tensor>), Trouble> {
        self.asked += 1;
        let request = Request::Run(RunRequest {
            number: self.asked,
            wanted: wanted.to_vec(),
            logit_rows: batch.logit_rows.clone(),
        });
        self.compute(&request, &batch.to_tensors(), cases)
    }

    /// Runs one stage of the model from the hidden state before it, and returns its steps by name; `cases`
    /// names the batch in messages.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn probe(
        &mut self,
        stage: driftgauge_protocol::Stage,
        batch: &Batch,
        input: Option<&Tensor>,
        cases: &str,
    ) -> Result<BTreeMap<String, Tensor>, Trouble> {
        self.asked += 1;
        let request = Request::Probe(ProbeRequest {
            number: self.asked,
            stage,
            logit_rows: batch.logit_rows.clone(),
        });
        let mut tensors = batch.to_tensors();
        tensors.extend(input.map(|input| ("input".to_owned(), input.clone())));
        let (_, steps) = self.compute(&request, &tensors, cases)?;
        Ok(steps)
    }

    fn compute(
        &mut self,
        request: &Request,
        tensors: &BTreeMap<String, Tensor>,
        cases: &str,
    ) -> Result<(Ran, BTreeMap<String, Tensor>), Trouble> {
        let stage = Stage::Run(cases.to_owned());
        let payload = encode_tensors(tensors)
            .map_err(|error| Trouble::Refused(Failure::error(error.to_string())))?;
        match self.ask(request, &payload, &stage)? {
            (Reply::Ran(ran), payload) => match decode_tensors(&payload) {
                Ok(tensors) if ran.number == self.asked => Ok((ran, tensors)),
                Ok(_) => {
                    let message =
                        format!("answered request {}, asked was {}", ran.number, self.asked);
                    Err(self.broken(stage, message, None))
                }
                Err(error) => {
                    let message = format!("answered with a payload that cannot be read: {error}");
                    Err(self.broken(stage, message, None))
                }
            },
            (other, _) => Err(self.out_of_turn(stage, &other)),
        }
    }

    fn ask(
        &mut self,
        request: &Request,
        payload: &[u8],
        stage: &Stage,
    ) -> Result<(Reply, Vec<u8>), Trouble> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, request, payload)
            .map_err(|error| Trouble::Refused(Failure::error(error.to_string())))?;
        // A closed queue means a dead worker, which `receive` describes.
        let _ = self.requests.send(bytes);
        match self.receive(stage)? {
            (Reply::Failed(failure), _) => Err(Trouble::Refused(failure)),
            reply => Ok(reply),
        }
    }

    fn receive(&mut self, stage: &Stage) -> Result<(Reply, Vec<u8>), Trouble> {
        match self.replies.recv_timeout(self.launch.deadline) {
            Ok(Ok(Some(reply))) => Ok(reply),
            Ok(Err(error)) if !matches!(error, FrameError::Truncated { .. }) => {
                let mut message = format!("answered with garbage: {error}");
                if let Some(cause) = std::error::Error::source(&error) {
                    message.push_str(&format!(": {cause}"));
                }
                Err(self.broken(stage.clone(), message, None))
            }
            // A pipe that ends, between frames or inside one: the exit status says why.
            Ok(ended) => {
                let status = self.wait_for_exit();
                let mut message = describe_exit(status);
                if ended.is_err() {
                    message.push_str(" in the middle of an answer");
                }
                let hint = (*stage == Stage::Start)
                    .then(|| "run `ci/setup` and build again, then `driftgauge doctor`".to_owned());
                Err(self.broken(stage.clone(), message, hint))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let message = describe_exit(self.wait_for_exit());
                Err(self.broken(stage.clone(), message, None))
            }
            Err(RecvTimeoutError::Timeout) if self.has_exited() => {
                let how = describe_exit(self.wait_for_exit());
                let message = format!("{how}, and a process that it had started kept its pipe");
                Err(self.broken(stage.clone(), message, None))
            }
            Err(RecvTimeoutError::Timeout) => {
                let seconds = self.launch.deadline.as_secs_f64();
                let message = format!("gave no answer within {seconds} s and was killed");
                let hint = "raise --timeout if the machine is slow".to_owned();
                Err(self.broken(stage.clone(), message, Some(hint)))
            }
        }
    }

    fn out_of_turn(&mut self, stage: Stage, reply: &Reply) -> Trouble {
        let kind = match reply {
            Reply::Hello(_) => "hello",
            Reply::Loaded(_) => "loaded",
            Reply::Ran(_) => "ran",
            Reply::Failed(_) => "failed",
        };
        self.broken(stage, format!("answered `{kind}` out of turn"), None)
    }

    fn broken(&mut self, stage: Stage, message: String, hint: Option<String>) -> Trouble {
        self.kill();
        // What the process still wrote arrives before its pipe closes; a grandchild may hold it.
        let _ = self.stderr_closed.recv_timeout(EXIT_PATIENCE);
        let stderr = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let stderr = stderr.iter().cloned().collect();
        let message = format!("worker `{}` {message}", self.launch.backend);
        Trouble::Broken(Broken {
            stage,
            message,
            hint,
            stderr,
        })
    }

    fn wait_for_exit(&mut self) -> Option<ExitStatus> {
        let start = Instant::now();
        while !self.has_exited() {
            if start.elapsed() > EXIT_PATIENCE {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.kill();
        self.child.wait().ok()
    }

    /// Whether the process has ended; does not reap it, see [`Worker::kill`].
    fn has_exited(&self) -> bool {
        let process = rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&self.child));
        let options = rustix::process::WaitIdOptions::EXITED
            | rustix::process::WaitIdOptions::NOHANG
            | rustix::process::WaitIdOptions::NOWAIT;
        self.is_reaped || matches!(rustix::process::waitid(process, options), Ok(Some(_)))
    }

    /// Kills and reaps, once: what has been reaped may have given its ID to another process.
    fn kill(&mut self) {
        if self.is_reaped {
            return;
        }
        // The group first: native libraries may have children, which outlive a worker that died.
        let group = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.child.kill();
        self.is_reaped = self.child.wait().is_ok();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this module is where workers are started"
)]
fn spawn(launch: &Launch) -> Result<Child, Trouble> {
    let mut command = Command::new(&launch.program);
    command
        .args(launch.selftest.then_some(fault::SELFTEST))
        // A backtrace would push the message of a panic out of the lines that are kept.
        .env_remove("RUST_BACKTRACE")
        // Only a target's own `lib` option names a library.
        .env_remove(environment::LIBRARY)
        .envs(launch.environment.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command.spawn().map_err(|error| {
        let program = launch.program.display();
        Trouble::Broken(Broken {
            stage: Stage::Start,
            message: format!(
                "worker `{}` cannot be started: `{program}`: {error}",
                launch.backend
            ),
            hint: Some(format!(
                "cargo build --release -p driftgauge-{}",
                launch.backend
            )),
            stderr: Vec::new(),
        })
    })
}

fn feed(mut stdin: ChildStdin, requests: &Receiver<Vec<u8>>) {
    while let Ok(request) = requests.recv() {
        if stdin
            .write_all(&request)
            .and_then(|()| stdin.flush())
            .is_err()
        {
            return;
        }
    }
}

fn listen(mut stdout: impl Read, replies: &Sender<Received>) {
    loop {
        let reply = read_frame(&mut stdout);
        let is_last = !matches!(reply, Ok(Some(_)));
        if replies.send(reply).is_err() || is_last {
            return;
        }
    }
}

/// Keeps the last lines of a stream that must never block its writer.
fn drain(mut pipe: impl Read, tail: &Mutex<VecDeque<String>>) {
    let mut buffer = [0u8; 8192];
    let mut line = Vec::new();
    let keep = |line: &mut Vec<u8>| {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == STDERR_LINES {
            tail.pop_front();
        }
        tail.push_back(String::from_utf8_lossy(line).trim_end().to_owned());
        line.clear();
    };
    while let Ok(read) = pipe.read(&mut buffer) {
        if read == 0 {
            break;
        }
        for byte in &buffer[..read] {
            match byte {
                b'\n' => keep(&mut line),
                _ if line.len() < STDERR_LINE_BYTES => line.push(*byte),
                _ => {}
            }
        }
    }
    if !line.is_empty() {
        keep(&mut line);
    }
}

fn describe_exit(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "closed its pipe and did not end".to_owned();
    };
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}{}", signal_name(signal)),
        (None, Some(code)) => format!("ended with exit status {code}"),
        (None, None) => "ended".to_owned(),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (SIGILL: an instruction this CPU does not have)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL: perhaps out of memory)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_flood_is_kept() {
        let mut flood: Vec<u8> = (0..1000)
            .flat_map(|i| format!("line {i}\n").into_bytes())
            .collect();
        flood.extend(std::iter::repeat_n(b'x', 10_000));
        let tail = Mutex::new(VecDeque::new());
        drain(&flood[..], &tail);
        let tail = tail.into_inner().unwrap();
        assert_eq!(tail.len(), STDERR_LINES);
        assert_eq!(tail[STDERR_LINES - 2], "line 999");
        assert_eq!(tail[STDERR_LINES - 1].len(), STDERR_LINE_BYTES);
    }
}
