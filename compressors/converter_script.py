"""What runs in the TFLite converter's environment, on files; `converter` starts it.

    python converter_script.py options.json

Options: "verb" ("check", "convert", "quantise"), "shared" (folders to import from besides the
environment's own), "report" (JSON file to write) and what the verb needs. It imports nothing of
FlatSat's.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

_Options = dict[str, Any]


def main() -> None:
    """Do what the options say and write the report."""
    options: _Options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # After the environment's own: its versions come first.
    sys.path += options["shared"]
    try:
        report = _VERBS[options["verb"]](options)
    except (ImportError, OSError, MemoryError) as error:
        report = {"error": _one_line(error)}
    except Exception as error:
        report = {"refused": _one_line(error)}
    part = Path(options["report"] + ".part")
    part.write_text(json.dumps(report), encoding="utf-8")
    part.replace(options["report"])
    sys.stdout.flush()
    # Libraries with threads of their own take long to end, or crash in it.
    os._exit(0)


def _end_with_parent() -> None:
    """Wait for the end of standard input, which the parent holds open while it lives."""
    os.read(0, 1)
    os._exit(1)


def _check(_options: _Options) -> _Options:
    from importlib.metadata import version

    import litert_torch
    import torch
    from litert_quantizer import calibrator, quantizer, recipe_manager

    assert litert_torch.convert and calibrator and quantizer and recipe_manager
    names = ("litert-torch", "litert-converter", "litert-quantizer", "ai-edge-litert", "jax")
    return {"versions": {**{name: version(name) for name in names}, "torch": torch.__version__}}


def _convert(options: _Options) -> _Options:
    import litert_torch
    import torch

    torch.set_num_threads(1)
    program = torch.export.load(options["program"])
    inputs, _ = program.example_inputs
    module = program.module()
    # The program was exported in eval mode; a flag that says so is all that its module lacks.
    module.training = False
    litert_torch.convert(module, inputs).export(options["out"])
    return {}


def _quantise(options: _Options) -> _Options:
    import numpy as np
    from litert_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe_manager
    from litert_quantizer.utils import qsv_utils

    model = Path(options["model"]).read_bytes()
    with np.load(options["calibration"]) as stored:
        images = stored["x"]
    granularity = qtyping.QuantGranularity
    rules = recipe_manager.RecipeManager()
    rules.add_static_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        activation_num_bits=8,
        weight_num_bits=8,
        weight_granularity=(
            granularity.CHANNELWISE if options["per_channel"] else granularity.TENSORWISE
        ),
        algorithm_key=algorithm_manager.AlgorithmName.MIN_MAX_UNIFORM_QUANT,
    )
    how = {}
    if options["calibrator"] == "minmax":
        how["qsv_update_func"] = qsv_utils.min_max_update
    ranges = calibrator.Calibrator(model, num_threads=1, **how)
    (signature,) = ranges.get_signature_list()
    (name,) = ranges.get_signature_list()[signature]["inputs"]
    samples = [{name: images[i : i + 1]} for i in range(len(images))]
    ranges.calibrate({signature: samples}, rules)
    work = quantizer.Quantizer(model)
    work.load_quantization_recipe(rules.get_quantization_recipe())
    result = work.quantize(ranges.get_model_qsvs(), enable_progress_report=False)
    Path(options["out"]).write_bytes(bytes(result.quantized_model))
    return {}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]


_VERBS = {"check": _check, "convert": _convert, "quantise": _quantise}

if __name__ == "__main__":
    main()
