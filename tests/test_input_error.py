"""The check of arguments that count something."""

from __future__ import annotations

import pytest

from sn_mm.errors import InputError, check_positive_int


@pytest.mark.parametrize('value', [0, -1, True, False, 1.0, '1', None])
def test_what_is_no_positive_int_is_refused(value):
    with pytest.raises(InputError, match=f'^length must be an int >= 1, got {value!r}$'):
        check_positive_int('length', value)


@pytest.mark.parametrize('value', [1, 10**6])
def test_positive_ints_pass(value):
    check_positive_int('length', value)
