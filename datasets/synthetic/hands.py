"""Synthetic photographs of a hand that shows a digit, in place of SIGNS, and of hands that show none.

`render_hand(digit, rng)` and `render_no_digit(kind, rng)` sample a person (proportions, skin, sleeve), a pose (the
angle of each joint), a viewpoint, a lamp and a wall, and render one image. The hand is a skeleton with a rounded cone
around each bone; `rendering.py` traces, lights and photographs it.

Lengths are in centimeters and angles in degrees. The axes of the palm, for a right hand: x towards the side of
the thumb, y towards the fingertips, z out of the palm. Lengths, radii and angles were adjusted by eye.
"""

from collections import namedtuple

import numpy as np
from scipy import ndimage

from datasets.synthetic import rendering
from datasets.synthetic.rendering import rotation, smoothstep, unit

# One rounded cone. start, end: (3,); blend: the radius over which it merges with its neighbors; part: "palm",
# "proximal", "middle" or "distal" (the bones of a finger), "arm" or "sleeve"; palmar: (3,), the direction that
# its palm side faces.
Bone = namedtuple("Bone", "start end start_radius end_radius blend part palmar")

FINGERS = ("index", "middle", "ring", "little")
# The base and the three bones of each finger, for a hand 18 cm long, about the adult average. z follows the arch of
# the knuckles.
KNUCKLES = {"index": (2.65, 8.7, 0.0), "middle": (0.55, 9.1, -0.2),
            "ring": (-1.5, 8.6, -0.1), "little": (-3.3, 7.6, 0.25)}  # fmt: skip
PHALANGES = {"index": (4.4, 2.5, 1.8), "middle": (4.8, 2.9, 1.9),
             "ring": (4.4, 2.7, 1.9), "little": (3.5, 2.0, 1.6)}  # fmt: skip
FINGER_RADII = (1.0, 0.92, 0.82, 0.66)  # knuckle, the two joints, tip
# The first bone of the thumb lies in the palm; its root is next to the wrist.
THUMB_ROOT = (1.9, 1.8, 0.5)
THUMB_BONES = (4.5, 3.3, 2.5)
THUMB_RADII = (1.35, 1.12, 1.0, 0.75)

OUT = np.array([0.0, 0.0, 1.0])  # the direction that the palm faces

# probability: how often people show it so; extended: fingers; thumb: "out", extended; "over" the curled fingers;
# "beside" them; "across" the palm; or "meets" the tip of the index finger, and of all that are not extended.
Pose = namedtuple("Pose", "probability extended thumb")

POSES = {
    0: (Pose(1, (), "meets"),),
    1: (Pose(0.7, FINGERS[:1], "over"), Pose(0.3, FINGERS[:1], "beside")),
    2: (Pose(0.8, FINGERS[:2], "over"), Pose(0.2, FINGERS[:2], "beside")),
    3: (Pose(0.5, FINGERS[:2], "out"), Pose(0.5, FINGERS[:3], "over")),
    4: (Pose(0.6, FINGERS, "across"), Pose(0.4, FINGERS[:3], "out")),
    5: (Pose(1, FINGERS, "out"),),
}
# Other fingers that some people count with.
RARE_POSES = {
    2: (Pose(0.5, ("index", "little"), "over"), Pose(0.3, ("middle", "ring"), "over"), Pose(0.2, FINGERS[:1], "out")),
    3: (Pose(0.7, FINGERS[1:], "over"), Pose(0.3, ("index", "middle", "little"), "over")),
}
RARE = 0.2  # how often, among the images of these digits
# A hand that shows no digit: a network must not be sure of one.
NO_DIGIT_POSES = {
    "thumbs-up": Pose(1, (), "out"),
    "fist": Pose(1, (), "over"),
    "OK": Pose(1, FINGERS[1:], "meets"),
    "little finger": Pose(1, ("little",), "over"),
    "call me": Pose(1, ("little",), "out"),
    "middle finger": Pose(1, ("middle",), "over"),
    "crossed fingers": Pose(1, FINGERS[:2], "over"),
    "pointing at the camera": Pose(1, FINGERS[:1], "over"),
}
NO_DIGITS = tuple(NO_DIGIT_POSES)


def finger_joints(base, lengths, abduction, flexions):
    """Positions (4, 3) of a finger's joints and tip, and the directions (3, 3) that its palm sides face.

    `base` (3,) is the knuckle, `lengths` are those of the three bones, `abduction` is the angle towards the side of
    the thumb, in the plane of the palm, and `flexions` are three angles by which the joints bend towards the palm.
    """
    forward = np.array([np.sin(np.radians(abduction)), np.cos(np.radians(abduction)), 0])
    joints, palmar = [np.asarray(base, float)], []
    for length, angle in zip(lengths, np.radians(np.cumsum(flexions))):
        joints.append(joints[-1] + length * (np.cos(angle) * forward + np.sin(angle) * OUT))
        palmar.append(np.cos(angle) * OUT - np.sin(angle) * forward)
    return np.array(joints), np.array(palmar)


