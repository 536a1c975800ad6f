"""The emulation of CUDA grids: it runs what is right, and finds what is wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from helpers import emulated, processes

ORDERS = ("forward", "reverse", "shuffle")
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SOURCES = [emulated.EMULATION / "emulation.cpp", emulated.EMULATION / "selftest.cu"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulated.compiler() is None, reason="no C++ compiler: neither $CXX nor c++"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated.link(tmp_path_factory.mktemp("plain") / "selftest", SOURCES, ["-O2"], [])


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    probe = folder / "probe.cpp"
    probe.write_text("#include <sanitizer/asan_interface.h>\nint main() {}\n")
    try:
        emulated.run([emulated.link(folder / "probe", [probe], SANITIZERS, [])])
    except RuntimeError as error:
        pytest.skip(f"the compiler has no address sanitizer: {str(error).splitlines()[-1]}")
    return emulated.link(folder / "selftest", SOURCES, SANITIZERS, [])


def run(
    program: Path, case: str, order: str = "forward", **settings: int
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SELFMENT_")}
    ours = {f"SELFMENT_EMULATED_{name.upper()}": str(value) for name, value in settings.items()}
    return processes.run(
        [program, case],
        env={**kept, **ours, "SELFMENT_EMULATED_ORDER": order},
    )


def output(program: Path, case: str, order: str = "forward", **settings: int) -> str:
    done = run(program, case, order, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", ["plain", "sanitized"])
def test_right_kernels(variant: str, order: str, request: pytest.FixtureRequest) -> None:
    assert output(request.getfixturevalue(variant), "good", order) == ""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", ["plain", "sanitized"])
@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("divergent", ["no thread can go on: ", "32 in __syncthreads (selftest.cu:", "32 ended"]),
        ("branches", ["__syncthreads (selftest.cu:", " while others are at another one"]),
        ("lanes", ["no thread can go on: ", "62 in __shfl_sync (selftest.cu:", "2 ended"]),
        ("mixed", ["32 in __shfl_xor_sync (selftest.cu:", "32 in __shfl_down_sync (selftest.cu:"]),
        ("outside", ["__shfl_sync (selftest.cu:", "or with one, that is not in the mask"]),
        ("waiting", ["paused 2000 times: 63 in __syncthreads (selftest.cu:", "1 running"]),
    ],
)
def test_misuse_is_reported(
    variant: str, case: str, says: list[str], order: str, request: pytest.FixtureRequest
) -> None:
    text = output(request.getfixturevalue(variant), case, order, pauses=2000)
    assert text.startswith("CUDA error in kernel: block (")
    for part in says:
        assert part in text


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_shows(plain: Path, order: str) -> None:
    wrong = int(output(plain, "missing", order).split()[0])
    assert wrong > 16


def test_orders(plain: Path) -> None:
    turns = {}
    for order in ORDERS:
        text = output(plain, "order", order)
        assert text == output(plain, "order", order)
        error, numbers = text.splitlines()
        assert error == "no error"
        turns[order] = list(map(int, numbers.split()))
    assert turns["forward"] == list(range(64))
    assert turns["reverse"] == list(range(64))[::-1]
    assert sorted(turns["shuffle"]) == turns["forward"]
    assert turns["shuffle"] not in (turns["forward"], turns["reverse"])
    assert "SELFMENT_EMULATED_ORDER is sideways" in output(plain, "order", "sideways")


def test_a_shuffle_breaks_in_at_atomics(plain: Path) -> None:
    assert output(plain, "racing") == "64 of 64\n"
    sum_, threads = output(plain, "racing", "shuffle").split(" of ")
    assert int(sum_) < int(threads) == 64


def test_shared_memory_of_a_device(plain: Path) -> None:
    assert output(plain, "shared") == "101376\n"
    assert output(plain, "shared", shared_bytes=65536) == "65536\n"
    assert output(plain, "good", shared_bytes=65536) == ""


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("overrun", ["heap-buffer-overflow", "0 bytes to the right of 64-byte region"]),
        ("overflow", ["stack-overflow"]),
    ],
)
def test_sanitizers_see_through_fibers(sanitized: Path, case: str, says: list[str]) -> None:
    done = run(sanitized, case)
    assert done.returncode != 0
    for part in says:
        # Newer versions say "after" instead of "to the right of".
        assert part in done.stderr.replace("0 bytes after 64", "0 bytes to the right of 64")


def test_switches_do_not_call_the_system(plain: Path) -> None:
    """Six million: with a call of the system each, most of the time would be spent there."""
    total, system = map(float, output(plain, "switches").split())
    assert total > 0
    assert system < 0.5 * total
