"""Augmentation of images and their masks: both stay aligned, sizes and padding are right, randomness is counted."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import counted_randomness
from torchvision.transforms import v2

from common.data.copy_paste import CopyPaste
from common.data.rows import Samples, make_loader
from common.images.files import BadSampleError
from common.images.mask_transforms import (
    Geometry,
    MaskEvaluationTransform,
    MaskTrainTransform,
    nearest,
)

MEAN = (0.5, 0.4, 0.3)
FILL = torch.tensor([128, 102, 76], dtype=torch.uint8)
PLAIN = {"scale_jitter": (1, 1), "rare_crop": 0.0, "balanced_crop": False, "color_jitter": 0.0}
PLAIN |= dict.fromkeys(("hflip", "vflip", "rot90"), 0.0)
TURNED = {"hflip": 0.5, "vflip": 0.5, "rot90": 1.0}
GEOMETRIES = [
    Geometry(32),
    Geometry(32, "fit"),
    Geometry(32, windows=True),
    Geometry(32, windows=True, resize_longer=70),
    Geometry(32, windows=True, resize_longer=20),
]
SIZES = [(50, 80), (80, 50), (61, 61), (7, 90), (27, 24)]


def transform_of(geometry, **changes):
    return MaskTrainTransform(SimpleNamespace(**{**PLAIN, **changes}), geometry, MEAN)


def blobs(height, width, seed=0):
    """Mask of 0 and 1 in regions with smooth borders, and an image that shows it: 0 and 200."""
    coarse = torch.rand((1, 1, 2, 3), generator=torch.Generator().manual_seed(seed))
    mask = (F.interpolate(coarse, (height, width), mode="bicubic")[0, 0] > 0.5).to(torch.uint8)
    return show(mask), mask


def show(mask):
    return (mask * 200).expand(3, -1, -1).clone()


def augment(transform, pair, index=0, seed=0):
    with counted_randomness(seed, 0, index):
        sample = transform(*pair)
    return sample["pixels"], sample["labels"]


def uniform(labels):
    """Pixels that do not have both classes around them, up to two away."""
    near = [F.max_pool2d((labels == value)[None].float(), 5, 1, 2)[0] > 0 for value in (0, 1)]
    return ~(near[0] & near[1])


def assert_aligned(pixels, labels):
    """Where the label is certain, the image shows it; padding is mean colour exactly."""
    padding = labels == 255
    assert (pixels[:, padding] == FILL[:, None]).all()
    certain = uniform(labels) & ~padding
    assert ((pixels[0] > 100) == (labels == 1))[certain].all()
    return certain


# ---- augmentation


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_image_and_mask_stay_together(geometry):
    for size in SIZES:
        for changes in [{}, TURNED, {**TURNED, "rare_crop": 0.5, "scale_jitter": (0.4, 2.5)}]:
            transform = transform_of(geometry, **changes)
            seen = 0
            for index in range(4):
                pixels, labels = augment(transform, blobs(*size), index)
                assert pixels.dtype == labels.dtype == torch.uint8
                assert pixels.shape == (3, 32, 32) and labels.shape == (32, 32)
                assert labels.is_contiguous()
                assert type(pixels) is type(labels) is torch.Tensor
                assert set(labels.unique().tolist()) <= {0, 1, 255}
                seen += assert_aligned(pixels, labels).sum()
            assert seen > 5


@pytest.mark.parametrize("changes", [{"hflip": 1.0}, {"vflip": 1.0}, {"rot90": 1.0}, {**TURNED, "rare_crop": 1.0}])
def test_exact_at_scale_1(changes):
    """Without resizing, every single pixel must agree, here with noise instead of regions."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(2, (45, 38), generator=generator, dtype=torch.uint8)
    transform = transform_of(Geometry(24, windows=True), **changes)
    for index in range(10):
        pixels, labels = augment(transform, (show(mask), mask), index)
        assert torch.equal(pixels, show(labels))


