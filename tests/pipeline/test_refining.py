"""Recipes without their refinement, and with another's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from weakseg.errors import WeaksegError
from weakseg.pipeline.recipe import Recipe, load_recipe
from weakseg.pipeline.refining import with_refinement, without_refinement


def inputs(recipe: Recipe) -> dict[str, set[str]]:
    """What every stage reads; each must come before."""
    found: dict[str, set[str]] = {}
    for name, stage in recipe.stages.items():
        assert set(stage.inputs_of()) <= set(found)
        found[name] = set(stage.inputs_of())
    return found


def read_again(recipe: Recipe, folder: Path) -> Recipe:
    path = folder / "written.yaml"
    path.write_text(recipe.as_yaml(), encoding="utf-8")
    return load_recipe(str(path))


def test_a_refinement_is_put_between_maps_and_masks(tmp_path: Path) -> None:
    cam, affinitynet = load_recipe("cam"), load_recipe("affinitynet")
    both = with_refinement(cam, affinitynet)
    assert both.name == "cam+affinitynet"
    assert inputs(both) == {
        "cam": set(),
        "maps": {"cam"},
        "unrefined_masks": {"maps"},
        "affinity": {"maps"},
        "walk": {"affinity", "maps", "unrefined_masks"},
        "walked": {"walk"},
        "masks": {"walk"},
        "segment": {"masks", "cam"},
        "scores": {"masks", "segment", "unrefined_masks", "walked"},
    }
    assert both.stages["unrefined_masks"] == cam.stages["masks"]
    assert both.stages["affinity"] == affinitynet.stages["affinity"]
    scores = both.stages["scores"].model_dump()
    assert scores["curves"] == {"CAM": "unrefined_masks"}
    assert scores["masks"] == {"CAM + CRF": "unrefined_masks", "Walk": "walked", "Walk + CRF": "masks"}
    assert read_again(both, tmp_path) == both


def test_what_a_recipe_calls_its_stages_does_not_matter(tmp_path: Path) -> None:
    text = load_recipe("cam").as_yaml()
    for old, new in (("cam", "see"), ("maps", "heat"), ("masks", "paint")):
        text = text.replace(f": {old}\n", f": {new}\n").replace(f"  {old}:\n    kind", f"  {new}:\n    kind")
    text = text.replace("kind: heat", "kind: maps").replace("kind: paint", "kind: masks")
    text = text.replace("method: see", "method: cam")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    mine = with_refinement(load_recipe(str(tmp_path / "mine.yaml")), load_recipe("affinitynet"))
    assert inputs(mine)["walk"] == {"affinity", "heat", "unrefined_masks"}
    assert inputs(mine)["paint"] == {"walk"}
    assert inputs(mine)["segment"] == {"paint", "see"}


def test_without_crf_the_walked_masks_are_the_final_ones() -> None:
    both = with_refinement(load_recipe("cam", ["masks.crf=null"]), load_recipe("affinitynet"))
    assert "walked" not in both.stages
    assert both.stages["scores"].model_dump()["masks"] == {"CAM + CRF": "unrefined_masks", "Walk": "masks"}


def test_taken_away_it_leaves_the_recipe_that_was_refined() -> None:
    plain = without_refinement(load_recipe("affinitynet"))
    assert plain.name == "affinitynet-unrefined"
    assert inputs(plain) == {
        "cam": set(),
        "maps": {"cam"},
        "cam_masks": {"maps"},
        "segment": {"cam_masks", "cam"},
        "scores": {"cam_masks", "segment"},
    }
    scores = plain.stages["scores"].model_dump()
    assert scores["curves"] == {"CAM": "cam_masks"}
    assert scores["masks"] == {"CAM + CRF": "cam_masks"}
    assert (
        plain.stages["segment"].model_dump()
        == load_recipe("cam").stages["segment"].reading({"masks": "cam_masks"}).model_dump()
    )
    assert without_refinement(load_recipe("cam")) == load_recipe("cam")


def test_final_masks_that_lose_their_refinement_say_so() -> None:
    plain = without_refinement(load_recipe("affinitynet", ["cam_masks.crf=null"]))
    scores = plain.stages["scores"].model_dump()
    assert scores["masks"] == {"CAM + CRF": "cam_masks", "Walk + CRF without refinement": "masks"}
    assert inputs(plain)["masks"] == {"maps"}


def test_a_refinement_replaces_another() -> None:
    affinitynet = load_recipe("affinitynet")
    faster = load_recipe("affinitynet", ["affinity.train.steps=100"])
    both = with_refinement(affinitynet, faster)
    inputs(both)
    assert [name for name, stage in both.stages.items() if stage.kind == "walk"] == ["walk"]
    assert both.stages["affinity"] == faster.stages["affinity"]


@pytest.mark.parametrize(
    ("recipe", "refiner", "message"),
    [
        ("cam", "toy-cam", 'The recipe "toy-cam" refines nothing: it has no stage of kind walk'),
        ("supervised", "affinitynet", 'The recipe "supervised" has no pseudo-masks, so there is nothing to refine'),
    ],
)
def test_what_cannot_be_refined(recipe: str, refiner: str, message: str) -> None:
    with pytest.raises(WeaksegError, match=message):
        with_refinement(load_recipe(recipe), load_recipe(refiner))


@pytest.mark.parametrize(
    "change",
    [
        without_refinement,
        lambda recipe: with_refinement(recipe, load_recipe("affinitynet")),
        lambda recipe: with_refinement(load_recipe("cam"), recipe),
    ],
    ids=["taken away", "exchanged", "given to another"],
)
def test_a_refinement_in_several_rounds_is_refused(change: Callable[[Recipe], Recipe]) -> None:
    with pytest.raises(
        WeaksegError, match=r'"cda-affinitynet" refines in several rounds \(the maps of maps and round-1/maps\)'
    ):
        change(load_recipe("cda-affinitynet"))


def test_of_two_rounds_without_refinement_the_last_is_given_one(tmp_path: Path) -> None:
    twice = load_recipe("toy-cda")
    assert without_refinement(twice) == twice
    both = with_refinement(twice, load_recipe("affinitynet"))
    read = inputs(both)
    assert (read["round-1/pool"], read["round-1/cam"], read["round-1/maps"]) == (
        {"masks"},
        {"round-1/pool"},
        {"round-1/cam"},
    )
    assert (read["affinity"], read["walk"], read["round-1/masks"]) == (
        {"round-1/maps"},
        {"affinity", "round-1/maps", "unrefined_masks"},
        {"walk"},
    )
    assert both.stages["masks"] == twice.stages["masks"]
    assert read["segment"] == {"round-1/masks"}
    scores = both.stages["scores"].model_dump()
    assert scores["curves"] == {"CAM": "masks", "CDA CAM": "unrefined_masks"}
    assert scores["masks"] == {
        "CAM + CRF": "masks",
        "CDA CAM + CRF": "unrefined_masks",
        "Walk": "walked",
        "Walk + CRF": "round-1/masks",
    }
    assert read_again(both, tmp_path) == both


def test_stages_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: cam\nname: mine\nabout: a stage of the refiner's name\n"
        "stages:\n  walk: {kind: maps, localiser: cam}\n",
        encoding="utf-8",
    )
    with pytest.raises(WeaksegError, match='"mine" and "affinitynet" both have a stage "walk"; rename one of them'):
        with_refinement(load_recipe(str(path)), load_recipe("affinitynet"))
