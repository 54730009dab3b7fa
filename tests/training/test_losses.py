import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_glims.training.losses import SquaredDiceLoss, WeightedDiceLoss, enet_weight, squared_dice
from tests.two_workers import in_two_workers


def by_hand(p, t, smooth=1e-5):
    return (2 * (p * t).sum() + smooth) / ((p**2).sum() + (t**2).sum() + smooth)


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (2, 1, 5, 6, 4))
    logits = rng.normal(size=(2, 4, 5, 6, 4))
    return torch.tensor(logits), torch.tensor(labels)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_squared_dice_equals_its_formula(batch):
    logits, labels = batch
    p, t = softmax(logits.numpy()), labels.numpy()
    dice = squared_dice(torch.softmax(logits, 1), labels)
    for case in range(2):
        for label in range(4):
            assert dice[case, label].item() == pytest.approx(by_hand(p[case, label], t[case, 0] == label), abs=1e-9)
    pooled = squared_dice(torch.softmax(logits, 1), labels, batch_dice=True)
    assert pooled[0, 2].item() == pytest.approx(by_hand(p[:, 2], t[:, 0] == 2), abs=1e-9)


def test_latupnets_loss_equals_the_papers_formula(batch):
    # Labels 1 NCR, 2 ED, 3 ET with region weights WT, TC, ET.
    logits, labels = batch
    wt, tc, et = 1.64, 2.55, 3.40
    p, t = softmax(logits.numpy()), labels.numpy()
    expected = np.mean(
        [
            (wt + tc + et) * (1 - by_hand(p[case, 3], t[case, 0] == 3))
            + (wt + tc) * (1 - by_hand(p[case, 1], t[case, 0] == 1))
            + wt * (1 - by_hand(p[case, 2], t[case, 0] == 2))
            for case in range(2)
        ]
    )
    loss = WeightedDiceLoss([wt + tc, wt, wt + tc + et], regions=False)
    assert loss(logits, labels).item() == pytest.approx(expected, abs=1e-5)


def test_enet_weights_are_the_published_ones_at_plausible_shares():
    # 1/ln(1.22 + p) is 5.03 for an empty region and falls with its share.
    assert enet_weight(0) == pytest.approx(5.0288, abs=1e-3)
    assert enet_weight(0.62) == pytest.approx(1.64, abs=0.01)


@pytest.mark.parametrize("regions", [False, True])
def test_ignored_voxels_change_nothing(batch, regions):
    logits, labels = batch
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    ignored[..., :2] = True
    if regions:
        target = torch.cat([labels == 1, labels >= 2, labels == 3, labels == 0, ignored], 1).float()
        loss = WeightedDiceLoss([1, 2, 3, 4], regions=True, ignore_label=9)
    else:
        target = torch.where(ignored, 9, labels)
        loss = WeightedDiceLoss([1, 2, 3], regions=False, ignore_label=9)
    other = logits + 5 * torch.randn_like(logits) * ignored
    assert loss(other, target).item() == pytest.approx(loss(logits, target).item(), abs=1e-9)
    assert loss(logits + torch.randn_like(logits), target).item() != pytest.approx(
        loss(logits, target).item(), abs=1e-6
    )


def test_squared_dice_loss_serves_nnunets_compound_losses(batch):
    from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
    from nnunetv2.utilities.helpers import softmax_helper_dim1

    logits, labels = batch
    target = labels.float()
    compound = DC_and_CE_loss({"batch_dice": False, "smooth": 1e-5, "do_bg": False}, {}, dice_class=SquaredDiceLoss)
    dice = squared_dice(softmax_helper_dim1(logits), labels)[:, 1:].mean()
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels[:, 0])
    assert compound(logits, target).item() == pytest.approx((cross_entropy - dice).item(), abs=1e-6)

    regions = torch.cat([labels > 0, labels == 1, labels == 2, labels == 3], 1).double()
    compound = DC_and_BCE_loss({}, {"batch_dice": False, "smooth": 1e-5}, dice_class=SquaredDiceLoss)
    dice = squared_dice(torch.sigmoid(logits), regions).mean()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, regions)
    assert compound(logits, regions).item() == pytest.approx((entropy - dice).item(), abs=1e-6)


def one_step(network, images, labels, ddp):
    """Loss of a batch and the gradient of the network's weights."""
    loss = SquaredDiceLoss(lambda x: torch.softmax(x, 1), batch_dice=True, do_bg=False, ddp=ddp)(
        network(images), labels
    )
    loss.backward()
    return loss.item(), next(network.parameters()).grad.clone()


def worker(rank, network, images, labels):
    part = slice(rank, rank + 1)
    return one_step(DistributedDataParallel(network), images[part], labels[part], ddp=True)


@pytest.mark.slow
def test_two_workers_pool_their_batches_as_one_process_does(tmp_path):
    torch.manual_seed(0)
    # The cases differ in size and contrast, so that the mean of two Dice values is not the Dice of both.
    images, labels = torch.randn(2, 1, 6, 6, 6), torch.zeros(2, 1, 6, 6, 6)
    labels[0, :, :5], labels[1, :, :1, :2] = 1, 2
    network = nn.Conv3d(1, 3, 3, padding=1)
    expected_loss, expected_gradient = one_step(copy.deepcopy(network), images, labels, ddp=False)
    halves = [one_step(copy.deepcopy(network), images[part], labels[part], ddp=False)[0] for part in ([0], [1])]
    assert abs(np.mean(halves) - expected_loss) > 1e-3

    for loss, gradient in in_two_workers(worker, tmp_path, network, images, labels):
        assert loss == pytest.approx(expected_loss, abs=1e-6)
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)
