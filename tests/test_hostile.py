"""Files, texts and names that were made to do harm: nothing of them runs, and each ends with one clear line."""

import io
import json

import pytest
from conftest import make_model


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_models_folder_is_never_run(file, call, tiny_flags, tmp_path, monkeypatch):
    """Without trust_remote_code=False, transformers asks, and a "y" on the standard input runs the code."""
    folder, canary = make_model(tmp_path / "model", "llama"), tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\nfrom transformers import PretrainedConfig, PreTrainedTokenizerFast\n"
    code += "class Config(PretrainedConfig):\n    model_type = 'hostile'\nclass Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "hostile.py").write_text(code)
    auto_map = {"AutoConfig": "hostile.Config", "AutoTokenizer": [None, "hostile.Tokenizer"]}
    content = json.loads((folder / file).read_text())
    content |= {"auto_map": auto_map, "model_type": "hostile", "tokenizer_class": "Tokenizer"}
    (folder / file).write_text(json.dumps(content))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    result = call("fine_tune.py", *tiny_flags, "--model_name", folder)
    assert not canary.exists()
    assert result.code == 2 and "code of its own" in result.err and len(result.err.splitlines()) == 1, result.err
