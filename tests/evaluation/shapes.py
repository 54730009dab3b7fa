"""Small random label maps that give the same voxels on every machine."""

import numpy as np
from scipy import ndimage

REGIONS = {"all": (1, 2, 3), "core": (1, 3), "inner": (3,)}


def random_case(seed, shape=(16, 20, 12)):
    """A truth and a prediction with labels 0 to 3; of case 2 the prediction is empty, of case 3 the truth has no label 3."""
    noise = [
        ndimage.gaussian_filter(np.random.default_rng((seed, part)).standard_normal(shape), 2) for part in range(2)
    ]
    maps = []
    for field in (noise[0], noise[0] + 0.3 * noise[1]):
        maps.append(np.digitize(field, np.quantile(field, [0.8, 0.88, 0.95])).astype(np.uint8))
    truth, prediction = maps
    if seed == 1:
        prediction[np.random.default_rng(seed).random(shape) > 0.97] = 3
    if seed == 2:
        prediction[:] = 0
    if seed == 3:
        truth[truth == 3] = 1
    return truth, prediction
