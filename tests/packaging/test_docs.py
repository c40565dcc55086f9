"""The documentation says what is so: its code runs, and the files, commands and tests it names exist."""

import re
from pathlib import Path

import pytest
import torch

import moe_ext

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/design.md",
    "docs/features.md",
    "docs/performance.md",
    "docs/routing.md",
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_readme_code_runs() -> None:
    """The blocks build on each other, as a reader would type them."""
    pytest.importorskip("transformers")
    names: dict[str, object] = {}
    examples = blocks(read("README.md"), "python")
    assert len(examples) == 4
    for number, example in enumerate(examples):
        exec(compile(example, f"README.md, Python block {number}", "exec"), names)
    x, y, out, logits = (names[name] for name in ("x", "y", "out", "logits"))
    assert isinstance(x, torch.Tensor)
    assert isinstance(y, torch.Tensor)
    assert x.grad is not None
    assert y.shape == (16, 64)
    assert isinstance(out, torch.Tensor)
    assert out.shape == (4, 16, 64)
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 10, 128)
    assert logits.isfinite().all()


def routing_names() -> dict[str, object]:
    """What the lines of docs/routing.md take as given."""
    from moe_ext import losses, nn, routing

    torch.manual_seed(0)
    hidden, inter, num_experts, num_tokens = 64, 32, 8, 48
    given: dict[str, object] = {name: getattr(routing, name) for name in routing.__all__}
    return given | {
        "torch": torch, "moe_ext": moe_ext, "nn": nn, "losses": losses, "P": routing.published,
        "H": hidden, "I": inter, "E": num_experts, "K": 2, "T": num_tokens, "B": 4, "D": 4, "vocabulary": 100,
        "x": torch.randn(num_tokens, hidden), "embedding": torch.randn(num_tokens, hidden),
        "tokens": torch.randint(100, (num_tokens,)), "tasks": torch.randint(3, (num_tokens,)),
        "frequencies": torch.arange(100, 0, -1), "reward": torch.randn(num_tokens),
        "places": torch.arange(num_tokens),
        "logits_of_one_pass": torch.randn(5, 100), "logits_of_another": torch.randn(5, 100),
        "w_gate_up": torch.randn(num_experts, 2 * inter, hidden), "w_down": torch.randn(num_experts, hidden, inter),
    }  # fmt: skip


def routing_rows() -> list[tuple[str, list[str]]]:
    rows = re.findall(r"^\| ([^|]+) \| (`.*`) \|$", read("docs/routing.md"), flags=re.MULTILINE)
    return [(name, re.findall(r"`([^`]+)`", lines)) for name, lines in rows]


def test_code_of_the_routing_page_runs() -> None:
    names: dict[str, object] = {}
    for example in blocks(read("docs/routing.md"), "python"):
        exec(example, names)
    assert isinstance(names["y"], torch.Tensor)
    assert len(routing_rows()) > 40


@pytest.mark.parametrize(("paper", "lines"), routing_rows(), ids=lambda value: value if isinstance(value, str) else "")
def test_lines_of_the_routing_page_run(paper: str, lines: list[str]) -> None:
    names = routing_names()
    for number, line in enumerate(lines):
        exec(line, names)
        calls_it = any(later.startswith("w, ids, z = ") for later in lines[number + 1 :])
        if line.startswith("router = ") and not calls_it:
            exec("w, ids, z = router(x)", names)
        if line.startswith("capacity = "):
            exec("w, ids = capacity(moe_ext.Routing(w, ids), router_logits=z)", names)
        if line.startswith("layer = "):
            exec("w = layer(x)", names)
    for name in ("w", "loss", "y"):
        value = names.get(name)
        assert value is None or (isinstance(value, torch.Tensor) and value.isfinite().all()), f"{paper}: {name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(document))
    missing = [t for t in targets if "://" not in t and not (ROOT / document).parent.joinpath(t).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    """Every path in backticks that begins with a folder of the repository; <...> and {...} are placeholders."""
    folders = ("csrc/", "python/", "tests/", "bench/", "docs/", "examples/", "cmake/", "requirements/")
    paths = [code.split("::")[0] for code in re.findall(r"`([^`\s]+)`", read(document)) if code.startswith(folders)]
    missing = [path for path in paths if not re.search(r"[<>{}*]", path) and not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_that_are_named_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), flags=re.MULTILINE))
    named = {word for line in re.findall(r"(?:^|`)make ((?:[a-z]+ ?)+)", read(document), flags=re.MULTILINE)
             for word in line.split()}  # fmt: skip
    assert named
    assert named <= targets


def test_the_benchmark_block_can_be_found() -> None:
    text = read("README.md")
    assert text.count("<!-- bench:start -->") == text.count("<!-- bench:end -->") == 1
    assert text.index("<!-- bench:start -->") < text.index("<!-- bench:end -->")


def feature_rows() -> list[list[str]]:
    rows = re.findall(r"^\| ([A-Z]\d\d) \|(.*)\|$", read("docs/features.md"), flags=re.MULTILINE)
    return [[number, *(cell.strip() for cell in cells.split("|"))] for number, cells in rows]


def test_every_feature_has_one_row_and_a_status() -> None:
    rows = feature_rows()
    numbers = [row[0] for row in rows]
    assert len(rows) > 100
    assert len(set(numbers)) == len(numbers)
    assert {row[2] for row in rows} <= {"done", "partial", "planned"}


@pytest.mark.parametrize("row", feature_rows(), ids=lambda row: row[0])
def test_a_feature_that_exists_names_its_test(row: list[str]) -> None:
    number, _, status, where, tests = row
    if status == "planned":
        assert (where, tests) == ("", ""), f"{number} is planned, but says where it is"
        return
    assert where
    named = re.findall(r"`([^`]+)`", tests)
    assert named, f"{number} is {status}, but no test proves it"
    for reference in named:
        path, _, test = reference.partition("::")
        assert (ROOT / path).is_file(), reference
        assert not test or re.search(rf"^(?:    )?def {re.escape(test)}\(", read(path), flags=re.MULTILINE), reference


def test_the_versions_agree() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', read("pyproject.toml"), flags=re.MULTILINE)
    assert f"version: {version}" in read("CITATION.cff")
    if moe_ext.__version__ == "0.0.0+source":
        pytest.skip("moe_ext runs from the source tree; it was never installed")
    assert moe_ext.__version__ == version
