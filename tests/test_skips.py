"""Which missing packages skip a test, and which are a fault of sn_mm that fails it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SN_MM, needed_by_sn_mm

AT_IMPORT = 'import nowhere'
IN_A_FUNCTION = 'def function(): import nowhere\nfunction()'
IN_ANOTHER_PACKAGE = "exec(compile('import nowhere', 'elsewhere.py', 'exec'))"


@pytest.mark.parametrize(
    ('file', 'code', 'fault'),
    [
        (Path(__file__), AT_IMPORT, False),
        (Path(__file__), IN_A_FUNCTION, False),
        (SN_MM / 'registry.py', AT_IMPORT, False),
        (SN_MM / '__init__.py', AT_IMPORT, True),
        (SN_MM / 'layer.py', IN_A_FUNCTION, True),
        (SN_MM / 'layer.py', f'def function(): {IN_ANOTHER_PACKAGE}\nfunction()', False),
    ],
)
def test_what_sn_mm_imports_while_it_runs_is_a_fault(file: Path, code: str, fault: bool) -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(compile(code, str(file), 'exec'), {})
    assert needed_by_sn_mm(caught.value) == fault
