"""Coded weights: how quick, and how small beside zip, zstd, xz, nncodec and Shannon's bound.

Speed: the 400,000 weights of LeNet-5's first dense layer (800 x 500, trained), clustered by
k-means and then coded and decoded by every codec: pruned and shared, shared alone, int8, and as
floats. Encoding counts whole: levels found, periods tried, and the file decoded again for a check.
Codecs are interleaved, round by round, in an order that is drawn.

Sizes: both LeNets pruned about 12 times and shared, and the small MobileNet's int8 ONNX file, each
coded whole; beside it general packers on the same file, and nncodec (with `--nncodec PYTHON`) on
the same network before sharing, at the coarsest QP whose accuracy on validation is not below that
of the network that is coded here.
"""

from __future__ import annotations

import argparse
import copy
import lzma
import os
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import results
import torch
import zstandard

from flatsat.cache import default_cache_dir
from flatsat.coded.container import FLOAT32, INT8, decode
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.codec import coder_library
from flatsat.compressors.entropy import entropy_bits
from flatsat.compressors.linear_quant import quantise_range
from flatsat.compressors.magnitude import MagnitudePrune
from flatsat.compressors.onnx_int8 import OnnxInt8
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.onnx_model import inspect, run_host
from flatsat.compressors.rate_quant import RateQuantise
from flatsat.compressors.registry import step_class, step_names
from flatsat.compressors.sharing import ShareWeights, kmeans
from flatsat.compressors.tensor_ranges import TensorRange, tensor_ranges
from flatsat.datasets.fit import evaluate
from flatsat.datasets.reference import reference
from flatsat.datasets.workload import workload
from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = np.ndarray[Any, np.dtype[Any]]

WEIGHTS = 400_000
PYTHON_ROWS = 5
"""Of 500: what Python's decoder is timed on."""
QPS = range(-44, -7, 2)
PRICES = tuple(3e-5 * 10 ** (-k / 8) for k in range(33))
RATE = "rate-quantise, context"
CLUSTERS = (16, 32, 256)
SPARSITY = {
    "lenet5": {"global_sparsity": 0.918},
    "lenet300": {"sparsity": {"fc1": 0.935, "fc2": 0.87, "fc3": 0.5}},
}
BITS = {"lenet5": {"conv": 8, "fc": 5}, "lenet300": {"fc": 5}}


@dataclass(frozen=True)
class Packer:
    """What makes bytes fewer, and gives them back."""

    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes], bytes]


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return packer.compress(data) + packer.flush()


PACKERS = {
    "zip (DEFLATE, level 9)": Packer(deflate, lambda data: zlib.decompress(data, -15)),
    "zstd, level 19": Packer(
        lambda data: zstandard.ZstdCompressor(level=19).compress(data),
        lambda data: zstandard.ZstdDecompressor().decompress(data),
    ),
    "xz, level 9e": Packer(
        lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), lzma.decompress
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=float, default=1.0, help="of each of three retrainings")
    parser.add_argument("--nncodec", type=Path, help="Python that has nncodec 2.1.3")
    parser.add_argument("--only", choices=("speed", "sizes"))
    parser.add_argument("--busy", action="store_true", help="says that the machine was busy")
    parser.add_argument("--out", type=Path, help="folder of the tables, instead of docs/results")
    given = parser.parse_args()
    if given.out:
        results.RESULTS = given.out
    torch.set_num_threads(1)
    if given.only != "sizes":
        speed(given.rounds, given.busy)
    if given.only != "speed":
        sizes(given.epochs, given.nncodec)


# Speed.


