"""Synthetic photographs of a hand that shows a digit: the stand-in for SIGNS.

`render_hand(digit, rng)` draws a person (proportions, skin), a pose (how far
each joint is bent), a viewpoint, a lamp and a wall, all by chance, and returns
one picture. The hand is a skeleton whose bones are covered by rounded cones;
`rendering.py` traces, lights and photographs it.

Lengths are centimetres and angles degrees. The palm's own axes, for a right
hand: x to the side of the thumb, y towards the fingertips, z out of the palm.
"""

from collections import namedtuple

import numpy as np
from scipy import ndimage

from datasets import rendering
from datasets.rendering import rotation, smoothstep, unit

# One rounded cone. start, end: (3,); radii; `blend`: the radius over which it
# melts into its neighbours; `part`: "palm", "proximal", "middle", "distal" (the
# bones of a finger), "arm" or "sleeve"; `palmar`: (3,), where its palm side looks.
Bone = namedtuple("Bone", "start end start_radius end_radius blend part palmar")

FINGERS = ("index", "middle", "ring", "little")
# Where each finger begins, and its three bones, for a hand 18 cm long: about the
# middle of adult hands. z follows the arch of the knuckles. These lengths, and
# the radii and angles below, were set by eye until the hands looked right.
KNUCKLES = {"index": (2.65, 8.7, 0.0), "middle": (0.55, 9.1, -0.2),
            "ring": (-1.5, 8.6, -0.1), "little": (-3.3, 7.6, 0.25)}
PHALANGES = {"index": (4.4, 2.5, 1.8), "middle": (4.8, 2.9, 1.9),
             "ring": (4.4, 2.7, 1.9), "little": (3.5, 2.0, 1.6)}
FINGER_RADII = (1.0, 0.92, 0.82, 0.66)  # knuckle, the two joints, tip
# The thumb's first bone lies in the palm; its root is next to the wrist.
THUMB_ROOT = (1.9, 1.8, 0.5)
THUMB_BONES = (4.5, 3.3, 2.5)
THUMB_RADII = (1.35, 1.12, 1.0, 0.75)

OUT = np.array([0.0, 0.0, 1.0])  # where the palm looks

# The fingers that point away from the palm, by digit; 0 has all of them bent.
EXTENDED = {0: (), 1: FINGERS[:1], 2: FINGERS[:2], 3: FINGERS[:2], 4: FINGERS, 5: FINGERS}


# ---------------------------------------------------------------- the pose

def finger_joints(base, lengths, abduction, flexions):
    """Positions (4, 3) of a finger's joints and tip, and its palm sides (3, 3).

    Args:
        base: (3,), the knuckle.
        lengths: three bone lengths.
        abduction: angle to the side of the thumb in the plane of the palm.
        flexions: three angles, how far each joint bends towards the palm.
    """
    forward = np.array([np.sin(np.radians(abduction)), np.cos(np.radians(abduction)), 0])
    inward = np.array([0, 0, 1.0])
    joints, palmar = [np.asarray(base, float)], []
    for length, angle in zip(lengths, np.radians(np.cumsum(flexions))):
        joints.append(joints[-1] + length * (np.cos(angle) * forward + np.sin(angle) * inward))
        palmar.append(np.cos(angle) * inward - np.sin(angle) * forward)
    return np.array(joints), np.array(palmar)


def reach(base, target, lengths, pole):
    """Joint and tip of a two-bone chain that reaches from `base` for `target`.

    The triangle with the given sides, by the law of cosines; the joint bends to
    the side of `pole`. A target out of reach is only pointed at.
    """
    first, second = lengths
    direction = np.asarray(target, float) - base
    distance = np.clip(np.linalg.norm(direction), abs(first - second) + 0.8,
                       (first + second) * 0.995)
    direction = direction / np.linalg.norm(direction)
    along = (first ** 2 - second ** 2 + distance ** 2) / (2 * distance)
    side = pole - np.dot(pole, direction) * direction
    side = side / np.linalg.norm(side)
    joint = base + along * direction + np.sqrt(max(first ** 2 - along ** 2, 0)) * side
    return joint, base + distance * direction


