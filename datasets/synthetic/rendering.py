"""Building blocks of the synthetic renderers: shapes, light and a camera.

A scene is a signed distance function: for each point it returns the distance to the nearest surface,
negative inside. `sphere_trace` finds the surface that each pixel sees, `surface_normals` its orientation,
and `photograph` turns the light it sends to the camera into a small, noisy 8-bit image.

Conventions, unless a docstring says otherwise: x points to the right, y up, z towards the camera, which looks along
-z from far away (parallel rays). Points and vectors are arrays (3, ...): x, y and z are each contiguous in memory,
which is several times faster. Images are (height, width) or (height, width, 3), row 0 at the top. Light is linear:
twice the value is twice the light. `rng` is a numpy.random.Generator, the only source of randomness.
"""

import numpy as np
from scipy import ndimage

OUTPUT_SIZE = 64  # pixels
SUPERSAMPLING = 2  # rendered pixels per output pixel along each axis, for smooth outlines
RENDER_SIZE = OUTPUT_SIZE * SUPERSAMPLING


def unit(vector):
    """Scale `vector` (3, ...) to length 1."""
    vector = np.asarray(vector, np.float32)
    return vector / np.sqrt((vector * vector).sum(axis=0) + 1e-12)


def dot(a, b):
    """Inner product over the first axis, written out for speed."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def rotation(axis, angle):
    """Matrix (3, 3) of a right-handed rotation by `angle` radians about "x", "y" or "z"."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def pixel_grid(width, size=RENDER_SIZE):
    """x and y of the pixel centers, float32 (size, size); (0, 0) is the center; `width` is that of the image."""
    axis = ((np.arange(size) + 0.5) / size - 0.5) * width
    x, y = np.meshgrid(axis, -axis)
    return x.astype(np.float32), y.astype(np.float32)


def rounded_cone(start, end, start_radius, end_radius):
    """Prepare a rounded cone, the convex hull of two spheres, for `cone_distance`: centers (3, ...), radii (...)."""
    axis = end - start
    length = np.sqrt(dot(axis, axis)) + np.float32(1e-6)
    # Beyond a slope of 1 one sphere contains the other and there is no cone.
    slope = np.minimum(np.maximum((start_radius - end_radius) / length, -0.98), 0.98)
    lean = slope / np.sqrt(1 - slope * slope)
    return start, axis / length, length, start_radius, slope, lean


def cone_distance(points, cone):
    """Signed distance of `points` (3, ...) to a `rounded_cone`, and the position t of the nearest point on its axis.

    The solid is swept by a sphere whose radius changes linearly, so the distance is the minimum over t (0 at the
    start of the axis, 1 at its end) of |point - center(t)| - radius(t); setting the derivative to zero gives t in
    closed form. (Inigo Quilez, "Distance functions", describes the same solid.)
    """
    start, direction, length, start_radius, slope, lean = cone
    relative = points - start
    along = dot(relative, direction)
    across_squared = np.maximum(dot(relative, relative) - along * along, 0)
    nearest = np.minimum(np.maximum(along + np.sqrt(across_squared) * lean, 0), length)
    beyond = along - nearest
    distance = np.sqrt(across_squared + beyond * beyond) - start_radius + slope * nearest
    return distance, nearest / length


def ellipsoid_distance(points, center, radii):
    """Approximate signed distance at `points` (3, ...) to an ellipsoid with its axes along x, y and z.

    The exact distance has no closed form. This is the implicit function divided by the length of its
    gradient, accurate close to the surface, where the tracing ends (Inigo Quilez, "Ellipsoid - SDF").
    """
    shape = (3,) + (1,) * (np.ndim(points) - 1)
    radii = np.asarray(radii, np.float32).reshape(shape)
    scaled = (points - np.asarray(center, np.float32).reshape(shape)) / radii
    value = np.sqrt(dot(scaled, scaled))
    gradient = scaled / radii
    return value * (value - 1) / (np.sqrt(dot(gradient, gradient)) + 1e-6)


