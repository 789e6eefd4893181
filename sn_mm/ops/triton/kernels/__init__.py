r"""The kernels of the Triton backend.

Sizes: ``instances`` N, ``channels`` C, ``positions`` L, ``chunks`` K. A kernel takes some of

    x, dy, y, dx            (N, C, \*S), dense, contiguous or channels_last
    pivot                   (N, C), the first value of each channel
    parts                   (2, K, N, C), means about the pivot above variances of each chunk, or
                            S1 above S2 (:class:`~sn_mm.equations.Sums`) of each chunk
    instance, layer, batch  (2, N, C), (2, N), (2, C), moments of the scopes 'in', 'ln', 'bn'
    instance_sums, layer_sums, batch_sums                alike, the fields of ``Sums``
    logit_sums              (2, 3, N), of means above variances, by scope: each instance's part of
                            the gradients of the importance
    mean_weight, var_weight (scopes,), the logits; weight, bias (C,) or None
    grad_mean_weight, grad_var_weight, grad_weight, grad_bias                 their gradients
    running_mean, running_var (C,), batches () int64                          or None
    contribution            (2 C + 1,) float64, of one rank or the sum of all ranks'
    eps, momentum, correction (a factor), unbiased (a factor)                 float
    blocks, chunks, steps, chunk                                see ``triton.tiling.Tiling``

all in float32 but for inputs, parameters and running statistics, whose dtypes are free. Constants:

    IN, LN, BN              whether these scopes are mixed
    CHANNELS_LAST, UNIT     memory format; a factor of the size that is dense in memory
    BLOCK_*                 the shape of a tile, powers of two

Instances, positions and offsets of tiles are counted in 64 bits. Whatever a program reads was
written by an earlier launch, and it adds in a fixed order: results are the same from run to run.

These modules do without ``from __future__ import annotations``: Triton's interpreter before 3.3
does not see ``tl.constexpr`` in a text.
"""

from __future__ import annotations

from .backward import grad_input, grad_sums
from .forward import apply, moments
from .pooling import count_batch, pool
from .pooling_backward import grad_logits, pool_gradients
from .ranks import contribute, unite

__all__ = [
    'apply',
    'contribute',
    'count_batch',
    'grad_input',
    'grad_logits',
    'grad_sums',
    'moments',
    'pool',
    'pool_gradients',
    'unite',
]