def finger_angles(digit, rng):
    """For each finger its abduction and three flexions, as a list of pairs.

    The fingers of one hand move together: spread, stiffness and grip are drawn
    once, and each joint differs a little from what they say.
    """
    spread = rng.uniform(0, 1) if rng.random() < 0.7 else rng.uniform(-0.25, 0)
    stiffness = abs(rng.normal(0, 1))  # few people stretch their fingers fully
    if rng.random() < 0.15:  # bent like around a ball
        stiffness += rng.uniform(1.5, 3.5)
    grip = rng.uniform(0, 1)
    angles = []
    for i, name in enumerate(FINGERS):
        fan = (2 + 15 * spread, 2 * spread, -1 - 11 * spread, -3 - 24 * spread)[i]
        if name in EXTENDED[digit]:
            if digit in (2, 3):  # a V: the two fingers lean apart
                fan = (1 + 22 * spread, -13 * spread)[i]
            flexions = [rng.normal(4 + 2 * stiffness, 5), 4 + 5 * stiffness + abs(rng.normal(0, 4)),
                        3 + 3 * stiffness + abs(rng.normal(0, 3))]
        elif digit == 0:  # the four fingers arch towards the thumb
            fan = (3, 0, -3, -5)[i]
            flexions = [38 + 25 * grip, 52 + 24 * grip, 24 + 16 * grip]
            flexions = rng.normal(flexions, 5) + (0, i * rng.uniform(-2, 5), 0)
        else:  # curled; the tips of curled fingers point to the root of the thumb
            fan = (-6, -2, 2, 6)[i]
            flexions = rng.normal([74 + 14 * grip, 98 + 12 * grip, 50 + 22 * grip], 4)
            if digit == 3:  # no thumb holds them down
                flexions[0] -= rng.uniform(0, 30)
        angles.append((fan + rng.normal(0, 2.5), flexions))
    return angles


def thumb_joints(digit, fingers, rng):
    """Positions (4, 3) of the thumb's joints and tip.

    An open thumb only points somewhere; otherwise it reaches for a target, so
    that it touches what it should whatever the person's proportions.

    Args:
        fingers: four arrays (4, 3), what `finger_joints` gave.
    """
    root = np.array(THUMB_ROOT)
    lengths = np.array(THUMB_BONES) * rng.normal(1, 0.04)
    if digit in (3, 5):  # open, away from the palm
        angle = rng.uniform(14, 58)
        height = rng.uniform(0.1, 0.5)
        joints = [root]
        for length in lengths:
            side = np.radians(angle)
            joints.append(joints[-1] + length * unit([np.sin(side), np.cos(side), height]))
            angle += rng.uniform(-15, 16)
            height -= rng.uniform(0, 0.2)
        return np.array(joints)
    index, middle, ring, _ = fingers
    if digit == 0:  # the tip meets those of the first two fingers
        first = rng.normal([0.35, 0.62, 0.70], 0.06)
        target = index[3] + (middle[3] - index[3]) * rng.uniform(0, 0.6) + rng.normal(0, 0.3, 3)
        target = target + (0, -0.9, -0.3)
        pole = np.array([0.3, -0.7, 0.6])
    elif digit == 4:  # across the palm, to the root of the ring finger or nearer
        first = rng.normal([0.38, 0.78, 0.50], 0.06)
        target = rng.uniform([-2.4, 5.2, 1.8], [0.4, 7.8, 2.4])
        pole = np.array([0.5, 0.4, 0.7])
    else:  # over the curled fingers
        first = rng.normal([0.40, 0.74, 0.52], 0.06)
        over = (middle, ring)[digit - 1] if rng.random() < 0.7 else ring
        target = over[1] + (over[2] - over[1]) * rng.uniform(0.2, 0.9)
        target = target + np.array([0, -0.3, 1.5])
        pole = np.array([0.5, -0.2, 0.8])
    knuckle = root + lengths[0] * unit(first)
    joint, tip = reach(knuckle, target, lengths[1:], pole)
    return np.array([root, knuckle, joint, tip])


