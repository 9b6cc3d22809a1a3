"""Recipes with their refinement taken away or exchanged, so that any localiser can be tried with any refiner.

In both, the stages between maps and pseudo-masks are of the kinds `refine` (learned from the maps) and `walk` (the
refined maps); `instances` that a refinement finds belong to it. Everything else stays what it was.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from typing import cast

from weakseg.errors import WeaksegError
from weakseg.pipeline.recipe import Recipe
from weakseg.pipeline.stage import Stage
from weakseg.pipeline.stages.evaluate import Evaluate
from weakseg.pipeline.stages.masks import Masks
from weakseg.pipeline.stages.segment import Segment
from weakseg.pipeline.stages.walk import Walk

REFINING = ("refine", "walk", "instances")
UNREFINED, WALKED = "unrefined_masks", "walked"
"""The stages of masks that are made beside the final ones where a refinement is put into a recipe."""
WALK, WALK_AND_CRF = "Walk", "Walk + CRF"
"""Their rows of scores, named as in the recipes of refiners."""


def refining_stages(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recipe that refine maps."""
    return {name: stage for name, stage in recipe.stages.items() if stage.kind in REFINING}


def without_refinement(recipe: Recipe) -> Recipe:
    """The recipe without its refinement: its final masks are made from the maps that were refined.

    Other masks from refined maps are left out. Of masks that become the same, the first stay. Raises `WeaksegError`
    for a recipe that refines in several rounds.
    """
    removed = refining_stages(recipe)
    if not removed:
        return recipe
    _require_one_round(recipe, removed)
    final = final_masks(recipe.stages)
    instead: dict[str, str] = {}
    kept: dict[str, Stage] = {}
    for name, old in recipe.stages.items():
        if isinstance(old, Walk):
            instead[name] = instead.get(old.maps, old.maps)
        if name in removed:
            continue
        if isinstance(old, Masks) and old.maps in removed and name != final:
            removed[name] = old
            continue
        stage = _measured_anew(old, removed, instead, final) if isinstance(old, Evaluate) else old.reading(instead)
        if needed := [source for source in stage.inputs_of() if source in removed]:
            raise WeaksegError(
                f'The refinement of "{recipe.name}" cannot be taken away: "{name}" reads the stage "{needed[0]}".'
            )
        twin = next((other for other, known in kept.items() if known == stage and isinstance(stage, Masks)), None)
        if twin is None:
            kept[name] = stage
        else:
            instead[name] = twin
    return replace(recipe, name=f"{recipe.name}-unrefined", stages=kept)


def _measured_anew(
    scores: Evaluate, removed: Container[str], instead: Mapping[str, str], final: str | None
) -> Evaluate:
    """The rows of scores that are left; those of the final masks say that these are not refined any more."""

    def rows(old: Mapping[str, str]) -> dict[str, str]:
        new: dict[str, str] = {}
        for title, source in old.items():
            if source not in removed and instead.get(source, source) not in new.values():
                new[f"{title} without refinement" if source == final else title] = instead.get(source, source)
        return new

    return scores.model_copy(update={"curves": rows(scores.curves), "masks": rows(scores.masks)})


def with_refinement(recipe: Recipe, refiner: Recipe) -> Recipe:
    """The recipe with the stages of `refiner` that refine maps, in place of its own.

    The pseudo-masks that are trained on are then made from the refined maps, with the settings that they had. Those
    from the maps as they were are made and measured beside them, and so are the refined maps without CRF.
    """
    plain, refining = without_refinement(recipe), refining_stages(refiner)
    walks = [name for name, stage in refining.items() if stage.kind == "walk"]
    if not walks:
        raise WeaksegError(f'The recipe "{refiner.name}" refines nothing: it has no stage of kind walk.')
    _require_one_round(refiner, refining)
    final = final_masks(plain.stages)
    if final is None:
        raise WeaksegError(f'The recipe "{recipe.name}" has no pseudo-masks, so there is nothing to refine.')
    masks = cast(Masks, plain.stages[final])
    between: dict[str, Stage] = {
        UNREFINED: masks,
        **dict(_fitted(refiner, refining, plain, masks)),
        WALKED: masks.model_copy(update={"maps": walks[-1], "crf": None}),
    }
    rows = {WALK: WALKED, WALK_AND_CRF: final}
    if masks.crf is None:  # then the final masks are the walked ones
        del between[WALKED]
        rows = {WALK: final}
    stages: dict[str, Stage] = {}
    for name, stage in plain.stages.items():
        if name == final:
            if taken := sorted(set(between) & set(plain.stages)):
                raise WeaksegError(
                    f'"{recipe.name}" and "{refiner.name}" both have a stage "{taken[0]}"; rename one of them.'
                )
            stages.update(between)
            stage = masks.model_copy(update={"maps": walks[-1]})
        elif isinstance(stage, Evaluate) and final in stages:
            # What was measured of the final masks is measured of the unrefined ones, under its old title.
            before = stage.reading({final: UNREFINED}).model_dump()
            stage = Evaluate.model_validate({**before, "masks": {**before["masks"], **rows}})
        stages[name] = stage
    return replace(recipe, name=f"{recipe.name}+{refiner.name}", stages=stages)


def _require_one_round(recipe: Recipe, refining: Mapping[str, Stage]) -> None:
    """Raise `WeaksegError` where the maps of several stages are refined: each round builds on the one before."""
    references = [reference for stage in refining.values() for reference in stage.references()]
    refined = sorted({name for _, name, reads in references if reads.artifacts == ("maps",)} - refining.keys())
    if len(refined) > 1:
        raise WeaksegError(
            f'The recipe "{recipe.name}" refines in several rounds (the maps of {" and ".join(refined)}), so its '
            "refinement can be neither taken away nor exchanged nor given to another recipe. Compare it without "
            "--refine, or name a recipe that refines once."
        )


def final_masks(stages: Mapping[str, Stage]) -> str | None:
    """The stage of pseudo-masks that a recipe leads to: the one its segmenter learns from, or else the last."""
    found = [name for name, stage in stages.items() if isinstance(stage, Masks)]
    read = [stage.masks for stage in stages.values() if isinstance(stage, Segment) and stage.masks is not None]
    return next((name for name in reversed(found) if name in read), found[-1] if found else None)


def _fitted(refiner: Recipe, refining: Mapping[str, Stage], plain: Recipe, masks: Masks) -> Iterator[tuple[str, Stage]]:
    """The refining stages of another recipe, reading the maps, their masks and the localiser of this one."""
    own = {"maps": masks.maps, "masks": UNREFINED}
    own |= {plain.stages[name].leaves or "": name for name in plain.stages[masks.maps].inputs_of()}
    for name, stage in refining.items():
        instead: dict[str, str] = {}
        for key, source, _ in stage.references():
            if source not in refining:
                artifact = refiner.stages[source].leaves
                if artifact not in own:
                    raise WeaksegError(
                        f'{refiner.name}: {name}.{key} reads "{source}", and "{plain.name}" has nothing like it.'
                    )
                instead[source] = own[artifact]
        yield name, stage.reading(instead)
