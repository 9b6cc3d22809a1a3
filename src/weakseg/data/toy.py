"""A toy world with the troubles of the real one, drawn on the spot: a countryside with six classes of things.

What makes weak labels hard in photographs is put in on purpose:

- Every class has a small telling part (a head, wheels, a striped funnel) and a large plain body whose colours it
  shares with a second class and with a background thing: a classifier learns the part and neglects the body.
- Every class has a context (a road, a river, a fence …) that is nearly always in the picture when the class is, and
  seldom when it is not: a classifier learns the context, too.
- Things hide each other, come in many sizes, are cut off by the frame, and stand in textured scenes.

A scene is drawn from far to near at three times the resolution, in two pictures at once: the colours, and the number
of the thing that owns each pixel. Labels, instances and contexts are read off the second one.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_bytes, write_json, write_text
from weakseg.labels import BACKGROUND, VOID, palette, tags_of

Colour = tuple[int, int, int]
Points = npt.NDArray[np.float64]
LabelMap = npt.NDArray[np.uint8]

CONTEXT_OF_CLASS = 0.85
CONTEXT_OF_EMPTY_ROW = 0.3
LOOKALIKE = 0.25
THINGS = {1: 0.45, 2: 0.40, 3: 0.15}
SMALLEST_VISIBLE_SHARE = 0.45

OVERSAMPLING = 3
SIZES = range(32, 1025)
JPEG_QUALITY = 95
SETTINGS_NAME = "toy.json"

WHITE: Colour = (250, 248, 240)
INK: Colour = (38, 34, 40)
BEAK: Colour = (240, 140, 30)
PINK: Colour = (232, 160, 150)
GLASS: Colour = (196, 224, 236)
TIMBER: Colour = (150, 118, 84)
REED: Colour = (108, 132, 56)
CATTAIL: Colour = (104, 66, 44)
STRAW: Colour = (222, 186, 96)
PINE: Colour = (34, 92, 70)
ASPHALT: Colour = (112, 112, 120)
WATER: Colour = (84, 152, 200)

WOOL: tuple[Colour, ...] = ((246, 240, 226), (226, 218, 204), (206, 202, 198), (238, 226, 196))
HIDE: tuple[Colour, ...] = ((150, 84, 46), (184, 98, 48), (112, 66, 44), (204, 122, 64))
PAINT: tuple[Colour, ...] = ((206, 52, 48), (238, 134, 40), (242, 196, 52), (140, 70, 152), (214, 80, 130))
MEADOWS: tuple[Colour, ...] = ((122, 168, 74), (96, 150, 78), (146, 172, 82), (110, 158, 96))
SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((96, 164, 228), (170, 212, 242)),
    ((118, 176, 214), (184, 222, 228)),
    ((138, 142, 204), (206, 190, 226)),
)


@dataclass(frozen=True)
class Thing:
    """What the pixels of one drawn thing mean. `grain` is the strength of its texture, 0 … 1."""

    grain: float
    label: int = BACKGROUND
    instance: int = 0
    context: int = 0


class Canvas:
    """A square picture under work. Points are in units of its side, x right, y down."""

    def __init__(self, size: int) -> None:
        self.size = size
        side = size * OVERSAMPLING
        self.colours = Image.new("RGB", (side, side))
        self.owners = Image.new("L", (side, side))
        self.things: list[Thing] = []
        self._colour_pen = ImageDraw.Draw(self.colours)
        self._owner_pen = ImageDraw.Draw(self.owners)

    def add(self, thing: Thing) -> int:
        """The number under which a new thing owns pixels."""
        self.things.append(thing)
        return len(self.things) - 1

    def fill(self, owner: int, points: Points, colour: Colour) -> None:
        """Draw a polygon with the vertices `points` (n, 2)."""
        vertices = (points * self.owners.width).ravel().tolist()
        self._colour_pen.polygon(vertices, fill=colour)
        self._owner_pen.polygon(vertices, fill=owner)

    def area(self, owner: int) -> int:
        """How many of the fine pixels a thing owns now."""
        return self.owners.histogram()[owner]


@dataclass(frozen=True)
class Brush:
    """Draws one thing in its own coordinates: x forward, y up, (0, 0) at its feet, `scale` sides of the canvas long."""

    canvas: Canvas
    owner: int
    x: float
    y: float
    scale: float
    mirrored: bool = False

    def at(self, x: float, y: float, scale: float) -> Brush:
        """A smaller brush whose feet are at (x, y) of this one."""
        return Brush(self.canvas, self.owner, self.x + x * self.scale, self.y - y * self.scale, self.scale * scale)

    def polygon(self, points: Sequence[tuple[float, float]] | Points, colour: Colour) -> None:
        forward = -self.scale if self.mirrored else self.scale
        on_canvas = (self.x, self.y) + np.asarray(points, np.float64) * (forward, -self.scale)
        self.canvas.fill(self.owner, on_canvas, colour)

    def box(self, left: float, right: float, bottom: float, top: float, colour: Colour) -> None:
        self.polygon([(left, bottom), (left, top), (right, top), (right, bottom)], colour)

    def legs(self, places: Sequence[float], width: float, top: float, colour: Colour) -> None:
        for x in places:
            self.box(x - width / 2, x + width / 2, 0, top, colour)

    def blob(self, x: float, y: float, rx: float, ry: float, colour: Colour, power: float = 2) -> None:
        """The superellipse |dx / rx|^power + |dy / ry|^power ≤ 1: an ellipse, or for 4 a box with round corners."""
        angle = np.linspace(0, 2 * math.pi, 32, endpoint=False)
        cos, sin = np.cos(angle), np.sin(angle)
        across = np.sign(cos) * np.abs(cos) ** (2 / power)
        along = np.sign(sin) * np.abs(sin) ** (2 / power)
        self.polygon(np.stack([x + rx * across, y + ry * along], axis=1), colour)

    def body(self, x: float, y: float, rx: float, ry: float, colour: Colour, power: float = 2) -> None:
        """A blob with the light from above."""
        self.blob(x, y, rx, ry, shade(colour, 0.88), power)
        self.blob(x, y + 0.1 * ry, 0.94 * rx, 0.88 * ry, colour, power)


def shade(colour: Colour, factor: float) -> Colour:
    """A colour made darker (factor < 1) or lighter (> 1)."""
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """A mixture with this share (0 … 1) of the second colour."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def random_colour(colours: Sequence[Colour], rng: np.random.Generator) -> Colour:
    """One of the colours with a little of another, a little lighter or darker."""
    first, second = rng.integers(len(colours), size=2)
    return shade(blend(colours[first], colours[second], rng.uniform(0, 0.35)), rng.uniform(0.93, 1.05))


