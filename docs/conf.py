"""The site of these pages: python -m sphinx -W -b html docs build/site"""

from __future__ import annotations

import os
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.writers.html5 import HTML5Translator

import sn_mm

project = 'sn_mm'
release = version = sn_mm.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton']
exclude_patterns = ['build']

html_theme = 'furo'
html_title = f'sn_mm {release}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_show_copyright = False
# Each page links to the repository where the site is published: GitHub's workflow and Read the Docs
# name it.
repository = os.environ.get('READTHEDOCS_GIT_CLONE_URL', '').removesuffix('.git')
if 'GITHUB_REPOSITORY' in os.environ:
    repository = '{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}'.format_map(os.environ)
if repository:
    html_theme_options = {
        'source_repository': repository,
        'source_branch': 'main',
        'source_directory': 'docs/',
        'footer_icons': [
            {'name': 'repository', 'url': repository, 'html': 'Repository', 'class': ''}
        ],
    }
html_math_renderer = 'mathml'

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
myst_links_external_new_tab = True
# Sphinx colors `python` blocks by its own lexer; blocks of a command line are copied without '$'.
copybutton_prompt_text = '$ '

autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented_params'
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_inherit_docstrings = False  # a method without one is the base class's affair
autodoc_preserve_defaults = True


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<p class="equation">{tex2mathml(node.astext(), as_block=True)}</p>')
    raise nodes.SkipNode


def _records(app: Sphinx, env: BuildEnvironment) -> None:
    """Records stand beside the navigation: pages link to them where a sentence rests on them."""
    for page in env.found_docs:
        if page.startswith('records/'):
            env.metadata[page]['orphan'] = True


def _breakable(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Lets a name in code continue on the next line after a sign, not in the middle of a word."""

    def breaks(match: re.Match) -> str:
        return re.sub(r'(?<=\w)([_./=:,(-])(?=[^\W\d])', r'\1<wbr>', match[0])

    if 'body' in context:
        context['body'] = re.sub(r'(?<=<span class="pre">)[^<]+', breaks, context['body'])


def setup(app: Sphinx) -> None:
    """Equations as MathML, which browsers draw by themselves: nothing is fetched to read a page."""
    app.connect('html-page-context', _breakable)
    app.add_html_math_renderer('mathml', (_inline, None), (_block, None))
    app.connect('env-updated', _records)
