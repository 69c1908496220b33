"""Times and watches `driftgauge run`, side by side with scripts that do less, and prints a table.

Called by `run`, beside this file, which prepares what is measured. Needs Python alone, no packages.
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field

import usage

MEGABYTE = 1e6
PHASES = ("model", "plan", "truth", "targets", "judge")
# Share of the CPUs' time above which other processes have disturbed the times.
MOST_NOISE = 0.05
# What is asked, as the table says it.
ASKED = {
    "wall": "zh-mini: ≤ 5, aim 2",
    "ratio": "≤ 0.6",
    "overhead": "≤ 1.15",
    "harness": "≤ 1500",
    "worker": "12 × 768: ≤ 1.5",
}
LIMITS_OF_MINI = {"wall": 5.0, "overhead": 1.15, "harness": 1500}
LIMITS_OF_CHECKPOINT = {"ratio": 0.6, "overhead": 1.15, "harness": 1500, "worker": 1.5}


@dataclass
class Subject:
    """One kind of `driftgauge run`, what it is compared with, and what came out."""

    title: str
    command: list
    record_file: pathlib.Path
    # What was asked of it, by the names in `ASKED`.
    limits: dict
    # Label and command of each script.
    scripts: dict
    records: list = field(default_factory=list)
    # One list of `Timing` for each round: the harness, then the scripts.
    rounds: list = field(default_factory=list)
    # What each process of the harness took, its own first, and each script.
    usages: list = field(default_factory=list)
    script_usages: list = field(default_factory=list)


@dataclass
class Timing:
    """One run, in seconds."""

    wall: float
    cpu: float


@dataclass
class Row:
    """A line of the table: for each subject its values, if it has any, and what was asked of them."""

    name: str
    values: list
    format: str = "{:.2f}"
    asked: str = None


class Refused(Exception):
    """A run that did not do what it was to do, so that its figures mean nothing."""


def main():
    arguments = parse()
    all_subjects = subjects(arguments)
    try:
        for subject in all_subjects:
            watch(subject)
        before, start = cpu_seconds(), datetime.datetime.now()
        if arguments.hyperfine:
            for subject in all_subjects:
                measure(subject, arguments.hyperfine, arguments.runs)
        spent = (datetime.datetime.now() - start).total_seconds()
    except Refused as error:
        sys.exit(f"ci/bench/run: {error}\nnothing is reported")
    print(heading(all_subjects[0], arguments, others(all_subjects, cpu_seconds() - before, spent)))
    print(table(all_subjects))


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--driftgauge", required=True)
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--runs", required=True, type=int)
    parser.add_argument("--revision", required=True)
    parser.add_argument("--hyperfine")
    parser.add_argument("--checkpoint")
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--scripts-run-on", default="")
    parser.add_argument("--script", action="append", default=[], nargs="+")
    return parser.parse_args()


def subjects(arguments):
    targets = [word for target in arguments.target for word in ("--target", target)]

    def subject(title, name, words, limits, scripts):
        out = arguments.folder / "out" / name
        command = [arguments.driftgauge, "run", *words, *targets, "--out", str(out)]
        return Subject(title, command, out / "record.json", limits, scripts)

    mini = subject("zh-mini, all suites", "zh-mini", [], LIMITS_OF_MINI, {})
    if not arguments.checkpoint:
        return [mini]
    words = ["--model", arguments.checkpoint, "--suite", "cases/seed.toml"]
    scripts = {label: command for label, *command in arguments.script}
    title = "12 × 768, suite seed"
    return [subject(title, "checkpoint", words, LIMITS_OF_CHECKPOINT, scripts), mini]


# ---- Measuring -----------------------------------------------------------------------------------


def watch(subject):
    """One run of everything for what it takes; it also brings every file into the page cache."""
    subject.record_file.unlink(missing_ok=True)
    for label, command in {"driftgauge": subject.command, **subject.scripts}.items():
        say(f"watch: {subject.title}: {label}")
        outcome = usage.run(command)
        if outcome.status != 0:
            print(outcome.stderr[-2000:], file=sys.stderr)
            raise Refused(f"`{shlex.join(command)}` ended with exit status {outcome.status}")
        if label == "driftgauge":
            subject.usages = outcome.usages
            subject.records.append(read_record(subject))
        else:
            subject.script_usages.append(max(outcome.usages, key=lambda u: u.resident))


def measure(subject, hyperfine, runs):
    """Rounds of one run each, every second one backwards, so that a drift hits all alike."""
    commands = [subject.command, *subject.scripts.values()]
    export = subject.record_file.parents[1] / "hyperfine.json"
    subject.records = []
    for index in range(runs):
        say(f"time: {subject.title}: round {index + 1} of {runs}")
        order = 1 if index % 2 == 0 else -1
        subject.record_file.unlink(missing_ok=True)
        words = [hyperfine, "--shell=none", "--style=none", "--runs=1", f"--export-json={export}"]
        words += [shlex.join(command) for command in commands[::order]]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise Refused(f"a run failed: {done.stderr.strip()}")
        results = json.loads(export.read_text())["results"][::order]
        subject.rounds.append([Timing(r["times"][0], r["user"] + r["system"]) for r in results])
        subject.records.append(read_record(subject))


def read_record(subject):
    record = json.loads(subject.record_file.read_text())
    if record["summary"]["exit_code"] != 0:
        raise Refused(f"`{subject.record_file}` says exit code {record['summary']['exit_code']}")
    return record


def cpu_seconds():
    """Seconds that the machine's CPUs have been busy, or were taken away by its host."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def others(all_subjects, busy, spent):
    """Share of the CPUs that went to something else while runs were timed."""
    own = sum(t.cpu for s in all_subjects for timings in s.rounds for t in timings)
    return max(0.0, busy - own) / (spent * os.cpu_count()) if own else None