# The six classes: the large plain body first, the small telling part last.


def draw_sheep(brush: Brush, coat: Colour) -> None:
    brush.legs((-0.28, -0.14, 0.16, 0.30), 0.07, 0.2, shade(coat, 0.72))
    for angle in np.linspace(0, 2 * math.pi, 11, endpoint=False):
        brush.blob(0.40 * math.cos(angle), 0.38 + 0.21 * math.sin(angle), 0.11, 0.10, shade(coat, 0.94))
    brush.body(0, 0.38, 0.44, 0.25, coat)
    for x, y in ((-0.26, 0.44), (-0.20, 0.28), (-0.04, 0.50), (0.02, 0.34), (0.20, 0.46), (0.22, 0.26)):
        brush.blob(x, y, 0.07, 0.045, shade(coat, 0.92))
    brush.blob(0.49, 0.50, 0.10, 0.13, INK)
    brush.blob(0.40, 0.58, 0.07, 0.03, INK)
    brush.blob(0.53, 0.53, 0.022, 0.022, WHITE)


def draw_goose(brush: Brush, coat: Colour) -> None:
    brush.legs((-0.06, 0.08), 0.05, 0.18, shade(BEAK, 0.9))
    brush.polygon([(-0.60, 0.54), (-0.30, 0.52), (-0.25, 0.26)], shade(coat, 0.90))
    brush.body(0, 0.38, 0.46, 0.24, coat)
    brush.blob(-0.08, 0.40, 0.26, 0.12, shade(coat, 0.93))
    brush.polygon([(0.24, 0.42), (0.36, 0.80), (0.47, 0.80), (0.46, 0.38)], coat)
    brush.blob(0.43, 0.82, 0.10, 0.09, coat)
    brush.polygon([(0.49, 0.88), (0.68, 0.78), (0.49, 0.75)], BEAK)
    brush.blob(0.45, 0.84, 0.025, 0.025, INK)


