"""Stand-ins for `ssh`, `gcloud`, `sbatch`, `srun` and `kubectl` on the PATH, which record how they were called."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_RECORD = f"""#!{sys.executable}
import json, os, subprocess, sys
folder = os.environ["FAKE"]
name = os.path.basename(sys.argv[0])
reads = name in ("sbatch", "kubectl") or "tar -xzf -" in sys.argv[-1]
text = sys.stdin.buffer.read().decode("latin-1") if reads and name == "kubectl" else None
with open(os.path.join(folder, "calls.jsonl"), "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]] + ([text] if text is not None else [])) + "\\n")
"""
# What follows the last argument of ssh, or behind --command= of gcloud, is for the shell of the other machine.
_SHELL = """
def over_there(command, where="machine"):
    home = os.path.join(folder, "home", where)
    os.makedirs(home, exist_ok=True)
    done = subprocess.run(["bash", "-c", command], cwd=home, env={**os.environ, "HOME": home})
    return done.returncode
"""
_PROGRAMS: Mapping[str, str] = {
    "ssh": _SHELL + "sys.exit(over_there(sys.argv[-1], sys.argv[-2]))",
    "gcloud": _SHELL
    + """
import shutil
words = sys.argv[1:]
verb = words[3]
if verb == "describe":
    print(os.environ.get("FAKE_TPU", "{}"))
    sys.exit(0 if "FAKE_TPU" in os.environ else print("ERROR: NOT_FOUND", file=sys.stderr) or 1)
workers = ["0", "1"]
chosen = next((w.partition("=")[2] for w in words if w.startswith("--worker=")), "")
for worker in workers if chosen == "all" else [chosen]:
    home = os.path.join(folder, "home", worker)
    os.makedirs(home, exist_ok=True)
    if verb == "scp":
        shutil.copy(words[4], os.path.join(home, words[5].partition(":")[2]))
    if verb == "ssh":
        command = next(w.removeprefix("--command=") for w in words if w.startswith("--command="))
        status = over_there(command, worker)
        if status:
            sys.exit(status)
""",
    "sbatch": "print('Submitted batch job 77')",
    "kubectl": "print('jobset created')",
    "scontrol": "",
    "sleep": "",
    "srun": """
statuses = os.path.join(folder, "statuses")
left = open(statuses).read().split() if os.path.exists(statuses) else []
open(statuses, "w").write(" ".join(left[1:]))
sys.exit(int(left[0]) if left else 0)
""",
}


@dataclass(frozen=True)
class Fakes:
    """folder: where they record, and where `home/NAME` is the home of each machine."""

    folder: Path

    def environment(self, path: str) -> dict[str, str]:
        return {"PATH": f"{self.folder / 'bin'}:{path}", "FAKE": str(self.folder)}

    def calls(self) -> list[list[str]]:
        """Program and arguments of each call so far."""
        file = self.folder / "calls.jsonl"
        return list(map(json.loads, file.read_text().splitlines())) if file.exists() else []

    def statuses(self, *statuses: int) -> None:
        """What `srun` will end with, call by call; then 0."""
        (self.folder / "statuses").write_text(" ".join(map(str, statuses)))


def make_fakes(folder: Path) -> Fakes:
    bin_folder = folder / "bin"
    bin_folder.mkdir(parents=True)
    for name, program in _PROGRAMS.items():
        path = bin_folder / name
        path.write_text(_RECORD + program + "\n")
        path.chmod(0o755)
    return Fakes(folder)