def speed(rounds: int, busy: bool) -> None:
    weights = fc1()
    rows: list[tuple[object, ...]] = []
    data: list[dict[str, Any]] = []
    for k in CLUSTERS:
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            found = kmeans(weights.reshape(-1), k)
            times.append(time.perf_counter() - begun)
        ms = 1e3 * float(np.median(times))
        data.append({"what": f"k-means, {k} clusters", "s": times, "iterations": found.rounds})
        text = f"{found.rounds} iterations"
        rows.append((f"k-means, {k} clusters", text, f"{ms:.0f}", "", "", "", "", "", ""))
    runnable: list[int] = []
    for name, (tensor, element) in tensors(weights).items():
        told = timed(tensor, element, rounds, runnable)
        shannon = entropy_bits(occurrences(tensor)) / 8
        for coder, one in told.items():
            encode_s, decode_s = (float(np.median(one[key])) for key in ("encode_s", "decode_s"))
            elements = one["elements"]
            wide = 4 * elements / 1e6
            size = one["bytes"]
            whole = elements == tensor.size
            rows.append(
                (
                    name,
                    coder,
                    f"{1e3 * encode_s:.0f}" if encode_s else "",
                    f"{1e3 * decode_s:.1f}",
                    f"{wide / encode_s:.1f}" if encode_s else "",
                    f"{wide / decode_s:.4g}",
                    f"{elements / decode_s / 1e6:.3g}",
                    f"{size:,}" if whole else "",
                    f"{size / shannon:.3f}" if whole else "",
                )
            )
        data.append({"what": name, "shannon_bytes": shannon, "coders": told})
    cores = os.cpu_count() or 1
    share = float(np.mean([seen > cores for seen in runnable]))
    notes = [
        f"Medians of {rounds} rounds. MB are 10^6 bytes of the weights as float32, whatever they"
        " are stored as; symbols are weights.",
        "encode: the codec's `encode`, which finds the levels, tries periods (context coder) and"
        " decodes the file again to see that it gives the same bytes. decode: with the compiled"
        f" coder{'' if coder_library() else ', WHICH WAS MISSING HERE'}, SHA-256 included.",
        f"in Python: the decoder of boards without the compiled coder, on {PYTHON_ROWS} of 500"
        " rows, the file's fixed costs included. Boards get `coder.c`, compiled for aarch64 or"
        " x86_64, with the agent's site `native`, and decode with it then.",
        "range, ans: decoded by constriction; boards without it refuse such files, get the model"
        " file, and say so.",
        "Shannon: entropy of the weights' values as independent symbols, without the values"
        " themselves: codecs with contexts may be below, files hold levels and a hash, too.",
        f"{share:.0%} of the looks found more processes runnable than there are cores.",
    ]
    if busy:
        notes.append("MADE ON A BUSY MACHINE (--busy): these figures are no evidence.")
    results.write(
        "coding",
        "Coding 400,000 weights: time",
        "LeNet-5's first dense layer, 800 x 500, trained on mnist-mini; one thread. Wanted: k-means"
        " and coding well under a second each.",
        (
            "weights",
            "coder",
            "encode, ms",
            "decode, ms",
            "encode, MB/s",
            "decode, MB/s",
            "decode, million symbols/s",
            "bytes",
            "times Shannon's bound",
        ),
        rows,
        notes=notes,
        data=data,
    )


def fc1() -> Array:
    """Return LeNet-5's trained fc1 weights, (500, 800)."""
    module = reference(workload("mnist-mini"), "lenet5", cache_dir=default_cache_dir()).module
    found = next(p for p in module.parameters() if p.numel() == WEIGHTS)
    return np.asarray(found.detach().numpy(), np.float32)


def tensors(weights: Array) -> dict[str, tuple[Array, int]]:
    kept = np.abs(weights) > np.quantile(np.abs(weights), 0.92)
    pruned = np.where(kept, weights, np.float32(0))
    found = kmeans(weights[kept], 16)
    sparse = np.zeros_like(weights)
    sparse[kept] = found.centroids[found.labels]
    found = kmeans(weights.reshape(-1), 32)
    dense = found.centroids[found.labels].reshape(weights.shape)
    ranged = quantise_range(torch.from_numpy(weights), 8).values.numpy()
    scale = np.abs(weights).max() / 127
    int8 = np.rint(weights / scale).astype(np.int8)
    return {
        "92 % zeros, 16 shared values": (sparse, FLOAT32),
        "32 shared values": (dense, FLOAT32),
        "256 even levels": (ranged, FLOAT32),
        "int8": (int8, INT8),
        "92 % zeros, floats": (pruned, FLOAT32),
        "floats": (weights, FLOAT32),
    }


def timed(tensor: Array, element: int, rounds: int, runnable: list[int]) -> dict[str, Any]:
    """Return each coder's times and size."""
    raw = tensor.tobytes()
    whole = [TensorRange(0, element, tensor.shape)]
    library = coder_library()
    codecs = {name: step_class(name)() for name in step_names("codec")}
    told: dict[str, dict[str, Any]] = {
        name: {"encode_s": [], "decode_s": [], "elements": tensor.size}
        for name in (*codecs, *PACKERS)
    }
    draw = np.random.default_rng(0)
    for _ in range(rounds):
        for name in map(str, draw.permutation(list(told))):
            begun = time.perf_counter()
            coded = codecs[name].encode(raw, whole) if name in codecs else PACKERS[name].pack(raw)
            encoded = time.perf_counter()
            if name in codecs:
                again = decode(coded, library=library)
            else:
                again = PACKERS[name].unpack(coded)
            decoded = time.perf_counter()
            assert again == raw
            told[name]["encode_s"].append(encoded - begun)
            told[name]["decode_s"].append(decoded - encoded)
            told[name]["bytes"] = len(coded)
            seen = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
            runnable.append(int(seen))
    some = tensor[:PYTHON_ROWS]
    for name, codec in codecs.items():
        if name in ("range", "ans"):
            continue
        coded = codec.encode(some.tobytes(), [TensorRange(0, element, some.shape)])
        times = []
        for _ in range(2):
            begun = time.perf_counter()
            assert decode(coded) == some.tobytes()
            times.append(time.perf_counter() - begun)
        told[f"{name}, in Python"] = {
            "encode_s": [0.0],
            "decode_s": times,
            "elements": some.size,
            "bytes": len(coded),
        }
    return told