def inverse_kinematics(base, target, lengths, pole):
    """Joint and tip of a chain of two bones that reaches from `base` for `target`, by the law of cosines.

    The joint bends towards `pole`. If the target is out of reach, the chain points at it.
    """
    first, second = lengths
    direction = np.asarray(target, float) - base
    distance = np.clip(np.linalg.norm(direction), abs(first - second) + 0.8, (first + second) * 0.995)
    direction = direction / np.linalg.norm(direction)
    along = (first**2 - second**2 + distance**2) / (2 * distance)
    side = pole - np.dot(pole, direction) * direction
    side = side / np.linalg.norm(side)
    joint = base + along * direction + np.sqrt(max(first**2 - along**2, 0)) * side
    return joint, base + distance * direction


def sample_finger_angles(pose, crossed, rng):
    """List of the four fingers' abduction and three flexions.

    The fingers of a hand move together: spread, stiffness and grip are shared, and each joint varies a little.
    """
    spread = rng.uniform(0, 1) if rng.random() < 0.7 else rng.uniform(-0.25, 0)
    stiffness = abs(rng.normal(0, 1))  # few people stretch their fingers fully
    if rng.random() < 0.15:  # bent as if around a ball
        stiffness += rng.uniform(1.5, 3.5)
    grip = rng.uniform(0, 1)
    # How far the bent fingers stand off, in degrees. The little finger alone is hard to bend.
    loose = rng.uniform(0, 55 if pose.thumb in ("out", "beside") or pose.extended == FINGERS[:3] else 20)
    angles = []
    for i, name in enumerate(FINGERS):
        abduction = (2 + 15 * spread, 2 * spread, -1 - 11 * spread, -3 - 24 * spread)[i]
        if name in pose.extended:
            if crossed:
                abduction = (-11, 9)[i]
            elif pose.extended == FINGERS[:2]:  # a V: the two fingers lean apart
                abduction = (1 + 22 * spread, -13 * spread)[i]
            first, second, third = rng.normal(0, (5, 4, 3))
            flexions = [4 + 2 * stiffness + first, 4 + 5 * stiffness + abs(second), 3 + 3 * stiffness + abs(third)]
            if crossed and name == "index":
                flexions[0] += 18
        elif pose.thumb == "meets":  # the fingers arch towards the thumb
            abduction = (3, 0, -3, -5)[i]
            flexions = [38 + 25 * grip, 52 + 24 * grip, 24 + 16 * grip]
            flexions = rng.normal(flexions, 5) + (0, i * rng.uniform(-2, 5), 0)
        else:  # curled, with the tips pointing at the root of the thumb
            abduction += ((-6, -2, 2, 6)[i] - abduction) * (1 - loose / 60)
            flexions = rng.normal([74 + 14 * grip, 98 + 12 * grip, 50 + 22 * grip], 4)
            if pose.extended:  # a fist, or the thumb, holds them down
                flexions -= loose * np.array([1, 0.4, 0.3])
        angles.append((abduction + rng.normal(0, 2.5), flexions))
    return angles


def sample_thumb_joints(pose, fingers, rng):
    """Positions (4, 3) of the thumb's joints and tip; `fingers`: those of the four fingers.

    An open thumb points in a random direction. A bent one reaches for a target, so it touches the right place
    whatever the hand's proportions.
    """
    root = np.array(THUMB_ROOT)
    lengths = np.array(THUMB_BONES) * rng.normal(1, 0.04)
    if pose.thumb == "out":  # open, away from the palm; far away from a fist
        angle, height = rng.uniform(14 if pose.extended == FINGERS else 24, 58), rng.uniform(0.1, 0.5)
        joints = [root]
        for length in lengths:
            side = np.radians(angle)
            joints.append(joints[-1] + length * unit([np.sin(side), np.cos(side), height]))
            angle += rng.uniform(-15, 16)
            height -= rng.uniform(0, 0.2)
        return np.array(joints)
    index, middle, *_ = fingers
    if pose.thumb == "meets":  # the tip meets the tips of the first two fingers, or of the first
        first = rng.normal([0.35, 0.62, 0.70], 0.06)
        aside = rng.uniform(0, 0.6) if "middle" not in pose.extended else 0
        target = index[3] + (middle[3] - index[3]) * aside + rng.normal(0, 0.3, 3) + (0, -0.9, -0.3)
        pole = np.array([0.3, -0.7, 0.6])
    elif pose.thumb == "across":  # across the palm, at most to the root of the ring finger
        first = rng.normal([0.38, 0.78, 0.50], 0.06)
        target = rng.uniform([-2.4, 5.2, 1.8], [1.4, 7.8, 3.0])
        pole = np.array([0.5, 0.4, 0.7])
    elif pose.thumb == "beside":  # along the side of the hand, close to the index finger's root or a little off
        first = rng.normal([0.45, 0.74, 0.45], 0.06)
        target = index[0] + rng.uniform([-0.2, -1.2, 1.0], [1.5, 1.4, 2.4])
        pole = np.array([0.5, -0.2, 0.8])
    else:  # over the curled fingers
        first = rng.normal([0.40, 0.74, 0.52], 0.06)
        curled = [joints for name, joints in zip(FINGERS, fingers) if name not in pose.extended]
        over = curled[0] if rng.random() < 0.7 else curled[min(1, len(curled) - 1)]
        target = over[1] + (over[2] - over[1]) * rng.uniform(0.2, 0.9) + (0, -0.3, 1.5)
        pole = np.array([0.5, -0.2, 0.8])
    knuckle = root + lengths[0] * unit(first)
    joint, tip = inverse_kinematics(knuckle, target, lengths[1:], pole)
    return np.array([root, knuckle, joint, tip])


