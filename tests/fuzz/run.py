"""Coverage-guided fuzzing of all file readers (needs Linux, and pip install ".[fuzz]").

    python tests/fuzz/run.py TARGET --seconds N

TARGET is one of those in targets.py, or "all", each for N seconds. A line for each prints the
number of inputs. The exit code is 1 if an input crashed the reader, made it raise an undocumented
error or start a program, or needed too much time or memory. Such an input is stored.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MEMORY, SECONDS, LENGTH = 4096, 60, 1 << 16  # MiB and seconds per input, and its bytes
PACKAGES = ["selfment", "PIL", "tomllib", "tomli"]


def fuzz(name: str, corpus: str, options: list[str]) -> None:
    """Fuzzes one target; ends the process."""
    import atheris
    from timm.models import eva, vision_transformer  # instrumented completely they take minutes
    from torch._weights_only_unpickler import Unpickler

    Unpickler.load = atheris.instrument_func(Unpickler.load)
    for module in (eva, vision_transformer):
        module.checkpoint_filter_fn = atheris.instrument_func(module.checkpoint_filter_fn)
    with atheris.instrument_imports(include=PACKAGES):
        from targets import TARGETS, forbid_side_effects

    target = TARGETS[name]
    for number, seed in enumerate(target.seeds()):
        if len(seed) <= LENGTH:
            Path(corpus, f"{number:03}").write_bytes(seed)
    target.check(b"")  # imports now, so that they do not count for an input
    forbid_side_effects()
    sys.stderr = open("/dev/null", "w")  # noqa: SIM115 - the readers report; libFuzzer has its own
    mutate = {} if target.mutate is None else {"custom_mutator": target.mutate}
    atheris.Setup([sys.argv[0], corpus, *options], target.check, **mutate)
    atheris.Fuzz()


def run(name: str, seconds: int, seed: int, kept: Path) -> bool:
    """Fuzzes one target in a process of its own; returns a summary, and whether it succeeded."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as corpus:
        options = [
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-artifact_prefix={kept}/{name}-",
        ]
        options += [f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY}", f"-max_len={LENGTH}"]
        options += ["-print_final_stats=1"]
        command = [sys.executable, __file__, "--fuzz", name, corpus, *options]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    log = done.stdout + done.stderr
    count = re.search(r"number_of_executed_units:\s*(\d+)", log)
    executed = int(count[1]) if count else 0
    well = done.returncode == 0 and executed > 0
    print(f"{name}: {executed:,} inputs, {'no crash' if well else 'CRASHED'}", flush=True)
    if not well:
        print(log[-6000:])
        print(f"the input is kept in {kept}")
    return well


def main() -> int:
    """Fuzzes the targets that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("crashes"), help="folder for inputs")
    arguments = parser.parse_args()
    from targets import TARGETS, remove_files

    remove_files()
    if arguments.target not in ("all", *TARGETS):
        parser.error(f"TARGET must be all or one of {', '.join(TARGETS)}")
    names = list(TARGETS) if arguments.target == "all" else [arguments.target]
    kept = arguments.keep.absolute()
    kept.mkdir(parents=True, exist_ok=True)
    results = [run(name, arguments.seconds, arguments.seed, kept) for name in names]
    if not any(kept.iterdir()):
        kept.rmdir()
    return 0 if all(results) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fuzz"]:
        fuzz(sys.argv[2], sys.argv[3], sys.argv[4:])
    sys.exit(main())
