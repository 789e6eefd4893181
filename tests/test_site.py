"""The site of docs/: it builds without a warning, and a browser shows each page whole."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ('index', 'understand/layer', 'understand/study')
WIDTHS = (1280, 400)

MEASURE = """
<!doctype html>
<script>
const show = ([page, width]) => new Promise((done) => {
  const frame = document.createElement('iframe');
  frame.style = `width: ${width}px; height: 800px; border: 0`;
  frame.onload = async () => {
    const inside = frame.contentDocument;
    await inside.fonts.ready;
    const elements = [...inside.querySelectorAll('article *')];
    const cut = elements.filter((e) => {
      const style = frame.contentWindow.getComputedStyle(e);
      return style.visibility != 'hidden' && (e.textContent.trim() || e.matches('img'))
        && (e.getBoundingClientRect().right > width + 1
        || style.overflowX == 'auto' && e.scrollWidth > e.clientWidth + 1);
    });
    done({page, width, cut: cut.map((e) => e.outerHTML.slice(0, 200)),
      fonts: [...inside.fonts].filter((f) => f.status == 'loaded').map((f) => f.family)});
  };
  frame.src = `${page}.html`;
  document.body.append(frame);
});
onload = async () => {
  const shown = await Promise.all(SHOWN.map(show));
  document.body.textContent = JSON.stringify(shown);
};
</script>
<body></body>
"""


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; a link to a page or heading that is not there, or an unknown name, is a warning."""
    pytest.importorskip('sphinx')
    folder = tmp_path_factory.mktemp('docs')
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-b', 'html', '-d']
    result = subprocess.run(
        [*command, folder / 'doctrees', 'docs', folder / 'site'],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / 'site'


def shown(site: Path, pages: tuple[str, ...], scratch: Path) -> list[dict]:
    """What a browser says of pages at each width."""
    names = ('chromium', 'chromium-browser', 'google-chrome')
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f'no browser: none of {", ".join(names)} is installed')
    frames = json.dumps([[page, width] for page in pages for width in WIDTHS])
    (site / 'measure.html').write_text(MEASURE.replace('SHOWN', frames))
    flags = (
        '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
        '--disable-background-networking', '--disable-component-update', '--disable-sync',
        '--allow-file-access-from-files', '--virtual-time-budget=60000', '--dump-dom',
    )  # fmt: skip
    result = subprocess.run(
        [browser, *flags, f'--user-data-dir={scratch}', (site / 'measure.html').as_uri()],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    body = re.search(r'<body>(.*?)</body>', result.stdout, re.S)
    assert body is not None, result.stderr
    return json.loads(html.unescape(body[1]))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert '<math' in (site / 'understand/layer.html').read_text()


@pytest.mark.slow
def test_nothing_on_a_page_is_cut_at_the_width_of_a_screen_or_a_phone(
    site: Path, tmp_path: Path
) -> None:
    found = shown(site, PAGES, tmp_path)
    assert len(found) == len(PAGES) * len(WIDTHS)
    assert {(page['page'], page['width']): page['cut'] for page in found if page['cut']} == {}
    fonts = {page['page']: page['fonts'] for page in found}
    assert 'Noto Sans Math' in fonts['understand/layer']
