"""A mistake of the user ends with exit code 2 and a message that names the setting and the remedy."""

import gzip
import io
import shutil
import tarfile

import pytest
from conftest import make_model, make_rows
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """Return a folder of files that have one mistake each."""
    rows = make_rows()
    folder = tmp_path_factory.mktemp("bad")
    rows.rename(columns={"review": "abc"}).to_csv(folder / "no_text.csv", index=False)
    rows.rename(columns={"sentiment": "xyz"}).to_csv(folder / "no_label.csv", index=False)
    rows.assign(sentiment="good").to_csv(folder / "one_class.csv", index=False)
    rows.assign(sentiment=3.5).to_csv(folder / "equal.csv", index=False)
    (folder / "empty.csv").write_bytes(b"")
    (folder / "only_header.csv").write_text("review,sentiment\n")
    (folder / "reviews.xlsx").write_bytes(b"PK")
    rows.to_parquet(folder / "complete.parquet")
    (folder / "cut.parquet").write_bytes((folder / "complete.parquet").read_bytes()[:-200])
    (folder / "empty_folder").mkdir()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for i in range(200):
            text = f"{i} a film".encode() * 50
            member = tarfile.TarInfo(f"aclImdb/{'train' if i % 4 < 2 else 'test'}/{'pos' if i % 2 else 'neg'}/{i}_1.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    (folder / "cut.tar.gz").write_bytes(gzip.compress(packed.getvalue())[:-900])
    return folder


@pytest.fixture
def bad(bad_files, tmp_path):
    """Let the files with mistakes be in the folder "bad"."""
    (tmp_path / "bad").symlink_to(bad_files)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learnin_rate", "1e-3"], ["--learnin_rate", "did you mean --learning_rate?"]),
        (["--preset", "huge"], ["--preset", "laptop"]),
        (["--learning_rate", "fast"], ["--learning_rate", "float"]),
        (["--learning_rate", "-0.001"], ["learning_rate=-0.001", "above 0"]),
        (["--learning_rate", "nan"], ["learning_rate=nan", "above 0"]),
        (["--lora_r", "0"], ["lora_r=0", "from 1 to 2,147,483,647"]),
        (["--dropout", "1"], ["dropout=1.0", "below 1"]),
        (["--max_length", "65"], ["max_length=65", "64 positions"]),
        (["--max_length", "4"], ["max_length=4", "from 8 to"]),
        (["--context", "neighbours"], ["context=neighbours", "leave it out"]),
        (["--val-samples", "1000"], ["val_samples=1,000", "8 rows", "validation_fraction"]),  # the default
        (["--train_samples", "1"], ["train_samples=1", "one class", "raise it"]),
        (["--gradient_accumulation_steps", "100"], ["gradient_accumulation_steps=100", "56 training rows", "raise batch_size"]),
        (["--eval_steps", "10", "--save_steps", "15"], ["save_steps=15", "eval_steps=10", "multiple"]),
        (["--eval_steps", "0.5", "--save_steps", "15"], ["save_steps=15", "eval_steps=0.5"]),
        (["--eval_strategy", "epoch", "--save_steps", "15"], ["save_steps", "saves after each epoch"]),
        (["--eval_strategy", "epoch", "--eval_steps", "15"], ["eval_steps", "saves after each epoch"]),
        (["--lr_scheduler_type", "constant", "--warmup_steps", "5"], ["warmup_steps", "constant_with_warmup"]),
        (["--search", "2", "--report_to", "tensorboard"], ["--search", "report_to"]),
        (["--eval_steps", "0"], ["eval_steps=0", "whole number of steps"]),
        (["--truncation", "middle"], ["--truncation", "head+tail"]),
        (["--target_modules", "q_proj"], ["target_modules=q_proj", "q_lin", "all-linear"]),
        (["--run_name", "a/b"], ["run_name='a/b'", "output_dir"]),
        (["--text_column", "sentiment"], ["text_column", "label_column"]),
        (["--text_column", "revue"], ["text_column=revue", "review, sentiment"]),
        (["--model_name", "./nowhere"], ["model_name=./nowhere", "no such folder"]),
        (["--model_name", "nobody/nothing"], ["model_name=nobody/nothing", "cache lacks it"]),
        (["--dataset_name", "nobody/nothing"], ["dataset_name=nobody/nothing", "cache lacks it"]),
        (["--dataset_name", "nowhere.csv"], ["dataset_name=nowhere.csv", "no such file"]),
        (["--dataset_name", ""], ["dataset_name=", "no such local path"]),
        (["--dataset_name", "bad/no_text.csv"], ["abc, sentiment", "text_column"]),
        (["--dataset_name", "bad/no_label.csv"], ["review, xyz", "label_column"]),
        (["--dataset_name", "bad/one_class.csv"], ["one class only", "'good'"]),
        (["--dataset_name", "bad/empty.csv"], ["empty.csv", "it is empty"]),
        (["--dataset_name", "bad/only_header.csv"], ["only_header.csv", "it is empty"]),
        (["--encoding", "utf-9"], ["encoding=utf-9", "cp1252"]),
        (["--encoding", "hex"], ["encoding=hex", "cp1252"]),
        (["--encoding", ""], ["encoding= is not known", "cp1252"]),
        (["--dataset_name", "bad/reviews.xlsx"], ["reviews.xlsx", "cannot be read"]),
        (["--dataset_name", "bad/cut.parquet"], ["cut.parquet", "cut short"]),
        (["--dataset_name", "bad/cut.tar.gz"], ["cut.tar.gz", "cut short"]),
        (["--dataset_name", "bad/empty_folder"], ["empty_folder", "no file in it", ".parquet"]),
        (["--output_dir", "bad/empty.csv"], ["output_dir=bad/empty.csv", "cannot write there"]),
        (["--resume", "nowhere"], ["--resume", "leave the other flags out"]),
        (["--resume", "--num_train_epochs", "1"], ["--resume", "leave the other flags out"]),  # the default
        (["--quantization", "4bit", "--method", "full"], ["quantization=4bit", "method"]),
        (["--train_embeddings", "--method", "full"], ["train_embeddings", "method is full"]),
        (["--loraplus_lr_ratio", "16", "--method", "full"], ["loraplus_lr_ratio", "method is full"]),
        (["--use_dora", "True", "--method", "full"], ["use_dora=True", "method is full"]),
        (["--lora_r", "64", "--method", "full"], ["lora_r", "method is full", "leave it out"]),
        (["--padding", "max_length", "--length_warmup", "0.3"], ["length_warmup=0.3", "padding=max_length"]),
        (["--init_lora_weights", "pissa", "--quantization", "4bit"], ["init_lora_weights=pissa", "not quantized"]),
        (["--metric_for_best_model", "bleu"], ["metric_for_best_model=bleu", "accuracy, f1"]),
        (["--text_pair_column", "second"], ["text_pair_column=second", "review, sentiment"]),
        (["--text_pair_column", "sentiment"], ["text_pair_column is 'sentiment'", "different columns"]),
        (["--text_pair_column", "review", "--augmentation", "crop"], ["augmentation=crop", "text_pair_column"]),
        (["--text_pair_column", "review", "--length_warmup", "0.3"], ["length_warmup=0.3", "not for pairs of texts"]),
        (["--length_warmup", "50"], ["length_warmup=50", "a fraction from 0 to 1"]),
        (["--length_warmup", "0.3", "--task", "causal-lm"], ["length_warmup=0.3", "not for causal-lm", "leave it out"]),
        (["--no_completion_only_loss"], ["completion_only_loss=False", "not for", "leave it out"]),
        (["--seed", "4294967296"], ["seed=4294967296", "from 0 to 4,294,967,295"]),
        (["--label_column", "good,bad"], ["label_column=good,bad", "review, sentiment"]),
        (["--label_column", "sentiment,"], ["label_column=sentiment,", "review, sentiment"]),
        (["--label_column", "sentiment,sentiment"], ["label_column", "one column"]),
        (["--label_column", "sentiment,review"], ["label_column", "0 and 1"]),
        (["--test_split", "dev"], ["test_split", "dev", "train"]),
        (["--problem_type", "multi"], ["problem_type=multi", "multi_label_classification", "regression"]),
        (["--task", "translation", "--problem_type", "multi_label_classification"], ["problem_type=multi", "task=translation", "leave it out"]),
        (["--task", "translation", "--problem_type", "regression"], ["problem_type=regression", "task=translation", "leave it out"]),
        (["--task", "causal-lm", "--problem_type", "single_label_classification"], ["problem_type=single", "leave it out"]),
        (["--problem_type", "regression"], ["label_column=sentiment", "no finite number"]),
        (["--problem_type", "regression", "--class_weights", "balanced"], ["class_weights=balanced", "regression", "leave it out"]),
        (["--problem_type", "regression", "--dataset_name", "bad/equal.csv"], ["label_column=sentiment", "are equal"]),
        (["--report_to", "tensorbord"], ["report_to=tensorbord", "tensorboard", "wandb"]),
        (["--search", "0"], ["--search", "at least 1"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_fine_tune_names_the_mistake_and_leaves_nothing_behind(flags, words, call, tiny_flags, bad, tmp_path):
    result = call("fine_tune.py", *tiny_flags, *flags)
    assert result.code == 2, result.out
    message = result.err.splitlines()[-1]
    assert all(word in message for word in words), message
    assert not list(tmp_path.glob("outputs/*")), "nothing is left behind"


def test_an_existing_run_is_never_overwritten(call, tiny_flags, tmp_path):
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    (tmp_path / "outputs" / "run" / "mine").write_text("mine")
    result = call("fine_tune.py", *tiny_flags)
    assert result.code == 2 and "run_name=run" in result.err and "never overwritten" in result.err
    assert (tmp_path / "outputs" / "run" / "mine").read_text() == "mine"


def test_an_architecture_that_is_not_among_those_of_the_tests_is_adapted_by_the_names_of_its_layers(call, tiny_flags, tmp_path):
    flags = [*tiny_flags, "--model_name", make_model(tmp_path / "convbert", "convbert"), "--num_train_epochs", "1"]
    result = call("fine_tune.py", *flags)
    assert result.code == 0, result.err
    adapted = load_file(tmp_path / "outputs/run/adapter/adapter_model.safetensors")
    names = {
        name.partition("layer.1.")[2].removesuffix(".lora_A.weight") for name in adapted if "layer.1." in name and "lora_A" in name
    }
    attention = {f"attention.self.{name}" for name in ("query", "key", "value", "conv_kernel_layer", "conv_out_layer")}
    assert names == attention | {"attention.output.dense", "intermediate.dense", "output.dense"}
    wrong = call("fine_tune.py", *flags, "--run_name", "wrong", "--target_modules", "querry")
    assert wrong.code == 2 and "no linear layer is called querry" in wrong.err and "self.query" in wrong.err


def test_pickled_weights_are_not_loaded(call, tiny_flags, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    result = call("fine_tune.py", *tiny_flags, "--model_name", folder)
    assert result.code == 2 and "safetensors" in result.err


def test_evaluate_refuses_missing_damaged_and_unfinished_runs(call, tiny_flags, tmp_path, model_dir):
    assert "fine_tune.py first" in call("evaluate.py").err
    assert call("evaluate.py", "nowhere").code == 2
    base = shutil.copytree(model_dir, tmp_path / "base")
    assert call("fine_tune.py", *tiny_flags, "--model_name", base, "--num_train_epochs", "1").code == 0
    complete = tmp_path / "outputs" / "run"
    weights = "adapter/adapter_model.safetensors"

    def damaged(name, damage):
        folder = shutil.copytree(complete, tmp_path / name)
        damage(folder)
        result = call("evaluate.py", folder)
        assert result.code == 2 and not (folder / "metrics.json").exists()
        return result.err

    assert "adapter_model.safetensors is missing" in damaged("missing", lambda run: (run / weights).unlink())
    assert "cut short" in damaged("short", lambda run: (run / weights).write_bytes((run / weights).read_bytes()[:-100]))
    assert "is unfinished" in damaged("unfinished", lambda run: (run / "training.json").unlink())
    assert "config.json" in damaged("no_config", lambda run: (run / "config.json").write_text("{"))

    assert "another base model" in damaged("other", lambda run: make_model(base, seed=1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a text", "--file", "nowhere.txt"], "not both"),
        (["a text"], "no finished run"),
    ],
)
def test_predict_names_the_mistake(arguments, words, call):
    result = call("predict.py", *arguments)
    assert result.code == 2 and words in result.err


@pytest.mark.parametrize("split", ["test", "dev"])
def test_a_test_text_that_may_not_be_cut_is_refused_before_training(split, call, tiny_flags, tmp_path):
    make_rows().to_csv(tmp_path / "train.csv", index=False)
    make_rows(20).assign(review="film " * 100).to_csv(tmp_path / f"{split}.csv", index=False)
    (tmp_path / "data").mkdir()
    for name in ("train.csv", f"{split}.csv"):
        (tmp_path / name).rename(tmp_path / "data" / name)
    flags = ["--dataset_name", "data", "--test_split", split, "--truncation", "error", "--max_length", 64]
    result = call("fine_tune.py", *tiny_flags, *flags)
    assert result.code == 2 and f"row 0 of split {split}: a text of 102 tokens is longer than max_length=64" in result.err
    assert not [*tmp_path.glob("outputs/*")]
