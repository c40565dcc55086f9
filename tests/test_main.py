"""``python -m moe_ext``, and the refusal to load against a PyTorch that is too old."""

import re
import subprocess
import sys

import pytest
import torch

import moe_ext
from moe_ext import _C, _versions

FAKE_BUILD_INFO = (
    "import sys, types; info = types.ModuleType('moe_ext._build_info'); info.TORCH_VERSION = {version!r}; "
)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], text=True, capture_output=True, timeout=120)


def test_report_names_versions_and_instruction_sets() -> None:
    finished = python("-m", "moe_ext")
    assert finished.returncode == 0, finished.stderr
    lines = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", finished.stdout, flags=re.MULTILINE))
    assert lines["moe_ext"] == moe_ext.__version__
    assert lines["isas compiled in"] == ", ".join(_C.cpu_isas_compiled())
    assert lines["isas available"] == ", ".join(_C.cpu_isas_available())
    assert lines["isa in use"] in _C.cpu_isas_available()
    assert lines["compiler"]


def test_report_is_aligned_plain_text() -> None:
    text = python("-m", "moe_ext").stdout
    assert text.isascii()
    rows = [line for line in text.splitlines() if line.startswith("  ")]
    names = [re.split(r"  +", row.strip(), maxsplit=1)[0] for row in rows]
    column = max(map(len, names)) + 4
    assert all(row[column - 1] == " " and row[column] != " " for row in rows)


@pytest.mark.parametrize(
    ("version", "expected"), [("2.13.0+cpu", (2, 13)), ("2.9", (2, 9)), ("2.14.0a0+git1", (2, 14))]
)
def test_release_of_a_version(version: str, expected: tuple[int, int]) -> None:
    assert _versions.release(version) == expected


def test_older_torch_is_refused() -> None:
    with pytest.raises(ImportError, match=r"built for torch 2\.13\.0, but torch 2\.9\.1 is installed"):
        _versions.require("2.13.0", "2.9.1")
    for newer in ("2.13.0", "2.13.5+cu130", "2.14.0", "3.0"):
        _versions.require("2.13.0", newer)


def test_import_against_an_older_torch_says_so_before_loading() -> None:
    program = (
        FAKE_BUILD_INFO.format(version="99.0.0")
        + "sys.modules['moe_ext._build_info'] = info\n"
        + "try:\n    import moe_ext\n"
        + "except ImportError as error:\n    print(error, 'moe_ext._C' in sys.modules)\n"
    )
    finished = python("-c", program)
    assert f"built for torch 99.0.0, but torch {torch.__version__} is installed" in finished.stdout, finished.stderr
    assert finished.stdout.strip().endswith("False")


def test_missing_extension_says_how_to_build_it() -> None:
    finished = python("-c", "import sys; sys.modules['moe_ext._C'] = None; import moe_ext")
    assert "ImportError: the extension moe_ext._C has not been built for this Python" in finished.stderr


def test_broken_extension_says_what_the_loader_said() -> None:
    broken = ImportError("undefined symbol: aoti_torch_empty")
    assert "undefined symbol: aoti_torch_empty" in _versions.explain_failed_load(broken)


def test_everything_public_is_there() -> None:
    assert {name for name in moe_ext.__all__ if not hasattr(moe_ext, name)} == set()
    for name in set(moe_ext.__all__) - {"__version__"}:
        assert getattr(moe_ext, name).__doc__


def test_subpackages_need_no_import_of_their_own() -> None:
    code = "import moe_ext; print(moe_ext.nn.MoE.__name__, moe_ext.reference.route.__name__); moe_ext.absent"
    result = python("-c", code)
    assert result.stdout == "MoE route\n"
    assert "module 'moe_ext' has no attribute 'absent'" in result.stderr
