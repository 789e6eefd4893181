"""What a trial is: a small network, its layers, its steps on every rank, all drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

NORMALIZERS = (('in', 'ln', 'bn'), ('ln', 'bn'), ('in', 'bn'), ('bn',))


@dataclass(frozen=True)
class Layer:
    """A norm: its channels, its scopes, the ranks that it pools over (as ``SwitchNorm.sync``)."""

    channels: int
    normalizers: tuple[str, ...]
    sync: bool | int


@dataclass(frozen=True)
class Step:
    """One forward pass, and where it trains a backward pass. Tuples have an entry for each rank.

    Attributes:
        mode: 'train'; 'norm_eval', with gradients and the running statistics; 'eval', without both.
        shapes: N, H, W of the images; N may be 0.
        needs_gradient: Whether the images do.
        rois: The number of RoIs in each call of the head.
        roi_size: Their height and width.
        extra: Whether a rank uses the parameters that have no norm after them.
        accumulate: Leave the gradients to the next step, under DDP by ``no_sync``.
    """

    mode: str
    shapes: tuple[tuple[int, int, int], ...]
    needs_gradient: tuple[bool, ...]
    rois: tuple[tuple[int, ...], ...]
    roi_size: int
    extra: tuple[bool, ...]
    accumulate: bool


@dataclass(frozen=True)
class History:
    """What becomes of one layer, on one rank, before one step."""

    how: str
    rank: int
    layer: int
    step: int


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        dtype: 'float64' or 'float32'.
        wrapper: '' (gradients averaged by hand), or DDP's setting: 'ddp', 'find_unused_parameters',
            'static_graph'.
        checkpointing: '', 'reentrant' or 'non-reentrant', of all blocks but the first.
        layers: Of the trunk's blocks, then the head's (a layer of RoIs, and one of vectors).
    """

    seed: int
    ranks: int
    dtype: str
    wrapper: str
    broadcast_buffers: bool
    checkpointing: str
    layers: tuple[Layer, ...]
    history: History | None
    steps: tuple[Step, ...]

    def features(self) -> list[str]:
        """The kinds of difficulty in it, for the record."""
        steps, trained = self.steps, [s for s in self.steps if s.mode != 'eval']
        kept = {
            f'{self.ranks} ranks': True,
            self.dtype: True,
            'groups of `sync=k` ranks': any(
                not isinstance(layer.sync, bool) and layer.sync < self.ranks
                for layer in self.layers
            ),
            'some layers with `sync=False`': any(layer.sync is False for layer in self.layers),
            'image sizes differ between ranks': any(
                len({shape[1:] for shape in s.shapes}) > 1 for s in steps
            ),
            'a rank without images': any(
                0 in (shape[0] for shape in s.shapes) and any(shape[0] for shape in s.shapes)
                for s in steps
            ),
            'a step without images': any(not any(shape[0] for shape in s.shapes) for s in steps),
            'a rank without proposals': any(
                len(set(map(any, s.rois))) > 1 for s in steps
            ),
            'a step without proposals': any(not any(map(any, s.rois)) for s in steps),
            'training and evaluation in turn': len({s.mode for s in steps}) > 1,
            'images need gradients on some ranks': any(
                len(set(s.needs_gradient)) > 1 for s in trained
            ),
            'parameters that some ranks use': any(len(set(s.extra)) > 1 for s in trained),
            'gradient accumulation, `no_sync`': any(s.accumulate for s in steps),
            f'DDP, {self.wrapper}' if self.wrapper != 'ddp' else 'DDP': bool(self.wrapper),
            f'activation checkpointing, {self.checkpointing}': bool(self.checkpointing),
            f'a layer {self.history.how} on one rank' if self.history else '': bool(self.history),
        }  # fmt: skip
        return [name for name, present in kept.items() if present]


def draw(seed: int) -> Trial:
    """The trial of a seed."""
    random = Random(seed)
    ranks = random.choice((2, 3, 4))
    dtype = random.choice(('float64', 'float64', 'float32'))
    wrapper = random.choice(('', 'ddp', 'find_unused_parameters', 'static_graph'))
    checkpointing = random.choice(('', '', 'reentrant', 'non-reentrant'))
    if checkpointing == 'reentrant' and wrapper == 'find_unused_parameters':
        checkpointing = 'non-reentrant'  # torch refuses the two together
    sizes = [k for k in range(2, ranks + 1) if ranks % k == 0]
    sync: bool | int = random.choice([True, *sizes, sizes[0]])
    blocks = random.randint(1, 3)
    layers = tuple(_draw_layer(random, sync, vectors=i == blocks + 1) for i in range(blocks + 2))
    steps: list[Step] = []
    for _ in range(random.randint(2, 4)):
        steps.append(_draw_step(random, ranks, wrapper, steps[-1] if steps else None))
    first = next((i for i, step in enumerate(steps) if step.mode != 'eval'), None)
    if wrapper == 'static_graph' and first is not None:  # torch learns the graph in this step
        steps[first] = replace(steps[first], accumulate=False)
    history = None
    if random.random() < 0.4:
        how = random.choice(('unpickled', 'copied', 'loaded'))
        # DDP holds the parameters that it was given: later they can be loaded, not replaced.
        step = 0 if wrapper and how != 'loaded' else random.randrange(len(steps))
        history = History(how, random.randrange(ranks), random.randrange(len(layers)), step)
    grouped = any(not isinstance(k.sync, bool) and k.sync < ranks or not k.sync for k in layers)
    broadcast = random.random() < 0.5 and not grouped  # else rank 0's statistics go to all
    return Trial(
        seed, ranks, dtype, wrapper, broadcast, checkpointing, layers, history, tuple(steps)
    )


def _draw_layer(random: Random, sync: bool | int, vectors: bool) -> Layer:
    local = random.random() < 0.1
    normalizers = random.choice(NORMALIZERS)
    if (local or vectors) and 'ln' not in normalizers:
        normalizers = ('ln', 'bn')  # one value of a channel alone has no batch statistics
    return Layer(random.randint(1, 9), normalizers, False if local else sync)


def _draw_step(random: Random, ranks: int, wrapper: str, previous: Step | None) -> Step:
    no_images, no_rois = random.random() < 0.05, random.random() < 0.2
    shapes = tuple(
        (
            0 if no_images or random.random() < 0.15 else random.randint(1, 3),
            random.randint(2, 6),
            random.randint(2, 6),
        )
        for _ in range(ranks)
    )
    calls = previous.rois[0] if previous else (0,) * random.choice((1, 1, 2))
    rois = tuple(
        tuple(
            0 if no_rois or not shape[0] or random.random() < 0.3 else random.randint(1, 4)
            for _ in calls
        )
        for shape in shapes
    )
    extra = tuple(wrapper in ('ddp', 'static_graph') or random.random() < 0.6 for _ in range(ranks))
    if previous and previous.accumulate:
        extra, mode = previous.extra, 'train'
    else:
        mode = random.choice(('train', 'train', 'train', 'norm_eval', 'eval'))
    accumulate = mode == 'train' and random.random() < 0.3
    needs_gradient = tuple(random.random() < 0.6 for _ in range(ranks))
    return Step(mode, shapes, needs_gradient, rois, random.choice((1, 2)), extra, accumulate)
