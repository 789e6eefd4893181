"""Figures show every layer, in order, in colours that all can tell apart, with readable labels."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from sn_mm.analysis import figures, importance
from sn_mm.equations import SCOPES

BLOCKS = {50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}


def resnet_names(depth: int) -> list[str]:
    names = ['backbone.bn1']
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            prefix = f'backbone.layer{stage}.{block}'
            names += [f'{prefix}.bn{i}' for i in (1, 2, 3)]
            names += [f'{prefix}.downsample.1'] * (block == 0)
    return names


def network(names: list[str], seed: int = 0) -> dict[str, importance.Importance]:
    random = np.random.default_rng(seed)

    def drawn() -> dict[str, float]:
        return dict(zip(SCOPES, random.dirichlet(np.ones(3)).tolist()))

    return {name: {'mean': drawn(), 'var': drawn()} for name in names}


def heights(figure: Figure, row: int = 0) -> list[list[float]]:
    """Heights of one strip's bars by scope."""
    return [[bar.get_height() for bar in bars] for bars in figure.axes[row].containers]


def assert_readable(figure: Figure) -> None:
    """No label leaves the page, and none of the labels of one kind touch."""
    figure.canvas.draw()
    page = figure.bbox
    for axes in figure.axes:
        names = [t for t in axes.texts if t.get_text() and not t.get_text().isdigit()]
        for texts in (axes.get_xticklabels(), [*names, axes.title]):
            boxes = [t.get_window_extent() for t in texts if t.get_text()]
            for box in boxes:
                assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0
                assert box.y1 <= page.y1
            # A slanted name's box is larger than its letters: names that fit are compared only.
            flat = [b for b, t in zip(boxes, texts) if t.get_rotation() in (0, 90)]
            assert not any(a.overlaps(b) for a, b in combinations(flat, 2))


@pytest.mark.parametrize(('depth', 'rows'), [(50, 1), (152, 3)])
def test_layers_are_drawn_once_each_in_network_order_and_readable(depth: int, rows: int) -> None:
    names = resnet_names(depth)
    layers = network(names)
    figure = figures.draw_layers({'model': layers})
    assert len(figure.axes) == rows * 2
    for number, statistic in enumerate(('mean', 'var')):
        for index, scope in enumerate(SCOPES):
            drawn = [h for row in range(rows) for h in heights(figure, 2 * row + number)[index]]
            assert drawn == pytest.approx([layers[name][statistic][scope] for name in names])
    assert_readable(figure)


def test_detector_is_readable_where_components_have_one_layer() -> None:
    heads = ['neck', 'bbox_head', 'mask_head', 'decode_head', 'auxiliary_head']
    names = [*resnet_names(50), *(f'{head}.convs.0.bn' for head in heads)]
    for draw in (figures.draw_layers, figures.draw_components):
        figure = draw({'model': network(names)})
        drawn = [t.get_text() for t in figure.axes[0].texts if not t.get_text().isdigit()]
        assert drawn[:10] == ['stem', 'layer1', 'layer2', 'layer3', 'layer4', *heads]
        assert_readable(figure)


def test_networks_side_by_side_share_the_axis_and_leave_gaps() -> None:
    names = resnet_names(50)
    both = {
        'detector': network([*names, 'neck.0.bn'], 0),
        'classifier': network([name.removeprefix('backbone.') for name in names], 1),
    }
    figure = figures.draw_layers(both)
    assert [axes.get_title('left') for axes in figure.axes] == [
        'Mean, detector', 'Mean, classifier', 'Variance, detector', 'Variance, classifier',
    ]  # fmt: skip
    first, second = heights(figure, 0), heights(figure, 1)
    assert [len(bars) for bars in first + second] == [54] * 6
    assert [bars[-1] for bars in second] == [0, 0, 0]
    assert sum(bars[-1] for bars in first) == pytest.approx(1)
    assert_readable(figure)


@pytest.mark.parametrize('count', [1, 4])
def test_components_show_the_average_of_each_and_of_all(count: int) -> None:
    models = {f'8 x {n}': network([*resnet_names(50), 'neck.convs.0.bn'], n) for n in range(count)}
    figure = figures.draw_components(models)
    names = [t.get_text() for t in figure.axes[0].texts if not t.get_text().isdigit()]
    assert names == ['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'neck', 'all layers']
    last = models[f'8 x {count - 1}']
    averages = importance.by_component(last)
    drawn = heights(figure, 1)
    for index, scope in enumerate(SCOPES):
        assert drawn[index][count - 1] == pytest.approx(averages['stem']['var'][scope])
        whole = np.mean([layer['var'][scope] for layer in last.values()])
        assert drawn[index][-1] == pytest.approx(whole)
    assert_readable(figure)


def test_course_ends_where_training_ended() -> None:
    course = {
        step: importance.by_component(network(resnet_names(50), step)) for step in (0, 100, 90000)
    }
    figure = figures.draw_course(course)
    assert len(figure.axes) == 2 * 5
    lowest = figure.axes[0].collections[0].get_paths()[0].vertices
    expected = course[90000]['stem']['mean']['in']
    assert max(y for x, y in lowest if x == 90000) == pytest.approx(expected)
    assert_readable(figure)


@pytest.mark.parametrize(
    'vision',
    [
        # Machado, Oliveira, Fernandes 2009, severity 1: protanopia, deuteranopia, tritanopia
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
        [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
    ],
)
def test_scopes_differ_for_every_colour_vision(vision: list[list[float]]) -> None:
    figure = figures.draw_components({'model': network(['bn1'])})
    colors = [np.array(to_rgb(bars[0].get_facecolor())) for bars in figure.axes[0].containers]
    seen = [np.clip(np.array(vision) @ color, 0, 1) for color in colors]
    assert all(np.linalg.norm(a - b) > 0.25 for a, b in combinations(seen, 2))