def palm_bones(knuckles, fingers, sides, thumb, width):
    """The Bones of the palm: see `build_hand` for the arguments."""
    bones = []
    # Between wrist and knuckles.
    for i, knuckle in enumerate(knuckles):
        bones.append(Bone((1.1 * width - 0.75 * i, 0.4, 0), knuckle, 1.35, 1.05, 0.9, "palm", OUT))
    # The pad under the roots of the fingers, from each finger to the next.
    roots = [joints[0] + 0.22 * (joints[1] - joints[0]) + 0.15 * side[0]
             for joints, side in zip(fingers, sides)]
    for one, other in zip(roots, roots[1:]):
        bones.append(Bone(one, other, 0.8, 0.8, 0.5, "palm", OUT))
    # The balls of the thumb and of the little finger, the web beside the thumb.
    ball = thumb[0] + 0.85 * (thumb[1] - thumb[0])
    web = thumb[0] + 0.55 * (thumb[1] - thumb[0])
    return bones + [
        Bone((1.2, 1.6, 0.7), ball, 1.35, 1.25, 0.9, "palm", OUT),
        Bone((-1.5, 1.4, 0.5), (-2.7 * width, 6.0, 0.45), 1.35, 1.15, 0.9, "palm", OUT),
        Bone(web, (2.2 * width, 6.6, 0.1), 0.95, 0.8, 0.9, "palm", OUT)]


def finger_bones(fingers, sides):
    """The Bones of the four fingers."""
    bones = []
    for name, joints, palmar in zip(FINGERS, fingers, sides):
        radii = np.array(FINGER_RADII) * (0.85 if name == "little" else 1)
        for i, part in enumerate(("proximal", "middle", "distal")):
            bones.append(Bone(joints[i], joints[i + 1], radii[i], radii[i + 1], 0.35, part, palmar[i]))
    return bones


def thumb_bones(joints, inward):
    """The Bones of the thumb; `inward` (3,): about where its ball looks."""
    bones = [Bone(joints[0], joints[1], THUMB_RADII[0], THUMB_RADII[1], 0.6, "palm", OUT)]
    for i, part in ((1, "proximal"), (2, "distal")):
        direction = unit(joints[i + 1] - joints[i])
        palmar = unit(inward - np.dot(inward, direction) * direction)
        bones.append(Bone(joints[i], joints[i + 1], THUMB_RADII[i], THUMB_RADII[i + 1],
                          0.35, part, palmar))
    return bones


def arm_bones(rng):
    """The Bones of the forearm, two side by side, turned at the wrist; a sleeve."""
    turn = rotation("z", np.radians(rng.normal(0, 14))) @ rotation("x", np.radians(rng.normal(0, 16)))
    bones = []
    for side in (-1, 1):
        middle, elbow = turn @ (side * 1.05, -9, 0), turn @ (side * 0.9, -32, 0)
        bones.append(Bone((side * 0.95, -0.2, 0), middle, 1.7, 2.2, 1.2, "arm", OUT))
        bones.append(Bone(middle, elbow, 2.2, 3.2, 1.2, "arm", OUT))
    if rng.random() < 0.15:
        cuff = turn @ (0, rng.uniform(-14, -6), 0)
        bones.append(Bone(cuff, turn @ (0, -34, 0), 3.6, 4.8, 0.15, "sleeve", OUT))
    return bones


def build_hand(digit, rng):
    """The bones of one person's right hand and arm, in the palm's axes: list of Bone."""
    length = rng.normal(1, 0.04)  # of the fingers, against the palm
    thickness = np.clip(rng.normal(1, 0.09), 0.82, 1.25)
    width = np.clip(rng.normal(1, 0.05), 0.9, 1.12)  # of the palm
    knuckles = [np.array(KNUCKLES[name]) * (width, 1, 1) for name in FINGERS]
    fingers, sides = [], []
    for name, knuckle, (abduction, flexions) in zip(FINGERS, knuckles, finger_angles(digit, rng)):
        lengths = np.array(PHALANGES[name]) * length * rng.normal(1, 0.02)
        joints, palmar = finger_joints(knuckle, lengths, abduction, flexions)
        fingers.append(joints)
        sides.append(palmar)
    thumb = thumb_joints(digit, fingers, rng)
    # The ball of an open thumb looks across the palm, that of a bent one into it.
    inward = np.array((-0.65, 0.1, 0.75) if digit in (3, 5) else (-0.3, 0.2, -0.9))
    bones = (palm_bones(knuckles, fingers, sides, thumb, width) + finger_bones(fingers, sides)
             + thumb_bones(thumb, inward) + arm_bones(rng))
    return [bone._replace(start_radius=bone.start_radius * thickness,
                          end_radius=bone.end_radius * thickness) for bone in bones]


