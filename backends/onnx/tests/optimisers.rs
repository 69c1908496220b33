//! Switching single optimisers off: which of them act, and that the rest does nothing.

mod fixture;

use driftgauge_onnx::graph;
use driftgauge_onnx::optimisers::{GELU_APPROXIMATION, OPTIMISERS, OTHERS};
use driftgauge_onnx::proto::{ModelProto, NodeProto};
use driftgauge_onnx::runtime::Runtime;
use driftgauge_onnx::session::{self, Level, Optimisation, Settings};
use driftgauge_protocol::{Dtype, HiddenAct, Weights};
use fixture::faulty::{Observed, observe};
use fixture::reference;
use fixture::{Checkpoint, Stored, config, converse, error, library, load, loaded, unpadded};
use prost::Message;

const ACTIVATIONS: [HiddenAct; 4] = [
    HiddenAct::Gelu,
    HiddenAct::GeluTanh,
    HiddenAct::Relu,
    HiddenAct::Silu,
];

/// The optimised nodes of the whole model.
fn optimised(stored: &Stored, optimisation: Optimisation) -> Vec<NodeProto> {
    let weights = Weights::open(&stored.weights).expect("weights");
    let outputs = graph::observations(&stored.config, true);
    let model = graph::write(stored.source(&weights, Dtype::F32), &outputs).expect("a graph");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let settings = Settings {
        runtime: Runtime::start(&library()).expect("a runtime"),
        optimisation,
        threads: 1,
    };
    let options = session::options(&settings)
        .and_then(|options| Ok(options.with_optimized_model_path(file.path())?))
        .expect("options");
    session::commit(options, &model, &stored.weights.path).expect("a session");
    let model = std::fs::read(file.path()).expect("the optimised model");
    let model = ModelProto::decode(&model[..]).expect("an ONNX model");
    model.graph.expect("a graph").node
}

/// Each name acts on some graph from its level on and on none below, and no other name acts on any.
#[test]
fn each_optimiser_acts_from_its_level_on() {
    let mut acting: Vec<(&str, Level)> = Vec::new();
    for activation in ACTIVATIONS {
        // Stored narrower than computed, so that there is something to fold.
        let stored = Checkpoint::new(config(activation)).write(Dtype::F16, str::to_owned);
        for level in Level::ALL {
            let with = Optimisation {
                level,
                gelu_approximation: true,
                without: Vec::new(),
            };
            let everything = optimised(&stored, with.clone());
            // The highest level applies them all.
            let others = OTHERS.iter().filter(|_| level == Level::All);
            for optimiser in OPTIMISERS.iter().chain(others) {
                let mut without = with.clone();
                without.without.push(optimiser.name.to_owned());
                if optimised(&stored, without) != everything {
                    acting.push((optimiser.name, level));
                }
            }
        }
    }
    for optimiser in OPTIMISERS {
        let levels = Level::ALL
            .into_iter()
            .filter(|level| acting.contains(&(optimiser.name, *level)));
        let expected = Level::ALL
            .into_iter()
            .skip_while(|level| *level != optimiser.level);
        assert!(levels.eq(expected), "{}", optimiser.name);
    }
    for optimiser in OTHERS {
        let acts = acting.iter().any(|(name, _)| *name == optimiser.name);
        assert!(!acts, "{}", optimiser.name);
    }
}

/// With all of them off, every level computes what is written.
#[test]
fn without_all_of_them_nothing_is_optimised() {
    let names = OPTIMISERS.map(|optimiser| optimiser.name).join(";");
    for activation in ACTIVATIONS {
        for stored in [Dtype::F32, Dtype::F16] {
            let stored = Checkpoint::new(config(activation)).write(stored, str::to_owned);
            for dtype in [Dtype::F32, Dtype::F16] {
                let plain = observe(&stored.load(dtype, &[("opt", "disable")]));
                for level in ["basic", "extended", "all"] {
                    let options = [
                        ("opt", level),
                        ("gelu-approximation", "on"),
                        ("without", names.as_str()),
                    ];
                    let found = observe(&stored.load(dtype, &options));
                    assert!(found == plain, "{activation:?} in {dtype} at {level}");
                }
            }
        }
    }
}

/// The activation in force, by the head: between the transform and its layer norm there is nothing else.
#[test]
fn gelu_is_approximated_only_on_request() {
    let [exact, tanh] = [HiddenAct::Gelu, HiddenAct::GeluTanh]
        .map(|activation| Checkpoint::new(config(activation)));
    let [expected, approximated] = [&exact, &tanh]
        .map(|model| reference::observe(model, &[(1, 0), (4, 0), (2, 0)]).logits[2].clone());
    let between = error(&approximated, &expected);
    assert!((1e-5..1e-2).contains(&between), "{between:.2e}");
    let stored = exact.write(Dtype::F32, str::to_owned);
    let approximate = ("gelu-approximation", "on");
    let without = ("without", GELU_APPROXIMATION);
    for (options, wanted) in [
        (&[("opt", "all")][..], &expected),
        (&[("opt", "all"), approximate], &approximated),
        (&[("opt", "extended"), approximate], &approximated),
        (&[("opt", "basic"), approximate], &expected),
        (&[("opt", "disable"), approximate], &expected),
        (&[("opt", "all"), ("gelu-approximation", "off")], &expected),
        (&[("opt", "all"), approximate, without], &expected),
        // It starts from the fused kernel.
        (
            &[("opt", "all"), approximate, ("without", "GeluFusionL2")],
            &expected,
        ),
    ] {
        let observed = fixture::observe(stored.load(Dtype::F32, options), &unpadded());
        let found = error(&observed["logits"].to_f64(), wanted);
        assert!(found < 1e-6, "{options:?}: error {found:.2e}");
    }
}

/// A load says what may be applied, and that is what can be switched off.
#[test]
fn a_load_names_what_it_may_apply() {
    let stored = Checkpoint::new(config(HiddenAct::Gelu)).write(Dtype::F32, str::to_owned);
    let property = |options: &[(&str, &str)]| {
        let replies = converse(&[load(stored.load(Dtype::F32, options))]);
        loaded(&replies[1].0).properties["optimisers"].clone()
    };
    assert_eq!(property(&[("opt", "disable")]), "");
    assert_eq!(property(&[("opt", "basic")]), "ConstantFolding");
    let fusions = "ConstantFolding,GemmActivationFusion,GeluFusionL2,SkipLayerNormFusion,\
                   FastGeluFusion,QuickGeluFusion,MatMulScaleFusion";
    assert_eq!(property(&[]), fusions);
    assert_eq!(property(&[("without", &fusions.replace(',', ";"))]), "");
    let all = property(&[("gelu-approximation", "on")]);
    assert!(all.contains(GELU_APPROXIMATION), "{all}");
}

/// A probe is optimised like a run.
#[test]
fn a_probe_is_optimised_like_a_run() {
    let stored = Checkpoint::new(config(HiddenAct::Gelu)).write(Dtype::F32, str::to_owned);
    let stage = driftgauge_protocol::Stage::Head;
    let options = [("gelu-approximation", "on")];
    let request = stored.load(Dtype::F32, &options);
    let observed: Observed = observe(&request);
    let mut opened = fixture::open(&request);
    let steps = fixture::probe(&mut *opened, stage, &fixture::batch(), &observed);
    let transformed = steps["transform"].to_f64().into_iter();
    let expected: Vec<f64> = transformed
        .map(|x| reference::activation(HiddenAct::GeluTanh, x))
        .collect();
    let found = error(&steps["activation"].to_f64(), &expected);
    assert!(found < 1e-6, "error {found:.2e}");
}
