from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import trainhooks

optional = ("lightning", "pytorch_lightning", "transformers", "tensorboard")
print([name for name in optional if name in sys.modules])
sys.modules.update(dict.fromkeys(optional))  # None: not installed
for integration in ("lightning", "transformers"):
    try:
        __import__(f"trainhooks.integrations.{integration}")
    except ImportError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def lines() -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_package_imports_no_optional_one(lines):
    assert lines[0] == "[]"


def test_an_integration_without_its_package_names_the_extra(lines):
    assert [line.split("needs ")[1] for line in lines[1:]] == [
        "Lightning: pip install 'trainhooks[lightning]'",
        "transformers: pip install 'trainhooks[transformers]'",
    ]
