"""The SYNTHETIC sets in place of the photographs: a few people, and many moments of each.

Happy House shows the same few people at the same place again and again, and SIGNS a few hands in front of one wall.
That is why small networks learn them. These sets are made in the same way, with the renderers of `faces` and `hands`:
in a sitting, the person, the lamp and the background stay, and from moment to moment only the pose, the expression or
the fingers change, and the light a little. The training set and the test set show the same sittings.

In the wide sets, by `faces.render_face` and `hands.render_hand`, each image shows another person at another place. They
teach what carries over to strangers.
"""

import functools
from typing import NamedTuple

import numpy as np

from datasets.synthetic import faces, hands, rendering

SITTINGS = 24  # in each set, with equally many images of each
POSES = 2  # of the head in a sitting
HABITS = 4  # of the fingers for a digit in a sitting
WALLS = 3  # in front of which the hands are shown


class FaceSitting(NamedTuple):
    """What stays the same while one person is photographed again and again."""

    person: dict
    skin: np.ndarray  # from `faces.paint_skin`
    view: dict
    light: dict
    clothes: dict
    body: faces.Surface
    background: np.ndarray  # linear light, float32 (3, 128, 128)
    textures: tuple


@functools.cache
def face_sitting(number):
    """Return a sitting of the faces; the same number gives the same one."""
    rng = np.random.default_rng([301, number])
    person, light = faces.sample_person(rng), faces.sample_light(rng)
    while person["hair"]["cut"] == "hat":  # nobody wears one for a portrait
        person = faces.sample_person(rng)
    person["teeth"] = 0.95, rng.uniform(0.55, 0.85)  # people who smile for a photograph show them
    light["gloss"] = min(light["gloss"], 0.05)
    view = faces.sample_view(rng) | {
        "width": rng.uniform(20.5, 21.5),  # the head fills most of the image
        "center": np.array([rng.normal(0, 0.2), 1.0 + rng.normal(0, 0.15), 0.0]),
        "yaw": rng.normal(0, 3), "pitch": rng.normal(1, 1.5), "roll": rng.normal(0, 1.5),
    }  # fmt: skip
    # The exposure is set for the face, and the background is not much brighter.
    level = person["skin"] @ faces.received_light(np.float32([[0], [0], [1]]), light, 1, 1) / 3
    exposure = (rng.uniform(0.22, 0.28) / level.item()) ** 0.85
    for name in ("fill", "sky", "ground", "key", "back"):
        light[name] = light[name] * exposure
    background = faces.render_garden(rng) if light["outdoors"] else faces.render_room(rng)
    background *= np.float32(rng.uniform(0.2, 0.3) / background.mean())
    textures = faces.sample_textures(person, view, rng)
    clothes, body = faces.sample_clothes(rng), faces.body_surface(view)
    skin = faces.paint_skin(*faces.face_map(), person, rng)
    return FaceSitting(person, skin, view, light, clothes, body, background, textures)


@functools.lru_cache(maxsize=64)
def posed_head(number, pose, jaw):
    """Return one pose of the head of a sitting: its view, its `faces.Surface`, and what `faces.cast_shadows` returns.

    They are kept, because finding them takes longer than the rest of an image. `jaw`: how open the mouth is, cm.
    """
    sitting = face_sitting(number)
    rng = np.random.default_rng([302, number, pose])
    view = sitting.view | {"center": sitting.view["center"] + rng.normal(0, [0.12, 0.08, 0])}
    for angle, deviation in (("yaw", 1.5), ("pitch", 1), ("roll", 1)):
        view[angle] += rng.normal(0, deviation)
    head = faces.head_surface(sitting.person, {"opening": jaw}, view, sitting.textures[2])
    return view, head, faces.cast_shadows(head, head.z, sitting.body, view, sitting.light)


def sample_expression(smiling, rng):
    """A clear expression, because people smile broadly for a photograph or not at all; see `faces`."""
    while True:
        expression = faces.sample_expression(smiling, rng)
        if bool(smiling) == bool(expression["opening"]) and (not smiling or expression["half_width"] > 3.2):
            return expression