# ---- The table -----------------------------------------------------------------------------------


def heading(subject, arguments, noise):
    record = subject.records[-1]
    cores = len(os.sched_getaffinity(0))
    targets = ", ".join(target["target"] for target in record["targets"])
    machine = f"{record['host']['cpu']}, {cores} cores, {record['host']['memory_gib']} GiB"
    lines = [
        f"### driftgauge {record['driftgauge']} ({arguments.revision}): {machine}",
        "",
        f"Targets {targets}.",
    ]
    if subject.scripts:
        lines.append(f"Scripts: three answers from {arguments.scripts_run_on}.")
    if noise is None:
        lines.append("Not timed: hyperfine is missing; the times are those of a watched run.")
    else:
        rounds = f"Median (lowest–highest) of {arguments.runs} interleaved rounds"
        rounds = rounds if arguments.runs > 1 else "One round"
        verdict = ": too much to quote these times" if noise > MOST_NOISE else ""
        lines.append(
            f"{rounds}, files in the page cache; meanwhile {noise:.0%} of the CPUs' time went to "
            f"other processes{verdict}."
        )
    return "\n".join(lines) + "\n"


def table(all_subjects):
    titles = [subject.title for subject in all_subjects]
    lines = [line(["", *titles, "asked"]), line(["---", *("---:" for _ in titles), "---"])]
    for row in rows(all_subjects):
        if not any(row.values):
            continue
        limits = [subject.limits.get(row.asked) for subject in all_subjects]
        cells = [cell(*pair, row.format) for pair in zip(row.values, limits)]
        lines.append(line([row.name, *cells, ASKED.get(row.asked, "")]))
    return "\n".join(lines)


def line(cells):
    return "| " + " | ".join(cells) + " |"


def cell(values, limit, form):
    if not values:
        return "–"
    median = statistics.median(values)
    text = form.format(median)
    if len(values) > 1:
        text += f" ({form.format(min(values))}–{form.format(max(values))})"
    if limit is not None and median > limit:
        text += " **missed**"
    return text


