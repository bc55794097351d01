"""The yardstick: onnxruntime in a plain loop, in a process of its own; prints its samples."""

import json
import sys
import time

import numpy as np
import onnxruntime as ort


def main() -> None:
    path, warmup, least, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {
        i.name: np.random.default_rng(0).standard_normal(i.shape).astype(np.float32)
        for i in session.get_inputs()
    }
    for _ in range(warmup):
        session.run(None, feeds)
    runnable = int(open("/proc/loadavg").read().split()[3].split("/")[0])  # noqa: SIM115, PTH123
    samples = []
    clock = time.perf_counter_ns
    end = clock() + int(float(seconds) * 1e9)
    while len(samples) < least or clock() < end:
        start = clock()
        session.run(None, feeds)
        samples.append(clock() - start)
    json.dump({"samples": samples, "runnable": runnable}, sys.stdout)


if __name__ == "__main__":
    main()
