"""SPML's walk, retrieval and windows: equal to their straightforward forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weakseg.methods.spml import retrieval
from weakseg.methods.spml.clustering import normalised
from weakseg.methods.spml.inference import Windows, windowed
from weakseg.methods.spml.pseudo_labels import cells_of, present_seed, propagated_scores, transition, walk
from weakseg.methods.spml.retrieval import LabelledSegments, image_clusters, label_shares, majority, nearest


@given(st.integers(1, 9), st.integers(1, 60), st.integers(1, 25), st.integers(1, 100), st.integers(0, 99))
def test_the_nearest_of_parts_are_those_of_a_full_sort(
    queries: int, memory: int, k: int, chunk: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    asked, known = torch.randn(queries, 5, generator=random), torch.randn(memory, 5, generator=random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "CHUNK", chunk)
        found = nearest(asked, known, k)
    similar = (asked.double() @ known.double().T).sort(1, descending=True).values[:, :k]
    torch.testing.assert_close((asked.double() @ known.double().T).gather(1, found), similar, rtol=0, atol=1e-5)
    assert all(len(set(row)) == min(k, memory) for row in found.tolist())


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 30), st.integers(0, 65), st.integers(0, 99))
def test_a_walk_is_a_power_of_the_transition(height: int, width: int, rows: int, steps: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    cells = height * width
    step = transition(torch.rand(cells, cells, generator=random, dtype=torch.float64) + 0.5, 3)
    maps = torch.rand(rows, height, width, generator=random, dtype=torch.float64)
    maps[0] = 0
    power = torch.linalg.matrix_power(step, steps)
    torch.testing.assert_close(walk(maps, step, steps).flatten(1), maps.flatten(1) @ power)
    torch.testing.assert_close(step.sum(0), torch.ones(cells, dtype=torch.float64))


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 99))
def test_a_cluster_has_its_most_frequent_and_lowest_label(pixels: int, clusters: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, cluster = random.integers(0, 256, pixels) % 5 * 60, random.integers(0, clusters, pixels)
    found = majority(torch.from_numpy(labels), torch.from_numpy(cluster), clusters)
    for number in set(cluster.tolist()):
        assert found[number] == np.bincount(labels[cluster == number]).argmax()


def test_label_shares_sum_to_one_whatever_the_memory_is() -> None:
    memory = LabelledSegments(normalised(torch.randn(3, 4)), torch.tensor([0, 2, 255])).of_classes(3)
    assert memory.labels.tolist() == [0, 2]
    found = nearest(torch.randn(5, 4), memory.prototypes, 20)
    assert found.shape == (5, 2)
    assert label_shares(memory.labels[found], 3).sum(1).tolist() == [1] * 5


@pytest.mark.parametrize(("crop", "stride"), [(5, 3), (5, 5), (20, 20), (0, 0)])
def test_windows_of_a_network_that_looks_at_single_pixels_change_nothing(crop: int, stride: int) -> None:
    image = torch.randn(3, 11, 7)
    found = windowed(lambda images: 2 * images, image, Windows((crop, crop), (stride, stride)))
    torch.testing.assert_close(found[:, :11, :7], 2 * image)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1)])
def test_tiny_images_have_clusters_and_cells(size: tuple[int, int]) -> None:
    assert cells_of(size) == (1, 1)
    clusters = image_clusters(torch.randn(4, *size), (12, 12))
    assert clusters.shape == size
    assert set(clusters.flatten().tolist()) == set(range(int(clusters.max()) + 1))


def test_absent_classes_and_images_without_labels_get_no_score() -> None:
    seed = present_seed(torch.rand(4, 3, 3), {0, 2})
    assert seed.amax((1, 2)).tolist() == pytest.approx([1, 0, 1, 0])
    assert not present_seed(torch.zeros(4, 3, 3), {0, 2}).any()
    nothing = torch.full((4, 5), 254)
    scores = propagated_scores(torch.randn(6, 4, 5), nothing, torch.zeros_like(nothing), 3, (2, 2))
    assert not scores.any()