# --------------------------------------------------------------- the camera

def view(digit, rng):
    """Matrix (3, 3) from the palm's axes to the camera's; it mirrors for left hands."""
    if digit == 0:  # seen from the side of the thumb, so that the hole shows
        yaw = np.clip(rng.normal(-66, 24), -115, -24)
    else:
        yaw = rng.normal(0, 26 if digit in (1, 2) else 18)
    tilt = rng.normal(0, 12)
    if rng.random() < 0.08 and digit != 0:  # the back of the hand, which would hide the hole
        yaw += 180
    # Mostly upright, as people hold up a hand; some to the sides.
    roll = rng.normal(0, 22) if rng.random() < 0.85 else rng.uniform(-100, 100)
    matrix = (rotation("z", np.radians(roll)) @ rotation("x", np.radians(tilt))
              @ rotation("y", np.radians(yaw)))
    mirror = rng.choice([-1.0, 1.0])
    return (matrix @ np.diag([mirror, 1, 1])).astype(np.float32)


def place(bones, matrix, width, rng):
    """The bones as the camera sees them, in its axes, and the point it looks at.

    Perspective is applied to joints and radii, so that parallel rays can be
    traced afterwards.

    Returns:
        (list of Bone, array (3,)).
    """
    hand = np.array([matrix @ point for bone in bones if bone.part not in ("arm", "sleeve")
                     for point in (bone.start, bone.end)])
    middle = (hand.min(axis=0) + hand.max(axis=0)) / 2
    middle[:2] -= np.clip(rng.normal(0, 0.1, 2), -0.22, 0.22) * width
    distance = rng.uniform(40, 90)  # from the camera to the hand
    placed = []
    for bone in bones:
        start, end = matrix @ bone.start - middle, matrix @ bone.end - middle
        # Limits: an elbow that points at the camera must not reach it.
        near = distance / (distance - np.clip([start[2], end[2]], -30, 20))
        start[:2] *= near[0]
        end[:2] *= near[1]
        placed.append(bone._replace(
            start=start, end=end, start_radius=bone.start_radius * near[0],
            end_radius=bone.end_radius * near[1], palmar=matrix @ bone.palmar))
    return placed, middle


def column(bones, name):
    """One field of all bones: float32 array (bones,), or (3, bones) of a vector."""
    return np.array([getattr(bone, name) for bone in bones], np.float32).T


def candidates(bones, width):
    """Which bones each pixel may see, found for tiles of pixels at once.

    Returns:
        (pixels, slots): `pixels` (n,) are flat indices of the pixels that may
        see any bone, those with many bones first; `slots` is a list of int
        arrays, slots[k][i] the k-th bone of pixel i, for the pixels that have
        more than k (a prefix of `pixels`).
    """
    tile = 4  # pixels; smaller tiles test more often, larger ones keep more bones
    size = rendering.RENDER_SIZE
    side = size // tile
    x, y = rendering.pixel_grid(width, side)
    points = np.stack([x.ravel(), y.ravel(), 0 * x.ravel()])[:, None]
    start, end = (column(bones, name) * np.float32([[1], [1], [0]]) for name in ("start", "end"))
    distance, _ = rendering.rounded_cone_distance(
        points, start[..., None], end[..., None],
        column(bones, "start_radius")[:, None], column(bones, "end_radius")[:, None])
    # Half the diagonal of a tile, and a little for the seams that bulge.
    seen = distance < 0.71 * width / side + 0.3

    counts = seen.sum(axis=0)
    tiles = np.argsort(-counts, kind="stable")[:np.count_nonzero(counts)]
    counts = counts[tiles]
    _, bone = np.nonzero(seen.T[tiles])  # tile after tile
    first = np.cumsum(counts) - counts
    slots = [bone[first[counts > k] + k].repeat(tile * tile) for k in range(counts[0])]
    inside = np.arange(tile * tile)
    corner = tiles // side * tile * size + tiles % side * tile
    pixels = corner[:, None] + inside // tile * size + inside % tile
    return pixels.ravel(), slots


