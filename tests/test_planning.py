"""The index of a job's inputs."""

from __future__ import annotations

import pytest
from snakemake.iocontainers import InputFiles

from wsi_pipeline.planning import index_inputs


class Counted(str):
    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.fixture(autouse=True)
def own() -> None:
    index_inputs()


@pytest.mark.parametrize("count", [0, 3, 1000])
def test_the_answers_are_those_of_a_list(count: int) -> None:
    files = InputFiles(toclone=[f"{number}.json" for number in range(count)])
    for name in ("0.json", "2.json", f"{count - 1}.json", f"{count}.json", ""):
        assert (name in files) == (name in list(files))
    files.append("new")
    assert "new" in files
    assert "newer" not in files


def test_a_question_costs_no_walk_through_the_inputs() -> None:
    files = InputFiles(toclone=[str(number) for number in range(10_000)])
    Counted.compared = 0
    for number in range(1000):
        assert Counted(f"{number}.json") not in files
    assert Counted.compared < 100
