"""The README says what the records and the code say."""

import re
from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location

from conftest import ROOT

from config import PRESETS, Config

README = (ROOT / "README.md").read_text()


def test_its_tables_are_those_the_records_give():
    spec = spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.fill(README) == README, "run python benchmarks/tables.py"
    assert README.count("](results/run-") >= 2


def test_every_flag_preset_and_file_it_names_is_there():
    flags = {"preset", "resume", "search", "json", "file", "out", "explain", "run", "help", "push_to_hub"}
    names = {field.name for field in fields(Config)} | flags
    commands = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL))
    assert set(re.findall(r"--(\w+)", commands)) <= names
    assert set(re.findall(r"--preset (\w+)", README)) <= set(PRESETS)
    for path in re.findall(r"`((?:finetuning|tests|benchmarks|results|outputs)/[\w.]*|\w+\.(?:py|txt))`", README):
        assert (ROOT / path).exists(), path
