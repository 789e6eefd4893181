"""The sparsestmax, which maps logits to the importance in Sparse Switchable Normalization.

Shao et al., *SSN: Learning Sparse Switchable Normalization via SparsestMax*, CVPR 2019,
arXiv 1903.03793.
"""

import torch
from torch import Tensor

from .equations import in_dtype, mask_instance, stats_dtype

__all__ = ['sparsemax', 'sparsest_logits', 'sparsestmax']


def sparsemax(logits: Tensor) -> Tensor:
    """The point of the simplex that is nearest to the logits (arXiv 1602.02068), (..., K)."""
    logits = logits - logits.detach().amax(-1, keepdim=True)  # 1 added to a large one is lost
    descending = logits.sort(-1, True)[0]
    sums = descending.cumsum(-1)
    ranks = torch.ones_like(logits).cumsum(-1)
    support = (1 + ranks * descending > sums).sum(-1, keepdim=True).clamp(min=1)
    threshold = (sums.gather(-1, support - 1) - 1) / support
    return (logits - threshold).clamp(min=0)


def sparsestmax(logits: Tensor, radius: Tensor) -> Tensor:
    """The importance of Sparse SN (arXiv 1903.03793, section 3), from the logits.

    It is the sparsemax where that lies outside of the circle around the centre of the simplex.
    Inside, it is pushed out to the circle, and where that leaves the simplex, along the face that
    it is projected on.

    Args:
        logits: (..., K). A scope with the logit -inf is left out.
        radius: Of the circle, a scalar. From that of the vertices on, sqrt(1 - 1 / K), the result
            is one-hot.

    Returns:
        The importance, as ``logits``. That of equal logits is equal up to the last radius, and
        their gradient is that of the sparsemax.
    """
    used = (logits > -float('inf')).to(logits.dtype)
    centre = used / used.sum(-1, keepdim=True)
    pushed = _push_out(sparsemax(logits), centre, radius.square())
    # Left out means left out of the projection, too.
    projected = sparsemax(torch.where(used > 0, pushed, logits))
    face = (projected > 0).to(logits.dtype)
    face = face / face.sum(-1, keepdim=True)
    away = (face - centre).square().sum(-1, keepdim=True)
    on_face = _push_out(projected, face, (radius.square() - away).clamp(min=0))
    inside = (pushed >= 0).all(-1, keepdim=True)
    first = logits.argmax(-1, keepdim=True)
    one_hot = torch.zeros_like(logits).scatter(-1, first, torch.ones_like(logits))
    vertices = (1 - centre.amax(-1, keepdim=True)).sqrt()
    return torch.where(radius >= vertices, one_hot, torch.where(inside, pushed, on_face))


def _push_out(point: Tensor, centre: Tensor, square: Tensor) -> Tensor:
    """``point``, or that on the circle of radius sqrt(square) in its direction if it is inside."""
    offset = point - centre
    offset = offset - offset.sum(-1, keepdim=True) * centre  # what rounding has added to the sum
    distance = offset.square().sum(-1, keepdim=True)
    inside = (distance < square) & (distance > 1e-12)  # nearer, the direction is rounding
    ratio = square / torch.where(inside, distance, torch.ones_like(distance))
    # No gradient of sqrt at 0, which would be infinite.
    stretch = torch.where(inside, ratio, torch.ones_like(ratio)).sqrt()
    return torch.where(inside, centre + offset * stretch, point)


def sparsest_logits(logits: Tensor, radius: Tensor, fixed: Tensor, one_position: bool) -> Tensor:
    """Logits whose softmax is the :func:`sparsestmax` of ``logits``: its logarithm.

    Args:
        logits: (2, K), those of the means above those of the variances.
        radius: Scalar.
        fixed: (2, K), the importance that is fixed, one-hot; zeros where none is.
        one_position: 'in' is the first scope and has one position: it is left out.

    Returns:
        (2, K), -inf where the importance is 0. No gradient passes there: sparsestmax has none.
    """
    logits = in_dtype(logits, stats_dtype(logits.dtype))
    if one_position:
        logits = mask_instance(logits)
        fixed = torch.nn.functional.pad(fixed[..., 1:], [1, 0])
    largest, chosen = fixed.max(-1, keepdim=True)
    one_hot = torch.zeros_like(logits).scatter(-1, chosen, torch.ones_like(logits))
    importance = torch.where(largest > 0, one_hot, sparsestmax(logits, radius.to(logits.dtype)))
    some = importance > 0
    log = torch.where(some, importance, torch.ones_like(importance)).log()
    return log.masked_fill(~some, -float('inf'))
