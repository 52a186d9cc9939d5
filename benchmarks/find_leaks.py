"""How long the search for copies takes, and how many it finds, of 100,000 made-up descriptors.

    python benchmarks/find_leaks.py --num_train 80000 --num_test 20000 --num_copies 2000

Descriptors are frequencies of noise whose power falls as it does in photographs; copies are turned at random and get
noise as JPEG leaves it. The search compares every test image with all training images, in eight ways.
"""

from __future__ import annotations

import resource
import time

import numpy as np
import torch
from side_by_side import command_line

from data_prep.leaks.describe import FREQUENCIES, all_turned
from data_prep.leaks.search import find_copies


def make_spectra(num: int, seed: int) -> np.ndarray:
    """float16 (num, 16, 16): amplitudes fall with the frequency, as those of photographs do."""
    distance = np.hypot(*np.meshgrid(np.arange(FREQUENCIES), np.arange(FREQUENCIES)))
    spectra = np.random.default_rng(seed).normal(0, 1500, (num, FREQUENCIES, FREQUENCIES)) / np.maximum(distance, 1)
    spectra[:, 0, 0] = 0
    return spectra.astype(np.float16)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--num_train", type=int, default=80_000)
    parser.add_argument("--num_test", type=int, default=20_000)
    parser.add_argument("--num_copies", type=int, default=2_000)
    parser.add_argument("--noise", type=float, default=20.0, help="of a copy's frequencies")
    parser.add_argument("--num_threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    train, test = make_spectra(options.num_train, 0), make_spectra(options.num_test, 1)
    random = np.random.default_rng(2)
    sources = random.permutation(options.num_train)[: options.num_copies]
    turned = all_turned(train[sources].astype(np.float32))
    copies = turned[np.arange(len(sources)), random.integers(0, 8, len(sources))]
    test[: len(sources)] = copies + random.normal(0, options.noise, copies.shape)

    started = time.perf_counter()
    pairs = find_copies(test, train)
    seconds = time.perf_counter() - started
    right = pairs.query < len(sources)
    right[right] = sources[pairs.query[right]] == pairs.found[right]
    found = len(np.unique(pairs.query[right]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{options.num_test} against {options.num_train}, {options.num_threads} threads: {seconds:.1f} s")
    print(f"{found / len(sources):.2%} of {len(sources)} copies found, {(~right).sum()} false pairs, {memory:.1f} GiB")


if __name__ == "__main__":
    main()
