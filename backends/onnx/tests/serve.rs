//! Whole conversations with the worker: what it offers, what it returns, what it refuses.

mod fixture;

use std::io::Write;

use driftgauge_onnx::Onnx;
use driftgauge_protocol::frame::write_frame;
use driftgauge_protocol::{
    Backend, BertConfig, Dtype, Failure, FailureKind, Hello, HiddenAct, LoadRequest, Reply, serve,
};
use fixture::{Checkpoint, Stored, batch, config, converse, library, load, loaded, run};

fn stored() -> Stored {
    Checkpoint::new(config(HiddenAct::Gelu)).write(Dtype::F32, str::to_owned)
}

fn failure(reply: &Reply) -> &Failure {
    match reply {
        Reply::Failed(failure) => failure,
        other => panic!("this should have failed: {other:?}"),
    }
}

#[test]
fn the_library_introduces_itself() {
    let replies = converse(&[]);
    let Reply::Hello(Hello {
        backend,
        library: name,
        version,
        properties,
        ..
    }) = &replies[0].0
    else {
        panic!("no greeting: {:?}", replies[0].0);
    };
    assert_eq!((backend.as_str(), name.as_str()), ("onnx", "onnxruntime"));
    let path = library();
    let folder = path.parent().and_then(|folder| folder.file_name());
    assert_eq!(
        folder.and_then(|name| name.to_str()),
        Some(version.as_str())
    );
    assert_eq!(properties["library_path"], path.display().to_string());
    assert!(properties["build"].starts_with("ORT Build Info:"));
    assert!(properties["available_providers"].contains("CPUExecutionProvider"));
}

#[test]
fn observations_have_their_names_and_shapes() {
    let stored = stored();
    let request = LoadRequest {
        threads: 2,
        ..stored.load(Dtype::F32, &[("opt", "extended")])
    };
    let wanted = ["logits", "hidden.3", "embeddings"];
    let replies = converse(&[
        load(request),
        run(&batch(), &wanted),
        run(&batch(), &["hidden.1", "hidden.1"]),
        run(&batch(), &[]),
    ]);
    let loaded = loaded(&replies[1].0);
    assert_eq!(
        loaded.observations,
        ["embeddings", "hidden.1", "hidden.2", "hidden.3", "logits"]
    );
    assert_eq!((loaded.device.as_str(), loaded.threads), ("cpu", 2));
    for (name, value) in [
        ("execution_provider", "CPUExecutionProvider"),
        ("external_data", "59 tensors"),
        ("intra_op_threads", "2"),
        ("opset", "17"),
        ("optimization_level", "extended"),
    ] {
        assert_eq!(loaded.properties[name], value, "{name}");
    }
    let BertConfig {
        hidden_size,
        vocab_size,
        ..
    } = stored.config;
    let observed = &replies[2].1;
    assert_eq!(observed.len(), wanted.len());
    assert_eq!(observed["embeddings"].shape(), [2, 5, hidden_size]);
    assert_eq!(observed["hidden.3"].shape(), [2, 5, hidden_size]);
    assert_eq!(observed["logits"].shape(), [4, vocab_size]);
    let rows: Vec<&[u8]> = (observed["logits"].bytes())
        .chunks_exact(4 * vocab_size)
        .collect();
    assert!(rows[0] == rows[3] && rows[0] != rows[1]);
    assert_eq!(replies[3].1.keys().collect::<Vec<_>>(), ["hidden.1"]);
    assert!(replies[4].1.is_empty());
}

#[test]
fn without_a_head_there_are_no_logits() {
    let mut model = Checkpoint::new(config(HiddenAct::Gelu));
    model.tensors.retain(|name, _| name.starts_with("bert."));
    let stored = model.write(Dtype::F32, str::to_owned);
    let request = LoadRequest {
        mlm_head: false,
        ..stored.load(Dtype::F32, &[])
    };
    let replies = converse(&[
        load(request),
        run(&batch(), &["logits"]),
        run(&batch(), &["hidden.3"]),
        load(stored.load(Dtype::F32, &[])),
    ]);
    assert_eq!(
        loaded(&replies[1].0)
            .observations
            .last()
            .map(String::as_str),
        Some("hidden.3")
    );
    let known = "no observation `logits` (offered: embeddings, hidden.1, hidden.2, hidden.3)";
    assert_eq!(failure(&replies[2].0).message, known);
    assert!(matches!(replies[3].0, Reply::Ran(_)));
    let missing = "has no tensor `cls.predictions.transform.dense.weight`";
    assert!(failure(&replies[4].0).message.ends_with(missing));
}