def smooth_union(a, b, radius):
    """Distance to the union of two solids, with the seam between them filled.

    The quadratic "smooth minimum" (Inigo Quilez): the plain minimum where the distances differ by more
    than `radius` (scene units), up to radius / 4 less elsewhere.
    """
    overlap = np.maximum(radius - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap / (4 * radius)


def sphere_trace(distance, points, steps=16, tolerance=0.02):
    """March from `points` (3, ...) along -z; return where the rays end (3, ...), and whether they hit a surface (...).

    Each step is as long as `distance(points)` (...) to the nearest surface, because nothing can lie in between
    (John C. Hart, "Sphere tracing", The Visual Computer, 1996). Rays start in front of everything; those that graze a
    surface need many steps, and those that miss end where they came closest. `tolerance`, in scene units, is about
    half a rendered pixel.
    """
    points = points.copy()
    nearest = np.full(points.shape[1:], np.inf, np.float32)
    depth = points[2]
    for _ in range(steps + 1):  # the last pass only measures where the last step led
        gap = distance(points)
        depth = np.where(np.abs(gap) < nearest, points[2], depth)
        nearest = np.minimum(np.abs(gap), nearest)
        # Slightly longer steps than are safe keep grazing rays from creeping along an outline.
        # A ray that ends up inside steps back next time.
        points[2] -= gap + 2 * tolerance * (gap > tolerance)
    points[2] = depth
    return points, nearest < 2 * tolerance


def surface_normals(distance, points, step=0.05):
    """Unit normals (3, ...): the gradient of the distance at `points` (3, ...).

    The four corners of a tetrahedron (`step`: scene units) need a third fewer evaluations than three axes.
    """
    normal = np.zeros_like(points)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        corner = np.array(corner, np.float32).reshape((3,) + (1,) * (points.ndim - 1))
        normal += corner * distance(points + corner * np.float32(step))
    return unit(normal)


def smooth_noise(rng, scale, size=RENDER_SIZE):
    """Random field (size, size), mean 0, standard deviation 1, with blotches of `scale` >= 1 rendered pixels."""
    # Interpolating a coarse lattice costs a tenth of blurring a field of full size.
    cells = max(int(np.ceil(size / scale)) + 3, 5)
    lattice = rng.standard_normal((cells, cells)).astype(np.float32)
    if cells < size:
        position = np.linspace(0.5, cells - 1.5, size, dtype=np.float32)
        low = position.astype(int)
        part = position - low
        part = part * part * (3 - 2 * part)  # smooth at the lattice points
        rows = lattice[low] * (1 - part)[:, None] + lattice[low + 1] * part[:, None]
        field = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    else:
        field = lattice[:size, :size]
    return (field - field.mean()) / (field.std() + np.float32(1e-6))


def smoothstep(low, high, value):
    """Rise smoothly from 0 at `low` to 1 at `high`; falls if `low` > `high`."""
    part = np.clip((value - low) / (high - low), 0, 1)
    return part * part * (3 - 2 * part)


def skin_diffuse(normal, light, softness=1.0):
    """Diffuse reflection of one lamp by skin, array (3, ...): red, green, blue.

    Light scatters under the skin, red light farthest, so the edge of the shaded side is soft and warm.
    Extending the cosine law past 90 degrees, most for red, imitates this at no cost. `normal` (3, ...) and `light`,
    towards the lamp, are unit vectors; `softness` is 0 for hard light and 1 for a large window.
    """
    cosine = dot(normal, light)
    wrap = [0.15 + 0.30 * softness, 0.08 + 0.25 * softness, 0.05 + 0.22 * softness]
    return np.stack([np.maximum((cosine + w) / (1 + w), 0) for w in wrap])


def specular_highlight(normal, light, sharpness):
    """Specular reflection, 0 to 1 (Blinn-Phong, camera along z)."""
    half = unit(np.asarray(light) + np.array([0, 0, 1.0]))
    return np.maximum(dot(normal, half), 0) ** sharpness


def ambient_occlusion(height, scales=(1.5, 4.0, 9.0), strength=0.12):
    """Fraction of the ambient light that reaches each pixel: small in creases, deeper than their surroundings.

    `height` (height, width) is towards the camera, with a deep but finite background; `scales` are the sizes of the
    surroundings; both are in rendered pixels.
    """
    # Clipping keeps distant surfaces from counting more than near ones.
    depths = [np.clip(blur(height, scale) - height, 0, 2 * scale) / scale for scale in scales]
    return np.exp(-3 * strength * sum(depths))


def self_shadow(height, light, reach=24, softness=2.0):
    """Fraction of a lamp's light that is not blocked by nearer parts of the scene.

    Follows the ray to the lamp over the height field and looks for something higher than the ray. `light` is the unit
    vector towards the lamp, with a positive z. `height` (height, width), `reach`, the length of the ray, and
    `softness`, the width of the shadow's edge, are in rendered pixels.
    """
    sideways = np.hypot(light[0], light[1])
    if sideways < 1e-3:
        return np.ones_like(height)
    rows, columns = height.shape
    padded = np.pad(height, reach, mode="edge")
    blocked = np.zeros_like(height)
    for walked in np.geomspace(2, reach, 9):
        dx = int(round(walked * light[0] / sideways)) + reach
        dy = int(round(-walked * light[1] / sideways)) + reach
        above = padded[dy : dy + rows, dx : dx + columns] - height - walked * light[2] / sideways
        blocked = np.maximum(blocked, np.clip(above / (softness + 0.15 * walked), 0, 1))
    return 1 - blocked


def blur(image, sigma):
    """Gaussian blur of an image (height, width), `sigma` in pixels."""
    if sigma < 3:
        return ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3)
    # A wide blur leaves no detail, so it is computed at a half or a quarter of the resolution.
    factor = 2 if sigma < 6 else 4
    rows, columns = image.shape
    small = image.reshape(rows // factor, factor, columns // factor, factor).mean(axis=(1, 3))
    small = ndimage.gaussian_filter(small, sigma / factor, mode="nearest", truncate=3)
    return ndimage.zoom(small, factor, order=1, mode="nearest", grid_mode=True)


def cast_shadow(mask, shift, sigma):
    """Soft shadow, 0 to 1, on a wall behind an object; `mask` (height, width) is 1 where the object is.

    `shift` (dx, dy), from the object to its shadow, y up, and `sigma`, the blur, are in rendered pixels.
    """
    dx, dy = int(round(shift[0])), int(round(-shift[1]))
    reach = max(abs(dx), abs(dy), 1)
    padded = np.pad(mask, reach, mode="edge")  # an object that leaves the image continues outside
    rows, columns = mask.shape
    return blur(padded[reach - dy : reach - dy + rows, reach - dx : reach - dx + columns], sigma)


def photograph(image, camera, grain):
    """Simulate a phone camera: focus, exposure, white balance, tone curve, color resolution, noise.

    Args:
        image: (128, 128, 3), linear light, 1 = white paper.
        camera: numpy.random.Generator, decides about everything but the noise; the same state is the same camera.
        grain: numpy.random.Generator of the noise, which differs from one photograph to the next.

    Returns: uint8 (64, 64, 3), RGB.
    """
    image = np.asarray(image, np.float32)
    sigma = camera.uniform(0.6, 1.4)  # rendered pixels: sharp to slightly soft
    image = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=2.5)
    size = image.shape[0] // SUPERSAMPLING
    image = image.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean(axis=(1, 3))

    exposure = np.exp(camera.normal(0, 0.12))
    white_balance = np.exp(camera.normal(0, [0.03, 0.01, 0.04]))
    image = np.maximum(image * (exposure * white_balance).astype(np.float32), 0)
    # Highlights are compressed, not clipped.
    image = np.where(image > 0.8, 0.8 + 0.25 * np.tanh((image - 0.8) / 0.25), image)
    image = np.clip(image, 0, 1) ** (1 / camera.uniform(2.0, 2.4))  # display gamma
    contrast = camera.uniform(-0.1, 0.35)
    image = image + contrast * (image * image * (3 - 2 * image) - image)

    # As in JPEG, color has a lower resolution than brightness.
    brightness = image.mean(axis=2, keepdims=True)
    color = ndimage.uniform_filter(image - brightness, (2, 2, 1), mode="nearest")
    noise = grain.normal(0, camera.uniform(0.001, 0.006), image.shape)
    blotches = ndimage.gaussian_filter(grain.normal(0, 0.03, image.shape), (1.5, 1.5, 0))
    blotches -= blotches.mean(axis=2, keepdims=True)  # of color only, as compression leaves them
    image = brightness + color + noise + blotches
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