def draw_cow(brush: Brush, coat: Colour) -> None:
    brush.legs((-0.34, -0.22, 0.22, 0.34), 0.09, 0.3, shade(coat, 0.78))
    brush.body(0, 0.42, 0.44, 0.22, coat, power=4)
    brush.blob(-0.22, 0.46, 0.13, 0.10, shade(coat, 0.86))
    brush.blob(0.12, 0.36, 0.10, 0.07, shade(coat, 0.86))
    brush.blob(0.46, 0.60, 0.11, 0.13, shade(coat, 0.94), power=3)
    brush.blob(0.50, 0.52, 0.10, 0.065, PINK)
    brush.polygon([(0.36, 0.70), (0.33, 0.84), (0.43, 0.73)], WHITE)
    brush.polygon([(0.50, 0.73), (0.57, 0.84), (0.56, 0.70)], WHITE)
    brush.blob(0.44, 0.63, 0.022, 0.022, INK)
    brush.blob(0.53, 0.63, 0.022, 0.022, INK)


def draw_fox(brush: Brush, coat: Colour) -> None:
    brush.legs((-0.30, -0.19, 0.20, 0.30), 0.08, 0.3, shade(coat, 0.78))
    brush.polygon([(-0.36, 0.44), (-0.60, 0.62), (-0.74, 0.52), (-0.66, 0.34), (-0.36, 0.30)], shade(coat, 0.9))
    brush.body(0, 0.38, 0.42, 0.19, coat, power=2.5)
    brush.polygon([(0.30, 0.60), (0.30, 0.84), (0.42, 0.68)], coat)
    brush.polygon([(0.46, 0.68), (0.58, 0.84), (0.58, 0.60)], coat)
    brush.polygon([(0.26, 0.60), (0.36, 0.70), (0.52, 0.70), (0.62, 0.60), (0.46, 0.40)], coat)
    brush.polygon([(0.26, 0.60), (0.40, 0.56), (0.46, 0.40)], WHITE)
    brush.polygon([(0.62, 0.60), (0.50, 0.56), (0.46, 0.40)], WHITE)
    brush.blob(0.455, 0.42, 0.035, 0.035, INK)


def draw_car(brush: Brush, coat: Colour) -> None:
    brush.polygon([(-0.34, 0.36), (-0.22, 0.60), (0.18, 0.60), (0.34, 0.36)], shade(coat, 0.95))
    brush.polygon([(-0.10, 0.40), (-0.10, 0.55), (0.14, 0.55), (0.24, 0.40)], GLASS)
    brush.body(0, 0.26, 0.50, 0.17, coat, power=4)
    for x in (-0.28, 0.28):
        brush.blob(x, 0.11, 0.12, 0.12, INK)
        brush.blob(x, 0.11, 0.05, 0.05, GLASS)


def draw_boat(brush: Brush, coat: Colour) -> None:
    brush.polygon([(-0.52, 0.34), (-0.38, 0), (0.34, 0), (0.58, 0.34)], shade(coat, 0.88))
    brush.polygon([(-0.52, 0.34), (-0.42, 0.09), (0.42, 0.09), (0.58, 0.34)], coat)
    brush.blob(-0.02, 0.44, 0.28, 0.13, shade(coat, 0.95), power=4)
    brush.box(0.04, 0.20, 0.40, 0.52, GLASS)
    for bottom, colour in ((0.55, WHITE), (0.63, INK), (0.71, WHITE)):
        brush.box(-0.17, -0.03, bottom, bottom + 0.08, colour)


# Their contexts, drawn behind the things of a row; roads, rivers and fences reach from edge to edge.


