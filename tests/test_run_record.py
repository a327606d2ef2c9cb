from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.provenance.run_record import check_clock


def test_a_run_may_have_started_at_most_a_few_minutes_in_the_future() -> None:
    runs = [{"started": (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()} for minutes in (-60, 4, 6)]
    check_clock(runs[:2])
    with pytest.raises(ConfigError, match="Set the clock"):
        check_clock(runs)