def palm_bones(fingers, palm_sides, thumb, width):
    """The Bones of the palm: see `sample_hand` for the arguments."""
    bones = []
    for i, joints in enumerate(fingers):  # from the wrist to the knuckles
        bones.append(Bone((1.1 * width - 0.75 * i, 0.4, 0), joints[0], 1.35, 1.05, 0.9, "palm", OUT))
    # The pad at the roots of the fingers, from each finger to the next.
    roots = [one + 0.22 * (two - one) + 0.15 * palmar[0] for (one, two, *_), palmar in zip(fingers, palm_sides)]
    for one, other in zip(roots, roots[1:]):
        bones.append(Bone(one, other, 0.8, 0.8, 0.5, "palm", OUT))
    ball = thumb[0] + 0.85 * (thumb[1] - thumb[0])
    web = thumb[0] + 0.55 * (thumb[1] - thumb[0])
    return [
        *bones,
        Bone((1.2, 1.6, 0.7), ball, 1.35, 1.25, 0.9, "palm", OUT),  # the ball of the thumb
        Bone((-1.5, 1.4, 0.5), (-2.7 * width, 6.0, 0.45), 1.35, 1.15, 0.9, "palm", OUT),  # and of the little finger
        Bone(web, (2.2 * width, 6.6, 0.1), 0.95, 0.8, 0.9, "palm", OUT),  # between thumb and index finger
    ]


def thumb_bones(joints, inward):
    """The Bones of the thumb; `inward` (3,) is about the direction that its palm side faces."""
    bones = [Bone(joints[0], joints[1], THUMB_RADII[0], THUMB_RADII[1], 0.6, "palm", OUT)]
    for i, part in ((1, "proximal"), (2, "distal")):
        direction = unit(joints[i + 1] - joints[i])
        palmar = unit(inward - np.dot(inward, direction) * direction)
        bones.append(Bone(joints[i], joints[i + 1], THUMB_RADII[i], THUMB_RADII[i + 1], 0.35, part, palmar))
    return bones


def sample_arm_bones(rng):
    """The Bones of the forearm, two side by side, turned at the wrist, and sometimes of a sleeve."""
    turn = rotation("z", np.radians(rng.normal(0, 14))) @ rotation("x", np.radians(rng.normal(0, 16)))
    bones = []
    for side in (-1, 1):
        middle, elbow = turn @ (side * 1.05, -9, 0), turn @ (side * 0.9, -32, 0)
        bones.append(Bone((side * 0.95, -0.2, 0), middle, 1.7, 2.2, 1.2, "arm", OUT))
        bones.append(Bone(middle, elbow, 2.2, 3.2, 1.2, "arm", OUT))
    if rng.random() < 0.4:
        cuff = turn @ (0, rng.uniform(-14, -4), 0)
        bones.append(Bone(cuff, turn @ (0, -34, 0), rng.uniform(3, 3.8), 4.8, 0.15, "sleeve", OUT))
    return bones


def sample_proportions(rng):
    """A person's hand, relative to the average: the length and the thickness of the fingers, the width of the palm."""
    length = rng.normal(1, 0.04)
    thickness = np.clip(rng.normal(1, 0.09), 0.82, 1.25)
    return length, thickness, np.clip(rng.normal(1, 0.05), 0.9, 1.12)


