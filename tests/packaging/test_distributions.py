"""What a wheel and a source distribution hold, and that each is enough to work with."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "moe_ext"


def sources(folder: str, *suffixes: str) -> set[str]:
    """Files below a folder of the repository, as paths from its root."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts and path.name != "_build_info.py"
    }


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    result = subprocess.run(command, cwd=cwd, text=True, capture_output=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in the repository's own build tree, so that it compiles only what changed since the last build."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "build", "--build-lib", folder / "lib",
        "bdist_wheel", "--bdist-dir", folder / "temporary", "--dist-dir", folder,
    )  # fmt: skip
    (archive,) = folder.glob("*.whl")
    return archive


def test_the_sdist_holds_every_source(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {
        "CMakeLists.txt",
        "LICENSE",
        "Makefile",
        "README.md",
        "pyproject.toml",
        "requirements/dev.txt",
        "setup.py",
    }
    needed |= sources("csrc", ".cpp", ".h", ".cu", ".cuh") | sources("cmake", ".cmake")
    needed |= sources("python", ".py", ".pyi", ".typed") | sources("tests", ".py")
    assert needed <= names, sorted(needed - names)
    unwanted = [
        name for name in names if re.search(r"\.so$|\.pyc$|__pycache__|_build_info\.py$|^build/|^\.venv/", name)
    ]
    assert not unwanted


@pytest.mark.slow
def test_the_sdist_can_be_configured(sdist: Path, tmp_path: Path) -> None:
    """CMake looks for every source file when it generates, so this fails if one was left out."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    check = (
        "import runpy, subprocess, pathlib; s = runpy.run_path('setup.py', run_name='configure'); "
        "b = pathlib.Path('b').resolve(); "
        "subprocess.run([s['require_tool']('cmake'), '-B', str(b), *s['configure_arguments'](b)], check=True)"
    )
    run(sys.executable, "-c", check, cwd=folder)
    assert (folder / "b" / "build.ninja").is_file()


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata_name = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(metadata_name).decode()
    package = {name for name in names if ".dist-info/" not in name}
    expected = {f"moe_ext/{path.removeprefix('python/moe_ext/')}" for path in sources("python/moe_ext", ".py", ".pyi")}
    binaries = {name for name in package if re.fullmatch(r"moe_ext/_C\.[\w-]+\.so", name)}
    assert len(binaries) == 1
    assert package - binaries == expected | {"moe_ext/_build_info.py", "moe_ext/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line] == [
        "Requires-Dist: torch>=2.10"
    ]


@pytest.mark.slow
def test_the_wheel_works_on_its_own(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch, moe_ext; "
        "print(moe_ext.__file__); print(moe_ext.route(torch.tensor([[0.0, 2.0, 1.0]]), 2).topk_ids.tolist())"
    )
    location, ids = run(sys.executable, "-I", "-c", program, cwd=tmp_path).splitlines()
    assert Path(location).is_relative_to(tmp_path)
    assert ids == "[[1, 2]]"
