"""Peak memory and CPU time of a command and of every process below it, as the kernel counts them.

`VmHWM` is a process's own high-water mark, so that a sample every 5 ms misses only what a process
takes in its last 5 ms. It counts pages of mapped files too: those of a checkpoint, of libraries.
"""

import os
import pathlib
import subprocess
import tempfile
import time
from dataclasses import dataclass

INTERVAL = 0.005


@dataclass
class Usage:
    """What one process took: memory at its highest, in bytes, and CPU time, in seconds."""

    program: str
    resident: int = 0
    anonymous: int = 0
    cpu: float = 0.0


@dataclass
class Outcome:
    """How the command ended, and what its processes took, its own first."""

    status: int
    stderr: str
    usages: list


def run(command):
    """Runs a command to its end, its stdout thrown away, and watches its processes."""
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        usages = {}
        while child.poll() is None:
            for pid in tree(child.pid):
                sample(pid, child.pid, usages)
            time.sleep(INTERVAL)
        stderr.seek(0)
        text = stderr.read().decode(errors="replace")
    return Outcome(child.returncode, text, list(usages.values()))


def tree(root):
    """A process and those below it; what ends meanwhile is left out."""
    found = [root]
    for pid in found:
        try:
            for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:
            pass
    return found


def sample(pid, root, usages):
    """Reads what a process has taken so far; one that becomes another program counts anew."""
    try:
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return
    # Before it becomes its own program, a new process is a copy of the one that started it.
    if pid != root and program == own_program(root):
        return
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmHWM" not in fields:
        return
    usage = usages.setdefault((pid, program), Usage(program))
    usage.resident = max(usage.resident, kibibytes(fields["VmHWM"]))
    usage.anonymous = max(usage.anonymous, kibibytes(fields["RssAnon"]))
    # utime and stime, the 14th and 15th field; the 2nd, in parentheses, may hold anything.
    user, system = stat.rsplit(")", 1)[1].split()[11:13]
    usage.cpu = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def own_program(root):
    try:
        return os.path.basename(os.readlink(f"/proc/{root}/exe"))
    except OSError:
        return None


def kibibytes(text):
    return int(text.split()[0]) * 1024