def draw_fence(brush: Brush, rng: np.random.Generator) -> None:
    height, colour = rng.uniform(0.19, 0.24), shade(TIMBER, rng.uniform(0.85, 1.15))
    for post in np.arange(rng.uniform(-2, -1.9), 2, rng.uniform(0.13, 0.17)):
        brush.box(post, post + 0.03, 0.03, 0.03 + height, shade(colour, 0.85))
    for rail in (0.4, 0.8):
        brush.box(-2, 2, 0.01 + rail * height, 0.05 + rail * height, colour)


def draw_reeds(brush: Brush, rng: np.random.Generator) -> None:
    for x in np.sort(rng.uniform(-0.36, 0.36, size=32)):
        height, tip = rng.uniform(0.18, 0.38), x + rng.uniform(-0.04, 0.04)
        colour = shade(REED, rng.uniform(0.75, 1.2))
        brush.polygon([(x - 0.014, 0.02), (tip, height), (x + 0.014, 0.02)], colour)
        if rng.random() < 0.5:
            brush.blob(tip, height, 0.016, 0.045, CATTAIL)


def draw_hay(brush: Brush, rng: np.random.Generator) -> None:
    for side in (-1, 1):
        bale = brush.at(side * rng.uniform(0.18, 0.32), 0.04, rng.uniform(0.12, 0.16))
        bale.blob(0.5, 0.95, 1.0, 1.0, shade(STRAW, 0.78), power=4)
        for turn, radius in enumerate(np.arange(1.0, 0.1, -0.22)):
            bale.blob(0, 0.95, radius, radius, shade(STRAW, 0.88 if turn % 2 else 1.05))


def draw_pines(brush: Brush, rng: np.random.Generator) -> None:
    for x in (-0.32, -0.02, 0.29):
        tree = brush.at(x + rng.uniform(-0.05, 0.05), 0.05, rng.uniform(0.42, 0.58))
        colour = shade(PINE, rng.uniform(0.8, 1.25))
        tree.box(-0.04, 0.04, 0, 0.2, CATTAIL)
        for bottom, half in ((0.12, 0.27), (0.36, 0.21), (0.60, 0.14)):
            tree.polygon([(-half, bottom), (0, bottom + 0.40), (half, bottom)], shade(colour, 1 + bottom / 4))


def draw_road(brush: Brush, rng: np.random.Generator) -> None:
    colour = shade(ASPHALT, rng.uniform(0.85, 1.1))
    brush.box(-2, 2, -0.12, 0.14, shade(colour, 1.25))
    brush.box(-2, 2, -0.105, 0.125, colour)
    for left in np.arange(rng.uniform(-2, -1.8), 2, 0.22):
        brush.box(left, left + 0.11, 0, 0.02, WHITE)


def draw_river(brush: Brush, rng: np.random.Generator) -> None:
    colour = shade(WATER, rng.uniform(0.85, 1.1))
    brush.box(-2, 2, -0.14, 0.16, shade(STRAW, 0.95))
    brush.box(-2, 2, -0.125, 0.145, colour)
    for _ in range(70):
        x, y = rng.uniform(-1.3, 1.3), rng.uniform(-0.11, 0.13)
        brush.blob(x, y, rng.uniform(0.03, 0.08), 0.006, shade(colour, rng.choice([0.86, 1.22])))


# Background things with the colours of the bodies.


def draw_rock(brush: Brush, coat: Colour) -> None:
    brush.body(0, 0.22, 0.46, 0.26, shade(coat, 0.97), power=2.4)
    brush.body(0.30, 0.12, 0.24, 0.15, shade(coat, 0.93), power=2.4)


def draw_log(brush: Brush, coat: Colour) -> None:
    brush.body(0, 0.18, 0.50, 0.18, coat, power=5)
    brush.blob(0.46, 0.18, 0.10, 0.17, shade(STRAW, 0.95))
    brush.blob(0.46, 0.18, 0.05, 0.09, shade(STRAW, 0.8))


def draw_tent(brush: Brush, coat: Colour) -> None:
    brush.polygon([(-0.50, 0), (-0.20, 0.56), (0.28, 0.56), (0.52, 0)], coat)
    brush.polygon([(0.14, 0), (0.28, 0.56), (0.52, 0)], shade(coat, 0.82))


