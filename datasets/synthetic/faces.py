"""Synthetic photographs of people who smile or do not, in place of Happy House.

`render_face(smiling, rng)` samples a person, a pose, clothes, hair, light and a garden, and renders one image.
The head is a smooth union of ellipsoids. Finer details (eyes, lips, teeth, folds, beard) are painted on a map of
the face with a relief, so they are lit as well. Only `sample_expression` knows the class: everything else
has one distribution, so nothing but the expression can tell the classes apart.

Lengths are in centimeters and angles in degrees. The axes of the head: the origin is between the ears at the
height of the eyes, x to the right of the image, y towards the crown, z out of the face. On the map of the face,
u runs around the head from the middle of the face, and v is y.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from datasets.synthetic import rendering
from datasets.synthetic.rendering import ellipsoid_distance, smooth_union, smoothstep, unit

MAP_SIZE = 96  # pixels
MAP_SPAN = 22.0  # cm from side to side: a map pixel is about a rendered pixel
MAP_MIDDLE = -2.0  # v of the map's center: it reaches from below the chin to the hairline
MAP_RADIUS = 8.0  # cm; u = radius * angle around the head, true to scale at the lips
NOSE_V, MOUTH_V, CHIN_V = -4.2, -6.9, -11.5  # an average adult face
NOSE_ROOT = np.float32([[0], [0.6], [8.0]])  # between the eyes

# Linear albedo (red, green, blue). Skin lies between the first two.
LIGHT_SKIN = (0.70, 0.43, 0.31)
DARK_SKIN = (0.085, 0.045, 0.028)
HAIR_COLORS = ((0.010, 0.009, 0.008), (0.022, 0.014, 0.010), (0.050, 0.028, 0.016), (0.110, 0.062, 0.030),
                (0.320, 0.210, 0.095), (0.160, 0.052, 0.018), (0.220, 0.215, 0.210))  # fmt: skip
HAIR_WEIGHTS = (0.20, 0.20, 0.20, 0.14, 0.13, 0.04, 0.09)
CLOTH_COLORS = ((0.012, 0.014, 0.022), (0.012, 0.012, 0.013), (0.030, 0.045, 0.080), (0.110, 0.120, 0.150),
                 (0.200, 0.190, 0.190), (0.600, 0.590, 0.570), (0.250, 0.030, 0.030), (0.040, 0.100, 0.050),
                 (0.100, 0.060, 0.040), (0.050, 0.120, 0.280), (0.350, 0.180, 0.200))  # fmt: skip
CLOTH_WEIGHTS = (0.20, 0.18, 0.16, 0.13, 0.09, 0.07, 0.04, 0.04, 0.03, 0.04, 0.02)


def sample_person(rng):
    """A person: a dict of proportions, colors and hair."""
    female = rng.random() < 0.5
    child = rng.random() < 0.1
    melanin = rng.beta(1.0, 2.4)
    tint = np.exp(rng.normal(0, [0.05, 0.04, 0.05]))
    skin = np.exp((1 - melanin) * np.log(LIGHT_SKIN) + melanin * np.log(DARK_SKIN)) * tint
    hair = HAIR_COLORS[rng.choice(len(HAIR_COLORS), p=HAIR_WEIGHTS)]
    if melanin > 0.45:  # fair hair on dark skin is rare
        hair = HAIR_COLORS[rng.choice([0, 1, 6], p=[0.7, 0.22, 0.08])]
    return {
        "female": female, "age": 0.0 if child else rng.beta(1.2, 2.0), "skin": skin,  # age: 0 young, 1 old
        "lower": rng.normal(0.88 if child else 1.0, 0.05),  # the height of the face below the eyes
        "hair_color": np.array(hair) * np.exp(rng.normal(0, 0.15)),
        "width": rng.normal(1.0 - 0.03 * female, 0.05), "jaw": rng.normal(4.8 - 0.4 * female, 0.45),
        "chin": rng.normal(0, 0.35), "nose": rng.normal(0, 0.35),  # cm longer than average
        "nose_width": rng.normal(1.25 - 0.1 * female + 0.25 * (melanin > 0.5), 0.12),
        "nose_height": rng.normal(1.0 - 0.1 * female, 0.12),
        "eye_gap": rng.normal(3.15, 0.12),  # from the middle to the pupil
        "eye_size": rng.normal(1.15 + 0.06 * female + 0.1 * child, 0.09),
        "iris": (0.02, 0.012, 0.008) if melanin > 0.35 or rng.random() < 0.6 else (0.09, 0.12, 0.14),
        "brow": rng.normal(1.0 - 0.35 * female, 0.22), "brow_height": rng.normal(2.0 + 0.2 * female, 0.2),
        "socket": rng.normal(1.0 - 0.25 * female, 0.2),  # how deep the eyes lie
        "lips": rng.normal(1.0 + 0.1 * female + 0.2 * (melanin > 0.55), 0.15),
        "lipstick": rng.uniform(0.3, 1.0) if female and not child and rng.random() < 0.5 else 0.0,
        "beard": (0.0, 0.0) if female or child else sample_beard(rng),
        "glasses": sample_glasses(rng) if rng.random() < 0.2 else None, "hair": sample_hair(female, rng),
    }  # fmt: skip


def sample_beard(rng):
    """(cheeks and chin, mustache): the fraction of the skin that hair hides, 0 to 1 each."""
    kind = rng.choice(["shaved", "stubble", "beard", "mustache", "goatee"], p=[0.42, 0.28, 0.2, 0.04, 0.06])
    full = {"shaved": 0.12, "stubble": 0.4, "beard": 0.85, "mustache": 0.1, "goatee": 0.15}[kind]
    lip = {"mustache": 0.85, "goatee": 0.7}.get(kind, full * rng.uniform(0.7, 1.0))
    return full * rng.uniform(0.6, 1.1), lip


def sample_glasses(rng):
    """Half width, half height and rim of the glasses (cm), and how dark the lenses are, 0 to 1."""
    dark = rng.uniform(0.7, 0.95) if rng.random() < 0.3 else rng.uniform(0, 0.15)
    return rng.uniform(2.2, 2.9), rng.uniform(1.5, 2.2), rng.uniform(0.12, 0.32), dark


def sample_hair(female, rng):
    """A haircut or a hat: a dict of thicknesses and of the hairline, in cm."""
    cuts = ["long", "bob", "short", "tied", "hat"] if female else ["short", "buzz", "top", "bald", "long", "hat"]
    probabilities = [0.43, 0.18, 0.1, 0.23, 0.06] if female else [0.38, 0.17, 0.26, 0.07, 0.04, 0.08]
    cut = rng.choice(cuts, p=probabilities)
    top, side = {"long": (1.5, 1.2), "bob": (1.6, 1.4), "tied": (0.7, 0.5), "short": (1.3, 0.6),
                 "buzz": (0.35, 0.3), "top": (2.2, 0.45), "bald": (0.0, 0.45), "hat": (1.5, 0.9)}[cut]  # fmt: skip
    fringe = rng.random() < 0.25 and cut in ("long", "bob", "short", "top")
    return {
        "cut": cut, "top": top * rng.uniform(0.8, 1.3), "side": side * rng.uniform(0.8, 1.3),
        "front": rng.normal(7.0, 0.5) - (rng.uniform(1.5, 3.5) if fringe or cut == "hat" else 0),
        "brim": cut == "hat" and rng.random() < 0.6, "cloth": CLOTH_COLORS[rng.choice(len(CLOTH_COLORS))],
        "recession": max(rng.normal(0.03, 0.03), 0), "lean": np.clip(rng.normal(0, 0.035), -0.07, 0.07),
        "length": {"long": rng.uniform(14, 24), "bob": rng.uniform(8, 11)}.get(cut, 0.0),
        "rough": 0.03 if cut == "hat" else rng.uniform(0.05, 0.2 if female else 0.35),
        "curl": rng.choice([2.5, 5.0, 9.0, 14.0]),  # locks in rendered pixels, at Happy House's distance
    }  # fmt: skip


def sample_expression(smiling, rng):
    """An expression: a dict of lengths in cm and strengths, about 0 to 1.

    People of both classes squint, open their mouths, show teeth and fold their cheeks. A smile
    draws the corners of the mouth up and apart and lifts the cheeks as well.
    """
    expression = sample_smile(rng) if smiling else sample_other_expression(rng)
    return expression | {
        "skew": rng.normal(0, 0.08),  # one corner of the mouth higher than the other
        "gaze": rng.normal(0, 0.22),  # cm to the side
        "closed_eyes": rng.random() < 0.05,
    }


def sample_smile(rng):
    """A grin, a laugh, or a smile with closed lips; see `sample_expression`."""
    kind = rng.choice(["grin", "laugh", "closed"], p=[0.55, 0.19, 0.26])
    strength = rng.uniform(0.55, 1.1)
    opening = {"grin": rng.uniform(0.7, 1.6), "laugh": rng.uniform(1.5, 2.6), "closed": 0.0}[kind]
    return {
        "opening": opening * strength, "half_width": 2.6 + 0.95 * strength + rng.normal(0, 0.12),
        "lift": 1.15 * strength + rng.normal(0, 0.15),
        "teeth": rng.uniform(0.8, 1.0), "lip_scale": 0.8,  # cm that show; stretched lips are thinner
        "cheeks": strength * rng.uniform(0.75, 1.15), "folds": strength * rng.uniform(0.5, 1.1),
        "squint": strength * rng.uniform(0.0, 0.75), "brow_raise": rng.normal(0.1, 0.25), "frown": 0.0,
    }  # fmt: skip


def sample_other_expression(rng):
    """Any face without a smile, with the mouth closed or open; see `sample_expression`."""
    kind = rng.choice(["neutral", "pressed", "sad", "round", "talking"], p=[0.42, 0.14, 0.14, 0.1, 0.2])
    opening = {"round": rng.uniform(0.8, 2.2), "talking": rng.uniform(0.3, 1.2)}.get(kind, 0.0)
    narrower = {"round": rng.uniform(0.3, 0.8), "talking": rng.uniform(0.0, 0.4)}.get(kind, 0.0)
    return {
        "opening": opening, "half_width": rng.normal(2.5, 0.15) - narrower,
        "lift": rng.normal(-0.08, 0.1) - (rng.uniform(0.2, 0.5) if kind == "sad" else 0),
        "teeth": rng.uniform(0.1, 0.8) if rng.random() < 0.5 else 0.0,
        "lip_scale": 0.45 if kind == "pressed" else 1.0,
        "cheeks": max(rng.normal(0, 0.12), 0), "folds": rng.uniform(0, 0.35),
        "squint": rng.uniform(0.1, 0.75) if rng.random() < 0.25 else rng.uniform(-0.15, 0.2),
        "brow_raise": rng.normal(0.1, 0.3), "frown": rng.uniform(0, 0.8) if rng.random() < 0.3 else 0.0,
    }  # fmt: skip


def sample_view(rng):
    """Position and rotation of the head: a dict, cm and degrees.

    One image in four is framed as in Happy House, from the chest to above the head; in the others the face fills
    more of the image, down to a crop from forehead to chin.
    """
    width = rng.uniform(31, 40) if rng.random() < 0.25 else np.exp(rng.uniform(np.log(13), np.log(31)))
    center = rng.normal(0, 0.06) * width, 3.4 + rng.normal(0, 0.04) * width, 0.0
    return {
        "width": width, "center": np.array(center),  # cm from the left to the right edge of the image
        "yaw": np.clip(rng.normal(0, 13), -42, 42),
        "pitch": np.clip(rng.normal(1, 6), -15, 16),  # positive: chin down
        "roll": np.clip(rng.normal(0, 6), -18, 18),
        "body_yaw": rng.normal(0, 12), "build": rng.normal(1.0, 0.07),
    }  # fmt: skip


def bump(u, v, center, deviations):
    """Gaussian hill of height 1 at `center`, with a standard deviation in u and one in v."""
    a = (u - np.float32(center[0])) * np.float32(1 / deviations[0])
    b = (v - np.float32(center[1])) * np.float32(1 / deviations[1])
    return np.exp(np.float32(-0.5) * (a * a + b * b))


def paint(planes, mask, color):
    """Mix `color`, three numbers or arrays, into `planes` (3, h, w) by `mask` (h, w), 0 to 1; in place."""
    mask = np.asarray(mask, np.float32)
    for channel, value in zip(planes, color):  # one plane at a time stays in the processor's cache
        channel += mask * (np.asarray(value, np.float32) - channel)


def mouth_shape(u, v, person, expression):
    """Masks (lips, opening, teeth, tongue), float32 0 to 1, and the relief of the lips in cm.

    The line between the lips is a parabola whose ends are raised by `lift`; the opening and the lips lie
    between this line and arcs above and below it.
    """
    half = np.float32(expression["half_width"] * person["width"])
    opening = np.float32(expression["opening"])
    edge = np.float32(0.16)  # cm: the softness of painted outlines
    s = u / half
    inside = np.maximum(1 - s * s, 0)
    arc = np.sqrt(inside)
    line = MOUTH_V + 0.1 + expression["lift"] * (s * s - 0.45) + expression["skew"] * s
    top = line + np.float32(0.35) * opening * arc
    bottom = line - np.float32(0.65) * opening * arc
    thickness = np.float32(person["lips"] * expression["lip_scale"])
    cupid = 1 - 0.22 * np.exp(-((u / 0.45) ** 2))
    upper = top + 0.62 * thickness * inside**0.7 * cupid
    lower = bottom - 0.85 * thickness * inside**0.6
    corner = smoothstep(1.02, 0.92, np.abs(s))
    lips = smoothstep(-edge, edge, upper - v) * smoothstep(-edge, edge, v - lower) * corner
    gap = np.float32(0.09)  # closed lips still meet in a dark line
    hole = smoothstep(-edge, edge, top + gap - v) * smoothstep(-edge, edge, v - bottom + gap)
    hole = hole * smoothstep(1.04, 0.94, np.abs(s)) * (0.75 if opening < 0.1 else 1.0)
    row = np.minimum(1.0, 0.25 + opening) * np.float32(expression["teeth"])
    teeth = smoothstep(-edge, edge, v - (top - row)) * smoothstep(0, edge, top - 0.02 - v)
    teeth = teeth * smoothstep(-0.02, edge, v - bottom - 0.04) * smoothstep(0.95, 0.7, np.abs(s))
    teeth = teeth * smoothstep(0.2, 0.4, opening) * (expression["teeth"] > 0)
    tongue = bump(u, v, (0, MOUTH_V - 0.8 * opening), (half * 0.5, 0.3 * opening + 0.1)) * hole
    upper_lip = np.exp(-(((v - top - 0.3 * thickness) / 0.4) ** 2))
    lower_lip = 1.2 * np.exp(-(((v - bottom + 0.4 * thickness) / 0.42) ** 2))
    relief = 0.4 * thickness * (bump(u, v, (0, 0), (half * 0.6, 9)) * (upper_lip + lower_lip))
    return lips, hole, teeth, tongue, relief - 0.35 * hole


def eye_shape(u, v, person, expression):
    """Masks (white, iris, lashes, crease) of both eyes, float32 0 to 1."""
    side = np.abs(u) - person["eye_gap"]
    size = np.float32(person["eye_size"])
    x = side / (1.5 * size)
    arc = np.maximum(1 - x * x, 0)
    openness = 0.0 if expression["closed_eyes"] else 1 - 0.75 * expression["squint"]
    slant = 0.08 * side
    upper = slant + np.float32(0.52 * openness * size) * arc - 0.05
    lower = slant - np.float32(0.42 * size * openness - 0.12 * expression["cheeks"]) * arc - 0.05
    edge = np.float32(0.12)
    white = smoothstep(-edge, edge, upper - v) * smoothstep(-edge, edge, v - lower)
    white = white * (arc > 0) * (openness > 0)
    gaze = expression["gaze"] * np.sign(u)
    distance = np.sqrt((side - gaze) ** 2 + (v - 0.05) ** 2)
    iris = smoothstep(0.95 * size, 0.7 * size, distance) * white
    inner = smoothstep(1.08, 0.9, np.abs(x))
    lashes = np.exp(-(((v - upper - 0.03) / 0.22) ** 2)) * inner
    crease = np.exp(-(((v - upper - 0.42) / 0.2) ** 2)) * inner
    return white, iris, lashes, crease


def brow_mask(u, v, person, expression):
    """Mask of both eyebrows, 0 to 1."""
    side = (np.abs(u) - 3.3) / 2.1
    raised = person["brow_height"] + 0.5 * expression["brow_raise"] - 0.25 * expression["squint"]
    middle = raised - 0.28 * (side - 0.15) ** 2 + 0.3
    middle = middle - 0.5 * expression["frown"] * smoothstep(0.2, -1.0, side)
    thickness = 0.3 * max(person["brow"], 0.35) * (1.0 - 0.35 * side)
    body = smoothstep(1.3, 0.7, np.abs(v - middle) / np.maximum(thickness, 0.1))
    return body * smoothstep(1.15, 0.8, np.abs(side))


def fold_masks(u, v, expression):
    """Masks (nasolabial folds, crow's feet, dimples), 0 to 1."""
    a = np.abs(u)
    down = np.clip((-3.9 - v) / 3.6, 0, 1.3)
    line = 1.55 + (0.9 + 1.0 * expression["cheeks"]) * down**0.8
    fold = np.exp(-(((a - line) / 0.38) ** 2)) * smoothstep(0, 0.25, down) * smoothstep(1.25, 0.7, down)
    feet = np.exp(-(((a - 5.3) / 0.6) ** 2)) * np.exp(-(((v + 0.1) / 0.9) ** 2))
    feet = feet * (0.5 + 0.5 * np.cos((v + 0.2 * (a - 5)) * 9.0))
    dimple = bump(a, v, (expression["half_width"] + 0.65, MOUTH_V + 0.5), (0.28, 0.5))
    return fold, feet, dimple


def face_relief(u, v, person, expression):
    """Height of the face over the smooth head, without lips and folds, cm."""
    cheeks, socket, opening = expression["cheeks"], person["socket"], expression["opening"]
    hills = (
        # height, |u|, v, deviation in u, deviation in v
        (-0.65 * socket, person["eye_gap"] - 0.1, 0.4, 1.35, 0.9),  # eye socket
        (0.3, person["eye_gap"], 0.0, 1.0, 0.6),  # eyeball
        (0.35 * socket, 2.6, 2.1, 2.4, 0.7),  # brow ridge
        (0.3 + 0.9 * cheeks, 4.1, -3.0 + 0.6 * cheeks, 1.5, 1.1),  # cheek
        (-0.25 * (0.4 + person["age"]), 3.6, -1.5, 1.4, 0.35),  # bag under the eye
        (0.3, person["nose_width"], NOSE_V, 0.45, 0.5),  # wing of the nose
        (-0.2, 0.0, -5.6, 0.35, 0.7),  # groove above the lip
        (-0.3, 0.0, MOUTH_V - 1.7 - 0.5 * opening, 1.6, 0.45),  # groove below it
        (0.35, 0.0, CHIN_V + 0.9 - 0.5 * opening, 1.4, 0.9),  # chin
    )
    relief = np.zeros_like(u)
    for height, across, up, width, tall in hills:
        relief += height * bump(np.abs(u), v, (across, up), (width, tall))
    return relief


def paint_skin(u, v, person, rng):
    """Albedo of bare skin and of the beard, (3, MAP_SIZE, MAP_SIZE)."""
    a = np.abs(u)
    blotches = 1 + 0.05 * rendering.smooth_noise(rng, 7, MAP_SIZE) + 0.03 * rendering.smooth_noise(rng, 2, MAP_SIZE)
    albedo = np.float32(person["skin"])[:, None, None] * blotches
    flush = bump(a, v, (4.2, -3.6), (1.8, 1.5)) + bump(u, v, (0, -4.0), (1.3, 1.0))
    albedo[1:] *= 1 - 0.11 * flush  # cheeks and nose are redder
    # Around the eyes the skin is thin and dark.
    albedo *= 1 - 0.3 * bump(a, v, (person["eye_gap"] - 0.4, -0.1), (1.5, 0.9))

    cheeks, lip = person["beard"]
    grain = 1 + 0.12 * rendering.smooth_noise(rng, 2, MAP_SIZE)
    border = -5.4 + 0.09 * (a - 3) ** 2 * np.sign(a - 3)  # rises to the sideburns
    # The beard grows closer to the middle on the chin than beside the mouth.
    area = smoothstep(0.7, -0.7, v - border) * smoothstep(2.0, 3.4, a + 2.5 * (v < MOUTH_V - 1.2))
    area = np.maximum(cheeks * area, lip * bump(u, v, (0, MOUTH_V + 1.15), (2.2, 0.42)))
    area = np.maximum(area, 0.9 * lip * bump(u, v, (0, CHIN_V + 1.2), (1.9, 1.1)))
    paint(albedo, np.clip(area * grain, 0, 0.93), 1.3 * person["hair_color"] + 0.01)
    return albedo


def paint_mouth(albedo, u, v, person, expression, rng):
    """Paint lips, open mouth and nostrils over `albedo`; return the relief of the lips in cm."""
    lips, hole, teeth, tongue, relief = mouth_shape(u, v, person, expression)
    skin, a = person["skin"], np.abs(u)
    natural, lipstick = skin * np.array([0.85, 0.55, 0.58]), np.array([0.35, 0.05, 0.06])
    paint(albedo, 0.85 * lips, natural + person["lipstick"] * (lipstick - natural))
    paint(albedo, 0.95 * hole, (0.018, 0.008, 0.007))
    paint(albedo, 0.5 * tongue, (0.22, 0.07, 0.07))
    # The lips often shade the teeth. If they were always white, a network would look for nothing else.
    shaded = rng.uniform(0.6, 1.0), np.exp(rng.uniform(-1.8, -0.1))
    opacity, brightness = person.get("teeth", shaded)
    paint(albedo, opacity * teeth, brightness * np.array([1.0, 0.95, 0.85]))
    paint(albedo, bump(a, v, (0.62, NOSE_V - 0.55), (0.36, 0.2)), skin * 0.12)  # nostrils
    paint(albedo, 0.35 * bump(a, v, (person["nose_width"] + 0.35, NOSE_V), (0.2, 0.5)), skin * 0.3)
    paint(albedo, 0.35 * bump(u, v, (0, NOSE_V - 0.95), (1.1, 0.3)), skin * 0.35)
    return relief


def paint_eyes(albedo, u, v, person, expression):
    """Paint eyes and brows over `albedo` (3, MAP_SIZE, MAP_SIZE)."""
    white, iris, lashes, crease = eye_shape(u, v, person, expression)
    skin = person["skin"]
    paint(albedo, 0.8 * white, (0.32, 0.30, 0.29))  # the lids shade the white
    paint(albedo, iris, person["iris"])
    paint(albedo, (0.75 + 0.2 * person["female"]) * lashes, skin * 0.12)
    paint(albedo, 0.35 * crease, skin * 0.4)
    paint(albedo, 0.9 * brow_mask(u, v, person, expression), 1.2 * np.minimum(person["hair_color"], skin))


def paint_glasses(albedo, u, v, glasses, rng):
    """Paint rims, bridge, temples and lenses over `albedo` (3, MAP_SIZE, MAP_SIZE)."""
    half_width, half_height, rim, dark = glasses
    a = np.abs(u)
    x, y = (a - 3.3) / half_width, (v + 0.25) / half_height
    radius = (x**4 + y**4) ** 0.25  # between an ellipse and a rectangle
    lens = smoothstep(1.03, 0.97, radius)
    ring = smoothstep(rim + 0.1, rim, np.abs(radius - 1) * half_height)
    bar = (np.abs(v - 0.4) < 0.25) & ((a < 1.2) | (a > 3.3 + half_width))
    color = (0.02, 0.02, 0.02) if rng.random() < 0.7 else (0.25, 0.2, 0.13)
    paint(albedo, dark * lens, (0.012, 0.012, 0.014))
    paint(albedo, 0.25 * rng.random() * lens * smoothstep(-0.6, 0.9, x + y), (0.5, 0.52, 0.55))  # reflection
    paint(albedo, np.maximum(ring, bar), color)


def face_map():
    """u and v of the pixels of the map of the face, (MAP_SIZE, MAP_SIZE) each."""
    u, v = rendering.pixel_grid(MAP_SPAN, MAP_SIZE)
    return u, v + MAP_MIDDLE


def paint_face(person, expression, rng, skin=None):
    """Relief (MAP_SIZE, MAP_SIZE) in cm and albedo (3, MAP_SIZE, MAP_SIZE); `skin`: from `paint_skin`, or None."""
    u, v = face_map()
    albedo = paint_skin(u, v, person, rng) if skin is None else skin.copy()
    lip_relief = paint_mouth(albedo, u, v, person, expression, rng)
    paint_eyes(albedo, u, v, person, expression)
    fold, feet, dimple = fold_masks(u, v, expression)
    depth = expression["folds"] + 0.3 * person["age"]
    paint(albedo, 0.45 * depth * fold, person["skin"] * 0.3)
    paint(albedo, 0.5 * person["age"] * max(expression["squint"], 0) * feet, person["skin"] * 0.4)
    if person["glasses"]:
        paint_glasses(albedo, u, v, person["glasses"], rng)
    relief = lip_relief - 0.38 * depth * fold - 0.25 * expression["folds"] * dimple
    return (relief + face_relief(u, v, person, expression)).astype(np.float32), albedo


def mirrored(points):
    """`points` (3, N) with x made positive, so that one ear or shoulder stands for both."""
    return np.stack([np.abs(points[0]), points[1], points[2]])


def skin_distance(points, person, expression):
    """(skull, skin): signed distances (N,) in cm at head points (3, N).

    The skin is the skull with jaw, nose and ears; hair grows on the skull.
    """
    width, lower = person["width"], person["lower"]
    drop = 0.55 * expression["opening"]  # the jaw follows the lower lip
    back = ellipsoid_distance(points, (0, 3.1, -0.9), (7.6 * width, 8.8, 9.4))
    front = ellipsoid_distance(points, (0, -2.4 * lower, 1.6), (6.7 * width, 7.8 * lower, 7.2))
    skull = smooth_union(back, front, 2.5)
    jaw_radii = person["jaw"] * width, 4.0 * lower + 0.5 * person["chin"] + 0.4 * drop, 4.7
    jaw = ellipsoid_distance(points, (0, -7.6 * lower - 0.6 * drop, 3.6 - 0.2 * drop), jaw_radii)
    tip = np.float32([[0], [-3.6 * lower - 0.5 * person["nose"]], [9.2 + 0.9 * person["nose_height"]]])
    nose_cone = rendering.rounded_cone(NOSE_ROOT, tip, np.float32(0.55), np.float32(0.95))
    nose, _ = rendering.cone_distance(points, nose_cone)
    ear = ellipsoid_distance(mirrored(points), (7.4 * width, -1.2, -0.9), (0.9, 3.1, 1.8))
    skin = smooth_union(smooth_union(skull, jaw, 2.0), nose, 1.1)
    return skull, smooth_union(skin, ear, 0.8)


def hair_distance(points, skull, hair, ragged):
    """Signed distance (N,) in cm to the hair, a layer over `skull` above the hairline.

    `ragged` is a random field (N,) that roughens the layer.
    """
    x, y, z = points
    # Height of the hairline, from the nape past the ear to the forehead.
    heights = (-7.5, -3.5, -0.5, 2.0, 4.8, hair["front"])
    line = np.interp(z, (-5, -2.5, 0.5, 3.0, 5.5, 8.0), heights).astype(np.float32)
    line = line + hair["recession"] * x * x * smoothstep(2, 6, z)
    thickness = hair["side"] + (hair["top"] - hair["side"]) * smoothstep(3.0, 9.5, y)
    thickness = thickness * (1 + np.float32(hair["lean"]) * x) + ragged * np.float32(hair["rough"])
    if hair["cut"] == "bald":
        thickness = thickness - 2.0 * smoothstep(5.0, 7.0, y)
    # Below the hairline the layer lies 1 cm under the skin, deeper than the eye sockets.
    layer = skull + 1 - (thickness + 1) * smoothstep(-1.6, 1.5, y - line + 0.35 * ragged)
    length = hair["length"]
    if length:
        side = ellipsoid_distance(mirrored(points), (6.6, 5 - 0.55 * length, -2.5), (2.4, 0.55 * length, 4.0))
        back = ellipsoid_distance(points, (0, 5 - 0.5 * length, -4.5), (8.0, 0.55 * length, 5.0))
        layer = smooth_union(layer, np.minimum(side, back) - 0.35 * ragged, 1.2)
    if hair["brim"]:
        layer = np.minimum(layer, ellipsoid_distance(points, (0, hair["front"] - 0.3, 9.0), (6.5, 0.6, 5.0)))
    # The layer begins so steeply that full steps would skip its edge.
    return np.float32(0.45) * layer


def head_rotation(view):
    """Matrix (3, 3) from the axes of the head to those of the scene."""
    yaw, pitch, roll = np.radians([view["yaw"], view["pitch"], view["roll"]])
    turned = rendering.rotation("y", yaw) @ rendering.rotation("x", pitch)
    return (rendering.rotation("z", roll) @ turned).astype(np.float32)


def window(x, y, low_x, high_x, low_y, high_y):
    """Slices (rows, columns) of the pixels between these scene coordinates."""
    columns = np.flatnonzero((x[0] > low_x) & (x[0] < high_x))
    rows = np.flatnonzero((y[:, 0] > low_y) & (y[:, 0] < high_y))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def trace(distance, x, y, near, noise):
    """Find the surface that each pixel of a window sees, first at half, then at full resolution.

    `distance(points (3, N), noise (N,))` is in cm; `x`, `y` and `noise` are float32 (h, w); `near` is a z in front of
    everything. Returns hit, bool (h, w), and the scene points (3, N) of the hits.
    """
    coarse = np.stack([x[::2, ::2], y[::2, ::2], np.full_like(x[::2, ::2], near)])
    field = noise[::2, ::2].ravel()
    ends, hit = rendering.sphere_trace(lambda p: distance(p, field), coarse.reshape(3, -1), steps=8, tolerance=0.3)
    z = np.where(hit, ends[2], np.float32(-np.inf)).reshape(coarse.shape[1:])
    # A little in front of the nearest coarse neighbor is a safe start.
    start = np.repeat(np.repeat(ndimage.maximum_filter(z, 3), 2, 0), 2, 1)
    start = start[: x.shape[0], : x.shape[1]] + np.float32(0.4)
    hit = np.isfinite(start)
    field = noise[hit]
    points = np.stack([x[hit], y[hit], start[hit]])
    points, reached = rendering.sphere_trace(lambda p: distance(p, field), points, steps=4, tolerance=0.15)
    # The few rays that pass close to an outline need more steps.
    late = ~reached
    points[:, late], reached[late] = rendering.sphere_trace(
        lambda p: distance(p, field[late]), points[:, late], steps=8, tolerance=0.15
    )
    hit[hit] = reached
    return hit, points[:, reached]


def trace_head(x, y, person, expression, view, ragged):
    """Find the smooth head and its hair in a window of the image: (hit, points, normal, hairiness, z).

    `x`, `y` and `ragged`, which roughens the hair, are float32 (h, w). Returns bool (h, w), and for the N hits points
    and unit normals (3, N) in the axes of the head, the fraction of hair (N,), and z in the scene (N,), cm.
    """
    turn = head_rotation(view)
    center = view["center"].astype(np.float32)

    def parts(local, noise):
        skull, skin = skin_distance(local, person, expression)
        return skin, hair_distance(local, skull, person["hair"], noise)

    def distance(local, noise):
        return np.minimum(*parts(local, noise))

    hit, points = trace(lambda p, n: distance(turn.T @ p, n), x - center[0], y - center[1], 14.0, ragged)
    noise, local = ragged[hit], turn.T @ points
    normal = rendering.surface_normals(lambda p: distance(p, noise), local, 0.12)
    skin, hair = parts(local, noise)
    return hit, local, normal, smoothstep(-0.12, 0.15, skin - hair), points[2]


def trace_body(x, y, view):
    """Find neck, shoulders and chest in a window of the image: (hit, points, normal, z) as from `trace_head`.

    The points are in the axes of the body, with the origin at the collar, the normals in those of the scene.
    """
    turn = rendering.rotation("y", np.radians(view["body_yaw"])).astype(np.float32)
    origin = (view["center"] + np.array([0, -14.3, -3.0])).astype(np.float32)
    build = view["build"]
    ends = np.float32([[0, -3, -3], [0, 9, -1.5], [0, -4.5, -3], [17.5 * build, -9.5, -3.5]])[:, :, None]
    neck_cone = rendering.rounded_cone(ends[0], ends[1], np.float32(5.7 * build), np.float32(4.6 * build))
    shoulder_cone = rendering.rounded_cone(ends[2], ends[3], np.float32(5.6), np.float32(5.4))

    def distance(points):
        neck, _ = rendering.cone_distance(points, neck_cone)
        shoulders, _ = rendering.cone_distance(mirrored(points), shoulder_cone)
        chest = ellipsoid_distance(points, (0, -21, -2), (20 * build, 18, 10.5))
        return smooth_union(neck, smooth_union(shoulders, chest, 4.0), 5.0)

    hit, points = trace(lambda p, _: distance(turn.T @ p), x - origin[0], y - origin[1], 16.0, x)
    local = turn.T @ points
    return hit, local, turn @ rendering.surface_normals(distance, local, 0.2), points[2] + origin[2]


def sample_maps(maps, points, lower):
    """Values (len(maps), N) of face maps at head points (3, N): bilinear interpolation.

    `lower` is the person's height of the face below the eyes; the maps are painted for 1.
    """
    u = MAP_RADIUS * np.arctan2(points[0], np.maximum(points[2], 0.01))
    scale, middle = np.float32(MAP_SIZE / MAP_SPAN), np.float32(MAP_SIZE / 2 - 0.5)
    v = np.where(points[1] < 0, points[1] / np.float32(lower), points[1])
    where = np.stack([(MAP_MIDDLE - v) * scale + middle, u * scale + middle])
    return np.stack([ndimage.map_coordinates(a, where, order=1, mode="nearest") for a in maps])


def apply_relief(points, normal, slope_u, slope_v):
    """Unit normals (3, N) of the face with its relief ("bump mapping", J. Blinn, 1978).

    `points`, `normal`: (3, N), of the smooth head; `slope_u`, `slope_v`: (N,), slopes to the right and upwards.
    """
    x, y, z = points
    radius = np.sqrt(x * x + z * z) + np.float32(0.1)
    tilted = normal - slope_u * np.stack([z / radius, 0 * y, -x / radius])
    tilted[1] -= slope_v
    return unit(tilted)


def sample_clothes(rng):
    """What the person wears: a dict of cut, color and pattern."""
    color = np.array(CLOTH_COLORS[rng.choice(len(CLOTH_COLORS), p=CLOTH_WEIGHTS)])
    return {
        "kind": rng.choice(["crew", "v", "vest", "shirt"], p=[0.55, 0.15, 0.12, 0.18]),
        "color": color * np.exp(rng.normal(0, 0.25)), "collar": rng.uniform(5.6, 7.6),  # cm, how high it closes
        "print": rng.random() < 0.25, "stripes": rng.random() < 0.08,
    }  # fmt: skip


def cloth_mask(points, clothes):
    """Bool (N,): which body points (3, N) are under clothes."""
    x, y, z = points
    a = np.abs(x)
    covered = y - 0.12 * a < clothes["collar"] - 6.5 - 0.3 * np.maximum(z, 0)
    if clothes["kind"] == "v":
        covered = covered & (a > 0.42 * (y + 14))
    elif clothes["kind"] == "vest":
        covered = (covered & (a > 6.5) & (a < 11.5)) | ((y < -12) & (a < 15))
    elif clothes["kind"] == "shirt":
        covered = (y < 1.5 - 0.35 * np.maximum(z, 0)) & (a > 0.3 * (y + 9))
    return covered


def cloth_albedo(points, noise, clothes, rng):
    """Albedo (3, N) of the cloth at body points (3, N); `noise`: random field (N,)."""
    x, y, _ = points
    pattern = 1 + 0.06 * noise
    if clothes["stripes"]:
        pattern = pattern * (1 + 0.9 * (np.sin(y * 3.5) > 0.3))
    if clothes["kind"] == "shirt":  # the edges of the open collar
        seam = (np.abs(np.abs(x) - 0.3 * (y + 9)) < 0.35) & (y > -9)
        pattern = pattern * (1 - 0.35 * seam)
    color = clothes["color"][:, None] * pattern
    if clothes["print"]:  # letters too small to read
        middle, pitch, half = rng.uniform(-14, -10), rng.uniform(3, 6), rng.uniform(0.6, 1.3)
        letters = np.sin(x * pitch + 2 * np.sin(x * 1.7)) > 0
        color = color + 0.2 * (letters & (np.abs(y - middle) < half) & (np.abs(x) < 8))
    return np.maximum(color, 0.004)


def sample_light(rng):
    """The light: a dict of irradiances (red, green, blue), 1 for white paper that looks white, and of directions.

    Outdoors the sun is behind the person, and sky and ground light the face: almost not at all, or enough.
    Two images in five are taken indoors, with a lamp or a flash in front.
    """
    outdoors = rng.random() >= 0.4
    if outdoors:
        level, back = np.exp(rng.uniform(np.log(0.28), np.log(1.1))), rng.uniform(0.4, 1.8)
    else:
        level, back = np.exp(rng.uniform(np.log(0.4), np.log(1.7))), rng.uniform(0, 0.4)
    side = rng.choice([-1, 1])
    tint = np.exp(rng.normal([0.05, 0, -0.05], [0.06, 0.02, 0.08] if outdoors else [0.2, 0.05, 0.2]))
    return {
        "outdoors": outdoors,
        "fill": level * rng.uniform(0.25, 0.7) * tint,
        "sky": level * rng.uniform(0.2, 0.6) * tint * np.array([0.95, 1.0, 1.08]),
        "ground": level * rng.uniform(0.05, 0.4) * tint * np.array([1.08, 1.0, 0.88]),
        "key": level * rng.uniform(0.2, 1.1) * np.array([1.05, 1.0, 0.93]),
        "key_direction": unit([side * rng.uniform(0.2, 1.2), rng.uniform(0.0, 0.9), rng.uniform(0.2, 1.0)]),
        "back": back * np.array([1.0, 0.97, 0.9]),
        "back_direction": unit([-side * rng.uniform(-0.6, 1.0), rng.uniform(0.3, 1.0), -rng.uniform(0.5, 1.0)]),
        "gloss": rng.uniform(0.01, 0.1 if outdoors else 0.25),
    }


def received_light(normal, light, shadow, occlusion):
    """Light (3, N) on unit normals (3, N); `shadow`, `occlusion`: (N,), fractions of key and ambient light left."""
    lights = (np.float32(light[name])[:, None] for name in ("fill", "sky", "ground", "key", "back"))
    fill, sky, ground, key, back = lights
    up = 0.5 + 0.5 * normal[1]
    ambient = fill * (0.15 + 0.85 * np.maximum(normal[2], 0)) + sky * up**1.5 + ground * (1 - up)
    key = key * rendering.skin_diffuse(normal, light["key_direction"], 0.8)
    back = back * rendering.skin_diffuse(normal, light["back_direction"], 0.0)
    return ambient * occlusion + key * shadow + back


def render_foliage(rng, fine, middle, coarse, sun):
    """Leaves in sun and shade, linear light, float32 (3, 128, 128)."""
    lit = smoothstep(-2.2, 2.6, 0.75 * fine + 0.55 * middle + 0.5 * coarse + np.float32(rng.normal(0, 0.4)))
    lit = (np.float32(0.26) + 0.8 * lit**1.5) * np.float32(sun)
    autumn = np.float32(rng.uniform(0, 0.9)) * np.clip(0.5 + 0.4 * coarse + 0.3 * middle, 0, 1)
    green, gold = (0.46, 0.55, 0.22), (0.88, 0.77, 0.46)
    return np.stack([lit * (g + autumn * (o - g)) for g, o in zip(green, gold)]).astype(np.float32)


def render_garden(rng):
    """An overexposed garden: linear light, float32 (3, 128, 128).

    From top to bottom: trees against the sky, a fence, hedges, a drive or a dry lawn in the sun, bushes at the
    sides, perhaps a parked car.
    """
    x, y = rendering.pixel_grid(2.0)
    height = y + rng.normal(0, 0.06) * x - rng.uniform(-0.1, 0.35)
    sun = rng.uniform(0.9, 2.2)
    coarse, middle, fine = (rendering.smooth_noise(rng, scale) for scale in (26, 8, 2.5))
    image = np.empty((3, *x.shape), np.float32)
    image[:] = (rng.uniform(0.6, 1.3) * sun * np.array([1.0, 0.98, 0.92]))[:, None, None]
    lawn = smoothstep(0.0, 1.6, coarse + 0.3 * fine + rng.normal(0, 1.0) * x - rng.uniform(-0.3, 1.2))
    paint(image, 0.85 * lawn, np.float32([0.6, 0.52, 0.32])[:, None, None] * (1 + 0.2 * fine))
    if rng.random() < 0.75:
        fence = smoothstep(0.03, 0.0, np.abs(height - 0.02) - rng.uniform(0.06, 0.12))
        boards = 1 + 0.25 * np.sin(x * rng.uniform(30, 70)) + 0.25 * middle
        wood = rng.uniform(0.4, 1.3) * np.float32([0.34, 0.17, 0.11])[:, None, None]
        paint(image, fence, wood * boards)
    leaves = render_foliage(rng, fine, middle, coarse, sun)
    sky = smoothstep(0.1, 0.9, 0.6 * middle + 0.6 * coarse + 1.2 * (y - rng.uniform(0.5, 1.4)))
    leaves += sky * np.float32(0.7 * sun)
    paint(image, smoothstep(-0.04, 0.08, height - 0.1 - 0.12 * coarse - 0.05 * middle), leaves)
    shade = render_foliage(rng, middle, fine, -coarse, 0.5 * sun)
    if rng.random() < 0.8:
        hedge = np.abs(height + 0.05 + 0.04 * middle) - 0.13 - 0.07 * coarse
        reach = smoothstep(-0.3, 0.3, rng.choice([-1, 1]) * x + rng.uniform(-0.2, 0.8))
        paint(image, smoothstep(0.05, -0.05, hedge) * reach, shade)
    if rng.random() < 0.5:
        dx, dy = x - rng.choice([-1, 1]) * rng.uniform(0.65, 1.0), height + rng.uniform(0.02, 0.2)
        paint_car(image, dx, dy, rng)
    for _ in range(rng.integers(0, 3)):
        across = (x - rng.choice([-1, 1]) * rng.uniform(0.75, 1.1)) / rng.uniform(0.2, 0.4)
        bush = np.hypot(across, (y - rng.uniform(-0.9, -0.1)) / 0.45) + 0.12 * middle
        paint(image, smoothstep(1.1, 0.9, bush), shade * rng.uniform(1.0, 1.8))
    sigma = rng.uniform(0.7, 1.9)  # the background is almost in focus
    return ndimage.gaussian_filter(image, (0, sigma, sigma), mode="nearest", truncate=2.5)


def paint_car(image, dx, dy, rng):
    """Paint a parked car over `image` (3, h, w); `dx`, `dy`: coordinates relative to its center."""
    colors = ((0.04, 0.06, 0.13), (0.03, 0.03, 0.03), (0.4, 0.42, 0.45), (0.25, 0.03, 0.03))
    color = np.float32(colors[rng.choice(4, p=[0.5, 0.25, 0.2, 0.05])])[:, None, None]
    body = smoothstep(1.1, 0.9, np.maximum(np.abs(dx) / 0.32, np.abs(dy) / 0.07))
    cabin = smoothstep(1.1, 0.9, np.hypot(dx / 0.2, (dy - 0.07) / 0.1))
    paint(image, np.maximum(body, cabin), color * (1 + 2 * smoothstep(0.0, 0.1, dy)))
    paint(image, smoothstep(1.1, 0.8, np.hypot(dx / 0.15, (dy - 0.1) / 0.045)), (0.35, 0.4, 0.45))  # windows
    paint(image, smoothstep(1.1, 0.8, np.hypot(dx / 0.34, (dy + 0.08) / 0.03)), (0.02, 0.02, 0.02))  # shadow


def render_room(rng):
    """A wall indoors with doors, pictures, shelves: linear light, float32 (3, 128, 128)."""
    x, y = rendering.pixel_grid(2.0)
    color = np.exp(rng.uniform(np.log(0.02), np.log(1.1)) + rng.normal(0, [0.25, 0.15, 0.3]))
    falloff = 1 + rng.normal(0, 0.25) * x + rng.normal(0, 0.15) * y
    falloff = np.maximum(falloff, 0.2) * (1 + 0.04 * rendering.smooth_noise(rng, 20))
    image = (color[:, None, None] * falloff).astype(np.float32)
    for _ in range(rng.integers(0, 7)):
        center, size = rng.uniform(-1.1, 1.1, 2), rng.uniform(0.06, 0.6, 2)
        box = np.maximum(np.abs(x - center[0]) - size[0], np.abs(y - center[1]) - size[1])
        shade = np.exp(rng.normal(-0.4, 0.8)) * np.exp(rng.normal(0, 0.15, 3))
        paint(image, 0.9 * smoothstep(0.02, -0.02, box), color * shade)
    sigma = rng.uniform(0.8, 4.0)
    return ndimage.gaussian_filter(image, (0, sigma, sigma), mode="nearest", truncate=2.5)


def add_glare(image, rng):
    """Add stray light in the lens to `image` (3, 128, 128), in place: a veil from bright parts, sometimes a flare."""
    x, y = rendering.pixel_grid(2.0)
    strength = rng.uniform(0.005, 0.04) if rng.random() < 0.7 else rng.uniform(0.04, 0.16)
    veil = rendering.blur(np.minimum(image.mean(axis=0), 2.0), 24)
    image += np.float32(strength * np.array([1.02, 1.0, 0.92]))[:, None, None] * veil
    if rng.random() < 0.3:
        angle, spread = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.8)
        away = (x - 1.1 * np.cos(angle)) ** 2 + (y - 1.1 * np.sin(angle)) ** 2
        flare = np.exp(away / np.float32(-2 * spread**2)) * np.float32(rng.uniform(0.1, 0.6))
        image += np.float32([1.0, 0.98, 0.88])[:, None, None] * flare