def test_flips_and_turns_are_what_they_say():
    mask = torch.arange(16, dtype=torch.uint8).view(4, 4)
    image = mask.expand(3, -1, -1) * 10
    geometry = Geometry(4, windows=True)
    for changes, expected in (({"hflip": 1.0}, mask.flip(1)), ({"vflip": 1.0}, mask.flip(0)), ({}, mask)):
        pixels, labels = augment(transform_of(geometry, **changes), (image, mask))
        assert torch.equal(labels, expected) and torch.equal(pixels[1], expected * 10)
    turns = {
        tuple(augment(transform_of(geometry, rot90=1.0), (image, mask), i)[1].flatten().tolist()) for i in range(40)
    }
    assert turns == {tuple(mask.rot90(k).flatten().tolist()) for k in range(4)}


def test_probability_of_turns():
    mask = torch.arange(4, dtype=torch.uint8).view(2, 2)
    transform, pair = transform_of(Geometry(2, windows=True), rot90=0.4), (show(mask), mask)
    turned = [not torch.equal(augment(transform, pair, index)[1], mask) for index in range(2000)]
    assert 0.24 < np.mean(turned) < 0.36  # of four turns one changes nothing


def test_colour_jitter_changes_colours_alone():
    geometry = Geometry(32, windows=True)
    pair = blobs(32, 32)
    pair[0].copy_(torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8))
    pixels, labels = augment(transform_of(geometry, color_jitter=0.3), pair)
    assert torch.equal(labels, pair[1])
    assert not torch.equal(pixels, pair[0]) and (pixels.float() - pair[0].float()).abs().mean() < 80


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_functions_of_the_seed(geometry):
    transform = transform_of(geometry, **{**TURNED, "rare_crop": 0.5, "scale_jitter": (0.5, 2), "color_jitter": 0.3})
    pair = blobs(50, 80)
    results = set()
    for index in range(6):
        pixels, labels = augment(transform, pair, index)
        torch.rand(2), np.random.rand(), random.random()
        again = augment(transform, pair, index)
        assert torch.equal(again[0], pixels) and torch.equal(again[1], labels)
        results.add(tuple(pixels.flatten().tolist()))
    assert len(results) == 6
    assert not torch.equal(augment(transform, pair, seed=1)[0], augment(transform, pair, seed=2)[0])


def test_the_originals_are_left_alone():
    image, mask = blobs(40, 40)
    before = image.clone(), mask.clone()
    for geometry in (Geometry(40), Geometry(40, windows=True)):
        transform = transform_of(geometry, color_jitter=0.5, **TURNED)
        for index in range(8):
            augment(transform, (image, mask), index)
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1])


# ---- padding


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_padding_is_neither_image_nor_class(geometry):
    """Of an image of class 1 alone, every pixel is either that class in that colour, or mean colour and ignored."""
    for changes in [{}, TURNED, {"scale_jitter": (0.3, 0.9), "rare_crop": 1.0}]:
        colour = torch.tensor([10, 250, 60], dtype=torch.uint8)
        for size in SIZES:
            image = colour[:, None, None].expand(3, *size)
            mask = torch.ones(size, dtype=torch.uint8)
            for index in range(3):
                pixels, labels = augment(transform_of(geometry, **changes), (image, mask), index)
                inside = labels == 1
                assert inside.any() and (labels[~inside] == 255).all()
                assert torch.equal(pixels, torch.where(inside, colour[:, None, None], FILL[:, None, None]))
                assert inside.sum() == inside.any(0).sum() * inside.any(1).sum()


def test_images_move_within_the_padding():
    """At scale 1/2 a quarter is image: it touches every border, and lies in between too."""
    transform = transform_of(Geometry(16), scale_jitter=(0.5, 0.5))
    tops = set()
    for index in range(150):
        inside = augment(transform, blobs(20, 20), index)[1] != 255
        assert inside.sum() == 64
        tops.add(int(inside.any(1).nonzero()[0]))
    assert tops == set(range(9))


def test_crops_reach_every_place():
    transform = transform_of(Geometry(4, windows=True))
    mask = torch.arange(49, dtype=torch.uint8).view(7, 7)
    corners = {int(augment(transform, (show(mask), mask), index)[1][0, 0]) for index in range(300)}
    assert corners == {row * 7 + column for row in range(4) for column in range(4)}