@dataclass(frozen=True)
class Species:
    """A class: the colours of its body, and how it, its context and its look-alike in the background are drawn."""

    name: str
    coats: tuple[Colour, ...]
    draw: Callable[[Brush, Colour], None]
    draw_context: Callable[[Brush, np.random.Generator], None]
    draw_lookalike: Callable[[Brush, Colour], None]


SPECIES = (
    Species("sheep", WOOL, draw_sheep, draw_fence, draw_rock),
    Species("goose", WOOL, draw_goose, draw_reeds, draw_rock),
    Species("cow", HIDE, draw_cow, draw_hay, draw_log),
    Species("fox", HIDE, draw_fox, draw_pines, draw_log),
    Species("car", PAINT, draw_car, draw_road, draw_tent),
    Species("boat", PAINT, draw_boat, draw_river, draw_tent),
)
LABELS = {species.name: label for label, species in enumerate(SPECIES, start=1)}


@dataclass(frozen=True)
class Scene:
    """A picture of S × S pixels and its ground truth.

    `image` (S, S, 3) uint8 RGB; the others (S, S) uint8. `labels`: 0 or a class, `instances`: 0 or the number of a
    thing, from far to near; both are 255 where the edge of a thing passes through the pixel. `contexts`: 0, or the
    class whose context is seen there, whether or not the class is in the picture.
    """

    image: npt.NDArray[np.uint8]
    labels: LabelMap
    instances: LabelMap
    contexts: LabelMap


def draw_scene(size: int, rng: np.random.Generator) -> Scene:
    """A random scene in which every thing can be seen well enough; others are thrown away."""
    while True:
        canvas = Canvas(size)
        if _compose(canvas, rng):
            return _develop(canvas, rng)


def _compose(canvas: Canvas, rng: np.random.Generator) -> bool:
    """Draw a scene from far to near: the land, then three rows, each with the context of one class and perhaps with
    a thing of this class. False if a thing ended up mostly hidden or outside."""
    horizon = rng.uniform(0.20, 0.34)
    _draw_land(canvas, horizon, rng)
    things = rng.choice(list(THINGS), p=list(THINGS.values()))
    inhabited = rng.permutation(3) < things
    full_areas: dict[int, int] = {}
    for row, has_thing in enumerate(inhabited):
        nearness = (0.34, 0.64, 0.94)[row] + rng.uniform(-0.07, 0.07)
        label = int(rng.integers(len(SPECIES))) + 1
        species = SPECIES[label - 1]
        x, y = rng.uniform(0.2, 0.8), horizon + (1 - horizon) * nearness
        if rng.random() < (CONTEXT_OF_CLASS if has_thing else CONTEXT_OF_EMPTY_ROW):
            owner = canvas.add(Thing(grain=0.5, context=label))
            species.draw_context(Brush(canvas, owner, x, y, 0.8 + 0.3 * nearness), rng)
        length = (0.40 + 0.26 * nearness) * rng.uniform(0.85, 1.2)
        if rng.random() < LOOKALIKE:
            model = SPECIES[int(rng.integers(len(SPECIES)))]
            brush = Brush(canvas, canvas.add(Thing(grain=0.15)), rng.uniform(0, 1), y - 0.02, 0.8 * length)
            model.draw_lookalike(brush, random_colour(model.coats, rng))
        if has_thing:
            owner = canvas.add(Thing(grain=0.15, label=label, instance=len(full_areas) + 1))
            mirrored = bool(rng.random() < 0.5)
            species.draw(Brush(canvas, owner, x, y, length, mirrored), random_colour(species.coats, rng))
            full_areas[owner] = canvas.area(owner)
    _draw_tufts(canvas, rng)
    return all(canvas.area(owner) >= SMALLEST_VISIBLE_SHARE * area for owner, area in full_areas.items())


