"""Rounds: stages that are repeated, each time reading the round before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import TINY, write_tiny_voc
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run

TWICE = "rounds.count=2"


def test_each_round_reads_the_one_before() -> None:
    stages = load_recipe("toy-cda", [TWICE]).stages
    names = ["pool", "cam", "maps", "masks"]
    rounds = [f"round-{number}/{name}" for number in (1, 2) for name in names]
    assert list(stages) == [*names[1:], *rounds, "segment", "scores"]
    assert {name: stage.inputs_of() for name, stage in stages.items()} == {
        "cam": [],
        "maps": ["cam"],
        "masks": ["maps"],
        "round-1/pool": ["masks"],
        "round-1/cam": ["round-1/pool"],
        "round-1/maps": ["round-1/cam"],
        "round-1/masks": ["round-1/maps"],
        "round-2/pool": ["round-1/masks"],
        "round-2/cam": ["round-2/pool"],
        "round-2/maps": ["round-2/cam"],
        "round-2/masks": ["round-2/maps"],
        "segment": ["round-2/masks"],
        "scores": ["masks", "round-2/masks", "segment"],
    }
    assert [stages[name].kind for name in ("cam", "round-1/cam", "round-2/cam")] == ["localise", "paste", "paste"]


def test_without_repetition_the_last_round_is_the_first() -> None:
    stages = load_recipe("toy-cda", ["rounds.count=0"]).stages
    assert list(stages) == ["cam", "maps", "masks", "segment", "scores"]
    assert stages["segment"].inputs_of() == ["masks"]


def test_a_change_of_a_repeated_stage_changes_its_copies() -> None:
    stages = load_recipe("toy-cda", [TWICE, "maps.scales=[0.5]", "cam.train.lr=0.25"]).stages
    rounds = ("", "round-1/", "round-2/")
    assert [stages[f"{number}maps"].scales for number in rounds] == [(0.5,)] * 3
    assert [stages[f"{number}cam"].train.lr for number in rounds] == [0.25] * 3


def test_a_change_of_one_round_changes_no_other() -> None:
    before = load_recipe("toy-cda", [TWICE]).stages
    after = load_recipe("toy-cda", [TWICE, "round-1/cam.train.epochs=1"]).stages
    assert after["round-1/cam"].train.epochs == 1
    assert [name for name in before if before[name] != after[name]] == ["round-1/cam"]


def test_what_differs_in_repeated_stages_can_be_changed_for_all_of_them() -> None:
    stages = load_recipe("toy-cda", [TWICE, "rounds.changes.cam.paste={variant: scale}"]).stages
    assert [stages[f"round-{number}/cam"].paste.variant for number in (1, 2)] == ["scale"] * 2


def test_texts_of_changes_tell_the_number_of_the_round() -> None:
    changes = "rounds.changes.maps.options={'at {round}': ['a {round}', {b: '{round}{round}'}, 7]}"
    stages = load_recipe("toy-cda", [TWICE, changes]).stages
    assert stages["round-2/maps"].options == {"at 2": ["a 2", {"b": "22"}, 7]}
    assert stages["round-1/maps"].options == {"at 1": ["a 1", {"b": "11"}, 7]}
    assert stages["maps"].options == {}


def test_written_down_all_rounds_are_stages(tmp_path: Path) -> None:
    recipe = load_recipe("toy-cda", [TWICE])
    (tmp_path / "written.yaml").write_text(recipe.as_yaml(), encoding="utf-8")
    assert load_recipe(str(tmp_path / "written.yaml")) == recipe


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("rounds.cuont=1", ["rounds.cuont", "count"]),
        ("rounds.count=-1", ["rounds.count", "-1"]),
        ("rounds=3", ["rounds", "3"]),
        ("rounds.stages=[]", ["rounds.stages"]),
        ("rounds.stages=[cam, mops]", ["rounds.stages", '"mops"']),
        ("rounds.changes.pool.masks=previous/mask", ["round-1/pool.masks", '"previous/mask"']),
        ("rounds.changes.pool.kind=pond", ["round-1/pool.kind", '"pond"', "pool"]),
        ("rounds.changes.cam.train.epoch=1", ["round-1/cam.train.epoch", "epochs"]),
        ("round-2/cam.train.epochs=1", ["round-2/cam", "round-1/cam"]),
        ("segment.masks=last/mask", ["segment.masks", '"last/mask"', "round-1/masks"]),
        ("maps.localiser=previous/cam", ["maps.localiser", '"previous/cam"']),
    ],
)
def test_what_is_wrong_with_rounds_is_named(change: str, said: list[str]) -> None:
    with pytest.raises(WeaksegError) as caught:
        load_recipe("toy-cda", [change])
    for word in said:
        assert word in str(caught.value)


def test_one_more_round_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    dataset, short = open_dataset(write_tiny_voc(tmp_path / "data")), "rounds.changes.cam.train.epochs=1"

    def running(*changes: str) -> list[str]:
        lines: list[str] = []
        recipe = load_recipe("toy-cda", [*TINY, short, "segment=null", *changes])
        run(recipe, dataset, tmp_path / "run", lines.append)
        return [line.removesuffix(": running") for line in lines if line.endswith(": running")]

    first = [f"round-1/{name}" for name in ("pool", "cam", "maps", "masks")]
    assert running("rounds.count=0") == ["cam", "maps", "masks", "scores"]
    assert running() == [*first, "scores"]
    assert running(TWICE) == [*(name.replace("1", "2") for name in first), "scores"]
    assert running(TWICE) == []
    assert running(TWICE, "round-1/masks.crf=null") == [
        "round-1/masks",
        *(n.replace("1", "2") for n in first),
        "scores",
    ]
