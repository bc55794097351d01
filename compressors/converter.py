"""Runs the TFLite converter: a process of its own, over files, under a deadline."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsat.compressors.converter_env import (
    SCRIPT,
    ensure_converter,
    kill_group,
    shared_folders,
)
from flatsat.errors import InfrastructureError, RecipeError

if TYPE_CHECKING:
    import numpy as np

    from flatsat.progress import Progress

DEADLINE_S = 600.0
_TAIL = 300
# A converter that asks for more threads than there are cores only waits for them.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_WAIT_POLICY": "passive",
}


def convert(program: Path, *, cache_dir: Path, progress: Progress) -> bytes:
    """Return a `torch.export` program (`.pt2`) as the bytes of a float TFLite file.

    Args:
        program: takes one image (1, ...), gives one tensor.
        cache_dir: where the converter's environment is kept; it is made if need be.
        progress: told of that.

    Raises:
        RecipeError: the converter doesn't know an operator of the program.
        InfrastructureError: the converter can't be had, hangs or crashes.
    """
    with tempfile.TemporaryDirectory(prefix="flatsat-tflite-") as folder:
        written = Path(folder, "float.tflite")
        options = {"verb": "convert", "program": str(program), "out": str(written)}
        _run(options, cache_dir, progress)
        return written.read_bytes()


def quantise(
    model: bytes,
    calibration: np.ndarray[Any, Any],
    *,
    calibrator: str,
    per_channel: bool,
    cache_dir: Path,
    progress: Progress,
) -> bytes:
    """Return a float TFLite file as a full-integer one.

    Args:
        model: of one input, whose first axis is 1.
        calibration: (n, ...) inputs as the model takes them.
        calibrator: "minmax" or "moving-average".
        per_channel: one weight scale an output channel, else one a layer.
        cache_dir: where the converter's environment is kept.
        progress: told of it.

    Raises:
        RecipeError: the quantiser doesn't know an operator of the model.
        InfrastructureError: the converter can't be had, hangs or crashes.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="flatsat-tflite-") as folder:
        source, written = Path(folder, "float.tflite"), Path(folder, "int8.tflite")
        images = Path(folder, "calibration.npz")
        source.write_bytes(model)
        np.savez(images, x=calibration)
        options = {
            "verb": "quantise",
            "model": str(source),
            "calibration": str(images),
            "calibrator": calibrator,
            "per_channel": per_channel,
            "out": str(written),
        }
        _run(options, cache_dir, progress)
        return written.read_bytes()


def _run(options: Mapping[str, object], cache_dir: Path, progress: Progress) -> None:
    python = ensure_converter(cache_dir, progress)
    call(python, options, shared=shared_folders(), deadline_s=DEADLINE_S)


def call(
    python: Path,
    options: Mapping[str, object],
    *,
    shared: Sequence[Path],
    deadline_s: float,
    bytecode: bool = False,
) -> dict[str, Any]:
    """Run the converter's script once and return its report.

    What it prints is kept from the terminal; the script ends itself when this process dies.

    Args:
        python: of the converter's environment.
        options: "verb" and what that verb needs, as JSON.
        shared: folders of modules that the environment leaves to FlatSat's own.
        deadline_s: after which it is killed.
        bytecode: let Python keep what it compiles in the environment.

    Raises:
        RecipeError: the converter refuses the network.
        InfrastructureError: it took too long or crashed.
    """
    with tempfile.TemporaryDirectory(prefix="flatsat-converter-") as name:
        folder = Path(name)
        report, said = folder / "report.json", folder / "said.txt"
        told = {**options, "shared": [str(path) for path in shared], "report": str(report)}
        (folder / "options.json").write_text(json.dumps(told), encoding="utf-8")
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment = {**kept, **_ENVIRONMENT, "TMPDIR": name, "HOME": name}
        if not bytecode:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        with said.open("wb") as out:
            process = subprocess.Popen(
                [str(python), "-s", "-P", str(SCRIPT), str(folder / "options.json")],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
            try:
                code = process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                raise InfrastructureError(
                    f"the TFLite converter has not answered for {deadline_s:.0f} s and was ended"
                ) from None
            finally:
                kill_group(process)
                assert process.stdin is not None
                process.stdin.close()
        try:
            value: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            words = " ".join(said.read_text(encoding="utf-8", errors="replace").split())
            how = f"signal {-code}" if code < 0 else f"code {code}"
            raise InfrastructureError(
                f"the TFLite converter ended with {how} and no report: ...{words[-_TAIL:]}"
            ) from None
    if refused := value.get("refused"):
        raise RecipeError(f"the TFLite converter can't take this network: {refused}")
    if error := value.get("error"):
        raise InfrastructureError(f"the TFLite converter failed: {error}")
    return value