def develop(image, rng):
    """Apply a camera's tone curve to linear light (3, h, w): exposure, deep shadows, local contrast."""
    toe = rng.uniform(0.0, 0.025)  # light below this turns black
    image = image * image / (image + np.float32(toe) + np.float32(1e-6)) * np.float32(np.exp(rng.normal(0.15, 0.25)))
    gray = image.mean(axis=0) + np.float32(0.003)
    return image * np.clip(gray / rendering.blur(gray, 5), 0.5, 2) ** rng.uniform(0.2, 0.6)


def stylize(image, near, rng):
    """Apply a style to linear light (3, h, w): saturation, old prints, lost focus.

    `near`: how much larger the face is than in Happy House, so that a blur leaves its expression visible.
    """
    gray = image.mean(axis=0)
    style = rng.random()
    saturation = 0.0 if style < 0.12 else rng.uniform(0.7, 1.5)
    image = np.maximum(gray + saturation * (image - gray), 0)
    if 0.06 < style < 0.25:  # toned prints and wrong white balance
        image *= np.exp(rng.normal(0, [[[0.15]], [[0.05]], [[0.2]]]))
    if rng.random() < 0.3:  # out of focus, or enlarged from a few pixels
        sigma = near * rng.uniform(0.3, 1.1)
        image = ndimage.gaussian_filter(image, (0, sigma, sigma), mode="nearest", truncate=2.5)
    return image