def occurrences(tensor: Array) -> list[int]:
    """Return how often each bit pattern occurs."""
    words = tensor.reshape(-1).view(np.uint32 if tensor.itemsize == 4 else np.uint8)
    found: list[int] = np.unique(words, return_counts=True)[1].tolist()
    return found


# Sizes.


def sizes(epochs: float, nncodec: Path | None) -> None:
    rows: list[tuple[object, ...]] = []
    data: list[dict[str, Any]] = []
    for name, make in (
        ("lenet300", lambda: shared_lenet("lenet300", epochs)),
        ("lenet5", lambda: shared_lenet("lenet5", epochs)),
        ("mobilenet-small int8", int8_mobilenet),
    ):
        file, accuracy, before, dense_bytes = make()
        ranges = tensor_ranges(file, "onnx")
        shannon = sum(
            entropy_bits(occurrences(one)) / 8 for one in (array(file, two) for two in ranges)
        )
        found: dict[str, int] = {"ONNX file": len(file)}
        found |= {coder: len(packer.pack(file)) for coder, packer in PACKERS.items()}
        for coder in step_names("codec"):
            found[coder] = len(step_class(coder)().encode(file, ranges, "onnx"))
        notes: dict[str, str] = {}
        if nncodec is not None:
            theirs = with_nncodec(nncodec, before, least=accuracy)
            if theirs is not None:
                found["nncodec 2.1.3"] = theirs["bytes"]
                notes["nncodec 2.1.3"] = f"QP {theirs['qp']}, {100 * theirs['accuracy']:.1f} %"
        ours = with_rate(name.split()[0], before, least=accuracy)
        if ours is not None:
            found[RATE] = ours["bytes"]
            notes[RATE] = f"price {ours['price']:.1e}, {100 * ours['accuracy']:.1f} %"
        for coder, size in found.items():
            rows.append(
                (
                    name,
                    coder,
                    f"{size:,}",
                    f"{dense_bytes / size:.1f}",
                    f"{size / found['context']:.3f}",
                    f"{size / shannon:.3f}",
                    notes.get(coder, f"{100 * accuracy:.1f} %"),
                )
            )
        rows.append(
            (
                name,
                "Shannon's bound of the same tensors",
                f"{shannon:,.0f}",
                f"{dense_bytes / shannon:.1f}",
                f"{shannon / found['context']:.3f}",
                "1",
                "",
            )
        )
        data.append({"network": name, "accuracy": accuracy, "shannon": shannon, "bytes": found})
        print(name, found, file=sys.stderr, flush=True)
    results.write(
        "coding_sizes",
        "Coded weights beside general packers, nncodec and Shannon's bound",
        "Bytes of whole files: graph, biases, levels and hash are in. nncodec's stream holds"
        " tensors only. `times smaller` is against 4 bytes a parameter.",
        (
            "network",
            "coder",
            "bytes",
            "times smaller",
            "times context",
            "times Shannon's bound",
            "accuracy on validation",
        ),
        rows,
        notes=[
            "LeNets: `magnitude-prune` to about 12 times fewer weights in three rounds of"
            f" {epochs:g} epochs, `share-weights` (bits {BITS['lenet5']}), biases of 8 bits."
            " MobileNet: onnxruntime's static int8.",
            "nncodec codes the network as it was before sharing (before int8), quantises by itself,"
            " dependent quantisation, and is judged by the coarsest QP, from"
            f" {QPS[0]} to {QPS[-1]}, that is not below the accuracy of what the others code.",
            f"{RATE}: the same network as nncodec's, nothing trained, the highest price by the same"
            " rule; the whole file.",
            "Shannon: entropy of each coded tensor's values as independent symbols; the values"
            " themselves, the graph and what is not coded are not in it.",
        ],
        data=data,
    )


