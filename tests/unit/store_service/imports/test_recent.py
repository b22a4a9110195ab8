"""What is remembered for a while, and for how long."""

from store_service.imports.recent import MAX_ENTRIES, Recent


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_value_is_forgotten_after_its_time() -> None:
    clock = Clock()
    recent: Recent[str, int] = Recent(10.0, clock=clock)
    recent.add("a", 1)
    clock.now_s = 9.0
    assert recent.get("a") == 1
    recent.add("a", 2)
    clock.now_s = 18.0
    assert recent.get("a") == 2
    clock.now_s = 19.0
    assert recent.get("a") is None
    assert recent.get("b") is None


def test_no_time_means_never() -> None:
    recent: Recent[str, int] = Recent(0.0)
    recent.add("a", 1)
    assert recent.get("a") is None


def test_the_oldest_make_room() -> None:
    recent: Recent[int, int] = Recent(1e9)
    for i in range(MAX_ENTRIES + 1):
        recent.add(i, i)
        recent.add(1, 1)
    assert recent.get(0) is None
    assert recent.get(1) == 1
    assert recent.get(MAX_ENTRIES) == MAX_ENTRIES
