"""setup.py: what it hands to CMake, and what it says when something is missing."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module (it only builds when it is the main program), without the caller's build variables."""
    for name in ("MOE_EXT_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CMAKE_ARGS", "CMAKE_BUILD_TYPE"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("moe_ext_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("torch_notation", "cmake_notation"),
    [
        ("8.0", "80-real"),
        ("8.0;9.0a;12.0+PTX", "80-real;90a-real;120"),
        ("8.6, 8.9", "86-real;89-real"),
        ("10.0f 7.5+PTX", "100f-real;75"),
    ],
)
def test_cuda_architectures_are_translated(setup_py: ModuleType, torch_notation: str, cmake_notation: str) -> None:
    assert setup_py.cmake_cuda_architectures(torch_notation) == cmake_notation


@pytest.mark.parametrize("arch_list", ["9", "sm_90", "9.0+ptx", "8.0;Hopper"])
def test_a_wrong_cuda_architecture_is_named(setup_py: ModuleType, arch_list: str) -> None:
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST: '"):
        setup_py.cmake_cuda_architectures(arch_list)


def test_default_arguments(setup_py: ModuleType, tmp_path: Path) -> None:
    arguments = setup_py.configure_arguments(tmp_path)
    assert "-DMOE_EXT_CUDA=auto" in arguments
    assert "-DCMAKE_BUILD_TYPE=Release" in arguments
    assert f"-DPython_EXECUTABLE={sys.executable}" in arguments
    assert f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tmp_path.as_posix()}" in arguments
    assert "-DCMAKE_CUDA_ARCHITECTURES=80-real;86-real;89-real;90a-real;100-real;120" in arguments


def test_the_environment_is_honoured(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOE_EXT_CUDA", "on")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    monkeypatch.setenv("CMAKE_BUILD_TYPE", "RelWithDebInfo")
    monkeypatch.setenv("CMAKE_ARGS", "-DA=1 '-DB=two words'")
    arguments = setup_py.configure_arguments(tmp_path)
    assert "-DMOE_EXT_CUDA=on" in arguments
    assert "-DCMAKE_CUDA_ARCHITECTURES=90a-real" in arguments
    assert "-DCMAKE_BUILD_TYPE=RelWithDebInfo" in arguments
    assert arguments[-2:] == ["-DA=1", "-DB=two words"], "CMAKE_ARGS comes last, so that it can override the rest"


def test_without_cuda_nothing_about_cuda_is_passed(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOE_EXT_CUDA", "off")
    arguments = setup_py.configure_arguments(tmp_path)
    assert not any("CUDA_ARCHITECTURES" in argument for argument in arguments)


def test_an_unknown_cuda_mode_is_refused(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOE_EXT_CUDA", "yes")
    with pytest.raises(SystemExit, match="MOE_EXT_CUDA must be auto, on or off, not 'yes'"):
        setup_py.configure_arguments(tmp_path)


def test_ccache_is_used_where_it_is_found(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    which = setup_py.shutil.which
    monkeypatch.setattr(setup_py.shutil, "which", lambda name, **_: "/bin/ccache" if name == "ccache" else which("sh"))
    assert "-DCMAKE_CXX_COMPILER_LAUNCHER=/bin/ccache" in setup_py.configure_arguments(tmp_path)
    monkeypatch.setenv("CMAKE_CXX_COMPILER_LAUNCHER", "sccache")
    assert not any("CMAKE_CXX_COMPILER_LAUNCHER" in argument for argument in setup_py.configure_arguments(tmp_path))


@pytest.mark.parametrize("tool", ["cmake", "ninja"])
def test_a_missing_tool_is_named(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup_py.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=f"{tool} was not found.*--no-build-isolation"):
        setup_py.require_tool(tool)


def test_missing_torch_is_named(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="torch cannot be imported by"):
        setup_py.require_torch_version()


def test_missing_python_headers_are_named(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup_py.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match=r"Python\.h is missing: install"):
        setup_py.require_python_headers()


def test_old_setuptools_is_named(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_py.setuptools, "__version__", "65.5.0")
    with pytest.raises(SystemExit, match=r"setuptools 77 or newer is needed, found 65\.5\.0"):
        setup_py.require_setuptools()


def test_build_info_is_reproducible_and_importable(setup_py: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "CMakeFiles" / "4.0").mkdir(parents=True)
    (tmp_path / "CMakeFiles" / "4.0" / "CMakeCXXCompiler.cmake").write_text(
        'set(CMAKE_CXX_COMPILER_ID "GNU")\nset(CMAKE_CXX_COMPILER_VERSION "12.2.0")\n'
    )
    (tmp_path / "CMakeCache.txt").write_text(
        "# a comment\nCMAKE_BUILD_TYPE:STRING=Release\nCMAKE_CXX_FLAGS:STRING=-g1\n"
        "CMAKE_CXX_FLAGS_RELEASE:STRING=-O3 -DNDEBUG\nMOE_EXT_CUDA:STRING=off\n"
    )
    texts = []
    for name in ("one.py", "two.py"):
        setup_py.write_build_info(tmp_path / name, "2.13.0+cpu", tmp_path)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]
    values: dict[str, str] = {}
    exec(texts[0], values)
    assert values["TORCH_VERSION"] == "2.13.0+cpu"
    assert values["COMPILER"] == "GNU 12.2.0"
    assert values["CXX_FLAGS"] == "-g1 -O3 -DNDEBUG"
    assert (values["BUILD_TYPE"], values["CUDA"]) == ("Release", "off")