def array(file: bytes, place: TensorRange) -> Array:
    dtype = np.dtype("<f4") if place.element == FLOAT32 else np.dtype(np.uint8)
    return np.frombuffer(file, dtype, place.elements, place.offset)


def context_of(network: str) -> StepContext:
    task = workload("mnist-mini")
    return StepContext.of(task, network, seed=0, cache_dir=default_cache_dir())


def dense_of(name: str, context: StepContext) -> Network:
    shape = tuple(int(n) for n in context.train.x.shape[1:])  # type: ignore[union-attr]
    module = reference(context.workload, name, cache_dir=context.cache_dir).module
    return Network(module, shape)


Made = tuple[bytes, float, Network, int]


def shared_lenet(name: str, epochs: float) -> Made:
    """Return the ONNX file, its accuracy, the network before sharing, the dense bytes."""
    context = context_of(name)
    dense = dense_of(name, context)
    params = {**SPARSITY[name], "rounds": 3, "epochs": epochs, "lr": 0.1}
    pruned = MagnitudePrune(MagnitudePrune.Params(**params)).apply(dense, context)
    sharing = ShareWeights.Params(bits=BITS[name], biases=8, epochs=epochs)
    shared = ShareWeights(sharing).apply(pruned, context)
    with tempfile.TemporaryDirectory() as folder:
        artifact = OnnxLower(OnnxLower.Params(goldens=8)).lower(shared, Path(folder), context)
        file = (Path(folder) / artifact.file).read_bytes()
    accuracy = evaluate(shared.module, context.validation)  # type: ignore[arg-type]
    return file, accuracy, pruned, parameter_bytes(dense.module)


def int8_mobilenet() -> Made:
    """As `shared_lenet`, of onnxruntime's int8."""
    context = context_of("mobilenet-small")
    dense = dense_of("mobilenet-small", context)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lowered = OnnxLower(OnnxLower.Params(goldens=8)).lower(dense, folder, context)
        int8 = OnnxInt8(OnnxInt8.Params(n=128)).apply(lowered, folder, context)
        path = folder / int8.file
        file = path.read_bytes()
        split = context.validation
        assert split is not None
        (logits,) = run_host(path, {inspect(path).inputs[0].name: split.x}).values()
    accuracy = float(np.mean(logits.argmax(axis=1) == split.y))
    return file, accuracy, dense, parameter_bytes(dense.module)


def parameter_bytes(module: torch.nn.Module) -> int:
    return 4 * sum(p.numel() for p in module.parameters())


def with_nncodec(python: Path, network: Network, *, least: float) -> dict[str, Any] | None:
    """Return bytes, QP and accuracy of the smallest stream that loses nothing."""
    program = Path(__file__).with_name("nncodec_sizes.py")
    validation = context_of("lenet5").validation
    state = {
        name: value
        for name, value in network.module.state_dict().items()
        if value.is_floating_point()
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **{name: value.numpy() for name, value in state.items()})
        subprocess.run(
            [python, program, source, target, *map(str, QPS)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        best: dict[str, Any] | None = None
        with np.load(target, allow_pickle=False) as stored:
            for qp in QPS:
                module = copy.deepcopy(network.module)
                taken = {name: torch.from_numpy(stored[f"{qp}:{name}"]) for name in state}
                module.load_state_dict(taken, strict=False)
                accuracy = evaluate(module, validation)  # type: ignore[arg-type]
                size = int(stored[f"bytes:{qp}"])
                if accuracy >= least and (best is None or size < best["bytes"]):
                    best = {"bytes": size, "qp": qp, "accuracy": accuracy}
    return best


def with_rate(name: str, network: Network, *, least: float) -> dict[str, Any] | None:
    """Return bytes, price and accuracy of the highest price that loses nothing."""
    context = context_of(name)
    for price in PRICES:
        try:
            made = RateQuantise(RateQuantise.Params(price=price)).apply(network, context)
        except RecipeError:
            continue  # A layer would have no weights left.
        accuracy = evaluate(made.module, context.validation)
        if accuracy < least:
            continue
        with tempfile.TemporaryDirectory() as folder:
            artifact = OnnxLower(OnnxLower.Params(goldens=8)).lower(made, Path(folder), context)
            file = (Path(folder) / artifact.file).read_bytes()
        coded = step_class("context")().encode(file, tensor_ranges(file, "onnx"), "onnx")
        return {"bytes": len(coded), "price": price, "accuracy": accuracy}
    return None


if __name__ == "__main__":
    main()
