"""The short version of reliability.py: a few cases of each kind."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="signals, pipes and limits of memory as on Linux")
def test_a_few_random_faults_are_survived():
    """Takes long, because it runs the scripts some 50 times."""
    numbers = dict(kills=3, mutants=15, network=1, hostile=2, pages=0, jobs=1, seed=1)
    flags = [str(part) for name, number in numbers.items() for part in (f"--{name}", number)]
    result = subprocess.run([sys.executable, ROOT / "tests/reliability.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