def sample_hand(pose, crossed, proportions, rng):
    """The bones of a right hand and arm, in the axes of the palm: list of Bone; `proportions`: see above."""
    length, thickness, width = proportions
    fingers, palm_sides, finger_bones = [], [], []
    for name, (abduction, flexions) in zip(FINGERS, sample_finger_angles(pose, crossed, rng)):
        lengths = np.array(PHALANGES[name]) * length * rng.normal(1, 0.02)
        joints, palmar = finger_joints(np.array(KNUCKLES[name]) * (width, 1, 1), lengths, abduction, flexions)
        fingers.append(joints)
        palm_sides.append(palmar)
        radii = np.array(FINGER_RADII) * (0.85 if name == "little" else 1)
        for i, part in enumerate(("proximal", "middle", "distal")):
            finger_bones.append(Bone(joints[i], joints[i + 1], radii[i], radii[i + 1], 0.35, part, palmar[i]))
    thumb = sample_thumb_joints(pose, fingers, rng)
    # An open thumb faces across the palm, a bent one into it.
    inward = np.array((-0.65, 0.1, 0.75) if pose.thumb == "out" else (-0.3, 0.2, -0.9))
    bones = palm_bones(fingers, palm_sides, thumb, width) + finger_bones + thumb_bones(thumb, inward)
    return [
        bone._replace(start_radius=bone.start_radius * thickness, end_radius=bone.end_radius * thickness)
        for bone in bones + sample_arm_bones(rng)
    ]


def sample_view(pose, kind, rng):
    """Matrix (3, 3) from the axes of the palm to those of the camera; for a left hand it also mirrors."""
    mirror = rng.choice([-1.0, 1.0])
    if kind == 0:  # seen from the side of the thumb, which shows the hole
        yaw = np.clip(rng.normal(-66, 24), -115, -24)
    elif rng.random() < 0.15:  # almost edge-on, the fingers behind one another
        yaw = rng.uniform(30, 75) * rng.choice([-1, 1])
    else:
        yaw = rng.normal(0, 20 if len(pose.extended) > 2 else 28)
    tilt = rng.normal(0, 14)
    if kind != 0 and rng.random() < 0.45:  # the back of the hand, which would hide the hole
        yaw += 180
    if kind == "OK":
        yaw = rng.normal(-30, 20)  # so that the ring is seen
    if kind == "fist" and rng.random() < 0.5:
        yaw += 90  # from the side
    if kind == "pointing at the camera":
        tilt, yaw = rng.normal(80, 12), rng.uniform(-180, 180)
    # Most people hold the hand upright, some hold it sideways.
    roll = rng.normal(0, 22) if rng.random() < 0.7 else rng.uniform(-130, 130)
    if kind == "thumbs-up" and rng.random() < 0.7:
        roll += 90 * mirror * np.sign(np.cos(np.radians(yaw)))  # so that it points up
    return view_matrix(yaw, tilt, roll, mirror)


def view_matrix(yaw, tilt, roll, mirror):
    """Matrix (3, 3) from the axes of the palm to those of the camera; `mirror`: 1 for a right hand, -1 for a left."""
    matrix = rotation("z", np.radians(roll)) @ rotation("x", np.radians(tilt)) @ rotation("y", np.radians(yaw))
    return (matrix @ np.diag([mirror, 1, 1])).astype(np.float32)


def project(bones, matrix, width, rng, aside=0.1):
    """The bones in the axes of the camera, and the point (3,) at the center of the image.

    `aside` is how far the hand is from there: a standard deviation, in widths of the image. Perspective is applied to
    joints and radii here, so the rays can be parallel later.
    """
    hand = [matrix @ point for bone in bones if bone.part not in ("arm", "sleeve") for point in (bone.start, bone.end)]
    middle = (np.min(hand, axis=0) + np.max(hand, axis=0)) / 2
    middle[:2] -= np.clip(rng.normal(0, aside, 2), -0.22, 0.22) * width
    distance = rng.uniform(40, 90)  # from the camera to the hand
    projected = []
    for bone in bones:
        start, end = matrix @ bone.start - middle, matrix @ bone.end - middle
        # Clipped, because an elbow that points at the camera must not reach it.
        near = distance / (distance - np.clip([start[2], end[2]], -30, 20))
        start[:2] *= near[0]
        end[:2] *= near[1]
        radii = bone.start_radius * near[0], bone.end_radius * near[1]
        projected.append(Bone(start, end, *radii, bone.blend, bone.part, matrix @ bone.palmar))
    return projected, middle


def stack_field(bones, name):
    """One field of all bones: float32 array (bones,), or (3, bones) for a vector."""
    return np.array([getattr(bone, name) for bone in bones], np.float32).T


