"""The demo end to end, tiny: its files, its numbers, its second life from disk, its error messages."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "train_lm.py"
_OPTIONS = {
    "hidden": 32, "heads": 2, "layers": 3, "experts": 8, "top-k": 2, "intermediate": 16, "context": 32, "batch": 2,
    "threads": 1, "dtype": "float32", "length": 20,
}  # fmt: skip
TINY = [word for name, value in _OPTIONS.items() for word in (f"--{name}", str(value))]
# Not valid UTF-8, and repetitive enough to be learned a little within a few steps.
TEXT = "".join(f"{n} times 3 is {3 * n}, says the caf\xe9; " for n in range(400)).encode("latin-1")

KEYS = {
    "val_bits_per_byte",
    "order0_bits_per_byte",
    "order2_bits_per_byte",
    "tokens_per_second_moe_ext",
    "tokens_per_second_hf",
    "max_violation_per_layer",
    "reload_identical",
    "parameters",
    "config",
    "seconds",
    "steps",
}


@pytest.fixture(scope="module", autouse=True)
def importable_examples():
    sys.path.insert(0, str(ROOT / "examples"))
    yield
    sys.path.remove(str(ROOT / "examples"))


def train(text: Path, output: Path) -> None:
    import train_lm

    assert train_lm.main(["--text", str(text), "--steps", "20", "--output", str(output), *TINY]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "text.bin").write_bytes(TEXT)
    threads = torch.get_num_threads()
    train(folder / "text.bin", folder / "out")
    train(folder / "text.bin", folder / "again")
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def summary(trained: Path) -> dict:
    return json.loads((trained / "out" / "summary.json").read_text())


def test_summary_has_the_promised_numbers(summary: dict) -> None:
    assert not KEYS - summary.keys()
    assert summary["steps"] == 20
    assert summary["config"]["experts"] == 8
    assert 0 < summary["order2_bits_per_byte"] < summary["order0_bits_per_byte"] < 8
    assert summary["val_bits_per_byte"] < 8, "20 steps must be better than guessing"
    assert summary["tokens_per_second_moe_ext"] > 0
    assert summary["tokens_per_second_hf"] is None or summary["tokens_per_second_hf"] > 0
    assert len(summary["max_violation_per_layer"]) == 2
    assert all(violation >= 0 for violation in summary["max_violation_per_layer"])
    assert summary["reload_identical"] is True
    assert 0 < summary["parameters"]["active"] < summary["parameters"]["total"]


def test_plots_and_weights_are_written(trained: Path) -> None:
    for name in ("loss.png", "expert_load.png", "speed.png"):
        assert (trained / "out" / name).read_bytes().startswith(b"\x89PNG"), name
    assert (trained / "out" / "model.safetensors").stat().st_size > 0


def test_saved_model_generates_and_repeats_itself(trained: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--load", str(trained / "out" / "model.safetensors")]
    command += ["--generate", "7 times", "--length", "12", "--threads", "1"]
    outputs = [subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120) for _ in range(2)]
    assert [done.returncode for done in outputs] == [0, 0], outputs[0].stderr
    assert outputs[0].stdout.startswith("7 times")
    assert len(outputs[0].stdout.removesuffix("\n")) >= len("7 times") + 3, "12 bytes are at least 3 characters"
    assert outputs[0].stdout == outputs[1].stdout


def test_same_seed_and_steps_give_the_same_training(trained: Path, summary: dict) -> None:
    again = json.loads((trained / "again" / "summary.json").read_text())
    assert again["history"] == summary["history"]
    assert again["val_bits_per_byte"] == summary["val_bits_per_byte"]
    assert again["sample"] == summary["sample"]
    weights = [(trained / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "cannot read text file"), (b"", "is empty"), (b"too little", "the text is too short")],
    ids=["missing", "empty", "short"],
)
def test_unusable_text_is_explained(tmp_path: Path, content: bytes | None, complaint: str, capsys) -> None:
    import train_lm

    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    assert train_lm.main(["--text", str(file), "--output", str(tmp_path / "out"), *TINY]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--top-k", "9", "--experts", "8"], "top_k (9) must not exceed experts (8)"),
        (["--layers", "1"], "layers must be at least 2"),
        (["--hidden", "30", "--heads", "4"], "must be an even multiple of heads"),
        (["--device", "abacus"], "unknown --device 'abacus'"),
        (["--load", "/nowhere/model.safetensors", "--generate", "x"], "no model file"),
    ],
)
def test_impossible_options_are_explained(tmp_path: Path, args: list[str], complaint: str, capsys) -> None:
    import train_lm

    assert train_lm.main([*args, "--output", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--load", "x"], "--load needs --generate"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--minutes", "0"], "--minutes must be greater than 0"),
        (["--steps", "5", "--minutes", "1"], "not allowed with"),
    ],
)
def test_contradictory_options_are_refused(args: list[str], complaint: str, capsys) -> None:
    import train_lm

    with pytest.raises(SystemExit):
        train_lm.parse_args(args)
    assert complaint in capsys.readouterr().err


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, capsys) -> None:
    import train_lm
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    assert train_lm.main(["--load", str(file), "--generate", "x"]) == 2
    assert "was not written by this demo" in capsys.readouterr().err
    file.write_bytes(b"nonsense")
    assert train_lm.main(["--load", str(file), "--generate", "x"]) == 2
    assert "is not a safetensors file" in capsys.readouterr().err


def _model_with_working_layers():
    from lm.model import LanguageModel, ModelConfig

    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(hidden=32, layers=3, heads=2, experts=8, top_k=2, intermediate=16, context=32))
    with torch.no_grad():
        for parameter in model.parameters():  # training starts from layers that add nothing
            if not parameter.any():
                parameter.normal_(std=0.2)
    return model.eval()


@torch.inference_mode()
def test_cached_generation_equals_the_whole_sequence() -> None:
    model = _model_with_working_layers()
    tokens = torch.randint(256, (1, 32))
    cache: list = []
    parts = [model(tokens[:, :20], cache)]
    parts += [model(tokens[:, at : at + 1], cache, at) for at in range(20, 32)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@torch.inference_mode()
def test_hugging_face_experts_compute_the_same_function(implementation: str) -> None:
    pytest.importorskip("transformers")
    from lm.speed import HuggingFaceExperts, experts_replaced

    model = _model_with_working_layers()
    tokens = torch.randint(256, (2, 32))
    own = model(tokens)
    with experts_replaced(model, implementation):
        assert all(isinstance(layer.experts, HuggingFaceExperts) for layer in model.moe_layers())
        theirs = model(tokens)
    assert not any(isinstance(layer.experts, HuggingFaceExperts) for layer in model.moe_layers())
    torch.testing.assert_close(theirs, own, rtol=1e-5, atol=1e-6)
    for layer in model.moe_layers():
        layer.experts.w_down.zero_()
    assert (model(tokens) - own).abs().max() > 0.01, "the experts must matter, or the comparison means nothing"


def _tensor(text: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


@pytest.mark.parametrize("order", [0, 1, 2, 4])
@pytest.mark.parametrize("context", [b"", b"7", b" times 3", b"\x00\xff never seen \xfe\xfd"])
def test_ngram_probabilities_sum_to_one(order: int, context: bytes) -> None:
    from lm.baselines import NGram

    model = NGram(_tensor(TEXT), order)
    total = sum(float(model.probabilities(_tensor(context + bytes([b])))[-1]) for b in range(256))
    assert total == pytest.approx(1.0, abs=1e-9)


def test_ngram_agrees_with_witten_bell_by_hand() -> None:
    from lm.baselines import NGram

    # "abab": p0(b) = (2 + 2/256) / (4 + 2); after "a" (seen twice, only b): p1(b|a) = (2 + 1 * p0(b)) / (2 + 1).
    p0 = (2 + 2 / 256) / 6
    found = NGram(_tensor(b"abab"), 1).probabilities(_tensor(b"ab"))
    assert found.tolist() == pytest.approx([p0, (2 + p0) / 3])


def test_held_out_topics_share_no_paragraph_with_the_training_text() -> None:
    from pydoc_data.topics import topics

    from lm.data import drop_repeats, python_topics_corpus, split_topics

    unique = drop_repeats(topics)
    train, val = split_topics(unique)
    assert train
    assert val
    assert not set(train) & set(val)

    def paragraphs(names: list[str]) -> set[str]:
        found = (" ".join(p.split()) for name in names for p in unique[name].split("\n\n"))
        return {p for p in found if len(p) >= 40}

    assert not paragraphs(train) & paragraphs(val)
    corpus = python_topics_corpus()
    share = len(corpus.val) / (len(corpus.val) + len(corpus.train))
    assert 0.05 < share <= 0.1
    assert corpus.sha256() == python_topics_corpus().sha256()


@pytest.mark.parametrize("length", [17, 18, 24, 25, 100])
def test_evaluation_scores_every_byte_but_the_first_once(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm.model import LanguageModel, ModelConfig
    from lm.train import TrainConfig, Trainer

    trainer = Trainer(LanguageModel(ModelConfig(32, 2, 2, 4, 2, 16, 16)), TrainConfig(), torch.device("cpu"))
    # The cost of a byte is its value, so that a byte missed or counted twice changes the mean.
    monkeypatch.setattr(trainer, "loss", lambda inputs, targets, reduction: targets.float() * math.log(2))
    text = torch.randint(256, (length,), generator=torch.Generator().manual_seed(length), dtype=torch.uint8)
    assert trainer.bits_per_byte(text) == pytest.approx(float(text[1:].double().mean()), rel=1e-5)
    sampled = trainer.bits_per_byte(text, max_windows=2)
    assert float(text.min()) <= sampled <= float(text.max())
