"""The ids that a producer gives its messages are unique, and sorted as they were made."""

from __future__ import annotations

import os
import time
from itertools import islice, pairwise
from uuid import RFC_4122, UUID

from leveret.publishing.message_ids import MessageIds


def test_an_id_is_a_uuid_of_version_7_with_the_time_of_the_call() -> None:
    before = time.time_ns() // 1_000_000
    made = UUID(next(MessageIds()))
    after = time.time_ns() // 1_000_000
    assert (made.version, made.variant) == (7, RFC_4122)
    assert before <= made.int >> 80 <= after


def test_ids_of_one_maker_grow_however_many_one_millisecond_has() -> None:
    ids = MessageIds()
    made = list(islice(ids, 200_000))
    # Without a gap: a burst is faster than 4,096 ids in a millisecond somewhere, and goes on in the next one.
    assert all(earlier < later for earlier, later in pairwise(made))
    assert all(UUID(earlier) < UUID(later) for earlier, later in pairwise(made[:5000]))
    assert {UUID(one).version for one in made[::97]} == {7}


def test_ids_of_later_makers_sort_behind() -> None:
    first = next(MessageIds())
    time.sleep(0.002)
    assert first < next(MessageIds())


def test_makers_have_nothing_but_the_time_in_common() -> None:
    makers = [MessageIds() for _ in range(1000)]
    made = {next(maker) for maker in makers for _ in range(3)}
    assert len(made) == 3000
    assert len({one[-16:] for one in made}) == 1000


def test_makers_of_forked_processes_make_other_ids() -> None:
    def ids_of_a_child() -> set[str]:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.write(write, "\n".join(islice(MessageIds(), 100)).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as lines:
            made = set(lines.read().split())
        os.waitpid(child, 0)
        return made

    made = [ids_of_a_child() for _ in range(5)]
    assert len(set.union(*made)) == 500
