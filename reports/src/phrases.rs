//! What reports say, in every language. `{name}` stands for a value.

use crate::Language;
use crate::record::{Class, FindingKind, Verdict};

/// One line for each phrase: name, English, Chinese.
macro_rules! phrases {
    ($($name:ident: $english:literal, $chinese:literal;)*) => {
        /// Every phrase in one language.
        #[derive(Debug)]
        pub(crate) struct Phrases {
            $(pub $name: &'static str,)*
        }

        static ENGLISH: Phrases = Phrases { $($name: $english,)* };
        static CHINESE: Phrases = Phrases { $($name: $chinese,)* };

        /// Name, English and Chinese of each phrase.
        #[cfg(test)]
        const TABLE: &[(&str, &str, &str)] = &[$((stringify!($name), $english, $chinese),)*];
    };
}

phrases! {
    // The page.
    title: "driftgauge: {model}", "driftgauge：{model}";
    selftest_title: "driftgauge self-test: {model}", "driftgauge 自检：{model}";
    skip: "Skip to the content", "跳到正文";
    contents: "Contents", "目录";
    written_by: "Written by driftgauge {version} from a record; the record holds everything.", "由 driftgauge {version} 根据一份记录生成；全部数据都在记录里。";
    and: " and ", "和";
    comma: ", ", "、";
    more: "{n} more are not shown; all of them are in the record (record.json).", "另有 {n} 项未显示；全部都在记录（record.json）里。";
    shortened: "shortened", "已截短";
    not_finite: "not finite", "非有限值";
    none: "none", "无";
    target: "target", "目标";
    case: "case", "用例";
    cases: "cases", "用例数";
    suite: "suite", "套件";
    truth: "truth (f64)", "真值（f64）";
    verdict: "verdict", "判定";

    // Verdicts.
    pass: "pass", "pass 通过";
    new: "new", "new 新增";
    drift: "drift", "drift 漂移";
    known: "known", "known 已知偏差";
    fixed: "fixed", "fixed 已修复";
    unsupported: "unsupported", "unsupported 不支持";
    broken: "broken", "broken 中断";
    pass_means: "every observation is within its budget", "每个观测量都在预算之内";
    new_means: "nothing was accepted yet that it could be compared with", "还没有接受过可供比较的结果";
    drift_means: "an observation is beyond its budget, moved from what was accepted, or damaged", "有观测量超出预算、偏离已接受的结果，或已损坏";
    known_means: "it deviates exactly as a known deviation says, which has a reason and an expiry date", "偏差与已登记的已知偏差一致，该登记附有理由和到期日";
    fixed_means: "a known deviation no longer happens: its entry can go", "已知偏差不再出现：可以删除该登记";
    unsupported_means: "the target cannot do what the case asks", "该目标做不到用例所要求的事";
    broken_means: "the target crashed, hung, answered garbage, or failed", "该目标崩溃、挂起、答复无效或失败";

    // The conclusion.
    same_model: "Same model.", "是同一个模型。";
    other_model: "Not the same model.", "不是同一个模型。";
    no_verdict: "No verdict.", "无法判定。";
    conforms: "All {targets} targets compute it within rounding on {cases} cases; the error nearest its limit is {used} % of it ({target}, {observation}).", "全部 {targets} 个目标在 {cases} 个用例上都只有舍入误差；最接近上限的误差为上限的 {used} %（{target}，{observation}）。";
    conforms_plainly: "Nothing deviates on {cases} cases and {targets} targets.", "在 {cases} 个用例、{targets} 个目标上没有偏差。";
    drifted: "{target} drifted in {n} of {all} cases", "{target} 在 {all} 个用例中有 {n} 个漂移";
    broke: "{target} gave no result for {n} of {all} cases", "{target} 在 {all} 个用例中有 {n} 个没有结果";
    cannot: "{target} cannot do {n} of {all} cases", "{target} 在 {all} 个用例中有 {n} 个不支持";
    others_too: "{first}, and {n} more targets", "{first}，另有 {n} 个目标";
    it_starts_in: "it starts in {place}", "始于{place}";
    looks_like: "looks like {cause}", "特征与 {cause} 相符";
    truth_moved: "The truth is not the accepted one", "真值与已接受的真值不符";
    no_longer: "{target} no longer deviates in {n} of {all} cases, as a known deviation says", "{target} 在 {all} 个用例中有 {n} 个不再出现登记的已知偏差";
    do_remove: "What to do: narrow or remove the entry of the known deviation, so that it is noticed if it comes back.", "怎么办：缩小或删除该已知偏差的登记，这样一旦复发就会被发现。";
    nothing_run: "The record holds no result: nothing was compared.", "记录中没有任何结果：什么都没有比较。";
    deviates_as_known: "{n} results deviate as known.", "{n} 个结果与已知偏差一致。";
    do_accept: "Nothing has to be done. No baseline is accepted yet: `driftgauge accept` makes this run the one that later runs are compared with.", "无需处理。还没有已接受的基线：`driftgauge accept` 会把这次运行作为以后比较的依据。";
    do_nothing: "Nothing has to be done.", "无需处理。";
    do_explain: "What to do: do not accept the change before it is explained. Take the first finding below, run its command, and try its next step.", "怎么办：在解释清楚之前不要接受这项改动。从下面第一项发现开始，执行其中的命令，并按其下一步处理。";
    do_repair: "What to do: read why it broke in the first finding below, mend it, and run again; until then nothing is known about these cases.", "怎么办：从下面第一项发现了解中断的原因，修复后重新运行；在此之前，这些用例没有结论。";
    do_choose: "What to do: leave these cases or targets out on purpose, or choose a target that can do them.", "怎么办：有意识地排除这些用例或目标，或换一个支持它们的目标。";
    do_run: "What to do: check the selection of cases and targets, and run again.", "怎么办：检查用例与目标的选择，然后重新运行。";
    exit_code: "exit code {code}", "退出码 {code}";

    // Targets.
    targets: "Targets", "目标";
    library: "library", "推理库";
    runs_on: "runs on", "运行于";
    threads: "{n} threads", "{n} 线程";
    thread: "1 thread", "1 线程";
    verdicts: "verdicts", "判定";
    nearest_limit: "error nearest its limit", "最接近上限的误差";
    of_limit: "{used} % of it", "上限的 {used} %";
    bits_left: "bits left", "剩余有效位";
    in_float64: "in f64", "f64 检验";
    same_formula: "same formula ({error})", "公式相同（{error}）";
    other_formula: "another formula ({error}, limit {limit})", "公式不同（{error}，上限 {limit}）";
    no_float64: "has none", "无";
    not_asked: "not run", "未运行";
    repeated_as: "{differing} of {verdicts} verdicts differ in {runs} runs (rate below {rate} % at 95 %); {bits} of {observations} observations not bitwise", "{runs} 次运行，{verdicts} 个判定中 {differing} 个不同（95 % 置信上限 {rate} %）；{observations} 个观测量中 {bits} 个并非逐位相同";
    not_available: "not available", "不可用";
    restarted: "worker restarted {n} times", "工作进程重启 {n} 次";

    // The environment.
    environment: "What changed in the environment", "环境有何变化";
    since_accepted: "Since the accepted baseline:", "与已接受的基线相比：";
    key: "what", "项目";
    accepted: "accepted", "已接受";
    now: "this run", "本次运行";
    nothing_changed: "Nothing that could change a number: library, version, device, dtype, threads and machine are those of the accepted baseline.", "没有可能影响数值的变化：推理库、版本、设备、数据类型、线程数和机器都与已接受的基线相同。";
    no_baseline: "No baseline is accepted for these targets, so this page cannot say since when. `driftgauge accept` on a run that you trust makes one; or compare two runs with `driftgauge diff`.", "这些目标还没有已接受的基线，因此本页无法说明从何时开始。对可信的一次运行执行 `driftgauge accept` 即可建立；也可以用 `driftgauge diff` 比较两次运行。";
    baselines_off: "Baselines were not compared (--no-baselines).", "没有与基线比较（--no-baselines）。";
    no_baseline_of: "No baseline is accepted for {targets}.", "{targets} 还没有已接受的基线。";
    baseline: "against its baseline", "与基线相比";
    base_bitwise: "{n} bitwise equal", "{n} 个逐位相同";
    base_within: "{n} within noise", "{n} 个在噪声之内";
    base_drifted: "{n} moved beyond noise", "{n} 个偏移超出噪声";
    base_improved: "{n} nearer the truth", "{n} 个更接近真值";
    base_unknown: "{n} not in the baseline", "{n} 个不在基线中";

    // Findings.
    findings: "Findings, worst first", "发现（最严重的在前）";
    no_findings: "Nothing was found.", "没有发现。";
    more_cases: "and {n} more cases", "另有 {n} 个用例";
    starts_in: "Starts in", "始于";
    probable_cause: "Probable cause", "可能的原因";
    explains: "explains {share} % of the difference", "可解释差异的 {share} %";
    unknown_cause: "none of the known faults", "不属于任何已知故障";
    measured: "Measured", "实测";
    allowed: "allowed", "允许";
    expected: "rounding explains {predicted}", "舍入可解释 {predicted}";
    times_allowed: "{times} times what is allowed", "是允许值的 {times} 倍";
    followed: "{n} later observations follow from it", "其后 {n} 个观测量随之偏离";
    next_step: "Next step", "下一步";
    reproduce: "Reproduce", "复现";
    evidence: "Evidence", "依据";
    last_words: "Last lines on stderr", "stderr 的最后几行";
    text: "Text", "文本";
    known_deviations: "Known deviations", "已知偏差";
    known_about: "Deviations that somebody accepted for a reason and until a day; they do not count as drift.", "已有人说明理由并限期接受的偏差，不计为漂移。";
    known_off: "Known deviations were not applied (--no-known).", "没有应用已知偏差（--no-known）。";
    known_expects: "expects", "预期";
    known_reason: "reason", "理由";
    known_until: "until", "有效至";
    known_entry: "entry", "登记处";
    known_outcome: "in this run", "本次运行";
    known_happens: "{n} as it says", "{n} 个与其一致";
    known_beyond: "{n} beyond it: drift", "{n} 个超出其范围：漂移";
    known_gone: "{n} fixed: narrow or remove the entry", "{n} 个已修复：请缩小或删除该登记";
    known_idle: "nothing", "无";
    known_expired: "expired, so it counts as drift", "已到期，计为漂移";
    kind_unsupported: "not supported", "不支持";
    kind_expired: "a known deviation that has expired", "已到期的已知偏差";
    kind_moved: "moved from its baseline", "偏离基线";
    kind_order: "changed order", "次序改变";
    kind_flaky: "flaky", "结果不稳定";
    kind_numeric: "beyond its budget", "超出预算";
    kind_damage: "damaged", "数据损坏";
    kind_broken: "broken", "中断";
    class_precision: "precision: the right formula at a lower precision", "precision：公式正确，精度偏低";
    class_semantic: "semantic: another formula, or other weights", "semantic：公式不同，或权重不同";
    class_damage: "damage: not finite, zeroed, or permuted", "damage：非有限值、被清零或次序错乱";
    embeddings: "embeddings", "embeddings";
    layer: "layer {n}", "第 {n} 层";
    layers: "layers {list}", "第 {list} 层";
    layers_to: "layers {first} to {last}", "第 {first} 至 {last} 层";
    head: "head", "head";
    outside: "what is fed or answered", "输入或答案";
    times_noise: "{n} times its noise", "噪声的 {n} 倍";

    // Errors.
    heat: "Where the error is", "误差在哪里";
    heat_after: "After each layer, on the production path: the largest error over all cases, in u.", "实际计算路径上每一层之后：所有用例中的最大误差，单位 u。";
    heat_alone: "Each stage alone, from the hidden state that the target itself had before it, in u: here a fault shows only where it is.", "每个阶段单独评判，从该目标自己在此之前的隐状态算起，单位 u：故障只在它所在之处显现。";
    legend: "Error in u, logarithmic:", "误差（u，对数刻度）：";
    beyond: "beyond what is allowed", "超出允许范围";
    beyond_mark: "✗ beyond what is allowed", "✗ 超出允许范围";
    bits: "Effective bits", "有效位";
    bits_about: "Leading bits that are right after each layer, in the worst case: a correct f32 target loses three or four of 24. The line falls where accuracy is lost.", "最差用例在每一层之后仍正确的前导位数：正确的 f32 目标在 24 位中只损失三四位。曲线在哪里下降，精度就在哪里损失。";
    bits_chart: "Effective bits of each target after each layer; the table below has the same numbers.", "各目标在每一层之后的有效位；下表给出同样的数值。";

    // Answers.
    answers: "Answers side by side", "答案对照";
    answers_about: "The five tokens that fit best, with their probabilities; ≠ marks a token that is not the truth's at that rank.", "最合适的五个词元及其概率；≠ 表示与真值同一名次的词元不同。";
    mask_at: "mask at token {n}", "位于词元 {n} 的掩码";
    rank: "rank", "名次";
    tie: "{first} and {second} changed places on {target}: {noise} times the noise of their difference, a tie", "{target} 上 {first} 与 {second} 次序互换：相差为其噪声的 {noise} 倍，视为并列";
    flip: "{first} and {second} changed places on {target}: {noise} times the noise of their difference, drift", "{target} 上 {first} 与 {second} 次序互换：相差为其噪声的 {noise} 倍，属于漂移";
    more_answers: "Answers of {n} more cases", "另外 {n} 个用例的答案";
    similarity: "Similarity", "相似度";
    similarity_about: "Cosine of the CLS vectors in the truth; the list below has every target.", "真值中 CLS 向量的余弦；下面的列表给出各个目标。";
    similarity_list: "{n} pairs of texts", "{n} 对文本";
    first_text: "first text", "第一段文本";
    second_text: "second text", "第二段文本";
    pairs: "Targets compared with each other", "目标两两比较";
    pairs_about: "Largest distance in units of the noise that two correct results may have; up to {k} is within noise, = is bitwise equal.", "最大距离，以两个正确结果之间可能的噪声为单位；不超过 {k} 属于噪声之内，= 表示逐位相同。";

    // Time.
    latency: "Latency", "耗时";
    latency_about: "Seconds of one run on this machine: starting the process, loading the model, all forward passes.", "本机一次运行的秒数：启动进程、加载模型、全部前向计算。";
    start: "start", "启动";
    load: "load", "加载";
    forward: "forward", "前向";
    total: "total", "合计";

    // All results.
    results: "All results", "全部结果";
    results_about: "One row for each case, worst first; a cell shows verdict and the error nearest its limit, in units of noise ({k} are allowed).", "每个用例一行，最严重的在前；每格显示判定以及最接近上限的误差，以噪声为单位（允许 {k}）。";
    filter: "Filter", "筛选";
    only_deviating: "only what is not pass", "只看非 pass";

    // Provenance.
    provenance: "Provenance", "来源信息";
    model: "Model", "模型";
    parameters: "{n} M parameters", "{n} M 参数";
    verified: "files verified against the manifest", "文件已按清单核对";
    not_verified: "files not compared with a manifest", "文件未与清单核对";
    revision: "revision", "修订版本";
    licence: "licence", "许可证";
    file: "file", "文件";
    size: "bytes", "字节数";
    suites: "Suites", "套件";
    selected: "selected", "选中";
    machine: "Machine", "机器";
    method: "Method", "方法";
    method_k: "Budgets are K = {k} times the predicted error", "预算为预测误差的 K = {k} 倍";
    overridden: "from the command line, not calibrated", "来自命令行，未经校准";
    samples: "predicted from {n} samples, seed {seed}", "由 {n} 个样本预测，种子 {seed}";
    truth_digest: "truth", "真值";
    truth_difference: "{n} accepted cases, largest difference {difference} (limit {limit})", "{n} 个已接受用例，最大差异 {difference}（上限 {limit}）";
    when: "Time", "时间";
    started: "started", "开始";
    seconds: "{n} s", "{n} 秒";
    stated: "What the worker of {target} states", "{target} 的工作进程所声明的内容";

    // Self-test.
    selftest_clean: "Every fault that shows was detected, and nothing where there is no fault.", "凡是显现的故障都被检出，没有故障之处没有误报。";
    selftest_missed: "{n} faults were missed.", "漏检 {n} 个故障。";
    selftest_alarms: "{n} false alarms.", "误报 {n} 次。";
    selftest_benign: "{n} edits that change nothing were reported.", "{n} 处不改变结果的修改被报告。";
    selftest_broken: "{n} trials broke.", "{n} 次试验中断。";
    selftest_nothing: "No fault was tried.", "没有试验任何故障。";
    selftest_below: "{n} leave less than the dtype can show, and do not count.", "{n} 个低于该数据类型所能显示的程度，不计入。";
    selftest_idle: "{n} were not exercised by these cases.", "{n} 个没有被这些用例触及。";
    selftest_about: "{layers} layers, {cases} cases under every fault, K = {k}.", "{layers} 层，每个故障运行 {cases} 个用例，K = {k}。";
    selftest_unknown: "Each fault was looked for as if the catalogue did not have it: the right cause is none.", "逐一假定目录中没有该故障进行查找：正确的原因是“无”。";
    selftest_totals: "How much is found", "检出多少";
    selftest_right: "right, of what shows", "正确数 / 显现数";
    selftest_detected: "detected", "检出";
    selftest_class: "class", "类别";
    selftest_stage: "layer", "层";
    selftest_step: "step", "步骤";
    selftest_cause: "cause", "原因";
    selftest_blind: "detected from logits only", "仅凭 logits 检出";
    selftest_blind_cause: "cause from logits only", "仅凭 logits 判明原因";
    selftest_gates: "Beside common gates", "与常用判据对比";
    selftest_gates_about: "What each gate notices of the same results, and how often it fires where there is no fault.", "同样的结果，各判据能注意到多少；以及在没有故障时触发多少次。";
    selftest_gate: "gate", "判据";
    selftest_alarm: "{found}; {alarms} of {runs} false alarms", "{found}；{runs} 次中误报 {alarms} 次";
    selftest_faults: "Every fault", "每个故障";
    selftest_fault: "fault", "故障";
    selftest_places: "places", "处数";
    selftest_signal: "smallest signal, in noise", "最小信号（噪声的倍数）";
    selftest_tokens: "Faults of the tokenizer", "分词器故障";
    selftest_note: "note", "说明";
    selftest_notes: "What was not found, not tried, or not quite right", "未检出、未试验或不完全正确的";
    status_detected: "detected", "检出";
    status_missed: "missed", "漏检";
    status_below_noise: "below noise", "低于噪声";
    status_void: "void", "无影响";
    status_not_exercised: "not exercised", "未触及";
    status_unsupported: "unsupported", "不支持";
    status_broken: "broken", "中断";
    alarm: "false alarm", "误报";

    // How to read.
    how_to_read: "How to read this page", "如何阅读本页";
    read_truth_word: "truth", "真值（truth）";
    read_truth: "the same model computed in float64 by driftgauge itself: errors are measured from it, so the page says who is off, not only that two differ.", "由 driftgauge 自己用 float64 计算的同一模型：误差都以它为基准，因此能说明是谁偏了，而不只是两者不同。";
    read_u_word: "u", "u";
    read_u: "unit roundoff of the dtype (f32 2⁻²⁴, f16 2⁻¹¹, bf16 2⁻⁸). Error is the norm of the difference over the norm of the truth.", "数据类型的单位舍入误差（f32 2⁻²⁴，f16 2⁻¹¹，bf16 2⁻⁸）。误差为差的范数除以真值的范数。";
    read_noise_word: "noise", "噪声（noise）";
    read_noise: "the error that rounding is predicted to make in a correct implementation, for this very case, observation, dtype and library.", "针对这个用例、观测量、数据类型和推理库，预测正确实现仅因舍入而产生的误差。";
    read_budget_word: "budget", "预算（budget）";
    read_budget: "the largest error that passes: K times the noise. No tolerance is set by hand.", "可以通过的最大误差：噪声的 K 倍。没有任何手工设定的容差。";
    read_bits_word: "effective bits", "有效位（effective bits）";
    read_bits: "leading bits that are right: −log₂ of the error. f32 has 24, f16 11, bf16 8.", "正确的前导位数：误差的 −log₂。f32 有 24 位，f16 有 11 位，bf16 有 8 位。";
    read_stage_word: "stage", "阶段（stage）";
    read_stage: "embeddings, one layer, or the head. A stage judged alone starts from the target's own state before it, so that one bad layer is one finding.", "embeddings、某一层或 head。单独评判的阶段从该目标自己之前的状态出发，因此一层出错只算一项发现。";
    read_cause_word: "probable cause", "可能的原因";
    read_cause: "the known fault whose signature the difference matches; the coefficient is 1.000 where it is exactly that fault.", "差异与哪个已知故障的特征相符；系数为 1.000 表示正是该故障。";
}

impl Phrases {
    /// The phrases of a language.
    pub fn of(language: Language) -> &'static Phrases {
        match language {
            Language::English => &ENGLISH,
            Language::Chinese => &CHINESE,
        }
    }

    /// The word for a verdict.
    pub fn verdict(&self, verdict: Verdict) -> &'static str {
        match verdict {
            Verdict::Pass => self.pass,
            Verdict::New => self.new,
            Verdict::Drift => self.drift,
            Verdict::Known => self.known,
            Verdict::Fixed => self.fixed,
            Verdict::Unsupported => self.unsupported,
            Verdict::Broken => self.broken,
        }
    }

    /// What a verdict means.
    pub fn verdict_means(&self, verdict: Verdict) -> &'static str {
        match verdict {
            Verdict::Pass => self.pass_means,
            Verdict::New => self.new_means,
            Verdict::Drift => self.drift_means,
            Verdict::Known => self.known_means,
            Verdict::Fixed => self.fixed_means,
            Verdict::Unsupported => self.unsupported_means,
            Verdict::Broken => self.broken_means,
        }
    }

    /// The word for a kind of finding.
    pub fn kind(&self, kind: FindingKind) -> &'static str {
        match kind {
            FindingKind::Unsupported => self.kind_unsupported,
            FindingKind::Expired => self.kind_expired,
            FindingKind::Moved => self.kind_moved,
            FindingKind::Order => self.kind_order,
            FindingKind::Flaky => self.kind_flaky,
            FindingKind::Numeric => self.kind_numeric,
            FindingKind::Damage => self.kind_damage,
            FindingKind::Broken => self.kind_broken,
        }
    }

    /// The way in which numbers are wrong.
    pub fn class(&self, class: Class) -> &'static str {
        match class {
            Class::Precision => self.class_precision,
            Class::Semantic => self.class_semantic,
            Class::Damage => self.class_damage,
        }
    }
}

