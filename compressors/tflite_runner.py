"""Runs a TFLite file on the host, in a process of its own; `tflite_model` starts it.

    python tflite_runner.py FOLDER

reads model.tflite and in.npy there, a row an inference, and writes out.npy likewise. The last line
on standard error says what went wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    """Run the model on every row."""
    from ai_edge_litert.interpreter import Interpreter

    folder = Path(sys.argv[1])
    values = np.load(folder / "in.npy", allow_pickle=False)
    interpreter = Interpreter(model_path=str(folder / "model.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for index in range(len(values)):
        interpreter.set_tensor(source["index"], values[index : index + 1])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(target["index"]))
    np.save(folder / "out.npy", np.concatenate(rows))


if __name__ == "__main__":
    code = 0
    try:
        main()
    except Exception as error:  # the runtime's errors share no class
        sys.stderr.write(f"\n{type(error).__name__}: {' '.join(str(error).split())}\n")
        code = 1
    sys.stderr.flush()
    # The runtime's threads have nothing left to do.
    os._exit(code)
