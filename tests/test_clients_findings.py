"""Show that a worker hands on each finding once, and amounts of its own request only."""

from __future__ import annotations

from clients.findings import Finding, News


class _Reads:
    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.frames = 0

    def findings(self) -> list[Finding]:
        return self.found

    def amounts(self) -> dict[str, int]:
        return {"frames": self.frames} if self.frames else {}


def test_each_finding_is_told_once_by_each_worker() -> None:
    task = _Reads()
    news, later = News(task), News(task)
    first, second = Finding("stereo", "a.wav"), Finding("broken", "b.wav", "it has no end")
    task.found.append(first)
    assert news.findings() == (first,)
    assert news.findings() == ()
    task.found.append(second)
    assert news.findings() == (second,)
    assert later.findings() == (first, second)


def test_amounts_are_those_since_the_start_of_the_request() -> None:
    task = _Reads()
    news = News(task)
    news.start()
    task.frames = 7
    assert news.amounts() == {"frames": 7}
    news.start()
    assert news.amounts() == {"frames": 0}
    task.frames = 12
    assert news.amounts() == {"frames": 5}


def test_a_task_that_tells_nothing_has_no_news() -> None:
    news = News(object())
    news.start()
    assert (news.findings(), news.amounts()) == ((), {})
