"""docs/learn.ipynb runs from top to bottom, and docs/learn.md quotes the code as it is.

The stored outputs are those of `jupyter nbconvert --to notebook --execute --inplace docs/learn.ipynb`.
"""

import inspect
import json

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from conftest import ROOT

from finetuning.model.lora import LoraLayer

NOTEBOOK = ROOT / "docs" / "learn.ipynb"
PAGE = ROOT / "docs" / "learn.md"
PICTURES = 3


def code_cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def variables() -> dict:
    """Run the notebook's cells in their order, with few reviews; return the variables that they leave."""
    matplotlib.use("Agg")
    variables = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REVIEWS", "48")
        patch.chdir(NOTEBOOK.parent)
        for number, cell in enumerate(code_cells(), start=1):
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), variables)
    yield variables
    plt.close("all")


def test_the_notebook_trains(variables):
    first, second = variables["per_epoch"]
    assert second < first
    layers = [variables["base"].get_submodule(name) for name in variables["layers"]]
    parameters = dict(variables["model"].named_parameters())
    head = sum(parameter.numel() for name, parameter in parameters.items() if "modules_to_save" in name)
    assert variables["trainable"] == head + sum(8 * (layer.in_features + layer.out_features) for layer in layers)


def test_its_updates_have_the_rank_that_it_says(variables):
    assert len(variables["sizes"]) == 36 and min(variables["sizes"].values()) > 0
    assert torch.linalg.matrix_rank(variables["change"]) <= 8
    assert variables["singular_values"][8:].max() < 1e-5 < variables["singular_values"][0]


def test_its_merged_and_its_loaded_model_give_the_same_logits(variables):
    torch.testing.assert_close(variables["merged_logits"], variables["logits"], rtol=0, atol=1e-5)
    assert variables["difference"] < 1e-6
    assert torch.equal(variables["predict"](variables["loaded"], variables["texts"]), variables["logits"])


def test_it_draws_its_pictures(variables):
    assert len(plt.get_fignums()) == PICTURES
    assert all(plt.figure(number).axes for number in plt.get_fignums())


def test_the_outputs_that_it_stores_are_those_of_one_complete_run():
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = code_cells()
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}, "no errors"
    assert not [output for output in outputs if output.get("name") == "stderr"], "no warnings"
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES
    assert len(text) < 300 * 1024 and str(ROOT) not in text


def test_the_page_quotes_the_layer_as_it_is():
    assert f"```python\n{inspect.getsource(LoraLayer)}```" in PAGE.read_text(encoding="utf-8")


def test_the_page_shows_an_edit_that_fits_the_code():
    edit = (ROOT / "docs" / "examples" / "rank_by_layer.diff").read_text(encoding="utf-8")
    assert f"```diff\n{edit}```" in PAGE.read_text(encoding="utf-8")
    lines = edit.partition(" @@ ")[2].splitlines()[1:]
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines)
    code = (ROOT / "finetuning" / "model" / "lora.py").read_text(encoding="utf-8")
    assert code.count(before) == 1
    compile(code.replace(before, after), "lora.py", "exec")


def test_the_page_counts_parameters_as_peft_does(variables):
    assert f"{variables['trainable']:,}" in PAGE.read_text(encoding="utf-8")