def distance_function(bones, slots):
    """The hand as a function of points: see `rendering.sphere_trace`.

    Returns:
        (distance, nearest): distance(points (3, n)) -> (n,); nearest(points) ->
        for each point the index of the nearest bone and the position t along it.
    """
    cone = rendering.rounded_cone(*(column(bones, name) for name in Bone._fields[:4]))
    blends = column(bones, "blend")
    # Slot by slot: one slot's numbers fit the processor's cache, all of them do not.
    cones = [[part[..., slot] for part in cone] for slot in slots]
    seams = [blends[slot] for slot in slots]

    def distance(points):
        union, _ = rendering.cone_distance(points, cones[0])
        for cone, seam in zip(cones[1:], seams[1:]):
            some = len(seam)
            single, _ = rendering.cone_distance(points[:, :some], cone)
            union[:some] = rendering.smooth_union(union[:some], single, seam)
        return union

    def nearest(points):
        best, position = rendering.cone_distance(points, cones[0])
        index = slots[0].copy()
        for cone, slot in zip(cones[1:], slots[1:]):
            single, t = rendering.cone_distance(points[:, :len(slot)], cone)
            closer = np.flatnonzero(single < best[:len(slot)])
            best[closer], index[closer], position[closer] = single[closer], slot[closer], t[closer]
        return index, position

    return distance, nearest


# ------------------------------------------------------------ skin and wall

def skin_tone(rng):
    """Albedo of the back of the hand and of the palm: two arrays (3,), linear."""
    # Very light, tan and very dark skin; the logarithm of the albedo falls about
    # linearly with the amount of pigment.
    tones = np.log([(0.66, 0.42, 0.32), (0.40, 0.22, 0.13), (0.12, 0.06, 0.038)])
    pigment = rng.beta(2.0, 2.8) * 2
    low = min(int(pigment), 1)
    back = np.exp(tones[low] + (tones[low + 1] - tones[low]) * (pigment - low))
    back = back * np.exp(rng.normal(0, [0.03, 0.04, 0.05]))
    palm = back ** (1 - 0.28 * pigment / 2) * (1.06, 0.98, 0.96)  # palms tan little
    return back, palm


def skin_albedo(bones, bone, t, position, normal, out, rng, noise):
    """Colour of the skin, array (3, n), linear, and how much of it is nail, (n,).

    Args:
        bone, t: (n,), the nearest bone and the position along it.
        position: (3, n), in the palm's own axes.
        normal: (3, n), in the camera's axes.
        out: (3,), the direction in which the palm looks, in the camera's axes.
        noise: (2, n), random fields, coarse and fine, deviation 1.
    """
    def part_is(*names):
        return np.array([b.part in names for b in bones])[bone]

    back, palm = skin_tone(rng)
    facing = rendering.dot(normal, column(bones, "palmar")[:, bone])  # 1 palm side, -1 back
    length = np.linalg.norm(column(bones, "end") - column(bones, "start"), axis=0)[bone]
    along = t * length
    x, y, _ = position

    # The first centimetre of a finger or thumb still belongs to the palm.
    own = np.where(part_is("proximal"), smoothstep(0, 1.5, along), 1)
    facing = own * facing + (1 - own) * rendering.dot(normal, out)
    inner = smoothstep(-0.3, 0.4, facing) * smoothstep(-11, -1, y)
    tone = back[:, None] * (1 - inner) + palm[:, None] * inner

    # Blood: fingertips, pads and knuckles are redder; blotches everywhere.
    to_joint = np.minimum(np.where(part_is("middle", "distal"), along, 9),
                          np.where(part_is("proximal", "middle"), length - along, 9))
    joint = np.exp(-(to_joint / 0.4) ** 2)  # 1 at the two joints inside a finger
    red = 0.45 * noise[0] + 0.3 * noise[1] * (part_is("palm") & (facing > 0))
    red += 0.8 * smoothstep(0.2, 1, t) * part_is("distal") + 0.5 * joint * (facing < 0)
    tone = tone * np.exp(np.array([0.02, -0.09, -0.07])[:, None] * red + 0.05 * noise[1])

    # Creases: across the joints of the fingers and at their roots.
    dark = joint ** 4 * rng.uniform(0.05, 0.25) * smoothstep(0, 0.5, np.abs(facing))
    dark += 0.2 * np.exp(-((along - 1.5) / 0.22) ** 2) * part_is("proximal") * (facing > 0.2)
    # The three long lines of the palm: two across it, one around the ball of the
    # thumb. Each is a distance to a curve, made larger beyond the curve's ends.
    shift = rng.normal(0, 0.25, 3)
    lines = np.minimum.reduce([
        np.abs(y - (7.3 + shift[0] + 0.04 * (x + 3.2) ** 2)) + 3 * np.maximum(x - 1.2, 0),
        np.abs(y - (5.6 + shift[1] + 0.32 * x)) + 3 * np.maximum(np.abs(x - 0.15) - 2.65, 0),
        np.abs(np.hypot(x - 3.6, y - 2.4) - 3.6 - shift[2])
        + 3 * np.maximum(np.maximum(x - 3.2, 0.6 - y), 0)])
    dark += 0.4 * np.exp(-(lines / 0.22) ** 2) * part_is("palm") * smoothstep(0.2, 0.6, facing)
    tone = tone * np.exp(-dark * np.array([0.7, 1.0, 1.1])[:, None])

    # Nails: the far half of the back of the last bone.
    nail = smoothstep(0.35, 0.5, t) * smoothstep(-0.72, -0.85, facing) * part_is("distal")
    pink = 0.5 * tone + 0.5 * np.array([0.62, 0.42, 0.36])[:, None]
    return tone * (1 - nail) + pink * nail, nail


