"""Where stages are shown: chosen around the work, also for its threads."""

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event, Thread

import pytest
from rich.console import Console

from pixio_robot.progress import console, showing, silent, stage


def _lines() -> Console:
    return Console(file=io.StringIO())


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _work(name: str = "work", steps: int = 30) -> None:
    with stage(name, steps) as bar:
        for _ in range(steps):
            bar.advance(1)


def test_plain_lines_are_ten_a_stage_at_most() -> None:
    with showing(where := _lines()):
        _work()
    lines = _shown(where).splitlines()
    assert len(lines) == 10 and lines[0] == "work: 3/30" and lines[-1] == "work: 30/30"


def test_the_innermost_choice_holds_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with showing(outer := _lines()):
        with silent():
            _work("hidden")
        with showing(inner := _lines()):
            assert console() is inner
            _work("inner")
        assert console() is outer
        _work("outer")
    assert "hidden" not in _shown(outer) and "inner" not in _shown(outer) and "outer: 30/30" in _shown(outer)
    assert "outer" not in _shown(inner) and "inner: 30/30" in _shown(inner)
    assert capsys.readouterr() == ("", "")


def test_threads_go_by_the_choice_of_the_main_thread() -> None:
    with showing(where := _lines()), ThreadPoolExecutor(1) as pool:
        pool.submit(_work, "first").result()
        with silent():
            pool.submit(_work, "hidden").result()
        pool.submit(_work, "second").result()
    assert "first: 30/30" in _shown(where) and "second: 30/30" in _shown(where) and "hidden" not in _shown(where)


def test_what_a_thread_chooses_is_its_own() -> None:
    chosen, done = Event(), Event()

    def work() -> None:
        with silent():
            chosen.set()
            done.wait(30)
            _work("hidden")

    thread = Thread(target=work)
    with showing(where := _lines()):
        thread.start()
        assert chosen.wait(30)
        _work("main")
        done.set()
        thread.join()
    assert "main: 30/30" in _shown(where) and "hidden" not in _shown(where)


def test_stages_may_nest_and_overlap_on_a_terminal() -> None:
    where = Console(file=io.StringIO(), force_terminal=True, width=100)
    with showing(where), ExitStack() as first, ExitStack() as second:
        with stage("outer", 2) as bar:
            _work("inner", 3)
            bar.advance(2)
        one, two = first.enter_context(stage("one", 5)), second.enter_context(stage("two", 6))
        one.advance(5)
        first.close()  # the one that began first also ends first
        two.advance(6)
        second.close()
        _work("after", 4)
    for name, steps in (("outer", 2), ("inner", 3), ("one", 5), ("two", 6), ("after", 4)):
        assert any(name in line and f"{steps}/{steps}" in line for line in _shown(where).splitlines())


def test_an_error_ends_a_stage_on_a_terminal() -> None:
    where = Console(file=io.StringIO(), force_terminal=True, width=100)
    with showing(where):
        with pytest.raises(KeyError), stage("broken", 2):
            raise KeyError
        _work("after", 4)
    assert "broken" in _shown(where) and "4/4" in _shown(where)