def render_face(smiling, rng, moment):
    """Render a moment of one of the sittings: a person who smiles (1) or does not (0).

    Args:
        smiling: int, 0 or 1.
        rng: numpy.random.Generator, decides what changes from moment to moment; the same state gives the same image.
        moment: int >= 0, selects the sitting and the pose; they take turns.

    Returns: uint8 array (64, 64, 3), RGB.
    """
    number, pose = moment % SITTINGS, moment // SITTINGS % POSES
    sitting = face_sitting(number)
    expression = sample_expression(smiling, rng)
    view, head, shadows = posed_head(number, pose, 1.5 if expression["opening"] > 0.9 else 0.3)
    face = faces.paint_face(sitting.person, expression, unchanging(number), sitting.skin)
    skin = faces.put_on_face(head, face, sitting.person, view)
    light = dict(sitting.light)
    for name in ("fill", "sky", "ground", "key"):  # a cloud passes, a lamp is moved
        light[name] = light[name] * np.exp(rng.normal(0, 0.015))
    image = sitting.background.copy()
    textures = sitting.textures
    faces.draw_body(image, sitting.body, shadows, sitting.person, sitting.clothes, light, textures, unchanging(number))
    faces.draw_head(image, head, skin, shadows, sitting.person, light, textures)
    faces.add_glare(image, unchanging(number))
    image = faces.develop(image, unchanging(number))
    return rendering.photograph(image.transpose(1, 2, 0), unchanging(number), rng)


def unchanging(number):
    """Return a generator that gives the same numbers in all moments of a sitting: for freckles, letters, the camera."""
    return np.random.default_rng([303, number])


class HandSitting(NamedTuple):
    """What stays the same while one hand is photographed again and again."""

    proportions: tuple
    mirror: float  # 1 for a right hand, -1 for a left one
    width: float  # of the image, cm at the distance of the hand


@functools.cache
def hand_sitting(number):
    """Return a sitting of the hands; the same number gives the same one."""
    rng = np.random.default_rng([304, number])
    return HandSitting(hands.sample_proportions(rng), -1.0 if number % 4 == 1 else 1.0, rng.uniform(20, 22.5))


@functools.cache
def bright_wall(number):
    """Return a lamp, as `hands.sample_light` does, and a bright wall, (128, 128, 3); the same number gives the same."""
    rng = np.random.default_rng([305, number])
    light = hands.sample_light(rng)
    light["key"] *= 0.8  # in SIGNS, skin is darker than the wall
    wall = hands.render_wall(rng, light["direction"])
    while wall.mean() < 0.55:
        wall = hands.render_wall(rng, light["direction"])
    light["tint"] = np.float32(light["tint"])  # twice as fast as float64
    return light, np.float32(wall * (0.72 / wall.mean()))


def render_hand(digit, rng, moment):
    """Render a moment of one of the sittings, of a hand that shows a digit, 0 to 5; see `render_face`."""
    number = moment % SITTINGS
    proportions, mirror, width = hand_sitting(number)
    wall_number = number % WALLS
    light, wall = bright_wall(wall_number)
    # People have their own ways of showing a digit; most of them share one.
    habit = np.random.default_rng([306, number, digit, moment // SITTINGS % HABITS])
    pose = hands.POSES[int(digit)][-1 if number % 4 == 3 else 0]
    bones = hands.sample_hand(pose, False, proportions, habit)
    # The palm faces the camera; a zero shows its hole from the side of the thumb.
    yaw, tilt, roll = rng.normal([-66 if digit == 0 else 0, 0, 0], [9, 6, 9])
    matrix = hands.view_matrix(yaw, tilt, roll, mirror)
    bones, middle = hands.project(bones, matrix, width, rng, aside=0.05)
    surface = hands.visible_surface(bones, width, steps=10)  # enough for palms that face the camera
    position = matrix.T @ (surface[1] + middle[:, None])
    albedo, nail = hands.paint_hand(bones, surface, position, matrix[:, 2], unchanging(number))
    scale = rendering.RENDER_SIZE / width
    color = hands.light_hand(surface, albedo, nail, light, scale)
    image = hands.put_before_wall(color, wall, surface, light, scale, unchanging(number))
    camera = unchanging(0)  # the same one for all hands
    return rendering.photograph(image * np.exp(rng.normal(0, 0.03)), camera, rng)