def _draw_land(canvas: Canvas, horizon: float, rng: np.random.Generator) -> None:
    """Sky and clouds, two chains of hills, a meadow."""
    top, low = SKIES[int(rng.integers(len(SKIES)))]
    meadow = random_colour(MEADOWS, rng)
    sky = Brush(canvas, canvas.add(Thing(grain=0.1)), 0, horizon, 1)
    for y in np.linspace(horizon, 0, 12):
        sky.box(0, 1, 0, y, blend(low, top, y / horizon))
    for _ in range(int(rng.integers(4))):
        cloud = sky.at(rng.uniform(0, 1), rng.uniform(0.06, horizon - 0.04), rng.uniform(0.08, 0.16))
        for x, y, radius in ((-0.6, 0, 0.4), (0, 0.15, 0.55), (0.6, 0, 0.42)):
            cloud.blob(x, y, radius, 0.5 * radius, blend(low, WHITE, 0.5))
    across = np.linspace(0, 1, 25)
    for height, haze in ((0.10, 0.55), (0.05, 0.3)):
        hills = Brush(canvas, canvas.add(Thing(grain=0.4)), 0, horizon, 1)
        waves = np.sin(across * rng.uniform(4, 9) + rng.uniform(0, 6)) + 0.5 * np.sin(across * rng.uniform(9, 16))
        ridge = np.stack([across, height * (0.6 + 0.4 * waves)], axis=1)
        hills.polygon(np.vstack([ridge, [(1, -1), (0, -1)]]), blend(shade(meadow, 0.9), low, haze))
    ground = Brush(canvas, canvas.add(Thing(grain=0.8)), 0, 1, 1)
    for y in np.linspace(1 - horizon, 0, 10):
        ground.box(0, 1, 0, y, shade(meadow, 0.87 + 0.25 * y))
    for y in np.sort(rng.uniform(0, 1 - horizon, size=90))[::-1]:
        blades = ground.at(rng.random(), y, 0.06 - 0.04 * y)
        blades.polygon([(-0.3, 0), (-0.1, 1), (0, 0.2), (0.3, 0.9), (0.4, 0)], shade(meadow, rng.uniform(0.75, 1.2)))


def _draw_tufts(canvas: Canvas, rng: np.random.Generator) -> None:
    """Grass in front of everything."""
    owner = canvas.add(Thing(grain=0.6))
    for _ in range(int(rng.integers(1, 5))):
        tuft = Brush(canvas, owner, rng.random(), rng.uniform(0.85, 1.03), rng.uniform(0.10, 0.18))
        colour = shade(random_colour(MEADOWS, rng), rng.uniform(0.6, 0.85))
        for lean in (-0.5, -0.25, 0, 0.25, 0.5):
            tuft.polygon([(0.5 * lean - 0.09, 0), (lean, 1 - lean**2), (0.5 * lean + 0.09, 0)], colour)


def _develop(canvas: Canvas, rng: np.random.Generator) -> Scene:
    """Reduce to the final size: colours are averaged, textured and lit; a pixel has the owner of its centre."""
    size, middle = canvas.size, OVERSAMPLING // 2
    fine = np.asarray(canvas.owners).reshape(size, OVERSAMPLING, size, OVERSAMPLING)
    owners = fine[:, middle, :, middle]
    labels, instances, contexts = (
        np.array([getattr(thing, name) for thing in canvas.things], np.uint8)
        for name in ("label", "instance", "context")
    )
    void = (fine.min((1, 3)) != fine.max((1, 3))) & (labels[fine].max((1, 3)) != BACKGROUND)
    grain = np.array([thing.grain for thing in canvas.things])[owners]
    light = rng.uniform(0.85, 1.08) * rng.uniform(0.96, 1.04, size=3)
    texture = 1 + 0.12 * grain * _noise(size, rng)
    colours = np.asarray(canvas.colours.reduce(OVERSAMPLING)) * light * texture[..., None]
    colours += rng.normal(0, 2, colours.shape)
    return Scene(
        image=np.clip(np.rint(colours), 0, 255).astype(np.uint8),
        labels=np.where(void, np.uint8(VOID), labels[owners]),
        instances=np.where(void, np.uint8(VOID), instances[owners]),
        contexts=contexts[owners],
    )