def rows(all_subjects):
    yield Row("wall, s", [[t[0].wall for t in s.rounds] for s in all_subjects], asked="wall")
    yield Row("CPU time, s", [[t[0].cpu for t in s.rounds] for s in all_subjects])
    yield from script_rows(all_subjects)
    yield from overhead_rows(all_subjects)
    yield from phase_rows(all_subjects)
    yield from target_rows(all_subjects)
    yield from usage_rows(all_subjects)


def script_rows(all_subjects):
    labels = list(all_subjects[0].scripts)
    for index, label in enumerate(labels, start=1):
        walls = [[t[index].wall for t in s.rounds if index < len(t)] for s in all_subjects]
        yield Row(f"script ({label}), wall, s", walls)
        cpu = [[t[index].cpu for t in s.rounds if index < len(t)] for s in all_subjects]
        yield Row(f"script ({label}), CPU time, s", cpu)
    for index, label in enumerate(labels, start=1):
        ratios = [
            [t[0].wall / t[index].wall for t in s.rounds if index < len(t)] for s in all_subjects
        ]
        yield Row(f"driftgauge / script ({label})", ratios, asked="ratio")


def overhead_rows(all_subjects):
    for name, parts in {
        "wall / slowest target's load + forward": ("load", "forward"),
        "wall / slowest target's start + load + forward": ("start", "load", "forward"),
    }.items():
        ratios = [
            [t[0].wall / slowest(record, parts) for t, record in zip(s.rounds, s.records)]
            for s in all_subjects
        ]
        yield Row(name, ratios, asked="overhead")


def slowest(record, parts):
    return max(sum(target["time"][part] for part in parts) for target in record["targets"])


def phase_rows(all_subjects):
    for phase in PHASES:
        seconds = [[record["time"]["seconds"][phase] for record in s.records] for s in all_subjects]
        yield Row(f"phase {phase}, s", seconds, "{:.3f}")
    outside = [
        [t[0].wall - r["time"]["seconds"]["total"] for t, r in zip(s.rounds, s.records)]
        for s in all_subjects
    ]
    yield Row("outside the phases, s", outside, "{:.3f}")


def target_rows(all_subjects):
    for index, target in enumerate(all_subjects[0].records[-1]["targets"]):
        for part in ("start", "load", "forward", "total"):
            seconds = [
                [record["targets"][index]["time"][part] for record in s.records]
                for s in all_subjects
            ]
            yield Row(f"{target['target']} {part}, s", seconds, "{:.3f}")


def usage_rows(all_subjects):
    """Of the one watched run, process by process."""
    weights = [4 * s.records[-1]["model"]["parameters"] for s in all_subjects]
    yield Row("weights as f32, MB", [[size / MEGABYTE] for size in weights], "{:.0f}")
    yield from process_rows("the harness", [s.usages[:1] for s in all_subjects], "harness")
    for program in sorted({u.program for s in all_subjects for u in s.usages[1:]}):
        name = program.removeprefix("driftgauge-")
        found = [[u for u in s.usages[1:] if u.program == program] for s in all_subjects]
        yield from process_rows(name, found)
        shares = [[u.resident / size for u in us] for us, size in zip(found, weights)]
        yield Row(f"{name}, peak / weights", shares, asked="worker")
    for index, label in enumerate(all_subjects[0].scripts):
        found = [s.script_usages[index : index + 1] for s in all_subjects]
        resident = [[u.resident / MEGABYTE for u in us] for us in found]
        yield Row(f"script ({label}), peak, MB", resident, "{:.0f}")


def process_rows(name, usages, asked=None):
    yield Row(f"{name}, CPU time, s", [[u.cpu for u in us] for us in usages])
    resident = [[u.resident / MEGABYTE for u in us] for us in usages]
    yield Row(f"{name}, peak, MB", resident, "{:.0f}", asked)
    anonymous = [[u.anonymous / MEGABYTE for u in us] for us in usages]
    yield Row(f"{name}, peak without mapped files, MB", anonymous, "{:.0f}")


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