def test_nothing_but_ignored_pixels():
    mask = torch.full((40, 30), 255, dtype=torch.uint8)
    image = torch.zeros((3, 40, 30), dtype=torch.uint8)
    for geometry in GEOMETRIES:
        transform = transform_of(geometry, rare_crop=1.0, scale_jitter=(0.5, 2), **TURNED)
        for index in range(5):
            pixels, labels = augment(transform, (image, mask), index)
            assert (labels == 255).all() and pixels.shape == (3, 32, 32)
        assert (MaskEvaluationTransform(geometry, MEAN)(image, mask)["labels"] == 255).all()


# ---- scale


@pytest.mark.parametrize("jitter", [(1, 1), (0.5, 2.0), (0.25, 0.5), (2, 4)])
def test_scales_keep_to_their_range(jitter):
    """On a ramp, the range of the values tells how much of the image the window spans."""
    ramp = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 256)
    transform = transform_of(Geometry(32, windows=True), scale_jitter=jitter)
    scales = []
    for index in range(120):
        pixels, _ = augment(transform, (ramp.expand(3, -1, -1), ramp % 2), index)
        column = pixels[0, :, 7].float()
        scales.append(31 / (column.max() - column.min()).item())
    low, high = jitter
    assert low * 0.93 < min(scales) <= max(scales) < high * 1.15
    if low < high:
        assert min(scales) < low * 1.15 and max(scales) > high * 0.85
        middle = (low * high) ** 0.5  # even in the logarithm: half of the scales lie below
        assert 0.35 < np.mean(np.array(scales) < middle) < 0.65


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_scale_1_shows_what_evaluation_shows(geometry):
    pair = blobs(50, 80)
    sample = MaskEvaluationTransform(geometry, MEAN)(*pair)
    if max(sample["resized"]) <= 32:  # otherwise, windows of it
        pixels, labels = augment(transform_of(geometry), pair)
        rows, columns = ((labels != 255).any(side).nonzero().flatten() for side in (1, 0))
        inside = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        height, width = sample["resized"]
        assert torch.equal(pixels[:, *inside], sample["pixels"][:, :height, :width])
        assert torch.equal(labels[inside], sample["labels"][:height, :width])
    else:
        pixels, labels = augment(transform_of(geometry), pair)
        windows = sample["labels"].unfold(0, 32, 1).unfold(1, 32, 1)
        agree = (windows == labels).float().mean((2, 3))
        assert agree.max() > 0.97


# ---- crops around rare classes


def test_a_single_pixel_is_in_the_crop():
    for place in [(0, 0), (0, 299), (199, 0), (199, 299), (57, 123), (31, 32)]:
        mask = torch.zeros((200, 300), dtype=torch.uint8)
        mask[place] = 3
        transform = transform_of(Geometry(32, windows=True), rare_crop=1.0, **TURNED)
        places = set()
        for index in range(40):
            _, labels = augment(transform, (show(mask), mask), index)
            assert (labels == 3).sum() == 1
            places.add(tuple((labels == 3).nonzero()[0].tolist()))
        assert len(places) > 3  # not always in the middle


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_windows_cover_the_pixel_at_any_scale(geometry):
    for place in [(0, 0), (89, 69), (40, 3)]:
        mask = torch.zeros((90, 70), dtype=torch.uint8)
        mask[place] = 1
        transform = transform_of(geometry, scale_jitter=(0.3, 5), rare_crop=1.0)
        for index in range(60):
            with counted_randomness(0, 0, index):
                found = transform._place(mask)
            for (start, length, before, inner), side, target in zip(found, mask.shape, place, strict=True):
                assert 0 <= start <= target < start + length <= side
                assert 0 <= before <= 32 - inner < 32


def test_enlarged_pixels_are_not_dropped():
    mask = torch.zeros((90, 70), dtype=torch.uint8)
    mask[88, 1] = 1
    transform = transform_of(Geometry(32, windows=True), rare_crop=1.0, scale_jitter=(1.0, 6.0))
    assert all((augment(transform, (show(mask), mask), index)[1] == 1).any() for index in range(40))


