"""Losses and the reward optimisation of PPO, against numbers computed by hand; padding slots count nowhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.training.losses import bce_loss, contrastive_loss, focal_loss, softmax_loss
from gliclass_cli.training.ppo import entropy, focal_weights, kl_divergence, normalized, ppo_loss, rewards

LN2, LN3 = math.log(2), math.log(3)
# sigmoid(ln 3) = 3/4
LOGITS = torch.tensor([[LN3, 0.0, 99.0], [-LN3, 0.0, LN3]])
TARGETS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_bce_is_the_mean_over_real_labels() -> None:
    # -ln 3/4, ln 2 | -ln 3/4, ln 2, -ln 1/4
    expected = (2 * math.log(4 / 3) + 2 * LN2 + math.log(4)) / 5
    assert bce_loss(LOGITS, TARGETS, MASK).item() == pytest.approx(expected, rel=1e-6)


def test_focal_weighs_by_what_is_missing_and_by_class() -> None:
    a, b, c = math.log(4 / 3) / 16, LN2 / 4, math.log(4) * 9 / 16
    loss = focal_loss(LOGITS, TARGETS, MASK, alpha=-1, gamma=2)
    assert loss.item() == pytest.approx((2 * a + 2 * b + c) / 5, rel=1e-6)
    loss = focal_loss(LOGITS, TARGETS, MASK, alpha=0.7, gamma=2)
    assert loss.item() == pytest.approx((0.7 * a + 0.3 * b + 0.3 * a + 0.7 * b + 0.3 * c) / 5, rel=1e-6)


def test_focal_without_gamma_and_alpha_is_bce() -> None:
    loss = focal_loss(LOGITS, TARGETS, MASK, alpha=-1, gamma=0)
    assert loss.item() == pytest.approx(bce_loss(LOGITS, TARGETS, MASK).item())


def test_softmax_takes_a_rows_own_labels_and_shares_among_right_ones() -> None:
    # row 1: e^ln3 / (3 + 1); row 2: 1 / (1/3 + 1 + 3)
    expected = (math.log(4 / 3) + math.log(13 / 3)) / 2
    assert softmax_loss(LOGITS, TARGETS, MASK).item() == pytest.approx(expected, rel=1e-6)
    both = torch.tensor([[1.0, 1.0, 0.0]])
    loss = softmax_loss(LOGITS[:1], both, MASK[:1])
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-6)


def test_softmax_leaves_rows_without_a_right_label_out() -> None:
    nothing = torch.cat((TARGETS[:1], torch.zeros(1, 3)))
    assert softmax_loss(LOGITS, nothing, MASK).item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert softmax_loss(LOGITS, torch.zeros(2, 3), MASK).item() == 0


def test_contrastive_is_least_for_labels_at_right_angles() -> None:
    labels = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [7.0, 7.0]]])
    mask = torch.tensor([[True, True, False]])
    # cosines 1 and 0: -ln(e / (e + 1)) for both
    assert contrastive_loss(labels, mask).item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
    same = torch.ones(1, 3, 2)
    assert contrastive_loss(same, mask).item() == pytest.approx(LN2, rel=1e-6)


@given(st.integers(0, 2**31))
def test_padding_changes_no_loss(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, vectors = torch.randn(2, 3, generator=generator), torch.randn(2, 3, 4, generator=generator)
    targets = (torch.rand(2, 3, generator=generator) > 0.5).float()
    mask = torch.ones(2, 3, dtype=torch.bool)
    wide, wider = torch.cat((logits, torch.full((2, 2), 1e4)), 1), torch.cat((targets, torch.ones(2, 2)), 1)
    padded, vectors2 = torch.cat((mask, ~mask[:, :2]), 1), torch.cat((vectors, torch.randn(2, 2, 4)), 1)
    for loss in (bce_loss, softmax_loss, lambda z, y, m: focal_loss(z, y, m, alpha=0.3, gamma=1.5)):
        assert loss(wide, wider, padded).item() == pytest.approx(loss(logits, targets, mask).item(), abs=1e-6)
    assert contrastive_loss(vectors2, padded).item() == pytest.approx(contrastive_loss(vectors, mask).item(), abs=1e-6)


def test_padding_gets_no_gradient_and_none_is_nan() -> None:
    logits = torch.tensor([[1.0, -torch.inf], [0.5, 2.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    softmax_loss(logits, targets, mask).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] == 0


# --- PPO ------------------------------------------------------------------------------------------------------------


def test_the_first_ratio_is_1_and_the_loss_minus_the_mean_advantage() -> None:
    actions = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    loss = ppo_loss(LOGITS, LOGITS, actions, torch.tensor([2.0, -1.0]), MASK, clip=0.2)
    assert loss.item() == pytest.approx(-(2 * 2.0 + 3 * -1.0) / 5, rel=1e-6)


@pytest.mark.parametrize(
    ("action", "advantage", "gain"),
    [
        # p moves from 1/2 to 3/4: the ratio of "yes" is 1.5, of "no" 0.5
        (1.0, 1.0, 1.2),  # better than expected: gains beyond 1.2 are clipped
        (1.0, -1.0, -1.5),  # worse, and likelier: not clipped
        (0.0, 1.0, 0.5),  # better, and unlikelier: not clipped
        (0.0, -1.0, -0.8),  # worse: clipped at 0.8
    ],
)
def test_the_ratio_is_clipped_on_the_side_where_it_gains(action: float, advantage: float, gain: float) -> None:
    new, old = torch.tensor([[LN3]]), torch.tensor([[0.0]])
    mask, actions = torch.tensor([[True]]), torch.tensor([[action]])
    loss = ppo_loss(new, old, actions, torch.tensor([advantage]), mask, clip=0.2)
    assert loss.item() == pytest.approx(-gain, rel=1e-6)
    weights = torch.tensor([[0.25]])
    loss = ppo_loss(new, old, actions, torch.tensor([advantage]), mask, clip=0.2, weights=weights)
    assert loss.item() == pytest.approx(-0.25 * gain, rel=1e-6)


def test_the_gradient_makes_better_actions_likelier() -> None:
    logits = torch.zeros(2, 1, requires_grad=True)
    mask = torch.ones(2, 1, dtype=torch.bool)
    ppo_loss(logits, torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([1.0, -1.0]), mask, clip=0.2).backward()
    assert logits.grad is not None
    assert logits.grad[0] < 0 < logits.grad[1]  # descent raises the first, lowers the second


def test_kl_by_hand_and_0_for_the_reference_itself() -> None:
    mask = torch.tensor([[True]])
    reference, policy = torch.tensor([[0.0]]), torch.tensor([[LN3]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_divergence(reference, policy, mask).item() == pytest.approx(expected, rel=1e-6)
    assert kl_divergence(policy, policy, mask).item() == pytest.approx(0, abs=1e-7)


def test_entropy_by_hand() -> None:
    assert entropy(torch.zeros(1, 2), torch.tensor([[True, False]])).item() == pytest.approx(LN2)
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy(torch.tensor([[LN3, 0.0]]), torch.tensor([[True, False]])).item() == pytest.approx(expected)


def test_rewards_by_hand() -> None:
    actions = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False], [True] * 4, [True] * 4])
    # first: said {1, 2}, right {1, 3}
    assert rewards(actions, targets, mask, {"f1": 1.0}).tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert rewards(actions, targets, mask, {"jaccard": 1.0}).tolist() == pytest.approx([1 / 3, 1.0, 0.0])
    assert rewards(actions, targets, mask, {"accuracy": 1.0}).tolist() == pytest.approx([1 / 3, 1.0, 0.5])
    mixed = rewards(actions, targets, mask, {"f1": 3.0, "accuracy": 1.0}).tolist()
    assert mixed == pytest.approx([(1.5 + 1 / 3) / 4, 1.0, 0.125])


def test_advantages_are_normalised() -> None:
    assert normalized(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1.0, 1.0])
    assert normalized(torch.tensor([0.7])).tolist() == [0.0]


def test_focal_weights_by_hand() -> None:
    weights = focal_weights(torch.tensor([[LN3, LN3]]), torch.tensor([[1.0, 0.0]]), 2.0)
    assert weights[0].tolist() == pytest.approx([1 / 16, 9 / 16])