/// A phrase with values in the place of their `{name}`s. A value is not looked into again.
pub(crate) fn fill(phrase: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(phrase.len() + 16);
    let mut rest = phrase;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let value = after.split_once('}').and_then(|(name, after)| {
            let (_, value) = values.iter().find(|(known, _)| *known == name)?;
            Some((value, after))
        });
        match value {
            Some((value, after)) => {
                text.push_str(value);
                rest = after;
            }
            None => {
                text.push('{');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Names of the values that a phrase takes.
    fn values(phrase: &str) -> BTreeSet<&str> {
        let parts = phrase.split('{').skip(1);
        parts
            .filter_map(|part| Some(part.split_once('}')?.0))
            .collect()
    }

    #[test]
    fn both_languages_say_everything_with_the_same_values() {
        assert!(TABLE.len() > 100);
        for (name, english, chinese) in TABLE {
            assert!(
                !english.trim().is_empty() && !chinese.trim().is_empty(),
                "{name}"
            );
            assert_eq!(values(english), values(chinese), "{name}");
            assert!(english.is_ascii() || !english.chars().any(is_han), "{name}");
            // Terms that stay as they are have no space; every other phrase is translated.
            if english.contains(' ') && !["and", "comma", "title"].contains(name) {
                assert!(chinese.chars().any(is_han), "{name}: {chinese}");
            }
        }
    }

    fn is_han(c: char) -> bool {
        ('\u{4e00}'..='\u{9fff}').contains(&c)
    }

    #[test]
    fn values_are_filled_in_once() {
        let text = fill("{a} of {b}, {c} {", &[("a", "{b}"), ("b", "2")]);
        assert_eq!(text, "{b} of 2, {c} {");
    }
}