def test_classes_are_as_likely_whatever_their_size():
    """The commonest is left out; 255 is no class."""
    mask = torch.full((100, 100), 255, dtype=torch.uint8)
    mask[:40] = 0
    mask[50, 50] = 1
    mask[60:80] = 2
    mask[95:, :4] = 4
    counts = np.zeros(256, int)
    for index in range(300):
        with counted_randomness(0, 0, index):
            row, column = transform_of(Geometry(8))._rare_pixel(mask)
        counts[mask[row, column]] += 1
    assert counts[[1, 2, 4]].sum() == 300 and counts[[1, 2, 4]].min() > 70


def test_rare_pixels_are_drawn_evenly_within_a_class():
    mask = torch.zeros((9, 9), dtype=torch.uint8)
    mask[1, 1] = mask[1, 7] = mask[8, 8] = 5
    found = []
    for index in range(120):
        with counted_randomness(0, 0, index):
            found.append(transform_of(Geometry(8))._rare_pixel(mask))
    assert set(found) == {(1, 1), (1, 7), (8, 8)} and min(map(found.count, found)) > 20


def test_one_class_alone_has_no_rare_pixel():
    for value in (0, 7, 254):
        mask = torch.full((5, 5), value, dtype=torch.uint8)
        mask[0] = 255
        assert transform_of(Geometry(8))._rare_pixel(mask) is None


def test_balanced_crops_prefer_what_few_images_have():
    """Class 1 is in 30 of 40 training images, class 2 in 10: three times as likely."""
    pixels = np.zeros((40, 3), int)
    pixels[:, 0], pixels[:30, 1], pixels[30:, 2] = 900, 5, 50
    args = SimpleNamespace(**{**PLAIN, "balanced_crop": True})
    transform = MaskTrainTransform(args, Geometry(8), MEAN, pixels)
    mask = torch.zeros((30, 30), dtype=torch.uint8)
    mask[3, 3], mask[20:24, 20:24] = 1, 2
    found = []
    for index in range(400):
        with counted_randomness(0, 0, index):
            found.append(int(mask[transform._rare_pixel(mask)]))
    assert 0.68 < np.mean(np.array(found) == 2) < 0.82


class Painted:
    """Images whose colour is 10 * row + class; row 1 has two objects of class 2, row 3 one of class 1."""

    def encoded(self, indices):
        return list(indices)

    def load(self, index, source):
        mask = torch.zeros((12, 16), dtype=torch.uint8)
        if index == 1:
            mask[2:5, 3:9], mask[9, 1], mask[8, 2] = 2, 2, 2
        elif index == 3:
            mask[:, 4:6] = 1
        return (10 * index + mask).expand(3, -1, -1).clone(), mask


def test_copy_paste():
    pixels = np.array([[int((Painted().load(row, None)[1] == leaf).sum()) for leaf in range(3)] for row in range(4)])
    paste = CopyPaste(Painted(), 0.5, np.arange(4), pixels)
    image, mask = torch.full((3, 7, 5), 200, dtype=torch.uint8), torch.zeros((7, 5), dtype=torch.uint8)
    sizes = {1: [], 2: []}
    for index in range(200):
        with counted_randomness(0, 0, index):
            new, labels = paste(image, mask)
        with counted_randomness(0, 0, index):
            assert torch.equal(paste(image, mask)[1], labels)  # by the position alone
        classes = set(labels.unique().tolist()) - {0}
        assert len(classes) < 2  # one object
        for leaf in classes:
            where = labels == leaf
            assert (new[:, where] == {1: 31, 2: 12}[leaf]).all() and (new[:, ~where] == 200).all()
            sizes[leaf].append(int(where.sum()))
    assert set(sizes[1]) == {14} and set(sizes[2]) == {15, 2}  # cut to fit; objects that hang together
    assert 70 < len(sizes[1]) + len(sizes[2]) < 130 and len(sizes[1]) > 25 < len(sizes[2])
    assert (mask == 0).all() and (image == 200).all()
    nothing = CopyPaste(Painted(), 1.0, np.arange(1), pixels[:1])
    assert nothing(image, mask)[1] is mask