def candidate_bones(bones, width):
    """Find the bones that each pixel may see, for tiles of pixels at once: (pixels, slots).

    `pixels` (n,) are flat indices of the pixels that may see any bone, those with the most bones first; `slots` is a
    list of int arrays: slots[k][i] is bone k of pixel i, for the pixels that have more than k (the first in `pixels`).
    """
    tile = 4  # pixels; smaller tiles cost more tests, larger ones keep more bones
    size = rendering.RENDER_SIZE
    side = size // tile
    x, y = rendering.pixel_grid(width, side)
    points = np.stack([x.ravel(), y.ravel(), 0 * x.ravel()])[:, None]
    start, end = (stack_field(bones, name)[..., None] * np.float32([[[1]], [[1]], [[0]]]) for name in ("start", "end"))
    radii = (stack_field(bones, name)[:, None] for name in ("start_radius", "end_radius"))
    distance, _ = rendering.cone_distance(points, rendering.rounded_cone(start, end, *radii))
    # Half the diagonal of a tile, and a little for the seams, which bulge.
    seen = distance < 0.71 * width / side + 0.3

    counts = seen.sum(axis=0)
    tiles = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    counts = counts[tiles]
    _, bone = np.nonzero(seen.T[tiles])  # one tile after the other
    first = np.cumsum(counts) - counts
    slots = [bone[first[counts > k] + k].repeat(tile * tile) for k in range(counts[0])]
    inside = np.arange(tile * tile)
    corner = tiles // side * tile * size + tiles % side * tile
    pixels = corner[:, None] + inside // tile * size + inside % tile
    return pixels.ravel(), slots


def distance_function(bones, slots):
    """Two functions of points (3, n): the signed distance (n,) to the hand, and the nearest bone.

    The second returns for each point the index of the nearest bone and the position t along it.
    """
    cone = rendering.rounded_cone(*(stack_field(bones, name) for name in Bone._fields[:4]))
    blends = stack_field(bones, "blend")
    # One slot at a time, because the numbers of one slot fit into the processor's cache.
    cones = [[part[..., slot] for part in cone] for slot in slots]
    seams = [blends[slot] for slot in slots]

    def distance(points):
        union, _ = rendering.cone_distance(points, cones[0])
        for cone, seam in zip(cones[1:], seams[1:]):
            count = len(seam)
            single, _ = rendering.cone_distance(points[:, :count], cone)
            union[:count] = rendering.smooth_union(union[:count], single, seam)
        return union

    def nearest(points):
        best, position = rendering.cone_distance(points, cones[0])
        index = slots[0].copy()
        for cone, slot in zip(cones[1:], slots[1:]):
            single, t = rendering.cone_distance(points[:, : len(slot)], cone)
            closer = np.flatnonzero(single < best[: len(slot)])
            best[closer], index[closer], position[closer] = single[closer], slot[closer], t[closer]
        return index, position

    return distance, nearest


def sample_skin_tone(rng):
    """Albedo of the back of the hand and of the palm: two arrays (3,), linear."""
    # Very light, tan and very dark skin. The logarithm of the albedo falls about linearly with the pigment.
    tones = np.log([(0.66, 0.42, 0.32), (0.40, 0.22, 0.13), (0.12, 0.06, 0.038)])
    pigment = rng.beta(2.0, 2.8) * 2
    low = min(int(pigment), 1)
    back = np.exp(tones[low] + (tones[low + 1] - tones[low]) * (pigment - low))
    back *= np.exp(rng.normal(0, [0.03, 0.04, 0.05]))
    palm = back ** (1 - 0.28 * pigment / 2) * (1.06, 0.98, 0.96)  # palms tan little
    return back, palm


