"""A small U-Net of nnU-Net's that has learnt something, and images it has not seen."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnunet_glims.nnunet.models import ModelFolder
from tests.export import write_case, write_model_folder

SIZE = (22, 24, 20)


def cubes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise (2, z, y, x) with a cube that is bright in channel 0 and one in channel 1; labels 1 and 2 (z, y, x)."""
    rng = np.random.default_rng(seed)
    image = rng.normal(10, 1, (2, *SIZE)).astype(np.float32)
    labels = np.zeros(SIZE, np.uint8)
    for channel, low in ((0, 0), (1, 11)):  # in halves of their own
        corner = (low + int(rng.integers(0, 5)), *(int(start) for start in rng.integers(0, 14, 2)))
        part = tuple(slice(start, start + 6) for start in corner)
        image[(channel, *part)] += 4
        labels[part] = 1 + channel
    return image, labels


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Its model folder."""
    folder = write_model_folder(tmp_path_factory.mktemp("explained"))
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    network = ModelFolder(folder).network()[0].train()
    network.load_state_dict(checkpoint["network_weights"])
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for step in range(60):
        image, labels = cubes(100 + step)
        z, y, x = (step % 2 * 6, step % 3 * 4, step % 2 * 4)  # a patch of 16³
        image = (image - image.mean((1, 2, 3), keepdims=True)) / image.std((1, 2, 3), keepdims=True)
        patch = torch.from_numpy(image[None, :, z : z + 16, y : y + 16, x : x + 16].copy())
        wanted = torch.from_numpy(labels[None, z : z + 16, y : y + 16, x : x + 16].astype(np.int64))
        loss = F.cross_entropy(network(patch), wanted, weight=torch.tensor([1.0, 4.0, 4.0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    torch.save({**checkpoint, "network_weights": network.state_dict()}, path)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of two cases, one and two."""
    folder = tmp_path_factory.mktemp("images")
    for name, seed in (("one", 1), ("two", 2)):
        write_case(folder, name, cubes(seed)[0])
    return folder
