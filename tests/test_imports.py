"""The layers of the package import each other in one direction, which pyproject.toml defines."""

import subprocess
import sys

import pytest
from conftest import ROOT


def test_imports_have_the_allowed_direction():
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kept, 0 broken" in result.stdout