def shade_body(points, normal, fields, person, clothes, light, rng):
    """Radiance (3, N) of neck and clothes at points and normals (3, N) from `trace_body`.

    `fields`: shadow, occlusion and two random fields, (N,) each.
    """
    shadow, occlusion, fine, wrinkles = fields
    covered = cloth_mask(points, clothes)
    albedo = np.where(covered, cloth_albedo(points, fine, clothes, rng), np.float32(person["skin"])[:, None])
    normal[0] += 0.15 * covered * wrinkles
    return albedo * received_light(unit(normal), light, shadow, occlusion)


def shade_head(normal, hairiness, albedo, fields, person, light):
    """Radiance (3, N) of face and hair for normals (3, N) in the axes of the scene.

    `hairiness`: (N,), the fraction of hair; `albedo`: (3, N), of the face; `fields`: shadow, occlusion and a random
    field, (N,) each.
    """
    shadow, occlusion, fine = fields
    strands = np.exp(np.float32(0.2) * fine)
    color = person["hair"]["cloth"] if person["hair"]["cut"] == "hat" else person["hair_color"]
    hair = np.float32(color)[:, None] * strands
    albedo = albedo + hairiness * (hair - albedo)
    shine = rendering.specular_highlight(normal, light["key_direction"], 18) * shadow
    shine = np.float32(light["gloss"]) * shine * (1 + hairiness * (0.5 * strands - 1))
    return albedo * received_light(normal, light, shadow, occlusion) + np.float32(light["key"])[:, None] * shine


