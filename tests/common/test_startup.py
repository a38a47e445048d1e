import gc

import pytest

from echoink.common.startup import imports


def test_while_importing_nothing_is_collected_and_what_was_made_is_left_out_later():
    before, made = gc.get_freeze_count(), [{"of": "a library"}]
    with imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    assert not any(made is one for one in gc.get_objects())


def test_an_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ImportError), imports():
        raise ImportError("no such library")
    assert gc.isenabled()