def skin_albedo(bones, bone, t, position, normal, out, rng, noise):
    """Albedo of the skin, array (3, n), linear, and the fraction of it that is nail, (n,).

    `bone`, `t` (n,): index of the nearest bone and the position along it; `position` (3, n): in the axes of the palm;
    `normal` (3, n) and `out` (3,), the direction that the palm faces: in the axes of the camera; `noise` (2, n):
    random fields, coarse and fine, standard deviation 1.
    """

    def part_is(*names):
        return np.array([b.part in names for b in bones])[bone]

    back, palm = sample_skin_tone(rng)
    facing = rendering.dot(normal, stack_field(bones, "palmar")[:, bone])  # 1 on the palm side, -1 on the back
    length = np.linalg.norm(stack_field(bones, "end") - stack_field(bones, "start"), axis=0)[bone]
    along = t * length
    x, y, _ = position

    # The first centimeter of a finger or thumb still belongs to the palm.
    own = np.where(part_is("proximal"), smoothstep(0, 1.5, along), 1)
    facing = own * facing + (1 - own) * rendering.dot(normal, out)
    inner = smoothstep(-0.3, 0.4, facing) * smoothstep(-11, -1, y)
    tone = back[:, None] * (1 - inner) + palm[:, None] * inner

    # Blood makes fingertips, pads and knuckles redder, and leaves blotches everywhere.
    to_start = np.where(part_is("middle", "distal"), along, 9)
    to_end = np.where(part_is("proximal", "middle"), length - along, 9)
    joint = np.exp(-((np.minimum(to_start, to_end) / 0.4) ** 2))  # 1 at the two joints inside a finger
    red = 0.45 * noise[0] + 0.3 * noise[1] * (part_is("palm") & (facing > 0))
    red += 0.8 * smoothstep(0.2, 1, t) * part_is("distal") + 0.5 * joint * (facing < 0)
    tone = tone * np.exp(np.array([0.02, -0.09, -0.07])[:, None] * red + 0.05 * noise[1])

    # Creases across the joints of the fingers and at their roots.
    dark = joint**4 * rng.uniform(0.05, 0.25) * smoothstep(0, 0.5, np.abs(facing))
    dark += 0.2 * np.exp(-(((along - 1.5) / 0.22) ** 2)) * part_is("proximal") * (facing > 0.2)
    # The three long lines of the palm: two across it, one around the ball of the thumb.
    # Each is the distance to a curve, increased beyond the curve's ends.
    shift = rng.normal(0, 0.25, 3)
    across = np.abs(y - (7.3 + shift[0] + 0.04 * (x + 3.2) ** 2)) + 3 * np.maximum(x - 1.2, 0)
    middle = np.abs(y - (5.6 + shift[1] + 0.32 * x)) + 3 * np.maximum(np.abs(x - 0.15) - 2.65, 0)
    thumb = np.abs(np.hypot(x - 3.6, y - 2.4) - 3.6 - shift[2]) + 3 * np.maximum(np.maximum(x - 3.2, 0.6 - y), 0)
    lines = np.minimum.reduce([across, middle, thumb])
    dark += 0.4 * np.exp(-((lines / 0.22) ** 2)) * part_is("palm") * smoothstep(0.2, 0.6, facing)
    # On the back, tendons run from the wrist to the knuckles, with hollows between them.
    fan = (x - 0.55) / (0.9 + 0.125 * y)  # a tendon at each whole number
    tendons = np.cos(2 * np.pi * fan) * part_is("palm") * smoothstep(-0.3, -0.7, facing) * smoothstep(0, 4, y)
    dark -= rng.uniform(0, 0.16) * tendons
    tone = tone * np.exp(-dark * np.array([0.7, 1.0, 1.1])[:, None])

    # Nails cover the far half of the last bone's back.
    nail = smoothstep(0.35, 0.5, t) * smoothstep(-0.72, -0.85, facing) * part_is("distal")
    pink = 0.5 * tone + 0.5 * np.array([0.62, 0.42, 0.36])[:, None]
    return tone * (1 - nail) + pink * nail, nail


def render_wall(rng, light):
    """The wall behind the hand, linear light, (128, 128, 3)."""
    x, y = rendering.pixel_grid(2.0)
    kind = rng.random()
    if kind < 0.6:  # white paint, warm or cool
        color = rng.uniform(0.58, 0.85) * np.exp(rng.normal([0.02, 0, -0.04], 0.012))
        roughness = rng.uniform(0, 0.01)
    elif kind < 0.75:  # gray or greenish, in a dim room
        color = rng.uniform(0.15, 0.6) * np.exp(rng.normal([-0.06, 0.02, -0.03], 0.03))
        roughness = rng.uniform(0, 0.02)
    else:  # colored paint, wood, cloth
        color = np.exp(rng.uniform(np.log(0.05), np.log(0.7)) + rng.normal(0, 0.2, 3))
        roughness = rng.uniform(0, 0.08)
    slope = light[:2] * rng.uniform(0, 0.16) + rng.normal(0, 0.05, 2)
    bright = 1 + slope[0] * x + slope[1] * y - rng.uniform(0, 0.1) * (x * x + y * y)
    bright = bright + 0.03 * rendering.smooth_noise(rng, 50)
    bright = bright * np.exp(roughness * rendering.smooth_noise(rng, np.exp(rng.uniform(0.7, 3))))
    if rng.random() < 0.1:  # a corner, a door frame, the edge of a table
        turn = rng.uniform(0, 2 * np.pi)
        side = np.cos(turn) * x + np.sin(turn) * y > rng.uniform(-0.7, 0.7)
        bright = bright * np.where(side, np.exp(rng.normal(0, 0.3)), 1)
    return bright[:, :, None] * np.minimum(color, 0.95)


def wall_shadow(mask, light, scale, rng):
    """Fraction of the wall's light that the hand blocks, (128, 128).

    `mask` (128, 128) is 1 where the hand is, `light` (3,) the unit vector towards the lamp, and `scale` the
    number of rendered pixels per centimeter.
    """
    gap = rng.uniform(2, 14) * scale  # between hand and wall
    shift = np.clip(-light[:2] / light[2] * gap, -60, 60)
    lamp = rendering.cast_shadow(mask, shift, 1.5 + gap * rng.uniform(0.08, 0.25))
    ambient = rendering.cast_shadow(mask, shift / 2, 6)
    return rng.uniform(0.15, 0.6) * lamp + rng.uniform(0, 0.15) * ambient