def wall(rng, light):
    """The wall behind the hand, linear light, (128, 128, 3)."""
    x, y = rendering.pixel_grid(2.0)
    if rng.random() < 0.85:  # white paint, warm or cool
        colour = rng.uniform(0.58, 0.85) * np.exp(rng.normal([0.02, 0, -0.04], 0.012))
        roughness = rng.uniform(0, 0.01)
    else:  # coloured paint, wood, cloth
        colour = np.exp(rng.uniform(np.log(0.08), np.log(0.7)) + rng.normal(0, 0.16, 3))
        roughness = rng.uniform(0, 0.04)
    slope = light[:2] * rng.uniform(0, 0.16) + rng.normal(0, 0.05, 2)
    bright = 1 + slope[0] * x + slope[1] * y - rng.uniform(0, 0.1) * (x * x + y * y)
    bright = bright + 0.03 * rendering.smooth_noise(rng, 50)
    bright = bright * (1 + roughness * rendering.smooth_noise(rng, rng.uniform(2, 8)))
    return bright[:, :, None] * np.minimum(colour, 0.95)


def wall_shadow(mask, light, scale, rng):
    """Share of the wall's light that the hand takes away, (128, 128).

    Args:
        mask: (128, 128), 1 where the hand is.
        light: (3,), the unit vector towards the lamp.
        scale: float, rendered pixels per centimetre.
    """
    gap = rng.uniform(2, 14) * scale  # between hand and wall
    shift = np.clip(-light[:2] / light[2] * gap, -60, 60)
    umbra = rendering.cast_shadow(mask, shift, 1.5 + gap * rng.uniform(0.08, 0.25))
    # The rest of the room is darker behind the hand as well.
    room = rendering.cast_shadow(mask, shift / 2, 6)
    return rng.uniform(0.15, 0.6) * umbra + rng.uniform(0, 0.15) * room


# ------------------------------------------------------------------ picture

def visible_surface(bones, width):
    """What the camera sees of the hand, for the n pixels that may see any of it.

    Returns:
        dict of arrays: "pixels" (n,) flat indices; "points" (3, n) and "normal"
        (3, n) on the surface; "bone" (n,) and "t" (n,), the nearest bone and the
        position along it; "coverage" (n,), the share of the pixel that is hand.
    """
    size = rendering.RENDER_SIZE
    pixels, slots = candidates(bones, width)
    distance, nearest = distance_function(bones, slots)
    x, y = rendering.pixel_grid(width)
    # Start in front of the foremost bone that the pixel may see.
    tops = np.maximum(column(bones, "start")[2] + column(bones, "start_radius"),
                      column(bones, "end")[2] + column(bones, "end_radius")) + np.float32(0.1)
    start = tops[slots[0]]
    for slot in slots[1:]:
        start[:len(slot)] = np.maximum(start[:len(slot)], tops[slot])
    points, _ = rendering.sphere_trace(
        distance, np.stack([x.ravel()[pixels], y.ravel()[pixels], start]),
        steps=13, tolerance=0.5 * width / size)
    bone, t = nearest(points)

    # An outline is soft over about a pixel. A few rays along the outlines inside
    # the hand have not arrived and leave pinholes, which are closed.
    gap = np.abs(distance(points)) * (size / width)  # in rendered pixels
    coverage = np.zeros(size * size, np.float32)
    coverage[pixels] = np.clip(1.3 - gap, 0, 1)
    closed = ndimage.uniform_filter(coverage.reshape(size, size), 3).ravel() > 0.7
    coverage[closed] = 1
    return {"pixels": pixels, "points": points, "bone": bone, "t": t,
            "normal": rendering.surface_normals(distance, points, 0.1),
            "coverage": coverage[pixels]}