def test_how_often_crops_are_placed():
    mask = torch.zeros((300, 300), dtype=torch.uint8)
    mask[10, 10] = 1
    for share, low, high in ((0.0, 0, 0.05), (0.5, 0.38, 0.62), (1.0, 1, 1)):
        transform = transform_of(Geometry(16, windows=True), rare_crop=share)
        found = [(augment(transform, (show(mask), mask), index)[1] == 1).any() for index in range(120)]
        assert low <= np.mean(found) <= high


# ---- sizes


def test_resized():
    for geometry, size, expected in [
        (Geometry(32), (50, 80), (32, 32)),
        (Geometry(32), (1, 1000), (32, 32)),
        (Geometry(32, "fit"), (50, 80), (20, 32)),
        (Geometry(32, "fit"), (80, 50), (32, 20)),
        (Geometry(32, "fit"), (16, 8), (32, 16)),  # small images are enlarged
        (Geometry(32, "fit"), (1000, 1), (32, 1)),
        (Geometry(32, "fit"), (1, 1), (32, 32)),
        (Geometry(32, "fit"), (49, 33), (32, 22)),  # 21.55
        (Geometry(32, "fit"), (100, 45), (32, 14)),  # 14.4
        (Geometry(32, windows=True), (50, 80), (50, 80)),
        (Geometry(32, windows=True), (3, 1), (3, 1)),
        (Geometry(32, "fit", windows=True), (50, 80), (50, 80)),
        (Geometry(32, windows=True, resize_longer=40), (50, 80), (25, 40)),
        (Geometry(32, windows=True, resize_longer=160), (80, 50), (160, 100)),
        (Geometry(32, windows=True, resize_longer=40), (4000, 3), (40, 1)),
        (Geometry(32, resize_longer=40), (50, 80), (32, 32)),  # without windows it says nothing
    ]:
        assert geometry.resized(*size) == expected
        image, mask = torch.zeros((3, *size), dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
        sample = MaskEvaluationTransform(geometry, MEAN)(image, mask)
        assert sample["resized"] == expected
        assert sample["labels"].shape == tuple(max(32, side) for side in expected)
        assert augment(transform_of(geometry, scale_jitter=(0.1, 3)), (image, mask))[1].shape == (32, 32)


def test_the_longer_side_always_fits():
    for longer in range(1, 400):
        for size in (32, 224, 333):
            assert Geometry(size, "fit").resized(longer, max(1, longer // 3))[0] == size


def test_nearest_takes_the_pixel_under_the_centre():
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width, rows, columns = rng.integers(1, 30, 4)
        mask = torch.from_numpy(rng.integers(0, 256, (height, width), dtype=np.uint8))
        down, across = (((np.arange(n) + 0.5) * side / n) for n, side in ((rows, height), (columns, width)))
        ties = np.isclose(down, down.round()), np.isclose(across, across.round())  # between two pixels
        expected = mask.numpy()[np.ix_(down.astype(int), across.astype(int))]
        actual = nearest(mask, (int(rows), int(columns))).numpy()
        assert actual.shape == (rows, columns)
        np.testing.assert_array_equal(actual[~ties[0]][:, ~ties[1]], expected[~ties[0]][:, ~ties[1]])


# ---- evaluation


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_evaluation(geometry):
    for size in SIZES:
        image, mask = blobs(*size)
        mask[0, 0] = 255
        before = mask.clone()
        sample = MaskEvaluationTransform(geometry, MEAN)(image, mask)
        height, width = sample["resized"]
        pixels, labels = sample["pixels"], sample["labels"]
        assert torch.equal(sample["truth"], before) and torch.equal(mask, before)
        assert pixels.dtype == labels.dtype == torch.uint8 and pixels.shape[1:] == labels.shape
        assert labels.shape == (max(32, height), max(32, width))
        assert torch.equal(pixels[:, :height, :width], v2.functional.resize(image, [height, width], antialias=True))
        assert torch.equal(labels[:height, :width], nearest(mask, (height, width)))
        outside = torch.ones(labels.shape, dtype=torch.bool)
        outside[:height, :width] = False
        assert (labels[outside] == 255).all() and (pixels[:, outside] == FILL[:, None]).all()
        again = MaskEvaluationTransform(geometry, MEAN)(image, mask)
        assert torch.equal(again["pixels"], pixels) and torch.equal(again["labels"], labels)


# ---- data sets


class Memory:
    """In the place of MaskedImageRows; row ``broken`` does not decode."""

    def __init__(self, size=7, broken=()):
        self.pairs = [blobs(40 + 3 * row, 60 - 2 * row, row) for row in range(size)]
        self.broken = broken

    def encoded(self, indices):
        return [int(index) for index in indices]

    def apply(self, transform, index, source):
        assert source == index
        if index in self.broken:
            raise BadSampleError(f"row {index}")
        return transform(*self.pairs[index])


def masked_images(rows=7, **options):
    transform = transform_of(
        Geometry(24), **TURNED, **{"rare_crop": 0.5, "scale_jitter": (0.5, 2), "color_jitter": 0.2}
    )
    return Samples(Memory(), np.arange(rows), transform, **options)


def assert_equal_samples(one, two):
    assert one.keys() == two.keys() == {"pixels", "labels", "rows", "problems"}
    assert all(torch.equal(one[name], two[name]) for name in ("pixels", "labels", "rows"))


def test_samples_depend_on_seed_epoch_and_row_alone():
    images = masked_images(seed=3)
    keys = [(epoch, row) for epoch in range(2) for row in range(7)]
    single = {key: images[key] for key in keys}
    torch.manual_seed(99), np.random.seed(5), random.seed(6)
    state = torch.get_rng_state()
    together = images.__getitems__(keys[::-1])
    assert torch.equal(torch.get_rng_state(), state)
    for key, sample in zip(keys[::-1], together, strict=True):
        assert_equal_samples(sample, single[key])
        assert sample["rows"] == key[1] and sample["problems"] == []
    for (epoch, row), sample in single.items():
        assert not torch.equal(sample["pixels"], single[1 - epoch, row]["pixels"])
        assert not torch.equal(sample["pixels"], masked_images(seed=4)[epoch, row]["pixels"])


def test_a_subset_of_rows_is_augmented_alike():
    """The row counts, not the place among the rows in use."""
    images = masked_images(seed=3)
    some = Samples(images.images, np.array([5, 2]), images.transform, seed=3)
    for index, row in enumerate((5, 2)):
        assert_equal_samples(some[0, index], images[0, row])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_workers(num_workers):
    keys = [[(0, 3), (0, 1), (0, 6)], [(0, 0), (1, 0)], [(2, 5)]]
    expected = [[masked_images(seed=3)[key] for key in batch] for batch in keys]
    torch.manual_seed(num_workers)
    batches = list(make_loader(masked_images(seed=3), keys, num_workers, pin_memory=False))
    assert len(batches) == 3
    for batch, samples in zip(batches, expected, strict=True):
        for name in ("pixels", "labels", "rows"):
            assert torch.equal(batch[name], torch.stack([sample[name] for sample in samples]))


def test_evaluation_batches_keep_every_truth():
    images = Samples(
        Memory(broken=(2,)), np.arange(7), MaskEvaluationTransform(Geometry(24, "fit"), MEAN), on_bad_sample="drop"
    )
    (batch,) = make_loader(images, [[(0, 1), (0, 2), (0, 4)]], 0, pin_memory=False)
    assert batch["problems"] == ["row 2"] and batch["rows"].tolist() == [1, 4]
    assert batch["pixels"].shape == (2, 3, 24, 24) and batch["labels"].shape == (2, 24, 24)
    assert [truth.shape for truth in batch["truth"]] == [(43, 58), (52, 52)]
    assert batch["resized"] == [(18, 24), (24, 24)]


def test_broken_rows_are_replaced():
    images = Samples(Memory(broken=(2, 3)), np.arange(7), transform_of(Geometry(24)), None, 3, "replace")
    sample = images[0, 2]
    assert sample["rows"] == 4 and sample["problems"] == ["row 2", "row 3"]
    assert torch.equal(sample["pixels"], images[0, 4]["pixels"])