def visible_surface(bones, width, steps=13):
    """What the camera sees of the hand: (pixels, points, normal, bone, t, coverage).

    These are flat indices (n,) of the pixels that may see any of it; points and unit normals (3, n) on the surface;
    the index of the nearest bone and the position along it, (n,); the fraction of the pixel that is hand, (n,).
    """
    size = rendering.RENDER_SIZE
    pixels, slots = candidate_bones(bones, width)
    distance, nearest = distance_function(bones, slots)
    x, y = rendering.pixel_grid(width)
    # Start in front of the foremost bone that the pixel may see.
    tops = [stack_field(bones, name)[2] + stack_field(bones, f"{name}_radius") for name in ("start", "end")]
    tops = np.maximum(*tops) + np.float32(0.1)
    start = tops[slots[0]]
    for slot in slots[1:]:
        start[: len(slot)] = np.maximum(start[: len(slot)], tops[slot])
    rays = np.stack([x.ravel()[pixels], y.ravel()[pixels], start])
    points, _ = rendering.sphere_trace(distance, rays, steps=steps, tolerance=0.5 * width / size)
    bone, t = nearest(points)

    # Outlines are soft over about a pixel. A few rays along the outlines inside the hand have not arrived;
    # the pinholes that they leave are closed.
    gap = np.abs(distance(points)) * (size / width)  # in rendered pixels
    coverage = to_image(np.clip(1.3 - gap, 0, 1), pixels, 0)
    coverage[ndimage.uniform_filter(coverage, 3) > 0.7] = 1
    normal = rendering.surface_normals(distance, points, 0.1)
    return pixels, points, normal, bone, t, coverage.ravel()[pixels]


def to_image(values, pixels, background):
    """Put `values` (n,) at the flat indices `pixels` of an image (128, 128), float32."""
    image = np.full(rendering.RENDER_SIZE**2, background, np.float32)
    image[pixels] = values
    return image.reshape(rendering.RENDER_SIZE, rendering.RENDER_SIZE)


def render_hand(digit, rng):
    """Render an image of a hand that shows `digit`.

    Args:
        digit: int, 0 to 5; 6: no digit, any of NO_DIGITS.
        rng: numpy.random.Generator; the same state gives the same image.

    Returns: uint8 array (64, 64, 3), RGB.
    """
    if digit == len(POSES):
        return render_no_digit(rng.integers(len(NO_DIGITS)), rng)
    poses = RARE_POSES[digit] if digit in RARE_POSES and rng.random() < RARE else POSES[int(digit)]
    return render_pose(poses[rng.choice(len(poses), p=[pose.probability for pose in poses])], int(digit), rng)


def render_no_digit(kind, rng):
    """Render an image, uint8 (64, 64, 3), of a hand that shows none of the digits; `kind`: an index of NO_DIGITS."""
    return render_pose(NO_DIGIT_POSES[NO_DIGITS[kind]], NO_DIGITS[kind], rng)


def sleeve_and_band(albedo, bones, bone, position, rng):
    """Put the colors of a sleeve, plain or striped, and sometimes of a bracelet or watch, on albedo (3, n)."""
    plain, stripe, band = (np.exp(rng.uniform(-3, -0.3) + rng.normal(0, 0.25, (3, 1))) for _ in range(3))
    if rng.random() < 0.6:
        stripe = plain
    part = np.array([b.part for b in bones])[bone]
    y = position[1]
    striped = np.sin(y * rng.uniform(2, 7)) > rng.uniform(-0.5, 0.5)
    albedo = np.where(part == "sleeve", np.where(striped, stripe, plain), albedo)
    if rng.random() < 0.2:
        around = np.abs(y + rng.uniform(1.5, 5)) < rng.uniform(0.2, 1.2)
        albedo = np.where(around & (part == "arm"), band, albedo)
    return albedo


def bracelets(albedo, bones, bone, position, rng):
    """Put up to four bracelets, one above the other, on albedo (3, n)."""
    arm, top = np.array([b.part == "arm" for b in bones])[bone], -rng.uniform(0.8, 3)
    for _ in range(rng.integers(1, 5)):
        height = rng.uniform(0.3, 1)
        around = arm & (position[1] < top) & (position[1] > top - height)
        albedo = np.where(around, np.exp(rng.uniform(-3, -0.2) + rng.normal(0, 0.3, (3, 1))), albedo)
        top -= height + rng.uniform(0, 0.4)
    return albedo


