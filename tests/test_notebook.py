"""docs/learn.ipynb runs from top to bottom, and docs/learn.md quotes the code as it is.

The stored outputs are those of `jupyter nbconvert --to notebook --execute --inplace docs/learn.ipynb`.
"""

import inspect
import json

import matplotlib
import matplotlib.pyplot as plt
import torch
from conftest import ROOT

from finetuning.model.lora import LoraLayer

NOTEBOOK = ROOT / "docs" / "learn.ipynb"
PAGE = ROOT / "docs" / "learn.md"
PICTURES = 3
RANK = 8


def code_cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run_notebook() -> dict:
    """Run the code cells in their order, in one namespace; return the variables that they leave."""
    variables = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(), start=1):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), variables)
    return variables


def test_the_notebook_shows_a_student_what_it_says(monkeypatch):
    """One test, so that the notebook, which takes half a minute, runs once."""
    matplotlib.use("Agg")
    plt.close("all")
    monkeypatch.setenv("REVIEWS", "48")
    monkeypatch.chdir(NOTEBOOK.parent)
    variables = run_notebook()

    first, second = variables["per_epoch"]
    assert second < first, "the loss falls"

    layers = [variables["base"].get_submodule(name) for name in variables["layers"]]
    parameters = variables["model"].named_parameters()
    head = sum(parameter.numel() for name, parameter in parameters if "modules_to_save" in name)
    assert variables["trainable"] == head + sum(RANK * (layer.in_features + layer.out_features) for layer in layers)
    assert f"{variables['trainable']:,}" in PAGE.read_text(encoding="utf-8"), "the page counts as peft does"

    assert len(variables["sizes"]) == 36 and min(variables["sizes"].values()) > 0, "all layers were trained"
    assert torch.linalg.matrix_rank(variables["change"]) <= RANK
    assert variables["singular_values"][RANK:].max() < 1e-5 < variables["singular_values"][0]

    assert variables["difference"] < 1e-6, "merged by hand and by peft"
    torch.testing.assert_close(variables["merged_logits"], variables["logits"], rtol=0, atol=1e-5)
    assert torch.equal(variables["predict"](variables["loaded"], variables["texts"]), variables["logits"])

    assert len(plt.get_fignums()) == PICTURES
    assert all(plt.figure(number).axes for number in plt.get_fignums())
    plt.close("all")


def test_the_stored_outputs_are_those_of_one_complete_run():
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