def as_image(values, pixels, background):
    """`values` (n,) at the flat indices `pixels`, in a picture (128, 128)."""
    image = np.full(rendering.RENDER_SIZE ** 2, background, np.float32)
    image[pixels] = values
    return image.reshape(rendering.RENDER_SIZE, rendering.RENDER_SIZE)


def render_hand(digit, rng):
    """One picture of a hand that shows `digit`.

    Args:
        digit: int, 0 to 5.
        rng: numpy.random.Generator; the same state gives the same picture.

    Returns:
        uint8 array (64, 64, 3), RGB.
    """
    width = rng.uniform(18, 28)  # of the picture, at the distance of the hand
    scale = rendering.RENDER_SIZE / width
    matrix = view(digit, rng)
    bones, middle = place(build_hand(digit, rng), matrix, width, rng)
    surface = visible_surface(bones, width)
    pixels, coverage, normal = surface["pixels"], surface["coverage"], surface["normal"]

    # Perspective moved the points a little, which the markings of skin can bear.
    position = matrix.T @ (surface["points"] + middle[:, None])
    noise = [rendering.smooth_noise(rng, size).ravel()[pixels] for size in (9, 2.2)]
    albedo, nail = skin_albedo(bones, surface["bone"], surface["t"], position, normal,
                               matrix[:, 2], rng, noise)
    cloth = np.exp(rng.uniform(-3, -0.3) + rng.normal(0, 0.25, 3))
    sleeve = np.array([bone.part == "sleeve" for bone in bones])[surface["bone"]]
    albedo = np.where(sleeve, cloth[:, None], albedo)

    # One lamp, mostly from above, and light from everywhere.
    light = unit([rng.normal(-0.2, 0.6), rng.normal(0.7, 0.4), rng.uniform(0.2, 1.0)])
    tint = np.exp(rng.normal([0.02, 0, -0.04], [0.02, 0, 0.03]))[:, None]
    # The shadows that the hand throws on itself know no wall: it is far behind.
    height = as_image(np.where(coverage > 0.5, surface["points"][2], -40), pixels, -40) * scale
    lit = rendering.self_shadow(height, light).ravel()[pixels]
    lit = 1 - rng.uniform(0.6, 0.95) * (1 - lit)
    key = rng.uniform(0.85, 1.5) * tint * rendering.skin_diffuse(normal, light, rng.uniform(0.1, 0.7))
    # Light between fingers has bounced off skin, so creases are red, not grey.
    # Near an outline the surface turns away, which is no crease.
    occlusion = rendering.ambient_occlusion(height, strength=0.25).ravel()[pixels]
    occlusion = occlusion ** np.clip(0.3 + normal[2], 0.3, 1)
    crease = np.stack([occlusion ** power for power in (0.8, 1.05, 1.2)])
    # From above, and from the wall on what faces it.
    around = 0.75 + 0.25 * normal[1] + 0.3 * (1 - normal[2])
    ambient = rng.uniform(0.15, 0.4) * around * crease
    colour = albedo * (key * lit + ambient) * np.sqrt(crease)
    colour += rng.uniform(0.02, 0.14) * lit * rendering.highlight(normal, light, 18) * (1 + 2 * nail)

    picture = wall(rng, light)
    shadow = wall_shadow(as_image(coverage, pixels, 0), light, scale, rng)
    picture = picture * (1 - shadow[:, :, None] * (1.0, 0.98, 0.95))  # shadows are bluish
    flat = picture.reshape(-1, 3)
    flat[pixels] += coverage[:, None] * (colour.T - flat[pixels])
    return rendering.photograph(picture, rng)