def sample_light(rng):
    """One lamp, usually from above, and ambient light: a dict of levels, 1 for white paper that looks white."""
    direction = unit([rng.normal(-0.2, 0.6), rng.normal(0.7, 0.4), rng.uniform(0.2, 1.0)])
    return {
        "direction": direction, "tint": np.exp(rng.normal([0.02, 0, -0.04], [0.02, 0, 0.03]))[:, None],
        "shadow": rng.uniform(0.6, 0.95), "key": rng.uniform(0.85, 1.5), "softness": rng.uniform(0.1, 0.7),
        "ambient": rng.uniform(0.15, 0.4), "gloss": rng.uniform(0.02, 0.14),
    }  # fmt: skip


def paint_hand(bones, surface, position, out, rng):
    """Albedo (3, n) of what the camera sees of a hand, and the fraction of it that is nail, (n,).

    `surface` is what `visible_surface` returns; for the others see `skin_albedo`.
    """
    pixels, _, normal, bone, t, _ = surface
    noise = [rendering.smooth_noise(rng, size).ravel()[pixels] for size in (9, 2.2)]
    albedo, nail = skin_albedo(bones, bone, t, position, normal, out, rng, noise)
    return sleeve_and_band(albedo, bones, bone, position, rng), nail


def light_hand(surface, albedo, nail, light, scale):
    """The light (3, n) that a hand sends to the camera; `scale`: rendered pixels per centimeter."""
    pixels, points, normal, _, _, coverage = surface
    # The wall is too far behind to matter for the shadows of the hand on itself.
    height = to_image(np.where(coverage > 0.5, points[2], -40), pixels, -40) * scale
    lit = rendering.self_shadow(height, light["direction"]).ravel()[pixels]
    lit = 1 - light["shadow"] * (1 - lit)
    key = light["key"] * light["tint"] * rendering.skin_diffuse(normal, light["direction"], light["softness"])
    # Near an outline the surface turns away and only looks like a crease.
    occlusion = rendering.ambient_occlusion(height, strength=0.25).ravel()[pixels]
    occlusion = occlusion ** np.clip(0.3 + normal[2], 0.3, 1)
    # Light between fingers is reflected by skin, so creases are red, not gray.
    crease = np.stack([occlusion**power for power in (0.8, 1.05, 1.2)])
    around = 0.75 + 0.25 * normal[1] + 0.3 * (1 - normal[2])  # more from above and from the wall
    color = albedo * (key * lit + light["ambient"] * around * crease) * np.sqrt(crease)
    highlight = rendering.specular_highlight(normal, light["direction"], 18)
    return color + light["gloss"] * lit * highlight * (1 + 2 * nail)


def put_before_wall(color, wall, surface, light, scale, rng):
    """Linear light (128, 128, 3): the wall, the hand's shadow on it, and in front of it the hand of this color (3, n).

    `light`: from `sample_light`; `scale`: rendered pixels per centimeter.
    """
    pixels, coverage = surface[0], surface[-1]
    shadow = wall_shadow(to_image(coverage, pixels, 0), light["direction"], scale, rng)
    image = wall * (1 - shadow[:, :, None] * (1.0, 0.98, 0.95))  # shadows are bluish
    flat = image.reshape(-1, 3)
    flat[pixels] += coverage[:, None] * (color.T - flat[pixels])
    return image


def render_pose(pose, kind, rng):
    """Render an image, uint8 (64, 64, 3), of a hand in this pose; `kind`: the digit, or one of NO_DIGITS."""
    width = rng.uniform(15, 30)  # of the image, at the distance of the hand
    scale = rendering.RENDER_SIZE / width
    matrix = sample_view(pose, kind, rng)
    hand = sample_hand(pose, kind == "crossed fingers", sample_proportions(rng), rng)
    # Sometimes the fingertips or the wrist lie beyond the edge of the image.
    bones, middle = project(hand, matrix, width, rng, aside=0.1 if rng.random() < 0.8 else 0.2)
    surface = visible_surface(bones, width)
    # The perspective shifted the points slightly, which does not matter for the markings of skin.
    position = matrix.T @ (surface[1] + middle[:, None])
    albedo, nail = paint_hand(bones, surface, position, matrix[:, 2], rng)
    if rng.random() < 0.2:
        albedo = bracelets(albedo, bones, surface[3], position, rng)
    light = sample_light(rng)
    if rng.random() < 0.25:  # the wall is nearer to the lamp than the hand
        light["key"] *= rng.uniform(0.3, 0.8)
    color = light_hand(surface, albedo, nail, light, scale)
    wall = render_wall(rng, light["direction"])
    image = put_before_wall(color, wall, surface, light, scale, rng)
    if rng.random() < 0.3:  # underexposed, or a lens that darkens the corners
        x, y = rendering.pixel_grid(2.0)
        image *= np.exp(-rng.uniform(0, 1.5) - rng.uniform(0, 0.4) * (x * x + y * y))[:, :, None]
    return rendering.photograph(image, rng, rng)