def render_face(smiling, rng):
    """Render an image of a person who smiles (1) or does not (0).

    Args:
        smiling: int, 0 or 1.
        rng: numpy.random.Generator; the same state gives the same image.

    Returns: uint8 array (64, 64, 3), RGB.
    """
    person, view, light = sample_person(rng), sample_view(rng), sample_light(rng)
    clothes, expression = sample_clothes(rng), sample_expression(smiling, rng)
    face = paint_face(person, expression, rng)
    image = render_garden(rng) if light["outdoors"] else render_room(rng)
    textures = sample_textures(person, view, rng)
    head, body = head_surface(person, expression, view, textures[2]), body_surface(view)
    skin = put_on_face(head, face, person, view)
    shadows = cast_shadows(head, skin[2], body, view, light)
    draw_body(image, body, shadows, person, clothes, light, textures, rng)
    draw_head(image, head, skin, shadows, person, light, textures)
    add_glare(image, rng)
    image = stylize(develop(image, rng), enlargement(view), rng)
    return rendering.photograph(image.transpose(1, 2, 0), rng, rng)


def enlargement(view):
    """How much larger than in Happy House the face is: locks and shadows grow with it."""
    return 36 / view["width"]


def sample_textures(person, view, rng):
    """Three random fields (128, 128): a fine one, the wrinkles of the clothes, and the locks of the hair."""
    fine, wrinkles = rendering.smooth_noise(rng, 2.5), rendering.smooth_noise(rng, 9)
    locks = rendering.smooth_noise(rng, enlargement(view) * person["hair"]["curl"])
    return fine, wrinkles, locks + np.float32(0.4) * fine


