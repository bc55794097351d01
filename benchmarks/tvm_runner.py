"""Apache TVM's RPC runner as a service of cost.py; runs in TVM's own virtual environment.

Builds a matrix product of about 1 ms on one thread, starts a tracker and a server on this machine
(`tvm.rpc`), and one `RPCRunner` with TVM's default settings (`EvaluatorConfig`: 3 calls a repeat,
1 repeat, raised until a repeat takes 100 ms). Each line of standard input is a number of
candidates; for each comes a line of JSON: the seconds from handing them over to having the last
result, and the mean time that TVM tells for each. The kernel is a ready-linked shared object:
TVM's builder would by default leave a .tar that the server links anew for every candidate, which
`--artifact tar` shows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
from tvm import te
from tvm.s_tir import meta_schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

WANTED_MS = 1.0
KEY = "flatsat-cost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runner", choices=("rpc", "local"), default="rpc")
    parser.add_argument("--artifact", choices=("so", "tar"), default="so")
    arguments = parser.parse_args()
    # TVM's workers write to standard output, which only our lines may use.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ["TVM_NUM_THREADS"] = "1"
    config = meta_schedule.runner.EvaluatorConfig()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"kernel.{arguments.artifact}"
        side, mean_ms = build(path)
        about = {
            "tvm": tvm.__version__,
            "runner": arguments.runner,
            "kernel": f"matmul {side} x {side} float32, .{arguments.artifact}",
            "mean_ms": mean_ms,
            "evaluator": config._asdict(),
        }
        if arguments.runner == "local":
            serve(meta_schedule.runner.LocalRunner(), path, side, answers, about)
        else:
            from tvm.s_tir.meta_schedule.testing.local_rpc import LocalRPC

            with LocalRPC(tracker_key=KEY, silent=True) as rpc:
                where = meta_schedule.runner.RPCConfig(
                    tracker_host=rpc.tracker_host,
                    tracker_port=rpc.tracker_port,
                    tracker_key=rpc.tracker_key,
                )
                serve(meta_schedule.runner.RPCRunner(where), path, side, answers, about)
    answers.close()
    # TVM's worker pool may keep the interpreter from ending by itself.
    os._exit(0)


def build(path: Path) -> tuple[int, float]:
    """Write the kernel whose one-thread time is nearest to the wanted; return its side and ms."""
    found = []
    for side in (64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320):
        module = compiled(side)
        arrays = [tvm.runtime.empty((side, side), "float32") for _ in range(3)]
        timed = module.time_evaluator("main", tvm.cpu(), number=3, repeat=5, min_repeat_ms=5)
        mean_ms = min(timed(*arrays).results) * 1e3
        found.append((abs(mean_ms - WANTED_MS), side, mean_ms))
        if mean_ms > 2 * WANTED_MS:
            break
    _, side, mean_ms = min(found)
    compiled(side).export_library(str(path))
    return side, mean_ms


def compiled(side: int) -> Any:
    left, right = (te.placeholder((side, side), "float32", name) for name in "ab")
    axis = te.reduce_axis((0, side), "k")
    product = te.compute(
        (side, side), lambda row, column: te.sum(left[row, axis] * right[axis, column], axis), "c"
    )
    function = te.create_prim_func([left, right, product]).with_attr("global_symbol", "main")
    return tvm.compile(tvm.IRModule({"main": function}), tvm.target.Target("llvm")).mod


def serve(runner: Any, path: Path, side: int, answers: Any, about: dict[str, object]) -> None:
    """Answer a line with a number by running so many candidates, to the end of input."""
    info = meta_schedule.arg_info.TensorInfo("float32", [side, side])
    one = meta_schedule.runner.RunnerInput(str(path), "cpu", [info, info, info])
    print(json.dumps(about | {"warm": run(runner, [one])}), file=answers)
    for line in sys.stdin:
        print(json.dumps(run(runner, [one] * int(line))), file=answers)


def run(runner: Any, inputs: Sequence[Any]) -> dict[str, object]:
    begin = time.perf_counter()
    results = [future.result() for future in runner.run(inputs)]
    seconds = time.perf_counter() - begin
    errors = [str(result.error_msg) for result in results if result.run_secs is None]
    costs = [[float(cost) for cost in result.run_secs or []] for result in results]
    return {"seconds": seconds, "mean_ms": [1e3 * c[0] for c in costs if c], "errors": errors}


if __name__ == "__main__":
    main()