/// An untied decoder is a tensor of its own and is used.
#[test]
fn an_untied_decoder_is_used() {
    let wanted = ["hidden.3", "logits"];
    let mut model = Checkpoint::new(config(HiddenAct::Gelu));
    let tied = model.write(Dtype::F32, str::to_owned);
    let (shape, mut values) = model.tensors["bert.embeddings.word_embeddings.weight"].clone();
    values.iter_mut().for_each(|value| *value = -*value);
    let name = "cls.predictions.decoder.weight".to_owned();
    model.tensors.insert(name.clone(), (shape, values));
    let mut untied = model.write(Dtype::F32, str::to_owned);
    untied.weights.names.insert(name.clone(), name);
    let [tied, untied] = [tied, untied].map(|stored| {
        let request = load(stored.load(Dtype::F32, &[]));
        converse(&[request, run(&batch(), &wanted)]).remove(2).1
    });
    assert!(tied["hidden.3"] == untied["hidden.3"]);
    assert!(tied["logits"] != untied["logits"]);
}

#[test]
fn what_is_not_known_is_refused() {
    let stored = stored();
    let elsewhere = LoadRequest {
        device: "cuda:0".to_owned(),
        ..stored.load(Dtype::F32, &[])
    };
    let replies = converse(&[
        load(stored.load(Dtype::F32, &[("optimise", "all")])),
        load(stored.load(Dtype::F32, &[("opt", "fast")])),
        load(stored.load(Dtype::F32, &[("lib", "libonnxruntime.so.1")])),
        load(elsewhere),
        load(stored.load(Dtype::F32, &[("lib", &library().display().to_string())])),
    ]);
    for (reply, expected) in replies[1..5].iter().zip([
        "unknown option `optimise` (known: gelu-approximation, lib, model, opt, without)",
        "option `opt` cannot be `fast` (known: disable, basic, extended, all)",
        "option `lib` is `libonnxruntime.so.1`, this worker was started with `",
        "device `cuda:0` is not available",
    ]) {
        let failure = failure(&reply.0);
        assert_eq!(failure.kind, FailureKind::Unsupported);
        assert!(failure.message.starts_with(expected), "{failure}");
    }
    loaded(&replies[5].0);
}

/// The session maps the file, so a file that changes under it is not run.
#[test]
fn a_file_that_changes_is_not_run() {
    let mut stored = stored();
    let mut onnx = Onnx::with_library(library());
    let request = stored.load(Dtype::F32, &[]);
    let Ok((mut model, _)) = onnx.load(&request) else {
        panic!("the model did not load");
    };
    let wanted = ["hidden.3".to_owned()];
    assert!(model.run(&batch(), &wanted).is_ok());
    stored.file.write_all(b"!").expect("one byte more");
    for result in [
        model.run(&batch(), &wanted).map(drop),
        onnx.load(&request).map(drop),
    ] {
        let failure = result.expect_err("the file has changed");
        let words = "changed after it was hashed";
        assert!(failure.message.ends_with(words), "{failure}");
    }
}

#[test]
fn without_a_library_the_greeting_is_a_failure_with_a_hint() {
    let mut output = Vec::new();
    let mut input = Vec::new();
    write_frame(&mut input, &load(stored().load(Dtype::F32, &[])).0, &[]).expect("a request");
    serve::serve(
        &mut Onnx::default(),
        serve::Purpose::Conformance,
        &mut &input[..],
        &mut output,
    )
    .expect("a conversation");
    let (reply, _) = driftgauge_protocol::frame::read_frame::<Reply>(&mut &output[..])
        .expect("a frame")
        .expect("a reply");
    let failure = failure(&reply);
    assert_eq!(
        (failure.kind, failure.message.as_str()),
        (
            FailureKind::Error,
            "there is no libonnxruntime.so in `.runtimes/onnxruntime/`, and no target option `lib` names one"
        )
    );
    assert!(
        failure
            .hint
            .as_ref()
            .is_some_and(|hint| hint.contains("ci/setup"))
    );
}
