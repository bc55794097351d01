"""Deep Compression's AlexNet and VGG-16 by arithmetic: bytes from the paper's densities and bits.

No network is trained and nothing is timed. Layers are the reference networks'; how many fillers
there were the paper does not say: they are taken from its printed size before Huffman coding, or
as masks without structure have them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import results

from flatsat.compressors.deep_sizes import PaperLayer, paper_layers

if TYPE_CHECKING:
    from collections.abc import Callable

# Printed: MB and share of the dense network before Huffman coding, and after it.
PAPER = {
    "alexnet-grouped": ("AlexNet", "8.9", "3.7 (27x)", "6.9", "2.88 (35x)"),
    "vgg16": ("VGG-16", "-", "3.2 (31x)", "11.3", "2.05 (49x)"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.out:
        results.RESULTS = arguments.out
    rows: list[tuple[object, ...]] = []
    data: dict[str, object] = {}
    for network, (name, *printed) in PAPER.items():
        layers = paper_layers(network)
        rows.append((name, "the paper", *printed))
        rows.append(_row(name, "fillers that its printed sizes imply", layers, _implied))
        rows.append(_row(name, "fillers of masks without structure", layers, _independent))
        data[network] = [
            {
                "layer": layer.name,
                "weights": layer.weights,
                "kept": layer.kept,
                "fillers_implied": layer.implied_fillers,
                "fillers_independent": layer.independent_fillers,
                "bytes_before_huffman": layer.shared_bytes(layer.implied_fillers),
                "bytes": layer.huffman_bytes(layer.implied_fillers),
                "paper_share_before_huffman": layer.shared_rate,
                "paper_share": layer.huffman_rate,
            }
            for layer in layers
        ]
    results.write(
        "deep_sizes",
        "Deep Compression's sizes of AlexNet and VGG-16, by arithmetic",
        "Bytes from the paper's share of kept weights and bits of each layer (Han et al. 2016,"
        " tables 4 and 5), the reference networks' weights and biases, and a codebook of 2^bits"
        " float32 a layer. MB are 10^6 bytes.",
        ("network", "fillers", "MB before Huffman", "% of dense", "MB", "% of dense"),
        rows,
        notes=[
            "The paper calls AlexNet 240 MB; its float32 parameters take"
            f" {_dense(paper_layers('alexnet-grouped')) / 1e6:.1f}. 2.88 % of 240 are its 6.9 MB.",
            "Printed shares have one or two digits: of VGG-16's fc6, which is 74 % of the network,"
            ' "4 %" are kept, which may be 12 % off.',
            "VGG-16's printed layers before Huffman coding add up to less than its printed total"
            " of 3.2 %: see the row of implied fillers.",
        ],
        data=data,
    )


def _row(
    name: str,
    what: str,
    layers: tuple[PaperLayer, ...],
    fillers: Callable[[PaperLayer], float],
) -> tuple[object, ...]:
    dense = _dense(layers)
    shared = sum(layer.shared_bytes(fillers(layer)) for layer in layers)
    huffman = sum(layer.huffman_bytes(fillers(layer)) for layer in layers)
    return (
        name,
        what,
        f"{shared / 1e6:.2f}",
        f"{100 * shared / dense:.2f} ({dense / shared:.1f}x)",
        f"{huffman / 1e6:.2f}",
        f"{100 * huffman / dense:.2f} ({dense / huffman:.1f}x)",
    )


def _implied(layer: PaperLayer) -> float:
    return layer.implied_fillers


def _independent(layer: PaperLayer) -> float:
    return layer.independent_fillers


def _dense(layers: tuple[PaperLayer, ...]) -> int:
    return sum(layer.dense_bytes for layer in layers)


if __name__ == "__main__":
    main()