class Surface(NamedTuple):
    """What the camera sees of head or body in a window of the image: n of its (h, w) pixels hit it."""

    window: tuple  # slices of rows and columns
    hit: np.ndarray  # bool (h, w)
    points: np.ndarray  # (3, n), in the axes of the head or the body
    normal: np.ndarray  # (3, n), unit vectors, in the axes of the head, or of the scene for the body
    z: np.ndarray  # (n,), in the scene, cm
    hairiness: np.ndarray  # (n,), how much hair covers the head, 0 to 1


def head_surface(person, expression, view, ragged):
    """`Surface` of head and hair; `ragged` (128, 128) roughens the hair."""
    x, y = rendering.pixel_grid(view["width"])
    center_x, center_y, _ = view["center"]
    below, above = max(14.5, person["hair"]["length"]), 13 + 1.5 * person["hair"]["top"]
    place = window(x, y, center_x - 12.5, center_x + 12.5, center_y - below, center_y + above)
    hit, points, normal, hairiness, z = trace_head(x[place], y[place], person, expression, view, ragged[place])
    return Surface(place, hit, points, normal, z, hairiness)


def body_surface(view):
    """`Surface` of neck, shoulders and chest."""
    x, y = rendering.pixel_grid(view["width"])
    place = window(x, y, -np.inf, np.inf, -np.inf, view["center"][1] - 5)
    hit, points, normal, z = trace_body(x[place], y[place], view)
    return Surface(place, hit, points, normal, z, 0 * z)