def _noise(size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Fine and coarse noise (size, size), of a variance of about one."""
    coarse = Image.fromarray(rng.normal(size=(size // 4, size // 4)).astype(np.float32))
    return 0.7 * rng.normal(size=(size, size)) + np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def make_toy(
    out: Path,
    *,
    seed: int = 0,
    train: int = 480,
    val: int = 120,
    size: int = 96,
    progress: Callable[[], object] | None = None,
) -> None:
    """Write a toy data set of `train` + `val` pictures of `size` × `size` pixels to the folder `out`.

    The layout is that of PASCAL VOC: `JPEGImages`, `SegmentationClass`, `SegmentationObject`, `Annotations` (boxes),
    `ImageSets/Segmentation/{train,val}.txt`; besides, `classes.json`, `tags.json`, and `ContextMask` (PNG, the value
    of a pixel is the class whose context is seen there, 0 elsewhere).

    The pictures of a split are the same however many are made. The same arguments give the same bytes, with the same
    version of Pillow. `progress` is called after each picture.

    Raises `WeaksegError` for an impossible number or size, and where `out` holds anything but this very data set.
    """
    _check(out, seed=seed, train=train, val=val, size=size)
    write_json(out / SETTINGS_NAME, {"seed": seed, "train": train, "val": val, "size": size})
    write_json(out / "classes.json", {"background": BACKGROUND, **LABELS, "void": VOID})
    tags: dict[str, list[str]] = {}
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for part, (split, count) in enumerate((("train", train), ("val", val))):
        for index in range(count):
            name = f"{split}_{index:05d}"
            scene = draw_scene(size, np.random.default_rng([seed, part, index]))
            _write_scene(out, name, scene)
            tags[name] = [SPECIES[label - 1].name for label in sorted(tags_of(np.unique(scene.labels)))]
            lists[split].append(name)
            if progress is not None:
                progress()
    write_json(out / "tags.json", tags)
    # The lists come last: a folder whose making was interrupted is no data set to any reader.
    for split, names in lists.items():
        write_text(out / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{name}\n" for name in names))


def _check(out: Path, **settings: int) -> None:
    for name, least in (("seed", 0), ("train", 1), ("val", 0)):
        if settings[name] < least:
            raise WeaksegError(f"Toy data: {name} is {settings[name]}; it must be at least {least}.")
    if settings["size"] not in SIZES:
        raise WeaksegError(f"Toy data: size is {settings['size']}; it must be {SIZES.start} … {SIZES.stop - 1} pixels.")
    if out.is_dir() and any(out.iterdir()):
        made = read_json(out / SETTINGS_NAME) if (out / SETTINGS_NAME).exists() else None
        if made != settings:
            found = f"toy data made with {made}" if made else "files that are no toy data"
            raise WeaksegError(f"{out} holds {found}; nothing was written. Choose another folder, or delete this one.")


def _write_scene(out: Path, name: str, scene: Scene) -> None:
    write_bytes(out / "JPEGImages" / f"{name}.jpg", _encode(Image.fromarray(scene.image), "JPEG"))
    for folder, label_map in (
        ("SegmentationClass", scene.labels),
        ("SegmentationObject", scene.instances),
        ("ContextMask", scene.contexts),
    ):
        picture = Image.fromarray(label_map)
        picture.putpalette(palette())
        write_bytes(out / folder / f"{name}.png", _encode(picture, "PNG"))
    write_text(out / "Annotations" / f"{name}.xml", _annotation(name, scene))


def _encode(picture: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, quality=JPEG_QUALITY)
    return buffer.getvalue()


def _annotation(name: str, scene: Scene) -> str:
    """The boxes of the visible parts in VOC's XML, where pixels count from 1 and a box includes its last."""
    height, width = scene.labels.shape
    root = ElementTree.Element("annotation")
    _texts(root, filename=f"{name}.jpg")
    _texts(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    for instance in sorted(tags_of(np.unique(scene.instances))):
        rows, columns = np.nonzero(scene.instances == instance)
        item = ElementTree.SubElement(root, "object")
        _texts(item, name=SPECIES[scene.labels[rows[0], columns[0]] - 1].name, difficult=0)
        _texts(
            ElementTree.SubElement(item, "bndbox"),
            xmin=columns.min() + 1,
            ymin=rows.min() + 1,
            xmax=columns.max() + 1,
            ymax=rows.max() + 1,
        )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _texts(parent: ElementTree.Element, **values: object) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)
