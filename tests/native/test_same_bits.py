"""In binary mode, every instruction set and architecture computes the same bits, vectors included.

The table is the same on all of them: `.ci/arm` runs these tests for aarch64. A change of the method
changes it; `python -m helpers.same_bits`, in tests/, prints the new one.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from types import ModuleType

import pytest

from helpers import processes
from helpers.folders import TESTS
from helpers.kernels import native_module
from helpers.same_bits import CASES, hashes_of

ISAS = ("avx512vnni", "avx512", "avx2", "portable")

EXPECTED: dict[str, dict[str, str]] = {
    "two patches": {
        "graph": "0b764b8fcec7",
        "products": "0abf9734f0c8",
        "vectors": "21a3e52344e0",
        "labels": "f6c7f0d65781",
        "finish": "d66d42f8c656",
    },
    "whole spectrum": {
        "graph": "4ca2fd173e69",
        "products": "afe2be31ceec",
        "vectors": "b3151ff12bb8",
        "labels": "f6ba3fc2031d",
        "finish": "93c7ad602061",
    },
    "float64": {
        "graph": "1cc79205c472",
        "products": "b95e1af88478",
        "vectors": "a7a8c79645f3",
        "labels": "93f71a42ebe2",
        "finish": "29c2484430d0",
    },
    "float16": {
        "graph": "3d1533d1871e",
        "products": "e5dfe815886b",
        "vectors": "6c9a4679ca7c",
        "labels": "58289cf4594d",
        "finish": "3ce64819c416",
    },
    "float16, subnormal": {
        "graph": "ef059a811b2f",
        "products": "67b6c5a351e5",
        "vectors": "482dd49c58ba",
        "labels": "3fc73daca881",
        "finish": "3e795e45f488",
    },
    "bfloat16": {
        "graph": "4bfa39e540ee",
        "products": "ea56714c2107",
        "vectors": "4c3367189c76",
        "labels": "64e088e58be6",
        "finish": "2d9cc434716c",
    },
    "products equal to tau": {
        "graph": "7829d08b6d3d",
        "products": "bd85d6e73ef5",
        "vectors": "71c078333211",
        "labels": "f53077bfef34",
        "finish": "f03c11b3c82f",
    },
    "zero rows": {
        "graph": "bdf1a557dfb5",
        "products": "23a61833f4b2",
        "vectors": "08645afc2336",
        "labels": "38c194b2bfd3",
        "finish": "3647aa77bcb8",
    },
    "equal rows": {
        "graph": "bdcee5df2a4a",
        "products": "6ad1571881b7",
        "vectors": "1f42d97c4abd",
        "labels": "0a6573df8574",
        "finish": "5302410661bb",
    },
    "long rows": {
        "graph": "f48b49238710",
        "products": "4c9fe8dbf91a",
        "vectors": "841b9527a944",
        "labels": "2084acd4d521",
        "finish": "a4803462d09a",
    },
    "many words": {
        "graph": "90ff448be1ba",
        "products": "b3cc950f61cb",
        "vectors": "a5045adca663",
        "labels": "8cb4641e808e",
        "finish": "1e7dbade5572",
    },
}


@pytest.fixture(scope="module")
def native() -> ModuleType:
    return native_module()


@pytest.mark.parametrize("case", CASES)
def test_hashes(native: ModuleType, case: str) -> None:
    assert hashes_of(native, case) == EXPECTED[case]


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="x86 alone has several instruction sets"
)
@pytest.mark.parametrize("isa", ISAS)
def test_hashes_on_another_instruction_set(native: ModuleType, isa: str) -> None:
    if native.isa() == isa:
        pytest.skip("this is the instruction set of the tests before")
    run = processes.run(
        [sys.executable, "-m", "helpers.same_bits"],
        cwd=TESTS,
        env={**os.environ, "SELFMENT_ISA": isa},
        check=True,
    )
    found = json.loads(run.stdout)
    if found.pop("isa") != isa:
        pytest.skip(f"this processor has no {isa}")
    assert found == EXPECTED