def put_on_face(head, face, person, view):
    """Put a face on a head: albedo and unit normals (3, n) in the axes of the scene, and the new z (n,).

    `face`: relief and albedo from `paint_face`.
    """
    relief, albedo = face
    slope_v, slope_u = np.gradient(relief, MAP_SPAN / MAP_SIZE)
    *colors, height, slope_u, slope_v = sample_maps([*albedo, relief, slope_u, -slope_v], head.points, person["lower"])
    bare = 1 - head.hairiness
    normal = head_rotation(view) @ apply_relief(head.points, head.normal, slope_u * bare, slope_v * bare)
    return np.stack(colors), normal, head.z + bare * height * normal[2]


def cast_shadows(head, z, body, view, light):
    """Fractions (128, 128) of the lamp's and of the ambient light that arrive, and which of the head's pixels show.

    `z` (n,): that of the head, with its relief; the last result is bool (n,).
    """
    near = enlargement(view)
    depth = np.full((rendering.RENDER_SIZE, rendering.RENDER_SIZE), np.float32(-25.0))  # deep but finite
    depth[body.window][body.hit] = body.z
    front = z > depth[head.window][head.hit]
    depth[head.window][head.hit] = np.maximum(depth[head.window][head.hit], z)
    depth *= np.float32(rendering.RENDER_SIZE / view["width"])  # now in rendered pixels
    occlusion = rendering.ambient_occlusion(depth, scales=(2.0 * near, 6.0 * near), strength=0.25)
    shadow = rendering.self_shadow(depth, light["key_direction"], reach=int(20 * near), softness=2 * near)
    return shadow, occlusion, front


def draw_body(image, body, shadows, person, clothes, light, textures, rng):
    """Draw a body on `image`, linear light (3, 128, 128), in place; `rng` places the letters on the clothes."""
    shadow, occlusion, _ = shadows
    fine, wrinkles, _ = textures
    fields = [field[body.window][body.hit] for field in (shadow, occlusion, fine, wrinkles)]
    # The wrinkles change the normals.
    color = shade_body(body.points, body.normal.copy(), fields, person, clothes, light, rng)
    image[:, *body.window][:, body.hit] = color


def draw_head(image, head, skin, shadows, person, light, textures):
    """Draw a head on `image`, linear light (3, 128, 128), in place; `skin`: from `put_on_face`."""
    shadow, occlusion, front = shadows
    albedo, normal, _ = skin
    fields = [field[head.window][head.hit] for field in (shadow, occlusion, textures[0])]
    color = shade_head(normal, head.hairiness, albedo, fields, person, light)
    visible = head.hit.copy()
    visible[head.hit] = front
    image[:, *head.window][:, visible] = color[:, front]
