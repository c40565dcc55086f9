"""The layers of docs/design.md, checked on the sources: who may import or include whom."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "moe_ext"
CSRC = ROOT / "csrc"

# Each part, and the parts of moe_ext that it may import.
ALLOWED = {
    "integrations": {"nn", "routing", "losses", "ops", ""},
    "nn": {"routing", "losses", "ops", ""},
    "routing": {"losses", "ops", ""},
    "losses": {"ops", ""},
    "ops": {"_C"},  # the extension itself, below everything: which instruction set is in use
    "reference": set(),
}
ISAS = ("portable", "avx2", "avx512", "avx512bf16", "amx")


def imported_parts(path: Path) -> set[str]:
    """Parts of moe_ext that a module imports; "" is the package itself, whose names are the ops."""
    package = ["moe_ext", *path.parent.relative_to(PACKAGE).parts]
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" if module == "moe_ext" else module for alias in node.names]
        for name in names:
            if name.split(".")[0] == "moe_ext":
                part = [*name.split("."), ""][1]
                parts.add(part if (PACKAGE / part).is_dir() or part.startswith("_") else "")
    return parts


@pytest.mark.parametrize("part", ALLOWED)
def test_python_layers_look_down(part: str) -> None:
    assert list((PACKAGE / part).glob("*.py"))
    for path in (PACKAGE / part).rglob("*.py"):
        above = imported_parts(path) - ALLOWED[part] - {part}
        assert not above, f"{path.relative_to(ROOT)} imports moe_ext.{', moe_ext.'.join(sorted(above))}"


def test_every_part_has_its_layer() -> None:
    parts = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts == set(ALLOWED)


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def cpp_sources() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))


def test_torch_headers_stay_in_csrc_torch() -> None:
    for path in cpp_sources():
        torch_headers = [
            h for h in includes(path) if h.startswith(("torch/", "ATen/", "c10/")) and not (CSRC / h).exists()
        ]
        if CSRC / "torch" in path.parents:
            stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")
            assert all(h.startswith(stable) for h in torch_headers), f"{path}: {torch_headers}"
        else:
            assert not torch_headers, f"{path.relative_to(ROOT)} includes {torch_headers}"


def test_cuda_stays_in_csrc_cuda() -> None:
    """And of torch's side, what the kernels declare is all that csrc/torch/cuda sees: no header of CUDA's own."""
    for path in cpp_sources():
        cuda_headers = [h for h in includes(path) if h.startswith(("cuda_", "cuda.h", "cub/", "cooperative_groups"))]
        assert not cuda_headers or CSRC / "cuda" in path.parents, f"{path.relative_to(ROOT)} includes {cuda_headers}"


def test_assembly_stays_in_one_folder() -> None:
    for path in cpp_sources():
        if path.parent != CSRC / "cuda" / "ptx":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\basm\b\s*(volatile)?\s*\(", text), path.relative_to(ROOT)


def test_intrinsics_stay_in_their_instruction_set() -> None:
    for path in cpp_sources():
        text = path.read_text(encoding="utf-8")
        if path.parent not in [CSRC / "cpu" / isa for isa in ISAS if isa != "portable"]:
            assert not re.search(r"\b_mm\d*_\w+\(|\b_tile_\w+\(|immintrin\.h", text), path.relative_to(ROOT)


def test_code_with_special_flags_includes_no_cpp_library() -> None:
    """An inline function of the C++ library, compiled for AVX-512, could become the copy that every machine runs.

    The headers of the C library are allowed; that they left nothing behind is what the next test makes sure of.
    """
    harmless = {"cstddef", "cstdint", "cstring", "immintrin.h", "stddef.h", "stdint.h", "stdlib.h", "string.h"}
    folders = [CSRC / "cpu" / name for name in ("vectorized", *ISAS)] + [CSRC / "include" / "moe"]
    folders += [CSRC / "cpu"]  # gemm.h, kernel_table.h, int8_kernels.h
    for path in cpp_sources():
        if path.parent in folders and (path.suffix == ".h" or path.parent.name in ISAS) and path.name != "parallel.h":
            own = ("cpu/", "moe/")
            foreign = [h for h in includes(path) if h not in harmless and not h.startswith(own)]
            assert not foreign, f"{path.relative_to(ROOT)} includes {foreign}"


def test_code_with_special_flags_shares_no_symbol() -> None:
    """The same, asked of the objects: of a weak symbol the linker takes any file's copy, so each has to be in the
    namespace that its file alone defines."""
    objects = sorted(ROOT.glob("build/cmake-*/CMakeFiles/moe_cpu_isas.dir/csrc/cpu/*/*.cpp.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs the build tree that setup.py leaves in build/, and nm")
    for path in objects:
        symbols = subprocess.run(["nm", "-C", "--defined-only", path], check=True, text=True, capture_output=True)
        weak = [line for line in symbols.stdout.splitlines() if re.match(r"[0-9a-f]* [WVuwv] ", line)]
        namespace = isa_namespace(CSRC / "cpu" / path.parent.name / path.stem)
        shared = [line for line in weak if f"moe::cpu::{namespace}::" not in line]
        assert not shared, f"{path.parent.name}/{path.stem}: {shared}"


def isa_namespace(path: Path) -> str:
    """What a file of an instruction set calls its namespace."""
    (name,) = re.findall(r"^#define MOE_ISA (\w+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return str(name)


def test_no_two_files_with_special_flags_share_a_namespace() -> None:
    paths = [path for isa in ISAS for path in (CSRC / "cpu" / isa).glob("*.cpp")]
    names = [isa_namespace(path) for path in paths]
    assert set(ISAS) <= set(names)
    assert len(set(names)) == len(names)
    for path, name in zip(paths, names, strict=True):
        assert name == path.parent.name or name.startswith(path.parent.name), path
