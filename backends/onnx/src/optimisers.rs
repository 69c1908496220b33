//! ONNX Runtime's graph optimisers, by the names under which they can be switched off.
//!
//! The names are those of ONNX Runtime's own source; it ignores a name that it does not know, so only these
//! are taken. Some are newer than the oldest version that is taken, which then ignores them. Which of them act on a graph of ours was found by switching each off and comparing the
//! optimised graph and the results; `tests/optimisers.rs` does so again. With all of those switched off every
//! level computes what `disable` computes.
//!
//! One thing cannot be switched off: where ONNX Runtime inserts casts (`f16`), or a weight is stored in another
//! dtype, level `all` folds constants once more. It changes no bit.

use crate::session::{Level, Optimisation};

/// An optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Optimiser {
    /// Its name.
    pub name: &'static str,
    /// The lowest level that applies it.
    pub level: Level,
}

const fn basic(name: &'static str) -> Optimiser {
    Optimiser {
        name,
        level: Level::Basic,
    }
}

const fn extended(name: &'static str) -> Optimiser {
    Optimiser {
        name,
        level: Level::Extended,
    }
}

const fn all(name: &'static str) -> Optimiser {
    Optimiser {
        name,
        level: Level::All,
    }
}

/// The one that ONNX Runtime applies only where it is asked to: the tanh approximation of GELU.
pub const GELU_APPROXIMATION: &str = "GeluApproximation";

/// Those that act on a graph of ours, in the order in which they are applied. `all` brings none of its own.
pub const OPTIMISERS: [Optimiser; 8] = [
    // Widens stored weights ahead of time.
    basic("ConstantFolding"),
    // `Gemm` and `Relu` in one kernel.
    extended("GemmActivationFusion"),
    // GELU in one kernel: the exact form.
    extended("GeluFusionL2"),
    // A sum and the layer norm of it in one kernel.
    extended("SkipLayerNormFusion"),
    // The tanh form in one kernel.
    extended("FastGeluFusion"),
    // `x · sigmoid(x)` in one kernel.
    extended("QuickGeluFusion"),
    // From the exact form to the tanh form.
    extended(GELU_APPROXIMATION),
    // The scale of the scores becomes an attribute of the product.
    extended("MatMulScaleFusion"),
];

/// Those that may act on other graphs, in the order in which they are applied.
pub const OTHERS: [Optimiser; 40] = [
    basic("EliminateIdentity"),
    basic("EliminateSlice"),
    basic("UnsqueezeElimination"),
    basic("EliminateDropout"),
    basic("ExpandElimination"),
    basic("CastElimination"),
    basic("PreShapeNodeElimination"),
    basic("NoopElimination"),
    basic("DivMulFusion"),
    basic("FuseReluClip"),
    basic("GemmSumFusion"),
    basic("GemmTransposeFusion"),
    basic("NotWhereFusion"),
    basic("DoubleQDQPairsRemover"),
    basic("ConstantSharing"),
    basic("CommonSubexpressionElimination"),
    basic("MatMulAddFusion"),
    basic("ReshapeFusion"),
    basic("GeluFusionL1"),
    basic("LayerNormFusionL1"),
    basic("QDQPropagationTransformer"),
    basic("WeightBiasQuantization"),
    basic("TransposeOptimizer"),
    extended("TransposeOptimizer_CPUExecutionProvider"),
    extended("QDQSelectorActionTransformer"),
    extended("MatMulIntegerToFloatFusion"),
    extended("DynamicQuantizeMatMulFusion"),
    extended("LayerNormFusionL2"),
    extended("SimplifiedLayerNormFusion"),
    extended("AttentionFusion"),
    extended("EmbedLayerNormFusion"),
    extended("GatherSliceToSplitFusion"),
    extended("GatherToSliceFusion"),
    extended("MatmulTransposeFusion"),
    extended("BiasGeluFusion"),
    extended("BiasSkipLayerNormFusion"),
    extended("BiasSoftmaxFusion"),
    extended("MatMulNBitsFusion"),
    extended("QDQFinalCleanupTransformer"),
    all("NhwcTransformer"),
];

/// Whether ONNX Runtime has an optimiser of this name.
pub fn is_known(name: &str) -> bool {
    OPTIMISERS
        .iter()
        .chain(&OTHERS)
        .any(|optimiser| optimiser.name == name)
}

/// Names of those of `optimisers` that may be applied: not above the level, asked for where they have to be, and
/// not switched off.
pub fn applied(
    optimisers: impl IntoIterator<Item = Optimiser>,
    optimisation: &Optimisation,
) -> Vec<&'static str> {
    let rank = |level: Level| Level::ALL.iter().position(|other| *other == level);
    let is_asked_for = |name: &str| name != GELU_APPROXIMATION || optimisation.gelu_approximation;
    let mut applied: Vec<Optimiser> = optimisers
        .into_iter()
        .filter(|optimiser| rank(optimiser.level) <= rank(optimisation.level))
        .filter(|optimiser| is_asked_for(optimiser.name))
        .filter(|optimiser| {
            !optimisation
                .without
                .iter()
                .any(|name| name == optimiser.name)
        })
        .collect();
    applied.sort_by_key(|optimiser| rank(optimiser.level));
    applied
        .into_iter()
        .map(|optimiser| optimiser.name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(level: Level, gelu_approximation: bool, without: &[&str], expected: &str) {
        let optimisation = Optimisation {
            level,
            gelu_approximation,
            without: without.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert_eq!(applied(OPTIMISERS, &optimisation).join(","), expected);
    }

    #[test]
    fn what_a_level_applies() {
        check(Level::Disable, true, &[], "");
        check(Level::Basic, true, &[], "ConstantFolding");
        let fusions = "ConstantFolding,GemmActivationFusion,GeluFusionL2,SkipLayerNormFusion,\
                       FastGeluFusion,QuickGeluFusion,MatMulScaleFusion";
        check(Level::Extended, false, &[], fusions);
        check(Level::All, false, &[GELU_APPROXIMATION], fusions);
        let all = fusions.replace("MatMul", "GeluApproximation,MatMul");
        check(Level::All, true, &[], &all);
        let most = all
            .replace("GeluFusionL2,", "")
            .replace("ConstantFolding,", "");
        check(
            Level::All,
            true,
            &["GeluFusionL2", "ConstantFolding"],
            &most,
        );
    }

    #[test]
    fn names_are_known_once() {
        let names = OPTIMISERS.iter().chain(&OTHERS);
        let mut names: Vec<&str> = names.map(|optimiser| optimiser.name).collect();
        assert!(names.iter().all(|name| is_known(name)) && !is_known("GeluFusion"));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
